//! The built binary, started for a test, and a client that speaks just enough HTTP/1.1 to test a server, and can send
//! anything.

#![allow(dead_code, reason = "each test uses its part")]

pub mod process;
pub mod processor;
pub mod program;
pub mod shm;
pub mod skipped;

use base64::{Engine, prelude::BASE64_STANDARD};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Tells threads to end, also if the test panics: they would keep it from ending.
#[derive(Default)]
pub struct Stops(AtomicBool);

impl Stops {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it when what is returned is dropped.
    pub fn at_end(&self) -> impl Drop + '_ {
        struct AtEnd<'a>(&'a AtomicBool);
        impl Drop for AtEnd<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        AtEnd(&self.0)
    }
}

/// A server with a directory of its own.
pub fn start(flags: &[&str]) -> (tempfile::TempDir, Server) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), flags);
    (data, server)
}

pub struct Server {
    pub child: Child,
    pub address: String,
}

impl Server {
    pub fn start(data: &Path, flags: &[&str]) -> Self {
        let mut said = String::new();
        let mut child = Self::command(data, flags).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let Some(line) = lines.next() else { panic!("the server ended before it listened:\n{said}") };
            let line = line.unwrap();
            if let Some((_, rest)) = line.split_once("address=") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
            said += &line;
        };
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop)); // so that the server never blocks on us
        Self { child, address }
    }

    /// The server's command, to be spawned.
    pub fn command(data: &Path, flags: &[&str]) -> Command {
        let mut command = program::millstream();
        command
            .args(["serve", "--data"])
            .arg(data)
            .args(flags)
            .env("MILLSTREAM_LISTEN", "127.0.0.1:0") // unless a flag says otherwise
            .env("MILLSTREAM_SHM_DIR", shm::dir()) // also unless a flag says otherwise
            .env("MILLSTREAM_LOG_FILTER", "info")
            .stderr(Stdio::piped());
        command
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.address).unwrap()
    }

    /// Kills the server, like `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the server to stop, and waits for that. Returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended already
        let _ = self.child.wait();
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl AsRef<str> for Answer {
    fn as_ref(&self) -> &str {
        &self.body
    }
}

/// The code of a problem, by the body of its answer.
pub fn code(body: &(impl AsRef<str> + ?Sized)) -> &str {
    let after = body.as_ref().split(r#""code":""#).nth(1);
    after.and_then(|rest| rest.split('"').next()).unwrap_or("no code")
}

/// An answer whose body is not text.
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn into_text(self) -> Answer {
        let Self { status, head, body } = self;
        Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() }
    }
}

pub struct Client(pub BufReader<TcpStream>);

impl Client {
    pub fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub fn answer(&mut self) -> io::Result<Answer> {
        Ok(self.reply()?.into_text())
    }

    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let status =
            head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let lower = head.to_ascii_lowercase();
        let length =
            lower.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if status != 304 {
            self.0.read_exact(&mut body)?;
        }
        if lower.contains("transfer-encoding: chunked") {
            self.chunks(&mut body)?;
        }
        Ok(Reply { status, head, body })
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let mut size = String::new();
            self.0.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim_end(), 16).map_err(io::Error::other)?;
            let start = body.len();
            body.resize(start + size, 0);
            self.0.read_exact(&mut body[start..])?;
            self.0.read_line(&mut String::new())?;
            if size == 0 {
                return Ok(());
            }
        }
    }

    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<Answer> {
        let mut bytes = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes)?;
        self.answer()
    }

    /// Sends a request with headers, and returns its answer as bytes.
    pub fn exchange(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Reply> {
        let mut bytes = Vec::new();
        write!(bytes, "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len())?;
        for (name, value) in headers {
            write!(bytes, "{name}: {value}\r\n")?;
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        self.send(&bytes)?;
        self.reply()
    }

    /// Appends by the book's API; returns the offset.
    pub fn append(&mut self, value: &[u8]) -> io::Result<u64> {
        let body = format!(r#"{{"record":{{"value":"{}"}}}}"#, BASE64_STANDARD.encode(value));
        let answer = self.request("POST", "/", body.as_bytes())?;
        let offset =
            answer.body.strip_prefix(r#"{"offset":"#).and_then(|rest| rest.strip_suffix("}\n")?.parse().ok());
        offset.ok_or_else(|| io::Error::other(answer.body.clone()))
    }

    /// Reads by the book's API; returns `None` if there is no such record.
    pub fn read(&mut self, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let answer = self.request("GET", "/", format!(r#"{{"offset":{offset}}}"#).as_bytes())?;
        if answer.status == 404 {
            return Ok(None);
        }
        let value =
            answer.body.strip_prefix(r#"{"record":{"value":""#).and_then(|rest| rest.split('"').next());
        let value = value.ok_or_else(|| io::Error::other(answer.body.clone()))?;
        BASE64_STANDARD.decode(value).map(Some).map_err(io::Error::other)
    }
}
