//! What happens to logs while nobody has them open: bits flip on the device, directories are copied and renamed. Damage
//! is reported, everything else is as it was, and after a repair the log can be used again.

use super::{
    left::{is_torn, left_files},
    model::{KnownLog, Rec, Sent},
    process::read_all,
    run::{ROOT, Simulation},
    work::{NAMES, scrub_all},
    world::World,
};
use crate::{
    Damage, Durability, Error, Log, Options,
    chunk::backing_owners,
    disk::sim::{Cut, Sim},
    log::{repair_on, verify_on},
    store::{Error as StoreError, Store, StoreOptions},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

impl Simulation {
    /// Copies a log's directory, or gives it another name.
    pub(super) fn graft(&mut self) {
        let free: Vec<_> =
            NAMES[..self.profile.logs].iter().filter(|name| !self.logs.contains_key(**name)).collect();
        let Some(from) = self.random_certain().filter(|_| !free.is_empty()) else { return };
        let (to, copy) = ((**self.random.pick(&free)).to_owned(), self.random.one_in(2));
        self.disk.note(format_args!("{from} is {} as {to}", if copy { "copied" } else { "renamed" }));
        self.disk.graft(&Path::new(ROOT).join(&from), &Path::new(ROOT).join(&to), copy);
        let mut known = self.logs[&from].clone();
        if copy {
            // Records that are only in memory belong to the original. But a process that was killed while it opened that may
            // have written some of them to its file.
            known.forget_memory();
            known.wiped = true;
        } else {
            self.logs.remove(&from);
        }
        self.logs.insert(to, known);
    }

    /// A bit of a log's settings flips: the log does not open with other settings, and opens again when the flip is
    /// undone.
    pub(super) fn flip_in_settings(&mut self) {
        let Some(name) = self.random_certain() else { return };
        let (path, sim) = (Path::new(ROOT).join(&name).join("log.json"), self.disk.clone());
        let Some((at, bit)) = sim.flip_in(&mut self.random, &path) else { return };
        let place = format!("{}, log {name:?}, bit {bit} at {at}", self.place(&sim));
        sim.note(format_args!("== bit {bit} changes in {} at {at}", path.display()));
        let world = World::new(sim.clone(), &mut self.random);
        let options = StoreOptions { log: self.options(true), ..StoreOptions::default() };
        let store = Store::open_in(world.environment(&self.clock), Path::new(ROOT), options);
        let store = store.unwrap_or_else(|error| panic!("{place}: {error}"));
        match store.get(&name) {
            Ok(log) => assert_eq!(*log.settings(), self.logs[&name].settings, "{place}"),
            Err(StoreError::Log(Error::Corrupt { .. })) => {}
            Err(error) => panic!("{place}: {error}"),
        }
        sim.turn_off();
        drop(store);
        self.end(&sim, Cut::Kill, false);
        drop(world);
        self.disk.damage(&path, |bytes| bytes[at] ^= bit);
    }

    /// A bit flips in the producers file: then the log itself is used, as far as it goes back.
    pub(super) fn flip_in_producers(&mut self) {
        if let Some(known) = self.flip_in_file("producers.json") {
            known.forget_producers = true;
        }
    }

    /// A bit flips in the file of cursors: they cannot be used until they are removed.
    pub(super) fn flip_in_cursors(&mut self) {
        if let Some(known) = self.flip_in_file("cursors.json") {
            known.cursors.harmed = true;
        }
    }

    /// A bit flips in what a killed process has left in memory: the records that are only there are lost from that one on.
    pub(super) fn flip_in_backing(&mut self) {
        let mut left = left_files(self.at.path());
        left.sort();
        if left.is_empty() {
            return;
        }
        let path = self.random.pick(&left).clone();
        let mut bytes = std::fs::read(&path).unwrap();
        let filled = 1 + bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
        let end = if self.random.one_in(4) { 128 } else { filled };
        let at = self.random.below(end);
        bytes[at] ^= 1 << self.random.below(8);
        std::fs::write(&path, bytes).unwrap();
        self.disk.note(format_args!("a bit changes at {at} in a backing"));
        let of = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        for known in self.logs.values_mut().filter(|known| known.id.is_none_or(|id| id.to_string() == of)) {
            known.told_of = known.told_of.max(known.memory);
            known.harmed_memory = true;
            known.forget_memory();
        }
    }

    /// A bit flips in this file of a log, if one has it. Returns what is known of that log.
    fn flip_in_file(&mut self, file: &str) -> Option<&mut KnownLog> {
        let name = self.random_certain()?;
        let path = Path::new(ROOT).join(&name).join(file);
        self.disk.flip_in(&mut self.random, &path)?;
        self.disk.note(format_args!("a bit changes in {}", path.display()));
        self.logs.get_mut(&name)
    }

    /// A bit of a segment flips. One process opens what is left of the log, and repairs it.
    pub(super) fn flip(&mut self) {
        let Some(name) = self.random_certain() else { return };
        let (dir, sim) = (Path::new(ROOT).join(&name), self.disk.clone());
        let Some((path, at)) = sim.flip(&mut self.random, &dir) else { return };
        sim.note(format_args!("== a bit changes in {} at {at}", path.display()));
        let place = format!("{}, log {name:?}, bit at {at} of {}", self.place(&sim), path.display());
        let backings = !self.random.one_in(5);
        let world = World::new(sim.clone(), &mut self.random);
        let options = self.options_of(&name, backings);
        let env = world.environment(&self.clock);
        let open = || {
            Log::open_in(&env, &dir, options.clone())
                .unwrap_or_else(|error| panic!("{place}: does not open: {error}"))
        };
        let log = open();
        let (first, next, damage) = (log.first_offset(), log.next_offset(), log.damage().to_vec());
        let values = read_all(&log, first, next).unwrap_or_else(|error| panic!("{place}: {error}"));
        let scrubbed = scrub_all(&log).unwrap_or_else(|error| panic!("{place}: {error}"));
        sim.note(format_args!("found {first}..{next}, damage {damage:?}, by a scrub {scrubbed:?}"));
        let known = self.logs.get_mut(&name).expect("it is certain");
        known.flipped = true;
        if !backings {
            known.forget_memory();
        }
        // A damaged log is left as it is, and what is in memory is restored after the repair.
        let floor = if backings && damage.is_empty() { known.memory } else { known.durable };
        if next < floor {
            // After an unclean stop, rot in the last commit looks like the torn end of a write, and is kept aside.
            let kept = sim.dump().into_keys().any(|path| path.starts_with(&dir) && is_torn(&path));
            assert!(kept, "{place}: ends at {next}, {floor} were acknowledged, and nothing was kept aside");
        }
        let lost = known.recognise_all(&place, first, &values);
        assert!(lost.len() <= 1, "{place}: one bit has damaged {lost:?}");
        assert_scrubbed(&place, &lost, &known.lost, &damage, &scrubbed);
        // What a lost record says about its producer is no longer known.
        known.doubt_producers(|sent| lost.contains(&sent.first) || sent.first >= next);
        if damage.is_empty() {
            log.writable().unwrap_or_else(|error| panic!("{place}: {error}"));
            known.cursors.check(&place, &log, false);
            log.close().unwrap_or_else(|error| panic!("{place}: {error}"));
            let report = verify_on(&sim, &dir, None, &mut |_, _| ()).expect("it was open");
            assert_reported(&place, &lost, &report.damage);
            assert_scrub_is_complete(&place, &report.damage, &scrubbed);
        } else {
            assert!(
                matches!(log.writable(), Err(Error::ReadOnly { .. })),
                "{place}: {damage:?}, but writable"
            );
            assert_reported(&place, &lost, &damage);
            drop(log);
            known.lost.extend(&lost);
            known.durable = known.durable.max(next);
            return self.mend(world, &name, &options, first, &values);
        }
        known.lost.extend(lost);
        known.note_found(first, next, backings);
        known.was_open = true;
        self.end(&sim, Cut::Kill, true);
        drop(world);
    }

    /// A sector of a segment cannot be read for a while. The log opens all the same, unless that was its only header;
    /// what it serves is right, and nothing is cut off because of what cannot be read. Afterwards everything is as it
    /// was.
    pub(super) fn spoil(&mut self) {
        let Some(name) = self.random_certain() else { return };
        let (dir, sim) = (Path::new(ROOT).join(&name), self.disk.clone());
        let Some((path, at)) = sim.spoil(&mut self.random, &dir) else { return };
        let place =
            format!("{}, log {name:?}, byte {at} of {} is unreadable", self.place(&sim), path.display());
        sim.note(format_args!("== the sector of byte {at} in {} cannot be read", path.display()));
        let backings = !self.random.one_in(5);
        let world = World::new(sim.clone(), &mut self.random);
        let options = self.options_of(&name, backings);
        let known = self.logs.get_mut(&name).expect("it is certain");
        if !backings {
            known.forget_memory();
        }
        match Log::open_in(&world.environment(&self.clock), &dir, options) {
            Ok(log) => {
                let (first, next, damage) = (log.first_offset(), log.next_offset(), log.damage().to_vec());
                sim.note(format_args!("found {first}..{next}, damage {damage:?}"));
                let values: Vec<_> = (first..next)
                    .map(|offset| {
                        let record = log.read(offset).ok()?.filter(|record| !record.is_lost())?;
                        Some(Rec::of(record.value(), record.is_json(), true))
                    })
                    .collect();
                known.recognise_all(&place, first, &values); // what cannot be read comes back
                let (found, _) = scrub_all(&log).unwrap_or_else(|error| panic!("{place}: {error}"));
                let is_lost = |damage: &Damage| {
                    (known.flipped || !damage.offsets.is_empty())
                        && damage.offsets.clone().all(|offset| known.lost.contains(&offset))
                };
                let explained = found.iter().all(|damage| damage.unreadable || is_lost(damage));
                assert!(explained, "{place}: a scrub finds {found:?}");
                if damage.is_empty() {
                    let floor = if backings { known.memory } else { known.durable };
                    assert!(next >= floor, "{place}: ends at {next}, {floor} were acknowledged");
                    log.writable().unwrap_or_else(|error| panic!("{place}: {error}"));
                    known.note_found(first, next, backings);
                    known.cursors.check(&place, &log, false);
                } else {
                    assert!(damage.iter().all(|damage| damage.unreadable), "{place}: {damage:?}");
                    assert!(matches!(log.writable(), Err(Error::ReadOnly { .. })), "{place}: writable");
                }
            }
            Err(Error::Corrupt { path: of, .. }) if of == path && at < 4096 => {}
            Err(error) => panic!("{place}: does not open: {error}"),
        }
        sim.turn_off();
        sim.heal();
        self.end(&sim, Cut::Kill, false);
        drop(world);
    }

    /// A log is repaired before anybody has opened it: after a bit flipped, or with a sector that cannot be read, or
    /// with nothing wrong at all; with the backings that a killed process has left, or without. Only what was harmed is
    /// lost, and records in memory are recovered.
    pub(super) fn repair_unopened(&mut self) {
        // A log of which a killed process has left something only in memory, if there is one.
        let in_memory = |(_, known): &(&String, &KnownLog)| known.certain && known.memory > known.durable;
        let name = self.logs.iter().find(in_memory).map(|(name, _)| name.clone());
        let Some(name) = name.or_else(|| self.random_certain()) else { return };
        let (dir, sim) = (Path::new(ROOT).join(&name), self.disk.clone());
        let open = last_segment(&sim, &dir);
        let harm = self.harm_at_most_one(&sim, &dir, open.as_deref());
        sim.note(format_args!("== {name} is repaired, harmed is {:?}", harm.at));
        let backings = !self.random.one_in(5);
        let options = self.options_of(&name, backings);
        let world = World::new(sim, &mut self.random);
        let world = self.repair_interrupted(world, &dir, options.shm_dir.as_deref(), 3);
        // Harm to the last segment may look like the torn end of a write. A power failure decides which segment is the
        // last: the name of the one that was may not have been on the device.
        let may_end_early = harm.at.as_ref().is_some_and(|(path, _)| {
            Some(path) == open.as_ref() || Some(path) == last_segment(&world.sim, &dir).as_ref()
        });
        // Backings whose records are also in the files are removed once that is known: the next opening may get that
        // far, and no further.
        let backings_left =
            backing_owners(&world.sim, self.at.path()).unwrap().iter().any(|(of, _)| *of == dir);
        let place = format!("{}, log {name:?}, repaired, harmed is {:?}", self.place(&world.sim), harm.at);
        if !self.repair_harmed(&world, &place, &name, &harm, &options) {
            world.sim.heal();
            self.end(&world.sim, Cut::Kill, false);
            return;
        }
        self.open_repaired(&world, &place, &name, &options, harm.most_lost, may_end_early, backings_left);
        world.sim.heal();
        self.end(&world.sim, Cut::Kill, true);
    }

    /// Opens a log that was repaired, and compares it with what is known of it. Up to `most_lost` records are lost; if it
    /// `may_end_early`, also some at its end, unless those are in the backings that are left.
    #[allow(clippy::too_many_arguments)]
    fn open_repaired(
        &mut self,
        world: &World,
        place: &str,
        name: &str,
        options: &Options,
        most_lost: usize,
        may_end_early: bool,
        backings_left: bool,
    ) {
        let (dir, backings) = (Path::new(ROOT).join(name), options.shm_dir.is_some());
        let known = self.logs.get_mut(name).expect("it is certain");
        let log = Log::open_in(&world.environment(&self.clock), &dir, options.clone());
        let log = log.unwrap_or_else(|error| panic!("{place}: does not open: {error}"));
        assert!(log.damage().is_empty(), "{place}: {:?}", log.damage());
        log.writable().unwrap_or_else(|error| panic!("{place}: {error}"));
        let (first, next) = (log.first_offset(), log.next_offset());
        let values = read_all(&log, first, next).unwrap_or_else(|error| panic!("{place}: {error}"));
        world.sim.note(format_args!(
            "found {first}..{next}, in memory {}, durable {}",
            known.memory, known.durable
        ));
        let lost = known.recognise_all(place, first, &values);
        let in_memory = backings && backings_left && known.memory > known.durable;
        assert!(
            next >= known.memory || may_end_early && !in_memory,
            "{place}: ends at {next}, {} were acknowledged",
            known.memory
        );
        assert!(lost.len() <= most_lost, "{place}: {lost:?} are lost");
        // Of a batch at the end that was given up, the file of producers may still have the epoch.
        let has_lost = |sent: &Sent| (sent.first..sent.first + sent.count).any(|n| lost.contains(&n));
        known.doubt_producers(|sent| sent.first >= next || has_lost(sent));
        known.lost.extend(lost);
        if next < known.durable {
            // The producers file describes another end of the log.
            known.forget_producers = true;
        }
        known.note_found(first, next, backings);
        known.cursors.check(place, &log, false);
        log.close().unwrap_or_else(|error| panic!("{place}: {error}"));
        known.was_open = true;
    }

    /// Flips a bit in a log, or makes a sector unreadable, or does nothing; in its last segment, or anywhere.
    fn harm_at_most_one(&mut self, sim: &Sim, dir: &Path, last: Option<&Path>) -> Harm {
        let at = last.filter(|_| self.random.one_in(2)).unwrap_or(dir);
        match self.random.below(3) {
            0 => Harm { at: sim.flip(&mut self.random, at), most_lost: 1 },
            // The smallest frame has 24 bytes.
            1 => Harm { at: sim.spoil(&mut self.random, at), most_lost: 512 / 24 + 2 },
            _ => Harm { at: None, most_lost: 0 },
        }
    }

    /// Repairs a log that was harmed; without its backings, if what they have continues after what is lost. Returns
    /// `false` if that cannot be done: its only header was harmed.
    fn repair_harmed(
        &mut self,
        world: &World,
        place: &str,
        name: &str,
        harm: &Harm,
        options: &Options,
    ) -> bool {
        let (dir, shm) = (Path::new(ROOT).join(name), options.shm_dir.as_deref());
        let mut repaired = repair_on(&world.sim, &dir, shm, &mut |_, _| ());
        let known = self.logs.get_mut(name).expect("it is certain");
        if shm.is_none() {
            known.forget_memory();
        }
        match repaired {
            Err(Error::BackingContinues { .. }) if harm.at.is_some() && shm.is_some() => {
                known.forget_memory();
                repaired = repair_on(&world.sim, &dir, None, &mut |_, _| ());
            }
            Err(Error::Corrupt { .. }) if harm.at.as_ref().is_some_and(|(_, at)| *at < 4096) => return false,
            _ => {}
        }
        let repaired = repaired.unwrap_or_else(|error| panic!("{place}: {error}"));
        world.sim.note(format_args!("{repaired:?}"));
        true
    }

    /// The options of a process that opens a log by itself.
    fn options_of(&mut self, name: &str, backings: bool) -> Options {
        let durability = self.logs[name].settings.durability.unwrap_or(Durability::Disk);
        Options { durability, ..self.options(backings) }
    }

    /// As often as chance has it, a process repairs a log, and is interrupted or gets done. Returns the world of the next
    /// process.
    fn repair_interrupted(&mut self, mut world: World, dir: &Path, shm: Option<&Path>, one_in: u64) -> World {
        while self.random.one_in(one_in) {
            let cut = *self.random.pick(&[Cut::Power, Cut::Kill]);
            world.sim.end_after(1 + self.random.below(20) as u64, cut);
            let _ = repair_on(&world.sim, dir, shm, &mut |_, _| ());
            let sim = world.sim.clone();
            self.end(&sim, cut, false);
            drop(world);
            world = World::new(self.disk.clone(), &mut self.random);
        }
        world
    }

    /// Repairs a damaged log; the repair may be interrupted, and is then repeated. Afterwards the log can be written
    /// to, and has what it had before.
    fn mend(&mut self, world: World, name: &str, options: &Options, first: u64, values: &[Option<Rec>]) {
        let dir = Path::new(ROOT).join(name);
        let backings = options.shm_dir.as_deref();
        let world = self.repair_interrupted(world, &dir, backings, 2);
        let place = format!("{}, log {name:?}, after repair", self.place(&world.sim));
        repair_on(&world.sim, &dir, backings, &mut |_, _| ())
            .unwrap_or_else(|error| panic!("{place}: {error}"));
        let env = world.environment(&self.clock);
        let log = Log::open_in(&env, &dir, options.clone());
        let log = log.unwrap_or_else(|error| panic!("{place}: does not open: {error}"));
        assert!(log.damage().is_empty(), "{place}: {:?}", log.damage());
        log.writable().unwrap_or_else(|error| panic!("{place}: {error}"));
        let found = read_all(&log, first, log.next_offset());
        let found = found.unwrap_or_else(|error| panic!("{place}: {error}"));
        // Damage may be mended from the memory of a killed process.
        let is_kept = values.iter().zip(&found).all(|(was, is)| was.is_none() || was == is);
        assert!(
            log.first_offset() == first && found.len() >= values.len() && is_kept,
            "{place}: more than the damage has changed"
        );
        let (next, backings) = (log.next_offset(), options.shm_dir.is_some());
        let known = self.logs.get_mut(name).expect("it is certain");
        let floor = if backings { known.memory } else { known.durable };
        assert!(next >= floor, "{place}: ends at {next}, and {floor} were acknowledged");
        known.recognise_all(&place, first, &found);
        let is_there =
            |offset: &u64| found.iter().zip(first..).any(|(value, n)| n == *offset && value.is_some());
        known.lost.retain(|offset| !is_there(offset));
        known.note_found(first, next, backings);
        known.cursors.check(&place, &log, false);
        log.close().unwrap_or_else(|error| panic!("{place}: {error}"));
        let sim = world.sim.clone();
        known.was_open = true;
        self.end(&sim, Cut::Kill, true);
        drop(world);
    }
}

/// What was harmed of a log: one bit, or a sector.
struct Harm {
    /// The file, and the byte in it; `None` if nothing was.
    at: Option<(PathBuf, usize)>,
    /// How many records it may cost.
    most_lost: usize,
}

/// Asserts that all lost offsets are among those that are reported as damaged.
fn assert_reported(place: &str, lost: &[u64], reported: &[Damage]) {
    let is_reported = |offset| reported.iter().any(|damage| damage.offsets.contains(offset));
    assert!(
        lost.iter().all(is_reported),
        "{place}: {lost:?} are lost, and the damage reported is {reported:?}"
    );
}

/// Asserts that a scrub has found the records that are damaged, unless the opening has, and no others but those that were
/// lost before.
fn assert_scrubbed(
    place: &str,
    lost: &[u64],
    before: &BTreeSet<u64>,
    by_opening: &[Damage],
    scrubbed: &(Vec<Damage>, u64),
) {
    let (found, _) = scrubbed;
    assert_reported(place, lost, &[by_opening, found].concat());
    let is_lost = |damage: &Damage| {
        damage.offsets.clone().all(|offset| lost.contains(&offset) || before.contains(&offset))
    };
    assert!(found.iter().all(is_lost), "{place}: {lost:?} are lost, and a scrub finds {found:?}");
}

/// Asserts that a scrub has found everything in sealed segments that `verify` has found.
fn assert_scrub_is_complete(place: &str, verified: &[Damage], (found, end): &(Vec<Damage>, u64)) {
    let is_sealed = |damage: &&Damage| damage.offsets.start < *end && is_segment(&damage.path);
    let is_found = |damage: &Damage| {
        found.iter().any(|one| one.path == damage.path && one.offsets.contains(&damage.offsets.start))
            || found.iter().any(|one| one.path == damage.path && one.offsets == damage.offsets)
    };
    let missed: Vec<_> = verified.iter().filter(is_sealed).filter(|damage| !is_found(damage)).collect();
    assert!(missed.is_empty(), "{place}: verify finds {missed:?}, and a scrub {found:?}");
}

/// The segment of a log that has the highest base.
fn last_segment(sim: &Sim, dir: &Path) -> Option<PathBuf> {
    sim.dump().into_keys().filter(|path| path.starts_with(dir) && is_segment(path)).max()
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}
