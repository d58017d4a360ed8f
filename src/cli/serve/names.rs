//! Names of hosts and origins, as flags have them.

use std::net::{IpAddr, SocketAddr};

/// Parses a host for `--allow-host`.
pub(super) fn host(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    if text == "*" || address.parse::<IpAddr>().is_ok() || is_authority(name) {
        Ok(text.to_owned())
    } else {
        Err("it is neither a name, such as log.example.com or *.example.com, nor an address, nor *"
            .to_owned())
    }
}

/// Parses an origin for `--allow-origin`, as browsers send it: without a path.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    let whole = text.split_once("://").is_some_and(|(start, rest)| scheme(start) && is_authority(rest));
    if text == "*" || text == "null" || whole {
        Ok(text.to_owned())
    } else {
        Err("it is neither an origin, such as https://app.example.com or http://localhost:8080, nor *"
            .to_owned())
    }
}

/// Whether the text is a name or an address, with or without a port.
fn is_authority(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let (name, port) = text.split_once(':').unwrap_or((text, "0"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    bare.is_some_and(|address| address.parse::<IpAddr>().is_ok())
        || (!name.is_empty() && name.bytes().all(plain) && port.parse::<u16>().is_ok())
}
