//! Cursors as resources: named positions of consumers, which the log keeps.

use super::{
    answer::{Answer, full, json, json_of, json_text, no_content},
    body,
    connection::RequestBody,
    context::{Asker, Context},
    object, params,
    problem::Problem,
};
use crate::{
    Code, Cursor, LogId,
    api::{CursorInfo, CursorPosition, CursorsInfo},
    log::CursorCondition,
    store::OpenLog,
};
use hyper::{Request, StatusCode};
use std::sync::Arc;

/// The cursor of a path, of a log that exists.
async fn find(
    context: &Context,
    asker: Asker<'_>,
    log: &str,
    name: &str,
) -> Result<(Arc<OpenLog>, Cursor), Problem> {
    let log = context.log(asker.share, log).await?;
    let cursor = log.cursor(name)?;
    Ok((log, cursor))
}

/// The offset of a cursor that must exist.
pub(super) fn offset_of(log: &OpenLog, cursor: &Cursor) -> Result<u64, Problem> {
    let offset = cursor.offset().map_err(Problem::of_log(log))?;
    offset.ok_or_else(|| {
        let detail = format!("the log has no cursor {:?}; set it first", cursor.name());
        Problem::new(Code::CursorNotFound, detail)
    })
}

/// `GET`: where a cursor is.
pub(super) async fn describe(
    context: &Context,
    asker: Asker<'_>,
    log: &str,
    name: &str,
) -> Result<Answer, Problem> {
    let (log, cursor) = find(context, asker, log, name).await?;
    Ok(json(&CursorInfo::new(&log, name, offset_of(&log, &cursor)?)))
}

/// `GET` of all of a log's cursors.
pub(super) async fn list(context: &Context, asker: Asker<'_>, log: &str) -> Result<Answer, Problem> {
    let log = context.log(asker.share, log).await?;
    let all = log.cursors().map_err(Problem::of_log(&log))?;
    let cursors = all.iter().map(|(name, &offset)| CursorInfo::new(&log, name, offset)).collect();
    Ok(json_of(full(context.memory.hold_answer(json_text(&CursorsInfo { cursors }))?)))
}

/// `PUT`: sets a cursor, under a condition if there is one. Durable when it is answered.
pub(super) async fn set(
    context: &Context,
    asker: Asker<'_>,
    log: &str,
    name: &str,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    let (condition, wanted) = condition(&request)?;
    let body = request.into_body(); // so that the header section is not held while waiting
    let (log, cursor) = find(context, asker, log, name).await?;
    Problem::check_id(&log, wanted)?;
    let bytes = body::read_without_records(body, context, asker.share).await?;
    let CursorPosition { offset } = object::parse(&bytes, r#"{"offset":0}"#)?;
    let was = change(context, asker, &log, cursor, Some(offset), condition).await?;
    let mut answer = json(&CursorInfo::new(&log, name, offset));
    if was.is_none() {
        *answer.status_mut() = StatusCode::CREATED;
    }
    Ok(answer)
}

/// `DELETE`: removes a cursor.
pub(super) async fn remove(
    context: &Context,
    asker: Asker<'_>,
    log: &str,
    name: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    let (condition, wanted) = condition(&request)?;
    drop(request);
    let (log, cursor) = find(context, asker, log, name).await?;
    Problem::check_id(&log, wanted)?;
    offset_of(&log, &cursor)?;
    change(context, asker, &log, cursor, None, condition).await?;
    Ok(no_content())
}

/// `DELETE` of all of a log's cursors, also if their file is damaged.
pub(super) async fn remove_all(
    context: &Context,
    asker: Asker<'_>,
    log: &str,
    request: Request<()>,
) -> Result<Answer, Problem> {
    let wanted = params::only_log_id(&request)?;
    drop(request);
    let log = context.log(asker.share, log).await?;
    Problem::check_id(&log, wanted)?;
    context.on_log(asker.share, &log, |log| log.remove_cursors()).await?;
    Ok(no_content())
}

/// The condition of a change: `expect=N`, or `expect=none` if the cursor must not exist; and the id that its log must have.
fn condition<B>(request: &Request<B>) -> Result<(CursorCondition, Option<LogId>), Problem> {
    let (mut condition, mut log_id) = (CursorCondition::Anywhere, None);
    for parameter in params::of(request) {
        let (name, value) = parameter?;
        match &*name {
            "expect" if value == "none" => condition = CursorCondition::Nowhere,
            "expect" => condition = CursorCondition::At(params::number(&name, &value, 0..=u64::MAX)?),
            "log_id" => log_id = Some(params::log_id(&value)?),
            _ => return Err(params::unknown(&name, "expect, log_id")),
        }
    }
    Ok((condition, log_id))
}

/// Changes a cursor, off the runtime's thread; returns where it was.
async fn change(
    context: &Context,
    asker: Asker<'_>,
    log: &Arc<OpenLog>,
    cursor: Cursor,
    to: Option<u64>,
    condition: CursorCondition,
) -> Result<Option<u64>, Problem> {
    // Queued before waiting for the permit, so that the request that holds the permit makes this change too. Dropped if the client
    // leaves.
    let change = Arc::new(cursor.ask_for_change(to, condition).map_err(Problem::of_log(log))?);
    let (same_change, same_cursor) = (Arc::clone(&change), cursor.clone());
    let last_write = move |_: &OpenLog| same_cursor.last_write(&same_change);
    context.on_log_at_write_pace(asker.share, log, last_write, move |_| cursor.make_change(&change)).await
}
