//! Logs as resources: create, describe, list, delete, trim.

use super::{
    answer::{Answer, full, json, json_of, json_text, no_content},
    body,
    connection::RequestBody,
    context::{Asker, Context},
    object, params,
    problem::Problem,
};
use crate::{
    api::{LogInfo, LogsPage, Trim, Trimmed},
    store::{self, LogSettings, OpenLog},
};
use hyper::{Request, StatusCode};
use std::time::{Duration, Instant};

/// The most names in one page.
const MAX_PAGE_LOGS: usize = 1000;
/// How long to wait before creating a log again that others have deleted meanwhile.
const RECREATE_PAUSE: Duration = Duration::from_millis(1);

fn described(log: &OpenLog) -> Answer {
    json(&LogInfo::from(log))
}

/// `PUT`: 201 if the log is new, 200 if it exists with the same settings.
pub(super) async fn create(
    context: &Context,
    asker: Asker<'_>,
    name: &str,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    params::none(&request)?;
    let bytes = body::read_without_records(request.into_body(), context, asker.share).await?;
    let settings: LogSettings = if bytes.is_empty() {
        LogSettings::default()
    } else {
        object::parse(&bytes, "settings, or nothing")?
    };
    match context.store.check(name) {
        Err(store::Error::NotFound { .. }) => {}
        known => known?, // a name that no log can have waits for no permit
    }
    let patience = context.settings.queue_time;
    let made = context.for_log(asker.share, name, move |store, name| {
        let begun = Instant::now();
        loop {
            match store.create(name, &settings).and_then(|new| Ok((new, store.get(name)?))) {
                // It is being deleted, or has just been deleted: try again to create it.
                Err(store::Error::NotFound { .. }) if begun.elapsed() < patience => {
                    std::thread::sleep(RECREATE_PAUSE);
                }
                made => break made,
            }
        }
    });
    let (new, log) = made.await??;
    let mut answer = described(&log);
    if new {
        *answer.status_mut() = StatusCode::CREATED;
    }
    Ok(answer)
}

pub(super) async fn describe(context: &Context, asker: Asker<'_>, name: &str) -> Result<Answer, Problem> {
    Ok(described(&*context.log(asker.share, name).await?))
}

pub(super) async fn delete(
    context: &Context,
    asker: Asker<'_>,
    name: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    let wanted = params::only_log_id(&request)?;
    drop(request); // so that its header section is not held while waiting
    context.store.check(name)?;
    context.for_log(asker.share, name, move |store, name| store.delete_if(name, wanted)).await??;
    Ok(no_content())
}

pub(super) fn list(context: &Context, request: &Request<()>) -> Result<Answer, Problem> {
    let (mut after, mut limit) = (None, 100);
    for parameter in params::of(request) {
        let (name, value) = parameter?;
        match &*name {
            "after" => after = Some(value.into_owned()),
            "limit" => limit = params::number(&name, &value, 1..=MAX_PAGE_LOGS as u64)? as usize,
            _ => return Err(params::unknown(&name, "after, limit")),
        }
    }
    let mut logs = context.store.names(after.as_deref(), limit + 1);
    let more = logs.len() > limit;
    logs.truncate(limit);
    let next = logs.last().filter(|_| more).cloned();
    let unusable = context.store.unusable(&logs).into_iter().map(str::to_owned).collect();
    let page = json_text(&LogsPage { logs, next, unusable });
    Ok(json_of(full(context.memory.hold_answer(page)?)))
}

pub(super) async fn trim(
    context: &Context,
    asker: Asker<'_>,
    name: &str,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    let wanted = params::only_log_id(&request)?;
    let body = request.into_body(); // so that the header section is not held while waiting
    let log = context.log(asker.share, name).await?;
    Problem::check_id(&log, wanted)?;
    let bytes = body::read_without_records(body, context, asker.share).await?;
    let Trim { before } = object::parse(&bytes, r#"{"before":0}"#)?;
    let first_offset = context.on_log(asker.share, &log, move |log| log.trim_to(before)).await?;
    Ok(json(&Trimmed { first_offset }))
}
