//! Producers in a run: batches that are new, repeated or wrong, and epochs that begin.

use super::{
    model::{MAX_REMEMBERED, Sent},
    process::Process,
    run::Simulation,
};
use crate::{Error, Log, Payload, Produced, ProducerBatch};

/// A batch that a producer sends.
struct Sending {
    epoch: u32,
    sequence: u64,
    values: Vec<Vec<u8>>,
    expect: Expect,
    /// The epoch and the sequence that would be next.
    next: (u32, u64),
}

/// The expected answer to a producer's batch.
enum Expect {
    New,
    Repeat(Sent),
    /// The number of this batch, with other values.
    Other(Sent),
    Refused,
}

impl Simulation {
    pub(super) fn produce(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        let producer = self.random.below(3);
        if self.logs[&name].vague.contains(&producer) {
            return;
        }
        let id = format!("producer-{producer}");
        if self.random.one_in(12) {
            return self.begin_epoch(process, &name, &log, producer, &id);
        }
        let sending = self.choose_batch(&name, producer);
        let Sending { epoch, sequence, values, .. } = &sending;
        let payloads: Vec<_> = values.iter().map(|bytes| Payload { bytes, json: false }).collect();
        let marked = self.random.one_in(2);
        let (epoch, sequence, count) = (*epoch, *sequence, values.len() as u64);
        let mut sent = Sent { producer, epoch, sequence, first: 0, count, marked };
        let mark = sent.mark();
        let mut batch = ProducerBatch::new(&id, epoch, sequence);
        if marked {
            batch = batch.with_mark(&mark);
        }
        process.world.sim.note(format_args!("{id} sends {epoch}/{sequence} to {name}"));
        let done = self.patiently(process, || log.try_append_once(&batch, &payloads, None));
        match done {
            Ok(done) if !done.repeated && matches!(sending.expect, Expect::New) => {
                self.appended(process, &name, &log, done.first_offset, &payloads);
                sent.first = done.first_offset;
                self.logs.get_mut(&name).expect("it is used").sent.push(sent);
            }
            done => self.check_answer(process, &name, &id, &sending, done),
        }
    }

    /// Chooses what a producer sends: the next batch, one that is out of order, a repeat, or something else under the
    /// number of a batch that is stored.
    fn choose_batch(&mut self, name: &str, producer: usize) -> Sending {
        let (epoch, sent) = self.logs[name].producer(producer);
        debug_assert!(sent.len() <= MAX_REMEMBERED);
        let (current, next) = (epoch.unwrap_or(0), sent.last().map_or(0, |last| last.sequence + 1));
        let (epoch, sequence, expect) = match self.random.below(10) {
            0 => (current + 1, 0, Expect::New),
            1 if current > 0 => (current - 1, next, Expect::Refused),
            2 => (current, next + 1 + self.random.below(3) as u64, Expect::Refused),
            3..6 if !sent.is_empty() => {
                let again = *self.random.pick(&sent);
                let expect = if self.random.one_in(4) { Expect::Other(again) } else { Expect::Repeat(again) };
                (again.epoch, again.sequence, expect)
            }
            _ => (current, next, Expect::New),
        };
        let count = match &expect {
            Expect::Repeat(again) | Expect::Other(again) => again.count as usize,
            _ => 1 + self.random.below(3),
        };
        let mut values: Vec<_> = (0..count).map(|n| vec![n as u8; n * 50]).collect();
        if matches!(&expect, Expect::Other(_)) {
            match self.random.below(3) {
                0 => values.push(Vec::new()),
                1 => values[0].push(1), // it was empty
                _ => values[count - 1] = vec![9; 7],
            }
        }
        Sending { epoch, sequence, values, expect, next: (current, next) }
    }

    /// Checks the answer to a producer's batch that was not stored.
    fn check_answer(
        &mut self,
        process: &Process,
        name: &str,
        id: &str,
        sending: &Sending,
        done: Result<Produced, Error>,
    ) {
        let place = self.place(&process.world.sim);
        let Sending { epoch, sequence, values, expect, next } = sending;
        match (done, expect) {
            (Ok(done), Expect::Repeat(again)) if done.repeated => {
                assert_eq!((done.first_offset, done.count), (again.first, again.count), "{place}: {name:?}");
            }
            // A batch of an early version, or one of which a record is lost, is told by the number of its records.
            (Ok(done), Expect::Other(again)) if done.repeated && values.len() as u64 == again.count => {
                let known = &self.logs[name];
                let lost =
                    (again.first..again.first + again.count).any(|offset| known.lost.contains(&offset));
                assert!(lost, "{place}: {name:?} takes another batch for a repeat of {again:?}");
            }
            (Err(Error::NotARepeat { first_offset, count }), Expect::Other(again)) => {
                assert_eq!((first_offset, count), (again.first, again.count), "{place}: {name:?}");
            }
            (Err(Error::ProducerOutOfOrder { .. }), Expect::Refused)
            | (Err(Error::TooLarge { .. } | Error::WouldBlock), _) => {}
            (Err(error), _)
                if !matches!(error, Error::ProducerOutOfOrder { .. } | Error::NotARepeat { .. }) =>
            {
                self.excused(process, name, &error);
            }
            (done, expect) => {
                let expect = match expect {
                    Expect::New => "it is new".to_owned(),
                    Expect::Repeat(again) => format!("it is a repeat of {again:?}"),
                    Expect::Other(again) => format!("it has other values than {again:?}"),
                    Expect::Refused => format!("it is out of order, next is {}/{}", next.0, next.1),
                };
                panic!("{place}: {name:?} answers {done:?} to {epoch}/{sequence} of {id}, and {expect}");
            }
        }
    }

    /// A producer starts again.
    fn begin_epoch(&mut self, process: &Process, name: &str, log: &Log, producer: usize, id: &str) {
        process.world.sim.note(format_args!("{id} begins an epoch in {name}"));
        let place = self.place(&process.world.sim);
        let known = self.logs.get_mut(name).expect("it is used");
        let state = || log.knows_producers().then(|| log.producer(id).expect("it is in memory"));
        let before = state();
        match log.begin_epoch(id) {
            Ok(state) => {
                let (before, _) = known.producer(producer);
                assert!(
                    before.is_none_or(|before| state.epoch > before),
                    "{place}: {state:?} after {before:?}"
                );
                assert_eq!(state.mark, known.mark(producer), "{place}: the mark of {id} in {name:?}");
                let earlier = known.earlier(producer);
                let is = state.earlier.map(|(epoch, batches)| {
                    (epoch, batches.iter().map(|one| one.first_offset).collect::<Vec<_>>())
                });
                match (&is, &earlier) {
                    // It has begun before, and nothing was sent.
                    (Some((_, none)), None) if none.is_empty() => {
                        assert!(known.begun.contains_key(&producer));
                    }
                    _ => assert_eq!(is, earlier, "{place}: the last batches of {id} in {name:?}"),
                }
                known.begun.insert(producer, state.epoch);
                if !process.is_off() {
                    known.durable = known.next();
                }
            }
            Err(error) => {
                assert!(
                    before.is_none() || before == state(),
                    "{place}: {error}, and {id} is changed in {name:?}"
                );
                known.vague.insert(producer); // the next process may find that it has got the epoch
                self.excused(process, name, &error);
            }
        }
    }
}
