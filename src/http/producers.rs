//! Producers: what the headers of an append say of one, what a log knows about it, and its next epoch.

use super::{
    answer::{Answer, json},
    context::{Asker, Context},
    params,
    problem::Problem,
    share::ConnectionShare,
};
use crate::{
    Code, Error, ProducerState,
    api::{self, EarlierBatch, EarlierEpoch, ProducerInfo},
    log::{self, check_producer_id},
    store::OpenLog,
};
use hyper::{Request, header::HeaderMap};
use percent_encoding::percent_decode_str;
use std::{ops::RangeInclusive, sync::Arc};

/// What the headers of an append say about its producer. Which of them belong together depends on the kind of append, a
/// batch or a session.
pub(super) struct ProducerHeaders<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) epoch: Option<u32>,
    pub(super) sequence: Option<u64>,
    pub(super) mark: Option<&'a str>,
}

impl<'a> ProducerHeaders<'a> {
    pub(super) fn parse(headers: &'a HeaderMap) -> Result<Self, Problem> {
        if headers.get("producer-id").is_some_and(|id| id.to_str().is_err()) {
            return Err(Error::BadProducer.into());
        }
        let id = params::header(headers, "producer-id")?;
        id.map_or(Ok(()), check_producer_id)?;
        let number = |name, range: RangeInclusive<u64>| {
            let Some(value) = params::header(headers, name)? else { return Ok(None) };
            params::parse_number(value, &range).map(Some).ok_or_else(|| {
                let detail = format!("{name} is a whole number from {} to {}", range.start(), range.end());
                Problem::new(Code::InvalidProducer, detail)
            })
        };
        let epoch = number("Producer-Epoch", 0..=u32::MAX.into())?.map(|epoch| epoch as u32);
        // One less than the largest number, so that there is always a next one.
        let sequence = number("Producer-Seq", 0..=u64::MAX - 1)?;
        let mark = params::header(headers, "producer-mark")?;
        Ok(Self { id, epoch, sequence, mark })
    }
}

fn producer_answer(log: &OpenLog, id: String, state: ProducerState) -> Answer {
    json(&ProducerInfo {
        id,
        epoch: state.epoch,
        next_seq: state.last_sequence.map_or(0, |last| last + 1),
        last_offset: state.last_offset,
        mark: state.mark,
        log_id: log.id().to_string(),
    })
}

fn epoch_answer(context: &Context, log: &OpenLog, id: String, begun: log::BegunEpoch) -> Answer {
    let batch = |batch: log::StoredBatch| {
        let log::StoredBatch { sequence: seq, first_offset, count, .. } = batch;
        EarlierBatch { seq, first_offset, count }
    };
    let earlier = begun
        .earlier
        .map(|(epoch, batches)| EarlierEpoch { epoch, batches: batches.into_iter().map(batch).collect() });
    let log::BegunEpoch { epoch, mark, .. } = begun;
    let log_id = log.id().to_string();
    let segment_bytes = Some(context.store.batch_bytes(log.settings()));
    let max_body_bytes = Some(context.settings.body_bytes as u64);
    json(&api::BegunEpoch { id, epoch, mark, earlier, log_id, segment_bytes, max_body_bytes })
}

/// The id in a path. A percent sign is the beginning of an escape.
fn id_in(path: &str) -> Result<String, Problem> {
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    if !path.split('%').skip(1).all(is_escape) {
        return Err(Error::BadProducer.into());
    }
    let id = percent_decode_str(path).decode_utf8().map_err(|_| Error::BadProducer)?;
    check_producer_id(&id)?;
    Ok(id.into_owned())
}

/// Begins a producer's next epoch, unless it is in a later one than `after`.
pub(super) async fn begin_epoch(
    context: &Context,
    share: &ConnectionShare,
    log: &Arc<OpenLog>,
    id: &str,
    after: Option<u32>,
) -> Result<log::BegunEpoch, Problem> {
    // Queued before waiting for the permit, so that the request that holds the permit begins this epoch too. Dropped if the client
    // leaves.
    let next = Arc::new(log.ask_for_epoch(id, after).map_err(Problem::of_log(log))?);
    let asked = Arc::clone(&next);
    let last_write = move |log: &OpenLog| log.last_write_of_producers(&asked);
    context.on_log_at_write_pace(share, log, last_write, move |log| log.begin_asked_epoch(&next)).await
}

/// What the log knows about a producer, including what readers may not see yet.
pub(super) async fn known_state(
    context: &Context,
    share: &ConnectionShare,
    log: &Arc<OpenLog>,
    id: &str,
) -> Result<Option<ProducerState>, Problem> {
    if !log.producers_are_busy() && log.knows_producers() {
        return log.producer(id).map_err(Problem::of_log(log));
    }
    // Off the runtime's thread, because that reads from the disk, or waits for a batch that is being copied.
    let id = id.to_owned();
    context.on_log(share, log, move |log| log.producer(&id)).await
}

/// `POST`: the producer's next epoch, unless it is in a later one than `after`. Batches of older ones are refused from
/// now on.
pub(super) async fn begin(
    context: &Context,
    asker: Asker<'_>,
    name: &str,
    id: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    let number = |value: &str| params::number("after", value, 0..=u32::MAX.into());
    let after = params::only(&request, "after", number)?.map(|epoch| epoch as u32);
    drop(request); // so that its header section is not held while waiting
    let id = id_in(id)?;
    let log = context.log_to_append(asker.share, name, || Ok(())).await?;
    let epoch = begin_epoch(context, asker.share, &log, &id, after).await?;
    Ok(epoch_answer(context, &log, id, epoch))
}

/// `GET`: what the log knows about the producer, and readers can see.
pub(super) async fn describe(
    context: &Context,
    asker: Asker<'_>,
    name: &str,
    id: &str,
) -> Result<Answer, Problem> {
    let id = id_in(id)?;
    let log = context.log(asker.share, name).await?;
    let state = known_state(context, asker.share, &log, &id).await?;
    let state = state.ok_or_else(|| {
        let detail = "the log knows no producer of this id: it never appended, or was forgotten; begin an epoch by POST";
        Problem::new(Code::ProducerNotFound, detail)
    })?;
    if let Some(last) = state.last_offset {
        context.acknowledged(&log, last, None).await?;
    }
    Ok(producer_answer(&log, id, state))
}
