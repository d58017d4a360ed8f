//! HTTP/2 by hand: frames as anybody may send them.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GO_AWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn literal(out: &mut Vec<u8>, name: u8, value: &str) {
    out.push(name); // from the static table, not to be indexed
    assert!(value.len() < 127);
    out.push(value.len() as u8);
    out.extend_from_slice(value.as_bytes());
}

/// The head of a GET or POST.
pub fn head(method: &str, path: &str) -> Vec<u8> {
    let mut out = vec![if method == "GET" { 0x82 } else { 0x83 }, 0x86];
    literal(&mut out, 0x01, "localhost");
    literal(&mut out, 0x04, path);
    out
}

pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", path))
}

/// A request without a body, with these headers besides.
pub fn request(stream: u32, method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    literal(&mut out, 0x02, method);
    out.push(0x86);
    literal(&mut out, 0x01, "localhost");
    literal(&mut out, 0x04, path);
    for (name, value) in headers {
        literal(&mut out, 0, name); // a name that is not in the table
        out.push(value.len() as u8);
        out.extend_from_slice(value.as_bytes());
    }
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &out)
}

/// One setting.
pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

pub struct Connection {
    pub socket: TcpStream,
    got: Vec<u8>,
}

/// A frame's type, flags, stream and payload.
pub type Frame = (u8, u8, u32, Vec<u8>);

impl Connection {
    /// Connects, and sends these settings.
    pub fn open(address: &str, settings: &[u8]) -> Self {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).unwrap();
        Self { socket, got: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// The next frame, if one comes soon; pings and settings are answered. Returns an error if the connection has
    /// ended.
    pub fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if self.got.len() >= 9 {
                let length = u32::from_be_bytes([0, self.got[0], self.got[1], self.got[2]]) as usize;
                if self.got.len() >= 9 + length {
                    let rest = self.got.split_off(9 + length);
                    let frame = std::mem::replace(&mut self.got, rest);
                    let stream = u32::from_be_bytes([frame[5] & 0x7f, frame[6], frame[7], frame[8]]);
                    let frame = (frame[3], frame[4], stream, frame[9..].to_vec());
                    if matches!(frame.0, PING | SETTINGS) && frame.1 & ACK == 0 {
                        let payload = if frame.0 == PING { &frame.3[..] } else { &[] };
                        let answer = self::frame(frame.0, ACK, 0, payload);
                        self.send(&answer)?;
                    }
                    return Ok(Some(frame));
                }
            }
            let mut bytes = vec![0; 65536];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.got.extend_from_slice(&bytes[..read]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads, and answers pings, until the connection ends: returns how long that takes, and the types of the frames
    /// received.
    pub fn until_it_ends(mut self, max: Duration) -> Option<(Duration, Vec<u8>)> {
        let (begun, mut kinds) = (Instant::now(), Vec::new());
        while begun.elapsed() < max {
            match self.next() {
                Ok(Some((kind, ..))) => kinds.push(kind),
                Ok(None) => {}
                Err(_) => return Some((begun.elapsed(), kinds)),
            }
        }
        None
    }
}
