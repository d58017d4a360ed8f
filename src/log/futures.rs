//! Futures that wait for a log: until a record is durable or visible, or until there is room.

use super::{
    Error, Shared,
    wait::{Frontier, Ticket},
};
use crate::sync::Arc;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

/// A place in the queue of those waiting for one of a log's frontiers to reach a point. Dropping it leaves the queue.
struct FrontierWait {
    shared: Arc<Shared>,
    frontier: fn(&Shared) -> &Frontier,
    point: u64,
    ticket: Option<Ticket>,
}

impl FrontierWait {
    fn new(shared: Arc<Shared>, frontier: fn(&Shared) -> &Frontier, point: u64) -> Self {
        Self { shared, frontier, point, ticket: None }
    }

    /// Polls until the point is reached, or `give_up` returns true, which is called after joining the queue.
    fn poll(&mut self, context: &mut Context<'_>, give_up: impl FnOnce(&Shared) -> bool) -> Poll<()> {
        self.leave();
        self.ticket = (self.frontier)(&self.shared).join(self.point, context.waker());
        if self.ticket.is_none() || give_up(&self.shared) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns success if the point has been reached, otherwise the result of `why`.
    fn outcome(&self, why: impl FnOnce(&Shared) -> Result<(), Error>) -> Result<(), Error> {
        if (self.frontier)(&self.shared).get() >= self.point { Ok(()) } else { why(&self.shared) }
    }

    fn leave(&mut self) {
        self.ticket.take().into_iter().for_each(|ticket| (self.frontier)(&self.shared).leave(ticket));
    }
}

impl Drop for FrontierWait {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Completes when a record is durable, or never will be; see [`Log::durable`](super::Log::durable).
#[must_use = "a future does nothing unless it is awaited"]
pub struct Durable(FrontierWait);

impl Durable {
    pub(super) fn new(shared: Arc<Shared>, offset: u64) -> Self {
        Self(FrontierWait::new(shared, |shared| &shared.durable, offset.saturating_add(1)))
    }
}

impl Future for Durable {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0.poll(context, |shared| shared.unless_stopped().is_err()).is_pending() {
            self.0.shared.flush.kick();
            return Poll::Pending;
        }
        Poll::Ready(self.0.outcome(Shared::unless_stopped))
    }
}

/// Completes when a record can be read, or never will be; see [`Log::visible`](super::Log::visible).
#[must_use = "a future does nothing unless it is awaited"]
pub struct Visible(FrontierWait);

impl Visible {
    pub(super) fn new(shared: Arc<Shared>, offset: u64) -> Self {
        Self(FrontierWait::new(shared, Shared::visible, offset.saturating_add(1)))
    }
}

impl Future for Visible {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.0.poll(context, |shared| shared.writable().is_err());
        polled.map(|()| self.0.outcome(Shared::writable))
    }
}

/// Completes when there may be room again; see [`Log::room`](super::Log::room).
#[must_use = "a future does nothing unless it is awaited"]
pub struct Room(FrontierWait);

impl Room {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let point = shared.roll.changes().get() + 1;
        shared.roll.ask(0);
        Self(FrontierWait::new(shared, |shared| shared.roll.changes(), point))
    }
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.poll(context, |shared| shared.writable().is_err())
    }
}
