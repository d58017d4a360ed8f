//! A log file's lines, each appended over HTTP as one record, read back and compared byte for byte:
//!
//! `cargo run --release --example import_lines -- FILE [CONNECTIONS]`
//!
//! It starts a server of its own, in this process and in a new directory.

use base64::{Engine, prelude::BASE64_STANDARD};
use millstream::{
    http::{Server, Settings},
    store::{Store, StoreOptions},
};
use std::{
    error::Error,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

type Failure = Box<dyn Error + Send + Sync>;

/// A connection that is kept, with one request at a time.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    fn request(&mut self, method: &str, body: &str) -> Result<String, Failure> {
        let length = body.len();
        let request =
            format!("{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length) = (String::new(), 0);
        while self.0.read_line(&mut line)? > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        Ok(String::from_utf8(answer)?)
    }

    fn append(&mut self, value: &[u8]) -> Result<u64, Failure> {
        let value = BASE64_STANDARD.encode(value);
        let answer = self.request("POST", &format!(r#"{{"record":{{"value":"{value}"}}}}"#))?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        answer["offset"].as_u64().ok_or_else(|| answer.to_string().into())
    }

    fn read(&mut self, offset: u64) -> Result<Vec<u8>, Failure> {
        let answer = self.request("GET", &format!(r#"{{"offset":{offset}}}"#))?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let value = answer["record"]["value"].as_str().ok_or_else(|| answer.to_string())?;
        Ok(BASE64_STANDARD.decode(value)?)
    }
}

/// Deals the lines out to the connections and appends each; the offset that each line got.
fn append_all(lines: &[&[u8]], address: SocketAddr, connections: usize) -> Result<Vec<u64>, Failure> {
    let share = lines.len().div_ceil(connections);
    std::thread::scope(|scope| {
        let append = |lines: &[&[u8]]| -> Result<Vec<u64>, Failure> {
            let mut client = Client::new(address)?;
            lines.iter().map(|line| client.append(line)).collect()
        };
        let workers: Vec<_> = lines.chunks(share).map(|lines| scope.spawn(move || append(lines))).collect();
        let mut offsets = Vec::new();
        for worker in workers {
            offsets.extend(worker.join().expect("it does not panic")?);
        }
        Ok(offsets)
    })
}

fn read_all(lines: &[&[u8]], offsets: &[u64], address: SocketAddr) -> Result<(), Failure> {
    let mut client = Client::new(address)?;
    for (n, (line, &offset)) in lines.iter().zip(offsets).enumerate() {
        if client.read(offset)? != *line {
            return Err(format!("line {} came back changed, at offset {offset}", n + 1).into());
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a file: cargo run --release --example import_lines -- FILE")?;
    let connections = arguments.next().map_or(Ok(64), |number| number.parse())?;
    let file = std::fs::read(&path)?;
    let lines: Vec<&[u8]> = file.strip_suffix(b"\n").unwrap_or(&file).split(|&byte| byte == b'\n').collect();

    let dir = std::env::temp_dir().join(format!("millstream-import-{}", std::process::id()));
    let store = Store::open(&dir, StoreOptions::default())?;
    let server = Server::bind("127.0.0.1:0".parse()?, Settings::default())?;
    let address = server.address()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = std::thread::spawn(move || {
        server.run(store, async { drop(stopped.await) }).map_err(|error| error.to_string())
    });

    let begun = Instant::now();
    let offsets = append_all(&lines, address, connections)?;
    println!(
        "{} lines appended over {connections} connections in {:.2?}, each durable",
        lines.len(),
        begun.elapsed()
    );
    let mut sorted = offsets.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..lines.len() as u64) {
        return Err("the offsets are not 0, 1, 2, … without gaps".into());
    }
    let begun = Instant::now();
    read_all(&lines, &offsets, address)?;
    println!(
        "all read back over one connection in {:.2?}: every line is the same, byte for byte",
        begun.elapsed()
    );
    drop(stop);
    serving.join().expect("it does not panic")?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
