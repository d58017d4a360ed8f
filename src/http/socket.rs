//! The socket of a connection, and what is observed while using it: whether the client takes what it is sent, and how
//! the connection ends. While the client waits for an answer, hyper is not told that it has closed its sending side:
//! hyper would assume that it is gone. What hyper answers by itself gets a problem document: see `unparsed`.

use super::{connection::Connection, unparsed};
use bytes::{Buf, Bytes};
use std::{io, pin::Pin, sync::Arc, task::Poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A connection's socket, for hyper to use.
pub(super) struct Socket {
    stream: TcpStream,
    /// What was read from the socket to detect the protocol.
    first: Bytes,
    connection: Arc<Connection>,
    /// Whether what is written next may belong to an answer that has begun: its body can have any bytes.
    in_answer: bool,
    /// What is left to be written in place of an answer that hyper has made by itself.
    instead: Bytes,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, first: Box<[u8]>, connection: Arc<Connection>) -> Self {
        Self { stream, first: first.into(), connection, in_answer: false, instead: Bytes::new() }
    }

    fn noticed<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &done {
            self.connection.failed(error);
        }
        done
    }

    /// Writes a problem document instead of these bytes, if they are an answer that hyper has made by itself; `None` if
    /// not.
    fn poll_write_instead(
        &mut self,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.instead.is_empty() {
            if self.in_answer || !self.connection.has_no_http1_request() {
                return None;
            }
            self.instead = unparsed::instead_of(bytes)?.into();
        }
        while !self.instead.is_empty() {
            let done = Pin::new(&mut self.stream).poll_write(context, &self.instead);
            match self.written(done) {
                Poll::Ready(Ok(written)) if written > 0 => self.instead.advance(written),
                other => return Some(other), // hyper comes with the same bytes again
            }
        }
        Some(Poll::Ready(Ok(bytes.len())))
    }

    fn written(&self, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let done = self.noticed(done);
        let taken = match &done {
            Poll::Ready(written) => Some(written.as_ref().map_or(0, |&bytes| bytes as u64)),
            Poll::Pending => None,
        };
        self.connection.taken(taken);
        done
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let max = self.first.len().min(into.remaining());
            into.put_slice(&self.first.split_to(max));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(context, into);
        let ended =
            matches!(done, Poll::Ready(Ok(()))) && into.filled().len() == before && into.remaining() > 0;
        if ended && self.connection.waits_for_an_answer(context.waker()) {
            // What was sent to a client that is gone comes back as an error.
            return match self.stream.take_error() {
                Ok(None) => Poll::Pending,
                Ok(Some(error)) | Err(error) => self.noticed(Poll::Ready(Err(error))),
            };
        }
        self.noticed(done)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(done) = self.poll_write_instead(context, bytes) {
            return done;
        }
        self.in_answer = true;
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [bytes] = parts
            && let Some(done) = self.poll_write_instead(context, bytes)
        {
            return done;
        }
        self.in_answer = true;
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.written(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once it has written all that it had.
        self.in_answer &= !self.connection.has_no_http1_request();
        let done = Pin::new(&mut self.stream).poll_flush(context);
        self.noticed(done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_shutdown(context);
        self.noticed(done)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::connection::{Connections, Exchange, Http1, Http2, Protocol},
        *,
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    const HEAD: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

    /// Uses a socket as `send` does, and returns what its client received.
    fn sent(protocol: Protocol, send: impl AsyncFnOnce(&mut Socket) -> io::Result<()>) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let connection = Connection::begin(&Connections::new(1), 0, None);
            connection.set_protocol(protocol);
            let mut socket = Socket::new(listener.accept().await.unwrap().0, Box::new([]), connection);
            send(&mut socket).await.unwrap();
            drop(socket);
            let mut all = String::new();
            client.read_to_string(&mut all).await.unwrap();
            all
        })
    }

    /// A record that is read is sent as it is, wherever one write ends and the next begins.
    #[test]
    fn what_looks_like_a_refusal_by_hyper_is_left_alone_within_an_answer() {
        const BEGIN: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
        let unflushed = sent(Protocol::Http1(Http1::default()), async |socket| {
            socket.write_all(BEGIN).await?;
            socket.write_all(HEAD.as_bytes()).await
        });
        let unfinished = sent(Protocol::Http1(Http1::default()), async |socket| {
            let exchange = Exchange::begin(&socket.connection);
            socket.write_all(BEGIN).await?;
            socket.flush().await?;
            drop(exchange); // with the last part of the body, which is yet to be written
            socket.write_all(HEAD.as_bytes()).await
        });
        let http2 =
            sent(Protocol::Http2(Http2::default()), async |socket| socket.write_all(HEAD.as_bytes()).await);
        let are_left = [unflushed, unfinished, http2].map(|all| all.ends_with(HEAD));
        assert_eq!(are_left, [true; 3]);
    }

    #[test]
    fn a_refusal_by_hyper_gets_a_body_at_the_beginning_and_after_whole_answers() {
        let first =
            sent(Protocol::Http1(Http1::default()), async |socket| socket.write_all(HEAD.as_bytes()).await);
        let later = sent(Protocol::Http1(Http1::default()), async |socket| {
            for _ in 0..2 {
                let exchange = Exchange::begin(&socket.connection);
                socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                socket.flush().await?;
                drop(exchange);
                socket.flush().await?;
            }
            socket.write_all(HEAD.as_bytes()).await
        });
        for all in [first, later] {
            assert!(all.contains(r#""code":"invalid_http""#) && !all.contains(HEAD), "{all}");
        }
    }
}
