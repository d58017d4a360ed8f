//! Futures that wait for a log: until a record is durable or visible, or until there is room.

use super::{
    Error, Shared,
    append::append,
    line::PlaceInLine,
    room::WaitFor,
    wait::{Frontier, Ticket, unless_reached},
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
        let reached = || (self.frontier)(&self.shared).get() >= self.point;
        if reached() {
            return Ok(());
        }
        unless_reached(why(&self.shared), reached)
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
        if self.0.poll(context, |shared| shared.check_can_become_durable().is_err()).is_pending() {
            self.0.shared.flush.kick();
            return Poll::Pending;
        }
        Poll::Ready(self.0.outcome(Shared::check_can_become_durable))
    }
}

/// The last offset that can be waited for. No log has a record there.
#[cfg(feature = "server")]
pub(super) const LAST_OFFSET: u64 = u64::MAX - 2;

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

/// Completes when there may be room again, and it is this caller's turn; see [`Log::room`](super::Log::room). It may be
/// awaited again, which keeps its place in the line. While it exists after it has completed, nobody behind it is woken: it
/// is to be dropped when the append has succeeded, or is given up.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Room {
    shared: Arc<Shared>,
    place: PlaceInLine,
    /// The number of events before the last look for room.
    seen: u64,
    waits: bool,
}

impl Room {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let seen = shared.roll.line().events();
        shared.roll.ask(0);
        Self { shared, place: PlaceInLine::default(), seen, waits: false }
    }

    /// Polls until it is this caller's turn. Then the number of events is read, before the caller looks for room.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let line = self.shared.roll.line();
        let waker = context.waker();
        let waits = if self.waits {
            line.still_waits(&self.place, waker)
        } else {
            line.join(&mut self.place, self.seen, waker)
        };
        // Looked at after joining the line: a log that stops wakes all that are in it by then.
        self.waits = waits && self.shared.writable().is_ok();
        if self.waits {
            return Poll::Pending;
        }
        self.seen = line.events();
        Poll::Ready(())
    }
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.poll_turn(context)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.roll.line().leave(&mut self.place);
    }
}

/// Appends when there is room; see [`Log::append_async`](super::Log::append_async).
#[must_use = "a future does nothing unless it is awaited"]
pub struct AppendAsync<V> {
    room: Room,
    value: V,
    begun: bool,
}

impl<V> AppendAsync<V> {
    pub(super) fn new(shared: Arc<Shared>, value: V) -> Self {
        let room = Room { shared, place: PlaceInLine::default(), seen: 0, waits: false };
        Self { room, value, begun: false }
    }
}

impl<V> Unpin for AppendAsync<V> {} // nothing of it is pinned

impl<V: AsRef<[u8]>> Future for AppendAsync<V> {
    type Output = Result<u64, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { room, value, begun } = &mut *self;
        if !std::mem::replace(begun, true) && room.shared.roll.line().is_waited_for() {
            // Others came first.
            room.waits = room.shared.roll.line().join_behind(&mut room.place, context.waker());
            if room.waits {
                room.shared.roll.ask(0); // so that there is another event, whatever the one before it does
            }
        }
        loop {
            if room.waits && room.poll_turn(context).is_pending() {
                return Poll::Pending;
            }
            room.seen = room.shared.roll.line().events();
            // The caller's code runs before anything is reserved.
            let done = append(&room.shared, &[value.as_ref()], None, WaitFor::Copies);
            if !matches!(done, Err(Error::WouldBlock)) {
                room.shared.roll.line().leave(&mut room.place); // it is the next one's turn
                return Poll::Ready(done);
            }
            if room.poll_turn(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// Appends when there is room, and completes when the record is durable; see
/// [`Log::append_durable`](super::Log::append_durable).
#[must_use = "a future does nothing unless it is awaited"]
pub struct AppendDurable<V> {
    append: AppendAsync<V>,
    appended: Option<(u64, Durable)>,
}

impl<V> AppendDurable<V> {
    pub(super) fn new(shared: Arc<Shared>, value: V) -> Self {
        Self { append: AppendAsync::new(shared, value), appended: None }
    }
}

impl<V: AsRef<[u8]>> Future for AppendDurable<V> {
    type Output = Result<u64, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { append, appended } = &mut *self;
        if appended.is_none() {
            let Poll::Ready(offset) = Pin::new(&mut *append).poll(context)? else { return Poll::Pending };
            *appended = Some((offset, Durable::new(Arc::clone(&append.room.shared), offset)));
        }
        let Some((offset, durable)) = appended else { return Poll::Pending };
        Pin::new(durable).poll(context).map_ok(|()| *offset)
    }
}
