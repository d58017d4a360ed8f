//! A simulated disk, driven by a seed, on which only what was synced is sure to stay. When the power fails, each
//! sector, each length and each change of a name that was not synced is kept or lost; when a process is killed,
//! everything it wrote is kept. It fails on request or by chance, and its steps can be traced, so that two runs can be
//! compared.
//!
//! A step is a unit before or after which another process may act or the power may fail: `set_len` and the sync of the
//! file that follows it are two steps. Files are written past the page cache or through it ([`Mode`]).

mod content;
mod faults;
mod file;
mod harm;
mod memory;
mod names;
mod random;

use super::{Disk, File, MemoryDir, Node};
use content::Content;
pub(crate) use faults::{Cut, Mode};
use faults::{Plan, StepKind};
use file::SimFile;
use memory::MemoryGate;
use names::Names;
pub(crate) use random::Random;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

#[derive(Debug, Default)]
struct State {
    names: Names,
    mode: Mode,
    plan: Plan,
    random: Random,
    /// Locks that are held: whether exclusively, and by how many.
    locks: BTreeMap<PathBuf, (bool, usize)>,
    off: bool,
    steps: u64,
    /// A digest of all steps so far, as they are written to the trace.
    digest: u32,
    trace: Option<String>,
}

/// What runs in the middle of a step, as another thread would.
type Meanwhile = Arc<dyn Fn() + Send + Sync>;

/// A simulated disk. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct Sim {
    state: Arc<Mutex<State>>,
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
    memory_gate: MemoryGate,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sim")
    }
}

fn gone() -> io::Error {
    io::Error::other("the power is off")
}

impl State {
    fn alive(&self) -> io::Result<()> {
        if self.off { Err(gone()) } else { Ok(()) }
    }

    /// Counts a step. Returns an error if the step fails, or `Some` if the process or the machine ends during it.
    fn step(&mut self, kind: StepKind, what: std::fmt::Arguments<'_>) -> io::Result<Option<Cut>> {
        self.alive()?;
        self.steps += 1;
        let mut line = String::new();
        let _ = write!(line, "{} {what}", self.steps); // to a string: cannot fail
        let ends = if kind == StepKind::Read { None } else { self.plan.ends() };
        let failed = if ends.is_some() { None } else { self.plan.fails(kind, &mut self.random) };
        match (&ends, &failed) {
            (Some(cut), _) => drop(write!(line, ": {cut:?}")),
            (_, Some(error)) => drop(write!(line, ": {error}")),
            _ => {}
        }
        line.push('\n');
        self.digest = crc32c::crc32c_append(self.digest, line.as_bytes());
        if let Some(trace) = &mut self.trace {
            trace.push_str(&line);
        }
        self.off |= ends.is_some();
        failed.map_or(Ok(ends), Err)
    }

    /// A step that is done completely or not at all, even if the process or the machine ends during it.
    fn whole_step(
        &mut self,
        kind: StepKind,
        what: std::fmt::Arguments<'_>,
        done: impl FnOnce(&mut Names) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.step(kind, what)?.is_none() {
            return done(&mut self.names);
        }
        if self.random.one_in(2) {
            let _ = done(&mut self.names); // nobody is left to be notified
        }
        Err(gone())
    }

    fn used(&self) -> u64 {
        let files = self.names.files();
        files.iter().filter_map(|(_, file)| Some(self.names.file(*file).ok()?.bytes().len() as u64)).sum()
    }
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        let sim = Self::default();
        sim.state().random = Random::new(seed);
        sim
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.state().mode = mode;
    }

    /// Ends the process or the machine at the `steps`-th step from now, not counting reads.
    pub(crate) fn end_after(&self, steps: u64, cut: Cut) {
        self.state().plan.fuse = Some((steps, cut));
    }

    /// The power fails at the `steps`-th step from now, not counting reads.
    pub(crate) fn cut_power_after(&self, steps: u64) {
        self.end_after(steps, Cut::Power);
    }

    /// The `steps`-th step from now that changes something fails with an I/O error. If it is a write, each of its
    /// sectors may have been written.
    pub(crate) fn fail_after(&self, steps: u64) {
        self.state().plan.fault = Some(steps);
    }

    /// From now on one in `odds` steps fails; `None` stops that.
    pub(crate) fn fail_one_in(&self, odds: Option<u64>) {
        let mut state = self.state();
        state.plan.odds = odds;
        state.plan.dry = 0;
    }

    /// How many steps have failed that may have written something, and how many others.
    pub(crate) fn faults(&self) -> (u64, u64) {
        let state = self.state();
        (state.plan.fatal, state.plan.passing)
    }

    /// The next writes, this many, find no room, as in files whose room cannot be reserved, or is shared with a copy.
    /// Some of what they write may have been written.
    pub(crate) fn run_dry(&self, writes: u64) {
        self.state().plan.dry = writes;
    }

    /// Limits the bytes that may be reserved in total; `None` lifts the limit.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.state().plan.room = room;
    }

    /// Limits the bytes that may be reserved to `bytes` more than now.
    #[cfg(feature = "store")]
    pub(crate) fn leave_room(&self, bytes: u64) {
        let mut state = self.state();
        state.plan.tight = true;
        state.plan.room = Some(state.used() + bytes);
    }

    /// Leaves no room, also where some is freed: others on the same disk take it.
    #[cfg(feature = "store")]
    pub(crate) fn leave_none(&self) {
        let mut state = self.state();
        state.plan.tight = true;
        state.plan.room = Some(0);
    }

    /// Whether [`leave_room`](Self::leave_room) or [`leave_none`](Self::leave_none) was called on this disk.
    #[cfg(feature = "store")]
    pub(crate) fn is_tight(&self) -> bool {
        self.state().plan.tight
    }

    /// Makes writes wait (`true`), or continue.
    pub(crate) fn hold(&self, held: bool) {
        self.state().plan.held = held;
    }

    /// A step in the memory file system, which is not part of this disk, but of its machine.
    pub(crate) fn memory_step(&self, what: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step(StepKind::Open, format_args!("{what}"))?;
        state.alive()
    }

    /// Sets what runs in the middle of steps during which this disk holds no lock: what another thread would do then.
    pub(crate) fn set_meanwhile(&self, meanwhile: Option<Meanwhile>) {
        *self.meanwhile.lock().unwrap() = meanwhile;
    }

    /// Sets what is asked before each step in the memory file system beside this disk, and may make it fail.
    pub(crate) fn set_memory_gate(&self, ask: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static) {
        self.memory_gate.lock().unwrap().ask = Some(Arc::new(ask));
    }

    pub(crate) fn remove_memory_gate(&self) {
        self.memory_gate.lock().unwrap().ask = None;
    }

    /// How many bytes fit the memory file system beside this disk; `None`: as many as the system has room for.
    pub(crate) fn set_memory_room(&self, room: Option<u64>) {
        self.memory_gate.lock().unwrap().room = room;
    }

    fn meanwhile(&self) {
        let meanwhile = self.meanwhile.lock().unwrap().clone();
        if let Some(run) = meanwhile {
            run();
        }
    }

    /// Ends the process that has this disk.
    #[cfg(feature = "store")]
    pub(crate) fn turn_off(&self) {
        self.state().off = true;
    }

    /// Whether the process that has this disk has ended.
    pub(crate) fn is_off(&self) -> bool {
        self.state().off
    }

    /// The number of steps so far, and a digest of all of them.
    pub(crate) fn steps(&self) -> (u64, u32) {
        let state = self.state();
        (state.steps, state.digest)
    }

    /// Starts to write down each step.
    pub(crate) fn begin_trace(&self) {
        self.state().trace = Some(String::new());
    }

    /// Writes a line to the trace.
    pub(crate) fn note(&self, what: std::fmt::Arguments<'_>) {
        let mut state = self.state();
        if let Some(trace) = &mut state.trace {
            let _ = writeln!(trace, "{what}"); // to a string: cannot fail
        }
    }

    pub(crate) fn take_trace(&self) -> String {
        self.state().trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The disk as the next process finds it. This one is off from then on.
    pub(crate) fn after(&self, cut: Cut) -> Self {
        let mut old = self.state();
        old.off = true;
        let (mut names, mut random) = (std::mem::take(&mut old.names), old.random.fork());
        match cut {
            Cut::Power => names.lose(&mut random),
            Cut::Kill => names.settle(&mut random),
        }
        names.remove_orphans();
        let state = State {
            names,
            random,
            mode: old.mode,
            steps: old.steps,
            digest: old.digest,
            trace: old.trace.take(),
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(state)), ..Self::default() }
    }

    /// The disk after the power has come back. This one stays off.
    pub(crate) fn reboot(&self) -> Self {
        self.after(Cut::Power)
    }

    /// A copy of the disk as it is; this one stays in use.
    pub(crate) fn snapshot(&self) -> Self {
        let old = self.state();
        let state = State {
            names: old.names.clone(),
            random: old.random.clone(),
            mode: old.mode,
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(state)), ..Self::default() }
    }

    /// Changes the content of a file without the log's knowledge.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let file = state.names.find(path).unwrap();
        state.names.file_mut(file).unwrap().change(change);
    }

    /// All files except locks, with their content.
    pub(crate) fn dump(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let files = state.names.files().into_iter();
        let files = files.filter(|(path, _)| !path.to_string_lossy().ends_with("lock"));
        files.map(|(path, file)| (path, state.names.file(file).unwrap().bytes().to_vec())).collect()
    }

    /// Copies a directory to another name, or moves it there, without the log's knowledge.
    #[cfg(feature = "store")]
    pub(crate) fn graft(&self, from: &Path, to: &Path, copy: bool) {
        self.state().names.graft(from, to, copy).unwrap();
    }

    fn lock_as(&self, path: &Path, alone: bool) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state();
        let held = state.locks.entry(path.to_owned()).or_default();
        if held.1 > 0 && (alone || held.0) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        *held = (alone, held.1 + 1);
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }))
    }
}

impl Disk for Sim {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        loop {
            let mut state = self.state();
            state.alive()?;
            let Some(missing) = state.names.missing(path)? else {
                let parent = state.names.place(path)?.0;
                return state.whole_step(StepKind::Sync, format_args!("sync dir {parent}"), |names| {
                    names.sync(parent)
                });
            };
            let parent = missing.0;
            state.whole_step(
                StepKind::Create,
                format_args!("mkdir {} in {parent}", path.display()),
                |names| names.make_dir(missing),
            )?;
            state
                .whole_step(StepKind::Sync, format_args!("sync dir {parent}"), |names| names.sync(parent))?;
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.step(StepKind::Read, format_args!("list {}", dir.display()))?;
        state.names.list(state.names.find(dir)?)
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn File>> {
        self.meanwhile();
        let mut state = self.state();
        let room = state.plan.room;
        if room.is_some_and(|room| state.used() + length > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let place = state.names.place(path)?;
        let cut = state.step(StepKind::Create, format_args!("create {} {length}", path.display()))?;
        if cut.is_some() && state.random.one_in(2) {
            return Err(gone());
        }
        let file = state.names.make_file(place, Content::reserved(length as usize))?;
        state.alive()?;
        Ok(Box::new(SimFile { disk: self.clone(), file }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        state.alive()?;
        let file = state.names.find(path)?;
        state.names.file(file)?;
        let how = if write { "to write" } else { "to read" };
        state.step(StepKind::Open, format_args!("open {} {how}", path.display()))?;
        state.alive()?;
        Ok(Box::new(SimFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        state.names.find(from)?;
        let what = format_args!("rename {} {}", from.display(), to.display());
        state.whole_step(StepKind::Change, what, |names| names.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.meanwhile();
        let mut state = self.state();
        state.alive()?;
        state.names.find(path)?;
        let what = format_args!("remove {}", path.display());
        state.whole_step(StepKind::Change, what, |names| names.remove_file(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.state().whole_step(StepKind::Sync, format_args!("sync dir {}", dir.display()), |names| {
            let dir = names.find(dir)?;
            names.sync(dir)
        })
    }

    #[cfg(feature = "store")]
    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.step(StepKind::Read, format_args!("look at {}", path.display()))?;
        match state.names.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => Ok(state.names.list(found?).is_ok()),
        }
    }

    #[cfg(feature = "store")]
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.step(StepKind::Read, format_args!("list {}", dir.display()))?;
        state.names.dirs(state.names.find(dir)?)
    }

    #[cfg(feature = "store")]
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let (names, dirs) = {
            let state = self.state();
            state.alive()?;
            let number = state.names.find(dir)?;
            (state.names.list(number)?, state.names.dirs(number)?)
        };
        for name in names {
            let path = dir.join(&name);
            if dirs.contains(&name) { self.remove_dir(&path)? } else { self.remove(&path)? }
        }
        let what = format_args!("rmdir {}", dir.display());
        self.state().whole_step(StepKind::Change, what, |names| names.remove_dir(dir))
    }

    #[cfg(feature = "store")]
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = {
            let mut state = self.state();
            let place = state.names.place(path)?;
            let there = state.names.find(path).ok();
            let what = format_args!("write anew {}", path.display());
            let cut = state.step(StepKind::Create, what)?;
            if cut.is_some() && state.random.one_in(2) {
                return Err(gone());
            }
            let file = match there {
                Some(file) => file, // its content is removed, as by `O_TRUNC`
                None => state.names.make_file(place, Content::default())?,
            };
            state.names.file_mut(file)?.set_len(0);
            state.alive()?;
            SimFile { disk: self.clone(), file }
        };
        file.put(&[IoSlice::new(bytes)], 0)?;
        file.flush()
    }

    fn memory(&self, at: &Path) -> io::Result<Box<dyn MemoryDir>> {
        memory::open(at, &self.memory_gate)
    }

    fn node(&self, dir: &Path) -> io::Result<Node> {
        let mut state = self.state();
        state.step(StepKind::Read, format_args!("look at {}", dir.display()))?;
        Ok((1, state.names.find(dir)? as u64))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        {
            let mut state = self.state();
            let place = state.names.place(path)?;
            let there = state.names.find(path).is_ok();
            state.whole_step(StepKind::Open, format_args!("lock {}", path.display()), |names| {
                if there { Ok(()) } else { names.make_file(place, Content::default()).map(drop) }
            })?;
        }
        self.lock_as(path, true)
    }

    fn join_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        {
            let mut state = self.state();
            state.alive()?;
            if state.names.find(path).is_err() {
                return Ok(None);
            }
            state.step(StepKind::Open, format_args!("join lock {}", path.display()))?;
        }
        self.lock_as(path, false).map(Some)
    }
}

struct SimLock {
    disk: Sim,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if let Some(held) = state.locks.get_mut(&self.path) {
            held.1 -= 1;
        }
    }
}
