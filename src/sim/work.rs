//! What a process of a run does: one operation at a time, chosen by the seed, each checked at once.

use super::{
    model::{KnownLog, Rec},
    process::{Handle, Open, Process},
    run::Simulation,
    values,
};
use crate::{
    Damage, Durability, Error, Log, Payload, Retention,
    store::{LogSettings, Values},
};
use std::time::Duration;

/// The names that logs have in a run.
pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// The number of turns after which an append that still finds no room is considered stuck.
const MAX_ATTEMPTS: usize = 400;

/// What a scrub of all sealed segments of a log finds, and where they end.
pub(super) fn scrub_all(log: &Log) -> Result<(Vec<Damage>, u64), Error> {
    let (mut damage, mut end) = (Vec::new(), log.first_offset());
    while let Some(scrubbed) = log.scrub(end, |_| true)? {
        assert!(scrubbed.next > end, "{scrubbed:?} goes on before {end}");
        damage.extend(scrubbed.damage);
        end = scrubbed.next;
    }
    Ok((damage, end))
}

impl Simulation {
    /// A log that certainly exists.
    pub(super) fn random_certain(&mut self) -> Option<String> {
        let names: Vec<_> =
            self.logs.iter().filter(|(_, known)| known.certain).map(|(name, _)| name.clone()).collect();
        (!names.is_empty()).then(|| self.random.pick(&names).clone())
    }

    /// A log of this process that can be used.
    pub(super) fn usable(&mut self, process: &Process) -> Option<(String, Handle)> {
        let name = match &process.open {
            Open::One(name, _) => name.clone(),
            Open::Many(_) => self.random_certain()?,
        };
        if !self.logs[&name].certain || self.logs[&name].failed {
            return None;
        }
        // It was closed because others were opened: if a write to it had failed, it may be shorter.
        if process.faults() > 0 && self.was_closed(process, &name) {
            self.check(process, &name);
            if self.logs[&name].failed {
                return None;
            }
        }
        match process.get(&name) {
            Ok(log) => Some((name, log)),
            Err(error) => {
                let place = self.place(&process.world.sim);
                assert!(process.is_off() || process.faults() > 0, "{place}: {name:?} does not open: {error}");
                self.logs.get_mut(&name)?.failed = true;
                None
            }
        }
    }

    pub(super) fn operation(&mut self, process: &mut Process) {
        if self.logs.len() < self.profile.logs && (self.logs.is_empty() || self.random.one_in(10)) {
            return self.create(process);
        }
        if process.world.sim.is_tight() && self.random.one_in(20) {
            process.world.sim.note(format_args!("there is room again"));
            process.world.sim.set_room(None);
        }
        match self.random.below(100) {
            0..30 => self.append(process),
            30..36 => self.append_if(process),
            36..48 if self.profile.uniform.is_none() => self.produce(process),
            36..60 => self.wait_durable(process),
            60..63 => self.consume(process),
            63..78 => {
                for _ in 0..=self.random.below(4) {
                    process.world.turn(&mut self.random);
                }
            }
            78..85 => self.read(process),
            85 if self.random.one_in(2) => self.roll(process),
            85 => self.scrub(process),
            86..90 => self.trim(process),
            90..95 => self.pass_time(process),
            95..97 => self.turn(process),
            97 => self.delete(process),
            98 => self.create(process),
            _ => self.close_all(process),
        }
    }

    fn pass_time(&mut self, process: &Process) {
        let millis: i64 = *self.random.pick(&[1, 10, 1000, 60_000, 3_600_000]);
        if self.random.one_in(8) {
            self.clock.jump(if self.random.one_in(2) { millis } else { -millis });
        } else {
            self.clock.pass(millis.unsigned_abs());
        }
        process.world.sim.note(format_args!("time passes: {millis}"));
    }

    fn create(&mut self, process: &Process) {
        let Some(store) = process.store() else { return };
        let name = NAMES[self.random.below(self.profile.logs)];
        let durability = *self.random.pick(&[None, Some(Durability::Disk), Some(Durability::Memory)]);
        let durability = Some(durability.unwrap_or(process.options.durability));
        let settings = LogSettings {
            durability,
            values: Values::Any,
            retention_bytes: self.random.one_in(4).then_some(64 << 10),
            retention_seconds: self.random.one_in(4).then_some(5000),
            ..LogSettings::default()
        };
        process.world.sim.note(format_args!("create {name}"));
        let there = self.logs.get(name);
        if there.is_some_and(|known| !known.certain) {
            return; // whether it exists is not known before the next process
        }
        let result = store.create(name, &settings);
        if process.is_off() {
            if there.is_none() {
                self.logs.insert(name.to_owned(), KnownLog::new(settings));
            }
            return;
        }
        let place = self.place(&process.world.sim);
        match (result, there) {
            (Ok(true), None) => {
                let mut known = KnownLog { certain: true, was_open: true, ..KnownLog::new(settings) };
                if let Ok(log) = process.get(name) {
                    assert_eq!(log.next_offset(), 0, "{place}: {name:?} is new, but holds records");
                    known.cursors.check(&place, &log, process.faults() > 0);
                    known.id = Some(log.id());
                }
                self.logs.insert(name.to_owned(), known);
            }
            (Ok(false), Some(known)) => assert_eq!(known.settings, settings, "{place}"),
            (Ok(made), there) => {
                panic!("{place}: creating {name:?} says {made}, it was there: {}", there.is_some());
            }
            (Err(crate::store::Error::Exists { .. }), Some(known)) => {
                assert!(known.settings != settings, "{place}: {name:?} has these settings");
            }
            (Err(error), there) => {
                assert!(process.faults() > 0, "{place}: cannot create {name:?}: {error}");
                if there.is_none() {
                    self.create_again(process, name, settings);
                }
            }
        }
    }

    /// Creates a log whose creation has failed, unless that is left to the next process.
    fn create_again(&mut self, process: &Process, name: &str, settings: LogSettings) {
        let Some(store) = process.store() else { return };
        let place = self.place(&process.world.sim);
        let mut known = KnownLog { failed: true, ..KnownLog::new(settings.clone()) };
        if self.random.one_in(2) {
            process.world.sim.fail_one_in(None);
            process.world.sim.set_room(None);
            for attempt in 0.. {
                match store.create(name, &settings) {
                    _ if process.is_off() => break,
                    Ok(_) => {
                        known = KnownLog { certain: true, was_open: true, ..KnownLog::new(settings) };
                        break;
                    }
                    Err(error) => assert!(attempt < 2, "{place}: cannot create {name:?} again: {error}"),
                }
            }
        }
        self.logs.insert(name.to_owned(), known);
    }

    fn delete(&mut self, process: &Process) {
        let (Some(store), Some(name)) = (process.store(), self.random_certain()) else { return };
        if self.logs[&name].failed || self.random.one_in(2) {
            return;
        }
        process.world.sim.note(format_args!("delete {name}"));
        let result = store.delete(&name);
        let place = self.place(&process.world.sim);
        let known = self.logs.get_mut(&name).expect("it is certain");
        match result {
            Ok(()) if !process.is_off() => drop(self.logs.remove(&name)),
            Ok(()) => known.certain = false,
            Err(_) if process.is_off() => known.certain = false,
            Err(error) => {
                assert!(process.faults() > 0, "{place}: cannot delete {name:?}: {error}");
                // Either nothing has changed, or it is gone, until a crash at most.
                if !store.names(None, usize::MAX).contains(&name) {
                    (known.certain, known.failed) = (false, true);
                }
            }
        }
    }

    /// A turn of the housekeeper: retention, producers, idle logs.
    fn turn(&mut self, process: &mut Process) {
        if process.store().is_none() {
            return;
        }
        process.world.sim.note(format_args!("the store's turn"));
        if self.random.one_in(3) {
            self.clock.pass(61_000);
        }
        self.store_turn(process);
    }

    fn close_all(&mut self, process: &mut Process) {
        if process.store().is_none() {
            return;
        }
        process.world.sim.note(format_args!("all are idle"));
        self.clock.pass(61_000);
        self.store_turn(process);
    }

    fn store_turn(&mut self, process: &mut Process) {
        let Some(store) = process.store() else { return };
        for known in self.logs.values_mut() {
            if known.settings.retention_bytes.is_some() || known.settings.retention_seconds.is_some() {
                known.may_trim = known.furthest();
            }
        }
        store.turn();
        self.check_closed(process);
    }

    /// Asserts that an error is not the log's fault: the disk has failed, or is off. If a write has failed, the log has
    /// too.
    pub(super) fn excused(&mut self, process: &Process, name: &str, error: &Error) {
        let place = self.place(&process.world.sim);
        assert!(process.is_off() || process.faults() > 0, "{place}: {name:?}: {error}");
        if let Error::Failed { .. } = error
            && !process.is_off()
        {
            let (fatal, _) = process.world.sim.faults();
            assert!(fatal > 0, "{place}: {name:?} has failed for good, though no write failed: {error}");
        }
        self.logs.get_mut(name).expect("it is used").failed = true;
    }

    /// Appends with `attempt`, running turns of the tasks while there is no room.
    pub(super) fn patiently<T>(
        &mut self,
        process: &Process,
        mut attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..MAX_ATTEMPTS {
            match attempt() {
                Err(Error::WouldBlock) if !process.is_off() => {
                    process.world.turn(&mut self.random);
                }
                Err(Error::Full { .. }) if process.faults() > 0 && !process.is_off() => {
                    process.world.turn(&mut self.random);
                }
                done => return done,
            }
        }
        assert!(process.faults() > 0, "{}: an append never finds room", self.place(&process.world.sim));
        Err(Error::WouldBlock)
    }

    fn note_durable(&mut self, process: &Process, name: &str, log: &Handle) {
        let durable = log.durable_offset();
        let (visible, next) = (log.visible_offset(), log.next_offset());
        if process.is_off() {
            return;
        }
        let place = self.place(&process.world.sim);
        let known = self.logs.get_mut(name).expect("it is used");
        assert!(durable >= known.durable && durable <= known.next(), "{place}: {name:?}: durable {durable}");
        assert!(durable <= visible && visible <= next && next == known.next(), "{place}: {name:?}");
        known.durable = durable;
    }

    fn append(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        let limit = process.options.segment_bytes as usize;
        let times = 1 + self.random.below(if self.profile.uniform.is_some() { 4 } else { 8 });
        for _ in 0..times {
            let values = values::batch(&mut self.random, &process.world.sim, limit, &self.profile);
            let json = self.random.one_in(8);
            let payloads: Vec<_> = values.iter().map(|bytes| Payload { bytes, json }).collect();
            let slices: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
            let bytes: usize = slices.iter().map(|value| value.len()).sum();
            process.world.sim.note(format_args!("append to {name}: {} of {bytes} bytes", slices.len()));
            let appended = match slices[..] {
                _ if json => self.patiently(process, || log.try_append_payloads(&payloads, None)),
                [value] if self.random.one_in(2) => self.patiently(process, || log.try_append(value)),
                _ => self.patiently(process, || log.try_append_batch(&slices)),
            };
            match appended {
                Ok(first) => self.appended(process, &name, &log, first, &payloads),
                Err(Error::TooLarge { .. }) => {
                    // A frame's header and padding, and its entry in the index.
                    let needs: usize =
                        slices.iter().map(|value| (24 + value.len()).next_multiple_of(8) + 4).sum();
                    assert!(needs > limit, "{needs} are not too large for {limit}");
                }
                Err(Error::WouldBlock) => return,
                Err(error) => return self.excused(process, &name, &error),
            }
            if process.is_off() {
                return;
            }
        }
        self.note_durable(process, &name, &log);
    }

    pub(super) fn appended(
        &mut self,
        process: &Process,
        name: &str,
        log: &Log,
        first: u64,
        values: &[Payload<'_>],
    ) {
        self.counts.records += values.len() as u64;
        let (is_backed, without) = log.backed();
        let place = self.place(&process.world.sim);
        let known = self.logs.get_mut(name).expect("it is used");
        assert_eq!(first, known.next(), "{place}: {name:?} gives an offset that is not the next one");
        known.append(first, values);
        if process.is_off() {
            return;
        }
        if process.has_backings() {
            let may_lack = if process.world.is_scarce { known.may_lack } else { 0 };
            assert!(
                without <= may_lack,
                "{place}: {name:?}: {without} segments began without backings, and there was room for all but {may_lack}"
            );
            known.lacked = without;
        }
        if is_backed {
            known.memory = known.next();
        }
    }

    fn append_if(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        let limit = process.options.segment_bytes as usize;
        let values = values::batch(&mut self.random, &process.world.sim, limit, &self.profile);
        let payloads: Vec<_> = values.iter().map(|bytes| Payload { bytes, json: false }).collect();
        let next = self.logs[&name].next();
        let expected = match self.random.below(4) {
            0 => self.random.next() >> self.random.below(64),
            1 => next.wrapping_sub(1),
            _ => next,
        };
        process.world.sim.note(format_args!("append to {name} if {expected}"));
        match self.patiently(process, || log.try_append_payloads(&payloads, Some(expected))) {
            Ok(first) => {
                assert_eq!(expected, next, "stored, and {next} was next");
                self.appended(process, &name, &log, first, &payloads);
            }
            Err(Error::Unexpected { next: says, .. }) => {
                assert!(expected != next && says == next, "{expected} is not {next}, it says {says}");
            }
            Err(Error::TooLarge { .. } | Error::WouldBlock) => {}
            Err(error) => self.excused(process, &name, &error),
        }
    }

    fn wait_durable(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        let next = self.logs[&name].next();
        let Some(last) = next.checked_sub(1) else { return };
        process.world.sim.note(format_args!("wait for {last} of {name}"));
        match log.wait_durable(last) {
            Ok(()) => {
                if !process.is_off() {
                    self.logs.get_mut(&name).expect("it is used").durable = next;
                }
                self.note_durable(process, &name, &log);
            }
            Err(error) => self.excused(process, &name, &error),
        }
    }

    fn read(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        let visible = log.visible_offset();
        self.note_durable(process, &name, &log);
        if process.is_off() || visible == 0 {
            return;
        }
        let place = self.place(&process.world.sim);
        let mut reader = log.reader(0);
        let from = self.random.below(visible as usize) as u64;
        let max = self.random.below(40) as u64;
        for offset in from..visible.min(from + max) {
            let read = if self.random.one_in(2) {
                let record = log.read(offset);
                record.map(|record| {
                    record.map(|record| (Rec::of(record.value(), record.is_json(), true), record.is_lost()))
                })
            } else {
                let record = reader.read(offset);
                record.map(|record| {
                    record.map(|record| (Rec::of(record.value, record.json, true), record.lost))
                })
            };
            match read {
                Ok(Some((_, true))) => {
                    assert!(
                        self.logs[&name].lost.contains(&offset),
                        "{place}: {name:?}: {offset} is marked as lost"
                    );
                }
                Ok(Some((value, _))) => {
                    let expected = &self.logs[&name].records[offset as usize];
                    assert!(value.same(expected), "{place}: {name:?}: offset {offset} has another value");
                }
                Err(Error::Damaged { .. }) if self.logs[&name].lost.contains(&offset) => {}
                Ok(None) => panic!("{place}: {name:?}: offset {offset} of {visible} is not visible"),
                Err(Error::Trimmed { first, .. }) => {
                    assert!(offset < first && first <= self.logs[&name].may_trim, "{place}");
                }
                Err(error) => {
                    assert!(process.is_off() || process.faults() > 0, "{place}: offset {offset}: {error}");
                    return;
                }
            }
        }
    }

    /// Verifies all sealed segments: what was damaged is found, and nothing else, unless the disk could not read it.
    fn scrub(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        process.world.sim.note(format_args!("scrub {name}"));
        let place = self.place(&process.world.sim);
        let (damage, end) = match scrub_all(&log) {
            Ok(found) => found,
            Err(error) => {
                assert!(
                    process.is_off() || process.faults() > 0,
                    "{place}: {name:?}: a scrub fails: {error}"
                );
                return;
            }
        };
        if process.is_off() {
            return;
        }
        let KnownLog { lost, flipped, .. } = &self.logs[&name];
        for damage in &damage {
            let is_known = damage.offsets.clone().all(|offset| lost.contains(&offset));
            let excused = process.faults() > 0 && damage.unreadable || damage.offsets.is_empty() && *flipped;
            assert!(
                !damage.offsets.is_empty() && is_known || excused,
                "{place}: {name:?}: a scrub finds {damage}"
            );
        }
        let is_found = |offset: &u64| damage.iter().any(|damage| damage.offsets.contains(offset));
        for offset in lost.range(log.first_offset()..end) {
            let is_damaged = matches!(log.read(*offset), Err(Error::Damaged { .. }));
            assert!(!is_damaged || is_found(offset), "{place}: {name:?}: a scrub does not find {offset}");
        }
    }

    /// Ends the segment that is being written. All of it is sealed and durable then.
    fn roll(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        let next = self.logs[&name].next();
        process.world.sim.note(format_args!("roll {name} at {next}"));
        match self.patiently(process, || log.roll()) {
            Ok(end) => {
                if process.is_off() {
                    return;
                }
                assert_eq!(end, next, "{}: {name:?}", self.place(&process.world.sim));
                self.logs.get_mut(&name).expect("it is used").durable = next;
            }
            Err(Error::WouldBlock) => {}
            Err(error) => self.excused(process, &name, &error),
        }
    }

    fn trim(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        let known = self.logs.get_mut(&name).expect("it is used");
        let next = known.next();
        let trimmed = if self.random.one_in(6) {
            known.may_trim = known.may_trim.max(next);
            process.world.sim.note(format_args!("all of {name} becomes too old"));
            let _ = log.flush(); // whatever becomes of it
            self.clock.pass(61_000);
            let trimmed = log.retain(Retention::default().with_age(Duration::from_secs(60)));
            if self.random.one_in(2) {
                self.clock.jump(-3_600_000); // what comes next seems older than what was dropped
            }
            trimmed
        } else if self.random.one_in(2) {
            let before = self.random.below(next as usize + 1) as u64;
            known.may_trim = known.may_trim.max(before);
            process.world.sim.note(format_args!("trim {name} before {before}"));
            log.trim(before)
        } else {
            known.may_trim = known.may_trim.max(next);
            let mut retention = Retention::default().with_bytes(4096 << self.random.below(8));
            process.world.sim.note(format_args!("retain {:?} of {name}", retention.bytes));
            if self.random.one_in(4) {
                retention = retention.with_age(Duration::from_secs(60));
            }
            log.retain(retention)
        };
        match trimmed {
            Ok(first) => {
                assert!(first <= known.may_trim, "trimmed too much");
                assert!(known.is_boundary(first), "trimmed in the middle of a batch");
                if !process.is_off() {
                    known.trimmed = known.trimmed.max(first);
                }
            }
            Err(error) => self.excused(process, &name, &error),
        }
    }
}
