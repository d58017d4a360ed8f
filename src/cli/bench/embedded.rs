//! Appends to, and reads of, logs in this process, without a server.

use super::{
    Ack,
    run::{Answer, Next, Run},
};
use millstream::{Error, Log, store::OpenLog};
use std::sync::Arc;

/// Appends one batch, or reads one range, after the other. `logs` are those of the run.
pub(super) async fn requests(run: &Run, n: u32, logs: &[Arc<OpenLog>]) -> Result<(), Error> {
    let mut schedule = run.schedule(n, run.bench.senders());
    for turn in n as usize.. {
        let Some((next, sent)) = run.begin(turn, schedule.due().await) else { break };
        let answer = match next {
            Next::Append { log, batch, body } => {
                let values: Vec<&[u8]> = batch.values.iter().map(|value| &body[value.clone()]).collect();
                append(&logs[log], &values, run.bench.ack).await?
            }
            Next::Read { log, offset, limit } => read(&logs[log], offset, limit)?,
        };
        run.answered(&sent, Ok(answer));
        // What never has to wait would keep the others from their turns.
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn append(log: &Log, values: &[&[u8]], ack: Option<Ack>) -> Result<Answer, Error> {
    let room = log.room();
    tokio::pin!(room);
    let first = loop {
        match log.try_append_batch(values) {
            Err(Error::WouldBlock) => room.as_mut().await,
            appended => break appended?,
        }
    };
    let last = first + values.len() as u64 - 1;
    match ack {
        Some(Ack::Durable) => log.durable(last).await?,
        Some(Ack::Memory) => {}
        None => log.visible(last).await?,
    }
    Ok(Answer::default())
}

fn read(log: &Log, offset: u64, limit: u64) -> Result<Answer, Error> {
    let mut reader = log.reader(offset);
    let mut bytes = 0;
    for _ in 0..limit {
        let Some(record) = reader.read_next()? else { break };
        bytes += record.value.len() as u64;
    }
    Ok(Answer { next_offset: reader.offset(), bytes })
}
