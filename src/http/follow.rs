//! A range that goes on as records come (`follow=true`), for curl and for consumers at a high rate: lines, values or wire
//! frames, and nothing else. Unlike the events of `tail`, there are no comments while there is no news, and no event that
//! says why it ends: if it cannot go on, the answer is broken off.

use super::{
    answer::{Body, piece_by_piece},
    context::Context,
    fetch::Patience,
    problem::Problem,
    reading::Reading,
    share::ConnectionShare,
    waited::LogWait,
};
use crate::{log::Error, reports, store::OpenLog};
use hyper::body::Bytes;
use std::{io, sync::Arc};

struct Following {
    context: Arc<Context>,
    share: Arc<ConnectionShare>,
    log: Arc<OpenLog>,
    log_wait: LogWait,
    reading: Reading,
}

/// A body that begins with what `reading` reads, and ends when it has as many records as it may, or the server stops.
pub(super) fn body(
    context: &Arc<Context>,
    share: &Arc<ConnectionShare>,
    log: &Arc<OpenLog>,
    reading: Reading,
) -> Body {
    let log_wait = context.waited.begin(log, share);
    let (context, share, log) = (Arc::clone(context), Arc::clone(share), Arc::clone(log));
    piece_by_piece(Following { context, share, log, log_wait, reading }, Following::next)
}

impl Following {
    /// The next piece. The head has been sent: after an error, all that can be done is to break off.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            if self.reading.is_complete() {
                return Ok(None);
            }
            match self.wait().await {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => return Err(broken_off(&self.log, &error.into())),
            }
            let Self { context, share, log, log_wait, mut reading } = self;
            reading.continue_to(log.visible_offset());
            let patience = Patience::of(context.settings.body_time);
            // Boxed, so that little memory is held by those that wait for news.
            let made = Box::pin(reading.piece(&context, &share, &log, patience)).await;
            let (reading, piece, _) = made.map_err(|problem| broken_off(&log, &problem))?;
            self = Self { context, share, log, log_wait, reading };
            if !piece.is_empty() {
                return Ok(Some((piece, self)));
            }
            tokio::task::yield_now().await; // its records had no values: others have their turn
        }
    }

    /// Waits for the next record; `false` if there is no reason to wait any longer.
    async fn wait(&self) -> Result<bool, Error> {
        let next = self.reading.offset();
        if self.log.visible_offset() > next {
            return Ok(!*self.context.stopped.borrow() && !self.log_wait.has_ended());
        }
        tokio::select! {
            news = self.log.visible(next) => match news {
                Err(Error::Closed) if !self.log.is_deleted() => Ok(false),
                news => news.map(|()| true),
            },
            () = self.log_wait.ended() => Ok(false),
            () = self.context.stopping() => Ok(false),
        }
    }
}

fn broken_off(log: &OpenLog, problem: &Problem) -> io::Error {
    if !log.is_deleted() {
        reports::failure(log.dir(), problem, "broke off the answer to a client that follows the log");
    }
    io::Error::other("the answer was broken off")
}
