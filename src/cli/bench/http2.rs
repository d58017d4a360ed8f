//! Requests over connections of HTTP/2, on one or more streams at a time.

use super::{
    Failure,
    http1::{ack, media_type},
    log_name,
    run::{Answer, Next, Run},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http2::{SendRequest, handshake},
    header::{ACCEPT, CONTENT_TYPE},
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use std::rc::Rc;
use tokio::net::TcpStream;

/// Runs tasks on the thread of the load.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move { drop(task.await) });
    }
}

/// Opens the `n`th connection, and sends requests over it.
pub(super) async fn requests(run: Rc<Run>, n: u32, address: String) -> Result<(), Failure> {
    let stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake::<_, _, Full<Bytes>>(Local, TokioIo::new(stream)).await?;
    let connection = tokio::task::spawn_local(connection);
    let streams = run.bench.in_flight();
    let all = (0..streams).map(|stream| {
        let (run, address, sender) = (Rc::clone(&run), address.clone(), sender.clone());
        tokio::task::spawn_local(
            async move { one_stream(&run, n * streams + stream, &address, sender).await },
        )
    });
    for stream in all.collect::<Vec<_>>() {
        stream.await??;
    }
    connection.abort();
    Ok(())
}

/// One request after the other.
async fn one_stream(
    run: &Run,
    n: u32,
    address: &str,
    mut sender: SendRequest<Full<Bytes>>,
) -> Result<(), hyper::Error> {
    let mut schedule = run.schedule(n, run.bench.senders());
    for turn in n as usize.. {
        let Some((next, sent)) = run.begin(turn, schedule.due().await) else { break };
        sender.ready().await?;
        let response = sender.send_request(request(run, address, next)).await?;
        run.answered(&sent, answer(response).await?);
    }
    Ok(())
}

fn request(run: &Run, address: &str, next: Next<'_>) -> Request<Full<Bytes>> {
    let media_type = media_type(run.bench.format);
    let path = format!("http://{address}/v1/logs/{}/records", log_name(next.log() as u32));
    let request = match next {
        Next::Append { body, .. } => Request::post(format!("{path}{}", ack(run)))
            .header(CONTENT_TYPE, media_type)
            .body(Full::new(body)),
        Next::Read { offset, limit, .. } => Request::get(format!("{path}?offset={offset}&limit={limit}"))
            .header(ACCEPT, media_type)
            .body(Full::default()),
    };
    request.unwrap_or_else(|_| unreachable!("the address is a client's, and the rest is valid"))
}

async fn answer(response: Response<Incoming>) -> Result<Result<Answer, String>, hyper::Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    if head.status != StatusCode::OK {
        return Ok(Err(format!("{}: {}", head.status.as_u16(), String::from_utf8_lossy(&body))));
    }
    let next_offset = head.headers.get("millstream-next-offset");
    let next_offset = next_offset.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    Ok(Ok(Answer { next_offset, bytes: body.len() as u64 }))
}
