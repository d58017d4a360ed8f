//! The address of a server.

use super::Error;
use hyper::Uri;

/// The address in `text`, with its scheme, and without a `/` at its end.
pub(super) fn parse(text: &str) -> Result<String, Error> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let rest = rest.trim_end_matches('/');
    // A password is not repeated.
    let shown =
        rest.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("{scheme}://…@{host}"));
    let bad = |reason| Err(Error::BadUrl { url: shown.clone(), reason });
    match &*scheme.to_ascii_lowercase() {
        "http" => {}
        "https" => {
            return bad("the server speaks no TLS: give the address behind what ends TLS, or of a tunnel");
        }
        _ => return bad("only http is spoken"),
    }
    if rest.contains(['?', '#']) {
        return bad("it has a query, or a fragment");
    }
    let address = format!("http://{rest}");
    let Ok(uri) = address.parse::<Uri>() else { return bad(NO_ADDRESS) };
    let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
        return bad(NO_ADDRESS);
    };
    if authority.as_str().contains('@') {
        return bad("it has a user or a password, which no server asks for");
    }
    if authority.as_str() != authority.host() && authority.port_u16().is_none_or(|port| port == 0) {
        return bad("its port is not a number from 1 to 65535");
    }
    Ok(address)
}

const NO_ADDRESS: &str = "it has no host";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_a_scheme() {
        for (text, address) in [
            ("127.0.0.1:4437", "http://127.0.0.1:4437"),
            ("http://host/", "http://host"),
            ("HTTP://host:1", "http://host:1"),
            ("[::1]:4437", "http://[::1]:4437"),
            ("http://[::1]", "http://[::1]"),
            ("http://host/behind/a/proxy/", "http://host/behind/a/proxy"),
        ] {
            assert_eq!(parse(text).unwrap(), address, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_says_why() {
        for (text, why) in [
            ("", "no host"),
            ("http://", "no host"),
            ("http:///", "no host"),
            ("http://a b", "no host"),
            ("ftp://host", "only http"),
            ("https://host", "TLS"),
            ("host:99999", "port"),
            ("host:0", "port"),
            ("host:x", ""),
            ("host:", "port"),
            ("http://host?x", "query"),
            ("http://host/#x", "fragment"),
            ("http://me:secret@host", "password"),
            ("me:secret@host:1", "password"),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.contains(why) && !said.contains("secret"), "{text}: {said}");
        }
    }
}
