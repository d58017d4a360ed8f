//! What the system has not yet delivered of the data to be sent on connections: whether a client that has room only now
//! and then takes anything in between. Asking a single socket would take `unsafe` code; `/proc` has the figures of all
//! sockets at once.

use crate::sync::lock;
use std::{
    collections::HashMap,
    fmt::Write,
    fs,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

/// How old, in milliseconds, the table may be: it has all sockets of the network namespace.
const FRESH_MILLIS: u64 = 500;

type Table = HashMap<String, u64>;

/// The table that was read last, and when.
#[derive(Default)]
pub(super) struct Unsent(Mutex<Option<(u64, Arc<Table>)>>);

impl Unsent {
    /// The bytes that a socket has not sent, or that have not been acknowledged; `None` if the system does not say.
    pub(super) fn of(&self, now: u64, addresses: &SocketAddresses) -> Option<u64> {
        let table = {
            let mut last = lock(&self.0); // no holder leaves it half-changed
            match &*last {
                Some((at, table)) if now < at + FRESH_MILLIS => Arc::clone(table),
                _ => Arc::clone(&last.insert((now, Arc::new(read()))).1),
            }
        };
        table.get(&key(addresses)).copied()
    }
}

/// A socket's address and its client's.
pub(super) type SocketAddresses = (SocketAddr, SocketAddr);

/// The addresses as they are written in the table.
fn key((ours, theirs): &SocketAddresses) -> String {
    let mut key = String::new();
    for (address, between) in [(ours, " "), (theirs, "")] {
        let mut word = |bytes: [u8; 4]| write!(key, "{:08X}", u32::from_ne_bytes(bytes));
        // Writing to a string cannot fail.
        let _ = match address.ip() {
            IpAddr::V4(ip) => word(ip.octets()),
            IpAddr::V6(ip) => {
                ip.octets().chunks_exact(4).try_for_each(|four| word([four[0], four[1], four[2], four[3]]))
            }
        };
        let _ = write!(key, ":{:04X}{between}", address.port());
    }
    key
}

fn read() -> Table {
    let mut table = Table::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let text = fs::read_to_string(path).unwrap_or_default(); // if there is none, nothing is known
        table.extend(text.lines().skip(1).filter_map(row));
    }
    table
}

/// Parses a row: number, both addresses, state, `unsent:unread`, and more.
fn row(line: &str) -> Option<(String, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (ours, theirs, queues) = (fields.next()?, fields.next()?, fields.nth(1)?);
    let unsent = u64::from_str_radix(queues.split(':').next()?, 16).ok()?;
    (unsent > 0).then(|| (format!("{ours} {theirs}"), unsent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
    };

    #[test]
    fn unsent_bytes_of_a_connection_are_counted() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue }; // a machine without IPv6
            let port = listener.local_addr().unwrap().port();
            let client = if address.starts_with('[') { "[::1]" } else { "127.0.0.1" };
            let _client = TcpStream::connect(format!("{client}:{port}")).unwrap();
            let (mut socket, theirs) = listener.accept().unwrap();
            let addresses = (socket.local_addr().unwrap(), theirs);
            assert_eq!(Unsent::default().of(0, &addresses), None, "nothing was sent");
            socket.set_nonblocking(true).unwrap();
            let bytes = vec![0; 1 << 20];
            while socket.write(&bytes).is_ok() {}
            let unsent = Unsent::default();
            let first = unsent.of(0, &addresses).unwrap();
            assert!(first > 100_000, "{address}: {first}");
        }
    }
}
