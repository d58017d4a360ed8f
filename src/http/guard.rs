//! Refuses requests because of where they come from: a browser sends requests to this server on behalf of any page that
//! it shows, and says so in headers that no other client sends.
//!
//! - `Origin`, and `Sec-Fetch-Site`: a page of another origin may not use the log, unless a flag allows that origin. A
//!   page that this server itself has sent may: its origin is the host that the request names. A link on another page
//!   may be followed: the browser shows the answer, which the page with the link never sees, and a GET changes nothing.
//! - `Host` (HTTP/2: `:authority`): a page whose own name was made to resolve to this server (DNS rebinding) has the
//!   same origin, but the host that it names is not one of ours. Without a flag, these are:
//!
//! | listening on | known hosts |
//! | --- | --- |
//! | a loopback address | `localhost` and names below it, loopback addresses, `0.0.0.0` and `[::]` |
//! | any other | the same, all addresses, names without a dot (as in a compose file, and of the machine), the machine's own name, also with `.local`; from clients other than browsers any name |
//!
//! DNS rebinding cannot use an address as the host, and a stranger cannot own a name without a dot in the public DNS.
//! If other machines are to reach the server, they have names for it that it does not know (a cluster's DNS), so only
//! browsers are held to the list: no page can stop its browser from identifying itself. On a loopback address, all
//! clients are. Ports are ignored: they differ behind a forwarded port. A request of HTTP/1.0 may name no host: it does not
//! come from a browser. `/healthz` and `/readyz` are for probes under any name, and reveal nothing about the logs.

use super::{
    headers::{SEC_FETCH_DEST, SEC_FETCH_MODE, SEC_FETCH_SITE},
    params,
    problem::Problem,
    settings::Settings,
};
use crate::Code;
use hyper::{
    Method, Request, Version,
    header::{ACCEPT_LANGUAGE, HOST, HeaderMap, ORIGIN, USER_AGENT},
};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const ANY: &str = "*";

/// Decides by its headers whether a request may be answered.
#[derive(Debug)]
pub(super) struct Guard {
    /// What most clients send as the host, including the port.
    usual: [String; 2],
    /// Whether the server listens on a loopback address only.
    loopback: bool,
    /// Names, in lower case; if one begins with a dot, also all names below it.
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    any_host: bool,
    origins: Vec<String>,
    any_origin: bool,
}

impl Guard {
    pub(super) fn new(settings: &Settings, listening: SocketAddr) -> Self {
        let loopback = listening.ip().is_loopback();
        let hosts = || settings.allow_hosts.iter().map(String::as_str);
        let mut names: Vec<String> =
            hosts().map(|host| without_dot(name_of(host)).trim_start_matches('*').to_lowercase()).collect();
        if !loopback {
            let machine = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
            names.extend([format!("{machine}.local"), machine]);
        }
        Self {
            usual: [listening.to_string(), format!("localhost:{}", listening.port())],
            loopback,
            names,
            addresses: hosts().filter_map(|host| address_of(name_of(host))).collect(),
            any_host: hosts().any(|host| host == ANY),
            origins: settings.allow_origins.clone(),
            any_origin: settings.allow_origins.iter().any(|origin| origin == ANY),
        }
    }

    /// Refuses a request that names a host other than ours, or comes from a page that may not use the log.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Problem> {
        let headers = request.headers();
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().map(|host| host.to_str().unwrap_or("?")); // one that is not text is refused, as this is
        if hosts.next().is_some() {
            return Err(Problem::new(Code::InvalidHost, "the request names more than one Host"));
        }
        if host.is_none() && request.version() == Version::HTTP_11 {
            // RFC 9112, 3.2
            return Err(Problem::new(Code::InvalidHost, "the request names no Host, which HTTP/1.1 demands"));
        }
        let authority = request.uri().authority().map(hyper::http::uri::Authority::as_str);
        let probe = matches!(request.uri().path(), "/healthz" | "/readyz");
        for host in host.into_iter().chain(authority) {
            if !is_host(host) {
                let host = params::beginning(host, 100);
                let detail = format!("{host:?} is not the name or address of a host, with or without a port");
                return Err(Problem::new(Code::InvalidHost, detail));
            }
            if !self.knows(host) && !probe && (self.loopback || is_of_a_browser(headers)) {
                let host = params::beginning(host, 100);
                let detail = format!(
                    "{host:?} is not a name of this server; serve --allow-host makes it one, if it is meant to be"
                );
                return Err(Problem::new(Code::UnknownHost, detail));
            }
        }
        if self.any_origin {
            return Ok(());
        }
        if request.method() == Method::GET && is_a_link(headers) {
            return Ok(());
        }
        self.check_origin(headers, authority.or(host))
    }

    fn check_origin(&self, headers: &HeaderMap, host: Option<&str>) -> Result<(), Problem> {
        let refused = |from: &str| {
            let from = params::beginning(from, 100);
            let detail = format!(
                "a page of another origin ({from}) may not use this server; serve --allow-origin lets it"
            );
            Err(Problem::new(Code::OriginNotAllowed, detail))
        };
        let site = params::header(headers, SEC_FETCH_SITE.as_str())?;
        if let Some(origin) = params::header(headers, ORIGIN.as_str())? {
            let own = origin
                .split_once("://")
                .is_some_and(|(_, its)| host.is_some_and(|host| its.eq_ignore_ascii_case(host)));
            let allowed = own || self.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin));
            return if allowed { Ok(()) } else { refused(origin) };
        }
        if site == Some("cross-site") { refused("cross-site") } else { Ok(()) }
    }

    /// `host` is one of those that [are hosts](is_host).
    fn knows(&self, host: &str) -> bool {
        if self.any_host || self.usual.iter().any(|usual| usual == host) {
            return true;
        }
        let name = name_of(host);
        if let Some(address) = address_of(name) {
            let here = address.is_loopback() || address.is_unspecified();
            return !self.loopback || here || self.addresses.contains(&address);
        }
        let name = without_dot(name);
        if !is_name(name) {
            return false; // whatever it ends with
        }
        let is_one_label = !name.is_empty() && !name.contains('.');
        is_or_is_below("localhost", name) || (!self.loopback && is_one_label) || self.is_named(name)
    }

    fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| match known.strip_prefix('.') {
            Some(above) => is_or_is_below(above, name),
            None => known.eq_ignore_ascii_case(name),
        })
    }
}

/// Whether a browser has sent the request: these are headers that every browser sends, and that no page can leave out.
fn is_of_a_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).map_or(&b""[..], |agent| agent.as_bytes());
    [ORIGIN, SEC_FETCH_SITE, ACCEPT_LANGUAGE].iter().any(|name| headers.contains_key(name))
        || agent.starts_with(b"Mozilla/")
}

/// Whether a user has followed a link to this server, to have the answer shown on its own: not within the page that
/// the link is on.
fn is_a_link(headers: &HeaderMap) -> bool {
    let is = |name, value| headers.get(name).is_some_and(|has| has == value);
    !headers.contains_key(ORIGIN) && is(SEC_FETCH_MODE, "navigate") && is(SEC_FETCH_DEST, "document")
}

/// The address that a host is, with or without brackets; an IPv4 address mapped to IPv6 becomes an IPv4 address.
fn address_of(name: &str) -> Option<IpAddr> {
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// Removes a dot at the end: `log.example.com.` is `log.example.com`.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether this is what a request may name as its host: a name or an address, and maybe a port. Nothing else that a URL
/// can have there, such as a user: other programs between a client and this one may see another host in it. A client may
/// also leave the name empty (RFC 9112, 3.2).
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, rest)) if address.parse::<Ipv6Addr>().is_ok() => ("", rest),
        Some(_) => return false,
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_name(name)
        && (port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.is_empty() || is_port(port)))
}

/// Whether a name consists of what names of hosts, and IPv4 addresses, consist of.
fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') && (name.ends_with(']') || !name.contains(':')) => name,
        _ => host,
    }
}

fn is_or_is_below(above: &str, name: &str) -> bool {
    let Some(start) = name.len().checked_sub(above.len()) else { return false };
    let (rest, end) = (name.as_bytes(), above.as_bytes());
    rest[start..].eq_ignore_ascii_case(end) && (start == 0 || (start > 1 && rest[start - 1] == b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(listening: &str, hosts: &[&str]) -> Guard {
        let allow_hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Guard::new(&Settings { allow_hosts, ..Settings::default() }, listening.parse().unwrap())
    }

    #[test]
    fn only_our_own_host_names_are_accepted() {
        let loopback = guard("127.0.0.1:4437", &["log.example.com:80", "*.example.org", "192.0.2.7"]);
        let any = guard("0.0.0.0:4437", &[]);
        assert!(guard("127.0.0.1:4437", &["2001:db8::1"]).knows("[2001:db8::1]:80"));
        for host in [
            "127.0.0.1:4437",
            "localhost",
            "LOCALHOST:1",
            "a.localhost:80",
            "localhost.",
            "127.9.9.9",
            "[::1]:80",
            "[::1]",
            "0.0.0.0:4437",
            "[::]",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(loopback.knows(host) && any.knows(host), "{host}");
        }
        for host in ["log.example.com", "LOG.example.com:4437", "a.example.org", "example.org", "192.0.2.7:1"]
        {
            assert!(loopback.knows(host) && (!any.knows(host) || host.starts_with("192")), "{host}");
        }
        let strangers = [
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            ".localhost",
            "127.0.0.1.evil.example",
            "xexample.org",
            "127.0.0.1@evil.example",
            "evil.example/.localhost",
            "evil.example?.example.org",
            "evil.example#.localhost:80",
            "[::ffff:10.0.0.1]",
            "[localhost]",
            "",
            ":80",
            "10.0.0.1:4437",
            "[2001:db8::1]:80",
            "millstream",
            "a.log.example.com",
        ];
        for host in strangers {
            assert!(!loopback.knows(host), "{host}");
        }
        for host in ["10.0.0.1:4437", "[2001:db8::1]:80", "millstream:4437", "my-machine"] {
            assert!(any.knows(host), "{host}");
        }
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert!(any.knows(&machine) && any.knows(&format!("{machine}.local:4437")));
        for host in ["evil.example", "evil.example:4437", "127.0.0.1.evil.example", "", ":80", "a b", "x@y"] {
            assert!(!any.knows(host), "{host}");
        }
        assert!(guard("127.0.0.1:1", &["*"]).knows("evil.example"));
    }

    /// `localhost:80@evil.example` was known as `localhost`, and any port was accepted.
    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        let hosts = [
            "localhost",
            "a-b.example.:80",
            "10.0.0.1:0",
            "[::1]",
            "[::1]:65535",
            "a_b:",
            "[::]:",
            "",
            ":80",
        ];
        for host in hosts {
            assert!(is_host(host), "{host}");
        }
        let others = [
            "localhost:80@evil.example",
            "evil@localhost",
            "localhost:99999",
            "localhost:65536",
            "localhost:+80",
            "localhost:80:80",
            "localhost: 80",
            "localhost:x",
            "[::1]80",
            "[::1]:99999",
            "[::1",
            "::1",
            "[127.0.0.1]",
            "[localhost]",
            "localhost/x",
            "localhost?x",
            "localhost#x",
            "local host",
            "localhost,evil.example",
            "%6cocalhost",
            "?",
        ];
        let (usual, any) = (guard("127.0.0.1:4437", &[]), guard("0.0.0.0:4437", &["*"]));
        for host in others {
            assert!(!is_host(host), "{host}");
            for guard in [&usual, &any] {
                let named = Request::builder().uri("/v1/logs").header(HOST, host).body(()).unwrap();
                let refused = guard.check(&named).unwrap_err();
                assert_eq!(refused.code(), "invalid_host", "{host}");
            }
        }
        for authority in ["localhost:99999", "localhost:80@evil.example", "evil@localhost"] {
            let uri = format!("http://{authority}/v1/logs");
            let Ok(named) = Request::builder().uri(&uri).header(HOST, "localhost").body(()) else { continue };
            assert_eq!(usual.check(&named).unwrap_err().code(), "invalid_host", "{uri}");
        }
        let origin = Request::builder().uri("/v1/logs").header(HOST, "localhost:80");
        let origin = origin.header(ORIGIN, "http://localhost:80@evil.example").body(()).unwrap();
        assert_eq!(usual.check(&origin).unwrap_err().code(), "origin_not_allowed");
    }

    /// Of two, the first one decided.
    #[test]
    fn where_a_request_comes_from_is_said_once() {
        let guard = guard("127.0.0.1:4437", &[]);
        for (name, values) in
            [(ORIGIN, ["http://localhost", "http://evil"]), (SEC_FETCH_SITE, ["same-origin", "cross-site"])]
        {
            let [first, second] = values;
            let request = Request::builder().method(Method::POST).uri("/").header(HOST, "localhost");
            let twice = request.header(name.clone(), first).header(name, second).body(()).unwrap();
            assert_eq!(guard.check(&twice).unwrap_err().code(), "invalid_request");
        }
    }
}
