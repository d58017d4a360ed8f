//! The ceilings: hyper on one runtime that reads and drops a body and returns a fixed answer, or answers a GET with 1
//! MiB of memory. For `benches/http.sh` and `benches/http_batches.sh`; prints the address that it listens on.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::convert::Infallible;

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    static MEBIBYTE: [u8; 1 << 20] = [b'x'; 1 << 20];
    if request.method() == hyper::Method::GET {
        return Ok(Response::new(Full::new(Bytes::from_static(&MEBIBYTE))));
    }
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {} // dropped as it arrives
    Ok(Response::new(Full::new(Bytes::from_static(b"{\"offset\":12345}\n"))))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .into_owned(),
        );
    }
}
