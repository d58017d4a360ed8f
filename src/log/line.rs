//! The line of callers that wait for room: for a segment that they can append to.
//!
//! Whatever makes room, such as a new segment, is an event. An event gives the turn to the caller at the front of the
//! line, and to no other. That caller tries to append. If it succeeds, or gives up, it passes the turn on to the next
//! caller, which may find room in the same segment. If it finds that there is no room after all, it goes back to its place
//! at the front, and the turn is over until the next event. So those who came first append first. Threads and async tasks
//! wait in the same line.
//!
//! No wake-up is lost: a caller reads the number of events before it looks for room, gets into the line, and then reads
//! the number again by adding zero to it; an event raises the number and then looks whether anyone waits. Of these two
//! read-modify-writes of the number the later one acquires from the earlier, so one of them sees the other, as in
//! [`wait`](super::wait). A turn cannot be lost either: it is passed on under the lock under which callers get into the
//! line, and when a [`PlaceInLine`] is dropped.
//!
//! A caller that has the turn and does nothing, such as a future that nobody polls, holds up those behind it. As long as
//! anyone waits, the maintenance task makes another event every [`NUDGE`].

use super::wait::{park_until, unpark_this_thread};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crossbeam::utils::CachePadded;
use std::{
    collections::BTreeMap,
    task::Waker,
    time::{Duration, Instant},
};

/// After this time a turn that was not taken is given to the next caller.
pub(crate) const NUDGE: Duration = Duration::from_millis(25);

/// The callers that wait for room, in the order in which they get a turn.
pub(crate) struct Line {
    events: CachePadded<AtomicU64>,
    /// How many wait without having the turn: to be looked at without the lock.
    waiting: AtomicU64,
    callers: Mutex<Callers>,
}

#[derive(Default)]
struct Callers {
    /// Those that wait, by the numbers of their places: the lowest is the front.
    wakers: BTreeMap<u64, Waker>,
    /// The last number that was given out.
    last_place: u64,
    /// How many have been woken, and have not given their turn back.
    turns: u64,
}

/// A caller that looks for room, and its place in the line, if it had to get into it. Dropping it leaves the line.
pub(crate) struct Turn<'a> {
    line: &'a Line,
    place: PlaceInLine,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(line: &'a Line) -> Self {
        Self { line, place: PlaceInLine::default() }
    }

    /// Whether others would be before this caller, which has no place yet.
    pub(crate) fn would_be_behind(&self) -> bool {
        self.place.0.is_none() && self.line.is_waited_for()
    }

    /// Parks this thread until it is its turn: see [`Line::park`].
    pub(crate) fn park(&mut self, seen: u64, give_up: impl Fn() -> bool, deadline: Option<Instant>) {
        self.line.park(&mut self.place, seen, give_up, deadline);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.line.leave(&mut self.place);
    }
}

/// A caller's place in the line, which it keeps until it is dropped, whether it waits or has the turn.
#[derive(Debug, Default)]
pub(crate) struct PlaceInLine(Option<u64>);

impl Line {
    pub(crate) fn new() -> Self {
        Self {
            events: CachePadded::new(AtomicU64::new(0)),
            waiting: AtomicU64::new(0),
            callers: Mutex::new(Callers::default()),
        }
    }

    /// The number of events so far, to be read before looking for room.
    pub(crate) fn events(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    /// Whether anyone waits that does not have the turn. May be out of date.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// There may be room: it is the front's turn.
    pub(crate) fn bump(&self) {
        self.events.fetch_add(1, Ordering::AcqRel);
        if self.is_waited_for() {
            self.wake(1);
        }
    }

    /// Wakes all: the log has stopped, and they must look why.
    pub(crate) fn wake_all(&self) {
        self.events.fetch_add(1, Ordering::AcqRel);
        self.wake(usize::MAX);
    }

    fn wake(&self, max: usize) {
        let mut woken = Vec::new();
        {
            let mut callers = lock(&self.callers);
            while woken.len() < max
                && let Some((_, waker)) = callers.wakers.pop_first()
            {
                callers.turns += 1;
                woken.push(waker);
            }
            self.note(&callers);
        }
        woken.into_iter().for_each(Waker::wake); // outside the lock: a waker may run anything
    }

    fn note(&self, callers: &Callers) {
        self.waiting.store(callers.wakers.len() as u64, Ordering::Release);
    }

    /// Gets into the line, or back to the same place, unless there was an event after `seen`. Returns whether the
    /// caller waits; if it does not, it should look for room at once.
    pub(crate) fn join(&self, place: &mut PlaceInLine, seen: u64, waker: &Waker) -> bool {
        let old = self.enter(&mut lock(&self.callers), place, waker);
        drop(old);
        if self.events.fetch_add(0, Ordering::AcqRel) == seen {
            return true;
        }
        let mut callers = lock(&self.callers);
        let own = place.0.and_then(|number| callers.wakers.remove(&number));
        if own.is_some() {
            callers.turns += 1; // it is its turn, as if it had been woken; or it has been
            self.note(&callers);
        }
        drop(callers);
        false
    }

    /// Gets into the line if anyone is in it, so that callers that come later do not go first. Returns whether the caller
    /// waits.
    pub(crate) fn join_behind(&self, place: &mut PlaceInLine, waker: &Waker) -> bool {
        let mut callers = lock(&self.callers);
        let is_busy = !callers.wakers.is_empty() || callers.turns > 0;
        let old = if is_busy { self.enter(&mut callers, place, waker) } else { None };
        drop(callers);
        drop(old);
        is_busy
    }

    /// Whether the caller still waits for its turn; if so, `waker` is woken then.
    pub(crate) fn still_waits(&self, place: &PlaceInLine, waker: &Waker) -> bool {
        let Some(number) = place.0 else { return false };
        let mut callers = lock(&self.callers);
        let Some(known) = callers.wakers.get_mut(&number) else { return false };
        let old = if known.will_wake(waker) { None } else { Some(std::mem::replace(known, waker.clone())) };
        drop(callers);
        drop(old);
        true
    }

    /// Returns the waker that was there: dropping one may run anything, and so does not happen under the lock.
    fn enter(&self, callers: &mut Callers, place: &mut PlaceInLine, waker: &Waker) -> Option<Waker> {
        let number = place.0.unwrap_or(callers.last_place + 1);
        callers.last_place = callers.last_place.max(number);
        let old = callers.wakers.insert(number, waker.clone());
        if old.is_none() && place.0.is_some() {
            callers.turns -= 1; // it had the turn, and found no room
        }
        place.0 = Some(number);
        self.note(callers);
        old
    }

    /// Leaves the line. A caller that has the turn passes it on.
    pub(crate) fn leave(&self, place: &mut PlaceInLine) {
        let Some(number) = place.0.take() else { return };
        let (own, next) = {
            let mut callers = lock(&self.callers);
            let own = callers.wakers.remove(&number);
            let next = if own.is_none() { callers.wakers.pop_first() } else { None };
            if own.is_none() && next.is_none() {
                callers.turns -= 1; // or else the turn is the next caller's
            }
            self.note(&callers);
            (own, next)
        };
        drop(own);
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }

    /// Parks this thread until it is its turn, or until `give_up` returns true after a wake-up, or until `deadline`; not
    /// at all if there was an event after `seen`. The place is kept: the caller looks for room, and then
    /// [waits again](Self::park), or [leaves](Self::leave).
    pub(crate) fn park(
        &self,
        place: &mut PlaceInLine,
        seen: u64,
        give_up: impl Fn() -> bool,
        deadline: Option<Instant>,
    ) {
        let waker = unpark_this_thread();
        if !self.join(place, seen, &waker) {
            return;
        }
        while !give_up() && self.still_waits(place, &waker) {
            park_until(deadline);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return;
            }
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::{Arc, model, thread};

    /// Room for a number of appends.
    struct Log {
        line: Line,
        room: AtomicU64,
    }

    impl Log {
        fn new() -> Arc<Self> {
            Arc::new(Self { line: Line::new(), room: AtomicU64::new(0) })
        }

        fn try_append(&self) -> bool {
            let less = |room: u64| room.checked_sub(1);
            self.room.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
        }

        fn append(&self) {
            let mut place = PlaceInLine::default();
            loop {
                let seen = self.line.events();
                if self.try_append() {
                    break;
                }
                self.line.park(&mut place, seen, || false, None);
            }
            self.line.leave(&mut place);
        }
    }

    #[test]
    fn loom_one_event_is_enough_for_all_that_its_room_is_for() {
        model(|| {
            let log = Log::new();
            let callers = [(); 2].map(|()| {
                let log = Arc::clone(&log);
                thread::spawn(move || log.append())
            });
            log.room.fetch_add(2, Ordering::AcqRel);
            log.line.bump();
            for caller in callers {
                caller.join().unwrap(); // loom: a deadlock here is a lost wake-up
            }
        });
    }

    #[test]
    fn loom_a_caller_that_gives_up_in_its_turn_passes_it_on() {
        model(|| {
            let log = Log::new();
            let gives_up = {
                let log = Arc::clone(&log);
                thread::spawn(move || {
                    let mut place = PlaceInLine::default();
                    log.line.join(&mut place, log.line.events(), Waker::noop());
                    log.line.leave(&mut place);
                })
            };
            let waits = {
                let log = Arc::clone(&log);
                thread::spawn(move || log.append())
            };
            log.room.fetch_add(1, Ordering::AcqRel);
            log.line.bump();
            gives_up.join().unwrap();
            waits.join().unwrap();
        });
    }

    #[test]
    fn loom_a_caller_that_gets_behind_others_has_its_turn_when_they_had_theirs() {
        model(|| {
            let log = Log::new();
            let first = {
                let log = Arc::clone(&log);
                thread::spawn(move || log.append())
            };
            let second = {
                let log = Arc::clone(&log);
                thread::spawn(move || {
                    let (mut place, waker) = (PlaceInLine::default(), unpark_this_thread());
                    if log.line.join_behind(&mut place, &waker) {
                        while log.line.still_waits(&place, &waker) {
                            thread::park();
                        }
                    }
                    loop {
                        let seen = log.line.events();
                        if log.try_append() {
                            break log.line.leave(&mut place);
                        }
                        log.line.park(&mut place, seen, || false, None);
                    }
                })
            };
            log.room.fetch_add(2, Ordering::AcqRel);
            log.line.bump();
            first.join().unwrap();
            second.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{
        sync::{Arc, atomic},
        task::Wake,
    };

    #[derive(Default)]
    struct Count(atomic::AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, atomic::Ordering::SeqCst);
        }
    }

    /// Each change woke all that waited: 45,126 refusals for 30,000 appends.
    #[test]
    fn an_event_wakes_one_and_the_turn_goes_from_one_to_the_next() {
        let line = Line::new();
        let counts: Vec<Arc<Count>> = (0..4).map(|_| Arc::default()).collect();
        let woken = || counts.iter().map(|count| count.0.load(atomic::Ordering::SeqCst)).collect::<Vec<_>>();
        let mut places: Vec<PlaceInLine> = (0..4).map(|_| PlaceInLine::default()).collect();
        let wakers: Vec<Waker> = counts.iter().map(|count| Waker::from(Arc::clone(count))).collect();
        assert!(!line.join_behind(&mut places[0], &wakers[0]), "nobody is in the line");
        for n in 0..3 {
            assert!(line.join(&mut places[n], 0, &wakers[n]));
        }
        assert!(line.join_behind(&mut places[3], &wakers[3]));
        line.bump();
        assert_eq!(woken(), [1, 0, 0, 0]);
        line.leave(&mut places[0]); // it has appended
        assert_eq!(woken(), [1, 1, 0, 0]);
        assert!(line.join(&mut places[1], line.events(), &wakers[1]), "found no room");
        assert_eq!(woken(), [1, 1, 0, 0]);
        line.bump();
        assert_eq!(woken(), [1, 2, 0, 0], "it is still the front");
        line.leave(&mut places[2]); // gives up without the turn
        line.leave(&mut places[1]);
        assert_eq!(woken(), [1, 2, 0, 1]);
        assert!(!line.is_waited_for());
        line.leave(&mut places[3]);
        assert!(!line.join_behind(&mut places[0], &wakers[0]));
    }
}
