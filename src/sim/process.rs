//! One process of a run: it opens what exists, checks it against the model, works, and ends in some way.

use super::{
    left::{frozen, has_kept},
    model::Rec,
    run::{ROOT, Simulation},
    world::World,
};
use crate::{
    Durability, Error, Log, Options,
    chunk::ChunkMemory,
    disk::sim::{Cut, Mode, Sim},
    log::verify_on,
    store::{OpenLog, Store, StoreOptions},
};
use std::{ops::Deref, path::Path, sync::Arc};

/// An open log, in a store or by itself.
pub(super) enum Handle {
    Many(Arc<OpenLog>),
    One(Arc<Log>),
}

impl Deref for Handle {
    type Target = Log;

    fn deref(&self) -> &Log {
        match self {
            Self::Many(log) => log,
            Self::One(log) => log,
        }
    }
}

/// What the process has open.
pub(super) enum Open {
    Many(Store),
    One(String, Arc<Log>),
}

/// A simulated process: what it has open, and the world around it.
pub(super) struct Process {
    pub(super) open: Open,
    pub(super) world: World,
    pub(super) options: Options,
}

impl Process {
    pub(super) fn get(&self, name: &str) -> Result<Handle, crate::store::Error> {
        match &self.open {
            Open::Many(store) => store.get(name).map(Handle::Many),
            Open::One(_, log) => Ok(Handle::One(Arc::clone(log))),
        }
    }

    pub(super) fn store(&self) -> Option<&Store> {
        match &self.open {
            Open::Many(store) => Some(store),
            Open::One(..) => None,
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.world.sim.is_off()
    }

    /// How many steps have failed; at least one if some may have for lack of room.
    pub(super) fn faults(&self) -> u64 {
        let (fatal, passing) = self.world.sim.faults();
        fatal + passing + u64::from(self.world.sim.is_tight())
    }

    /// Opens a log; if that fails because of faults, without them. `None` if the machine is off.
    fn open_despite_faults(&self, place: &str, name: &str) -> Option<Handle> {
        let mut handle = self.get(name);
        for _ in 0..3 {
            if handle.is_ok() || self.is_off() {
                break;
            }
            assert!(self.faults() > 0, "{place}: does not open: {}", handle.err().unwrap());
            self.world.sim.fail_one_in(None);
            self.world.sim.set_room(None);
            handle = self.get(name);
        }
        match handle {
            Ok(log) => Some(log),
            Err(_) if self.is_off() => None,
            Err(error) => panic!("{place}: does not open, after faults: {error}"),
        }
    }

    /// Reads a log; if that fails because of faults, without them. `None` if the machine is off.
    fn read_despite_faults(&self, place: &str, log: &Log, first: u64, next: u64) -> Option<Vec<Option<Rec>>> {
        let mut values = read_all(log, first, next);
        if let Err(error) = &values
            && !self.is_off()
        {
            assert!(self.faults() > 0, "{place}: {error}");
            self.world.sim.fail_one_in(None);
            values = read_all(log, first, next);
        }
        match values {
            Ok(values) if !self.is_off() => Some(values),
            Err(error) if !self.is_off() => panic!("{place}: {error}"),
            _ => None,
        }
    }

    /// Whether memory outlives this process, where there is room for it.
    pub(super) fn has_backings(&self) -> bool {
        self.options.shm_dir.is_some()
    }
}

impl Simulation {
    pub(super) fn options(&mut self, backings: bool) -> Options {
        let segment_bytes = *self.random.pick(self.profile.segments);
        let first_segment_bytes = (*self.random.pick(&[4096, 8192, 65536])).min(segment_bytes);
        let times = 3 + self.random.below(8) as u64;
        Options {
            durability: *self.random.pick(&[Durability::Disk, Durability::Memory]),
            segment_bytes,
            first_segment_bytes,
            memory_bytes: times * ChunkMemory::footprint(segment_bytes),
            shm_dir: backings.then(|| self.at.path().to_owned()),
        }
    }

    /// One process, from start to end.
    pub(super) fn generation(&mut self) {
        let random = &mut self.random;
        let cut = *random.pick(&[Cut::Power, Cut::Kill]);
        let backings = !random.one_in(5);
        let faulty = self.profile.faults && random.one_in(3);
        let sim = self.disk.clone();
        sim.set_mode(*random.pick(&[Mode::Direct, Mode::Direct, Mode::Buffered]));
        if random.one_in(4) {
            self.verify();
        }
        let in_memory = self.logs.values().any(|known| known.certain && known.memory > known.durable);
        if self.profile.harm && in_memory {
            match self.random.below(6) {
                0..3 => return self.repair_unopened(),
                3 | 4 => self.flip_in_backing(),
                _ => {}
            }
        }
        if self.profile.harm {
            match self.random.below(24) {
                0..4 => return self.flip(),
                4..8 => self.graft(),
                8 => return self.flip_in_settings(),
                9 if self.random.one_in(2) => self.flip_in_producers(),
                9 => self.flip_in_cursors(),
                10..13 => return self.spoil(),
                13..17 => return self.repair_unopened(),
                _ => {}
            }
        }
        if !backings {
            // Whatever happens to this process, it may have continued without what is in memory.
            for known in self.logs.values_mut() {
                known.forget_memory();
            }
        }
        let random = &mut self.random;
        let mut world = World::new(sim.clone(), random);
        world.is_scarce = backings && random.one_in(4);
        self.logs.values_mut().for_each(|known| known.lacked = 0);
        self.ration_memory(&world);
        let random = &mut self.random;
        if faulty {
            sim.fail_one_in(Some(*random.pick(&[15, 50, 200])));
        }
        // What is only in memory needs room when the log is opened.
        let tight = random.one_in(if in_memory { 3 } else { 8 });
        if tight {
            match *random.pick(&[None, Some(24), Some(600)]) {
                None => sim.leave_none(),
                Some(max) => sim.leave_room((random.below(max) as u64) << 10),
            }
        }
        if !random.one_in(if self.profile.uniform.is_some() { 2 } else { 4 }) {
            let max = *random.pick(&[6, 30, 120, 400]);
            sim.end_after(1 + random.below(max) as u64, cut);
        }
        sim.note(format_args!("== generation {}: {cut:?}, backings {backings}", self.counts.generations));
        let clean = match self.begin(world, backings) {
            Some(process) => self.live(process, cut),
            None => false,
        };
        self.end(&sim, cut, clean);
    }

    /// Chooses how much room the memory file system has from now on, if it is scarce in this process. Where there is
    /// enough, each chunk that begins from now on has a backing.
    fn ration_memory(&mut self, world: &World) {
        let choices = [None, None, Some(0), Some(40 << 10), Some(150 << 10), Some(600 << 10)];
        let room = if world.is_scarce { *self.random.pick(&choices) } else { None };
        world.sim.set_memory_room(room);
        world.sim.note(format_args!("room in memory: {room:?}"));
        for known in self.logs.values_mut() {
            // Resumed, left early, or made as the spare one, since the last append.
            let since = if world.is_scarce { 3 } else { 0 };
            known.may_lack = if room.is_some() { u64::MAX } else { known.lacked + since };
        }
    }

    fn begin(&mut self, world: World, backings: bool) -> Option<Process> {
        let options = self.options(backings);
        let alone = self.random.one_in(4).then(|| self.random_certain()).flatten();
        let Options { durability, segment_bytes, first_segment_bytes, memory_bytes, .. } = &options;
        world.sim.note(format_args!(
            "open {alone:?}: {durability:?}, {segment_bytes}, {first_segment_bytes}, {memory_bytes}"
        ));
        let env = world.environment(&self.clock);
        for attempt in 0.. {
            let before = world.sim.faults();
            let opened = if let Some(name) = &alone {
                let durability = self.logs[name].settings.durability.unwrap_or(options.durability);
                let options = Options { durability, ..options.clone() };
                Log::open_in(&env, &Path::new(ROOT).join(name), options)
                    .map(|log| Open::One(name.clone(), Arc::new(log)))
                    .map_err(|error| error.to_string())
            } else {
                let options = StoreOptions {
                    log: options.clone(),
                    open_logs: 1 + self.random.below(4),
                    ..StoreOptions::default()
                };
                Store::open_in(env.clone(), Path::new(ROOT), options)
                    .map(Open::Many)
                    .map_err(|error| error.to_string())
            };
            match opened {
                Ok(open) => return Some(Process { open, world, options }),
                Err(_) if world.sim.is_off() => return None,
                Err(error) => {
                    assert!(
                        world.sim.faults() != before || world.sim.is_tight(),
                        "{}: does not open: {error}",
                        self.place(&world.sim)
                    );
                    if attempt > 2 {
                        world.sim.fail_one_in(None);
                        world.sim.set_room(None);
                    }
                }
            }
        }
        None
    }

    /// Lets the process work; returns whether everything was closed cleanly.
    fn live(&mut self, mut process: Process, cut: Cut) -> bool {
        self.check_all(&mut process);
        if self.profile.uniform.is_some() && !self.random.one_in(3) {
            process.world.sim.end_after(1 + self.random.below(8) as u64, cut); // in the middle of its work
        }
        if self.random.one_in(8) {
            // No operations: recovering twice must be as good as once, so the next process must find the same.
        } else {
            let all = self.profile.operations;
            let max = *self.random.pick(&[all / 12, all / 3, all]);
            for _ in 0..self.random.below(max + 1) {
                if process.is_off() {
                    break;
                }
                if process.world.is_scarce && self.random.one_in(6) {
                    self.ration_memory(&process.world);
                }
                self.operation(&mut process);
                self.counts.operations += 1;
            }
        }
        let clean = !process.is_off() && self.random.one_in(4);
        let (off, backings) = (process.is_off(), process.has_backings());
        for known in self.logs.values_mut().filter(|_| !backings) {
            known.memory = known.memory.min(known.durable);
        }
        if !clean {
            if !off {
                process.world.sim.note(format_args!("ends between two operations"));
            }
            self.disk = process.world.sim.clone();
            process.world.sim.turn_off();
            // Restored as SIGKILL leaves them, because dropping the process still writes to what is mapped.
            let frozen = frozen(self.at.path());
            drop(process);
            for (path, bytes) in frozen {
                std::fs::write(path, bytes).unwrap();
            }
            return false;
        }
        process.world.sim.note(format_args!("close"));
        let faults = process.faults();
        let Process { open, world, .. } = process;
        let closed = match open {
            Open::Many(store) => store.close().map_err(|error| error.to_string()),
            Open::One(_, log) => {
                let log = Arc::into_inner(log).expect("nobody else holds it");
                log.close().map_err(|error| error.to_string())
            }
        };
        if world.sim.is_off() {
            return false;
        }
        if let Err(error) = &closed {
            assert!(faults > 0 || world.sim.faults() != (0, 0), "{}: {error}", self.place(&world.sim));
        }
        // What an idle log could not write is reported only in its messages.
        closed.is_ok() && faults == 0 && world.sim.faults() == (0, 0)
    }

    pub(super) fn end(&mut self, sim: &Sim, cut: Cut, clean: bool) {
        sim.note(format_args!("== ends: {cut:?}, clean {clean}"));
        self.counts.generations += 1;
        self.counts.steps = sim.steps().0;
        self.disk = sim.after(cut);
        for known in self.logs.values_mut() {
            known.failed = false;
            if clean && known.was_open {
                known.durable = known.next();
                known.memory = known.next();
            }
            known.was_open = false;
            if cut == Cut::Power {
                known.forget_memory();
                known.wiped = true;
            }
        }
        if cut == Cut::Power {
            for entry in std::fs::read_dir(self.at.path()).unwrap().flatten() {
                std::fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    }

    /// Checks that every log that must exist does, and that it has what it must have, and nothing else.
    fn check_all(&mut self, process: &mut Process) {
        let names: Vec<String> = match &process.open {
            Open::Many(store) => {
                let there = store.names(None, usize::MAX);
                for name in &there {
                    assert!(
                        self.logs.contains_key(name),
                        "{}: {name:?} exists, but was deleted or never created",
                        self.place(&process.world.sim)
                    );
                }
                let gone: Vec<_> = self.logs.keys().filter(|name| !there.contains(name)).cloned().collect();
                for name in gone {
                    let known = self.logs.remove(&name);
                    assert!(
                        known.is_some_and(|known| !known.certain),
                        "{}: {name:?} is gone",
                        self.place(&process.world.sim)
                    );
                }
                there
            }
            Open::One(name, _) => vec![name.clone()],
        };
        for name in names {
            self.check(process, &name);
        }
    }

    /// Checks a log after its first opening in a process.
    pub(super) fn check(&mut self, process: &Process, name: &str) {
        if process.is_off() {
            return;
        }
        let place = format!("{}, log {name:?}", self.place(&process.world.sim));
        process.world.sim.note(format_args!("check {name}"));
        let known = self.logs.get_mut(name).expect("only known names are checked");
        known.certain = true;
        let Some(log) = process.open_despite_faults(&place, name) else { return };
        let backings = process.options.shm_dir.is_some();
        let (first, next) = (log.first_offset(), log.next_offset());
        process.world.sim.note(format_args!(
            "found {name}: {first}..{next}, of {} durable, {} in memory, {} appended",
            known.durable,
            known.memory,
            known.next()
        ));
        if process.faults() > 0 && log.damage().iter().any(|damage| damage.unreadable) {
            // It could not be read twice in a row, by chance. The next process finds all of it.
            assert!(log.damage().iter().all(|damage| damage.unreadable), "{place}: {:?}", log.damage());
            assert!(matches!(log.writable(), Err(Error::ReadOnly { .. })), "{place}: {:?}", log.writable());
            known.failed = true;
            return;
        }
        assert!(
            log.damage().is_empty(),
            "{place}: damage is reported where there is none: {:?}",
            log.damage()
        );
        if let Err(error) = log.writable() {
            assert!(process.faults() > 0 || process.is_off(), "{place}: {error}");
        }
        // Without room on the disk for what is in memory, a log shows what is durable. The rest comes back with the room,
        // in this process or the next.
        let durability = known.settings.durability.unwrap_or(process.options.durability);
        let is_full = matches!(log.writable(), Err(Error::Full { .. })) && durability == Durability::Disk;
        let floor = if backings && !is_full { known.memory } else { known.durable };
        known.check_ends(&place, first, next, floor);
        if floor > 0 {
            assert!(known.id.is_none_or(|id| id == log.id()), "{place}: has another id");
        }
        known.id = Some(log.id());
        let durable = log.durable_offset();
        assert!(
            durable == next || process.is_off() || process.faults() > 0,
            "{place}: {durable} are durable of {next} after opening"
        );
        let Some(values) = process.read_despite_faults(&place, &log, first, next) else { return };
        known.recognise(first, &values);
        known.compare(&place, first, &values);
        self.counts.full += u64::from(log.writable().is_err_and(|error| error.is_full()));
        if backings && !is_full && next < known.told_of && !known.wiped {
            let kept = has_kept(&process.world.sim, &Path::new(ROOT).join(name), self.at.path(), log.id());
            assert!(kept, "{place}: ends at {next} of {}, and nothing is kept aside", known.told_of);
        }
        if is_full && (next < known.next() || !known.ghosts.is_empty()) {
            self.counts.short += u64::from(next < known.memory);
            (known.durable, known.failed) = (next, true);
            return;
        }
        known.note_found(first, next, backings);
        known.cursors.check(&place, &log, process.faults() > 0);
        known.was_open = true;
    }

    /// Checks logs that were closed by a turn of the housekeeper, or because others were opened.
    pub(super) fn check_closed(&mut self, process: &Process) {
        let names: Vec<_> = self.logs.keys().cloned().collect();
        for name in names {
            if !self.was_closed(process, &name) {
                continue;
            }
            if process.faults() == 0 {
                let known = self.logs.get_mut(&name).expect("one of its keys");
                known.durable = known.next(); // it was closed, and nothing failed
            }
            if self.random.one_in(2) || process.faults() > 0 {
                self.check(process, &name);
            }
        }
    }

    /// Whether a log that was open has been closed since.
    pub(super) fn was_closed(&self, process: &Process, name: &str) -> bool {
        let known = &self.logs[name];
        let open = process.store().is_none_or(|store| store.get_open(name).is_some());
        !process.is_off() && !open && known.was_open && known.certain
    }

    pub(super) fn place(&self, sim: &Sim) -> String {
        let steps = sim.steps().0;
        format!("seed {}, generation {}, step {steps}", self.seed, self.counts.generations)
    }

    /// Checks what `verify` reports about a log that is not open.
    fn verify(&mut self) {
        let Some(name) = self.random_certain() else { return };
        let dir = Path::new(ROOT).join(&name);
        let sim = self.disk.clone();
        let Ok(report) = verify_on(&sim, &dir, None, &mut |_, _| ()) else { return };
        let known = &self.logs[&name];
        let place = format!("seed {}, generation {}, log {name:?}", self.seed, self.counts.generations);
        for damage in &report.damage {
            // What is derived is lost only by a fault, and is rewritten.
            let derived = damage.offsets.is_empty() && (known.flipped || damage.unreadable);
            let lost = !damage.offsets.is_empty()
                && damage.offsets.clone().all(|offset| known.lost.contains(&offset));
            assert!(derived || lost, "{place}: verify reports damage where there is none: {damage}");
        }
        assert!(report.next >= known.durable, "{place}: verify sees {} of {}", report.next, known.durable);
    }
}

/// All records; `None` for those that are damaged, or marked as lost.
pub(super) fn read_all(log: &Log, first: u64, next: u64) -> Result<Vec<Option<Rec>>, String> {
    let mut reader = log.reader(first);
    let mut values = Vec::new();
    for offset in first..next {
        match reader.read(offset) {
            Ok(Some(record)) if record.lost => values.push(None),
            Ok(Some(record)) => values.push(Some(Rec::of(record.value, record.json, true))),
            Ok(None) => return Err(format!("offset {offset} cannot be read")),
            Err(Error::Damaged { .. }) => values.push(None),
            Err(error) => return Err(format!("offset {offset}: {error}")),
        }
    }
    Ok(values)
}
