//! A connection that sends what was made before, and reads as much of answers as a load generator needs: their status,
//! their length, and the lines of a session.

use bytes::Buf;
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// The largest head of an answer.
const MAX_HEAD_BYTES: usize = 16 << 10;

pub(super) struct Sender(OwnedWriteHalf);

pub(super) struct Receiver {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    /// What is left of the buffer begins here.
    from: usize,
}

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// The length of the body, unless it comes in chunks.
    pub(super) length: Option<usize>,
    /// Where to read on, if it says that.
    pub(super) next_offset: Option<u64>,
}

pub(super) async fn connect(address: &str) -> io::Result<(Sender, Receiver)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (stream, sender) = stream.into_split();
    Ok((Sender(sender), Receiver { stream, buffer: Vec::new(), from: 0 }))
}

impl Sender {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Sends both, if possible at once.
    pub(super) async fn send_both(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        self.0.write_all_buf(&mut Buf::chain(head, body)).await
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Receiver {
    async fn read_more(&mut self) -> io::Result<()> {
        if self.from == self.buffer.len() || self.from > MAX_HEAD_BYTES {
            self.buffer.drain(..self.from);
            self.from = 0;
        }
        self.buffer.reserve(4096);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Reads the head of the next answer.
    pub(super) async fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some((head, length)) = parse(&self.buffer[self.from..])? {
                self.from += length;
                return Ok(head);
            }
            if self.buffer.len() - self.from > MAX_HEAD_BYTES {
                return Err(broken("the head of an answer is too long"));
            }
            self.read_more().await?;
        }
    }

    /// Reads this many bytes of a body.
    pub(super) async fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() - self.from < length {
            self.read_more().await?;
        }
        let body = self.buffer[self.from..self.from + length].to_vec();
        self.from += length;
        Ok(body)
    }

    /// Reads and drops this many bytes of a body.
    pub(super) async fn skip(&mut self, length: usize) -> io::Result<()> {
        while self.buffer.len() - self.from < length {
            self.read_more().await?;
        }
        self.from += length;
        Ok(())
    }

    /// Reads the next chunk of a body that comes in chunks; `None` at its end.
    pub(super) async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            match httparse::parse_chunk_size(&self.buffer[self.from..]) {
                Ok(httparse::Status::Complete((line, length))) => {
                    self.from += line;
                    let length = usize::try_from(length).map_err(|_| broken("a chunk is too large"))?;
                    let chunk = self.body(length + 2).await?;
                    return Ok((length > 0).then(|| chunk[..length].to_vec()));
                }
                Ok(httparse::Status::Partial) => self.read_more().await?,
                Err(error) => return Err(broken(&error.to_string())),
            }
        }
    }
}

/// The head that begins here, and its length; `None` if it is not whole.
fn parse(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|error| broken(&error.to_string()))?;
    let httparse::Status::Complete(length) = parsed else { return Ok(None) };
    let number = |name: &str| -> Option<u64> {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()?.parse().ok()
    };
    let body = number("content-length").and_then(|length| usize::try_from(length).ok());
    let next_offset = number("millstream-next-offset");
    Ok(Some((Head { status: response.code.unwrap_or(0), length: body, next_offset }, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_when_they_are_whole() {
        let answer = b"HTTP/1.1 429 Too Many\r\ncontent-Length: 12\r\nA: b\r\n\r\nbody";
        let whole = Head { status: 429, length: Some(12), next_offset: None };
        assert_eq!(parse(answer).unwrap(), Some((whole, answer.len() - 4)));
        for end in 0..answer.len() - 4 {
            assert_eq!(parse(&answer[..end]).unwrap(), None, "{end}");
        }
        assert!(parse(b"SMTP ready\r\n\r\n").is_err());
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nMillstream-Next-Offset: 7\r\n\r\n";
        assert_eq!(
            parse(chunked).unwrap().unwrap().0,
            Head { status: 200, length: None, next_offset: Some(7) }
        );
    }
}
