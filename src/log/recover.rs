//! Recovery: what a directory holds, judged without changing anything ([`survey`]), and opening it for use.
//!
//! A frame that does not verify ends the log only if nothing at or after it was ever durable. What proves the
//! contrary: a later segment (which is begun only when all before it is durable), a later frame that says so, the
//! mark of a clean close, or a file that was cut to size. Then it is damage, the log opens read-only, and the rest
//! is served. Otherwise it is a torn tail, which is zeroed and synced before the first append, so that the next
//! recovery cannot stop at it.

use super::{
    Damage, Environment, Error, Frontier, Options, Shared,
    budget::Budget,
    flush::{Flusher, Position},
    images,
    retain::Chain,
    roll::{Active, Roller},
};
use crate::{
    chunk::{Chunk, Extent, Images, Memory},
    disk::{self, BLOCK, Disk, File},
    frame::{self, MORE, WORD},
    segment::{
        CAPACITIES, FRAMES, Segment,
        file::{self, SegmentFile},
        header::{BadHeader, Header},
        scan::{self, Scan},
        sealed::{self, Footer, Sealed},
    },
    sync::{Arc, AtomicBool, AtomicU64, Swap},
};
use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The lock file's name.
pub(super) const LOCK: &str = "lock";
/// The one of a store, beside its logs' directories: who has that needs none of the logs'.
pub(crate) const STORE_LOCK: &str = ".lock";
/// What `repair` keeps damaged files as ends like this.
pub(super) const ASIDE: &str = ".damaged";

/// Where the store keeps what it knows about the log.
pub(crate) const SETTINGS_FILE: &str = "log.json";
/// What is known of producers up to some offset.
pub(crate) const PRODUCERS_FILE: &str = "producers.json";

/// Whether a log's directory may have a file of this name.
fn is_ours(name: &str) -> bool {
    name == LOCK
        || [SETTINGS_FILE, PRODUCERS_FILE].contains(&name.strip_suffix(".tmp").unwrap_or(name))
        || file::base_of(name).is_some()
        || file::is_passing(name)
        || name.ends_with(ASIDE)
}

/// What a directory holds.
pub(super) struct Survey {
    pub(super) segments: Vec<Found>,
    pub(super) damage: Vec<Damage>,
    /// Ranges of offsets for which there is no file.
    pub(super) missing: Vec<Range<u64>>,
}

/// One segment file.
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) path: PathBuf,
    pub(super) state: State,
}

pub(super) enum State {
    /// Index and footer are there; the frames were looked at only if the survey was deep.
    Sealed(Footer),
    /// All frames are there; index and footer are not, or not right, and can be derived.
    Unsealed(Scan),
    /// The last segment, not sealed: its frames' region as the file has it, and what verifies of it.
    Open(Vec<u8>, Scan),
    /// Records are damaged.
    Damaged(Wreck),
}

/// A damaged segment: which of its records can still be read.
pub(super) struct Wreck {
    /// The word of each record plus one, or 0 where it is lost.
    pub(super) survivors: Vec<u32>,
    pub(super) words: u32,
}

impl Found {
    pub(super) fn records(&self) -> u32 {
        match &self.state {
            State::Sealed(footer) => footer.records,
            State::Unsealed(scan) | State::Open(_, scan) => scan.positions.len() as u32,
            State::Damaged(wreck) => wreck.survivors.len() as u32,
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.header.base + u64::from(self.records())
    }
}

/// Looks at all that is in `dir`, and changes nothing. Only the segments that are not sealed are read.
pub(super) fn survey(disk: &dyn Disk, dir: &Path) -> Result<Survey, Error> {
    look(disk, dir, false, &mut |_, _| ())
}

/// The same, and verifies every frame. Tells `progress` how many segments it has looked at, of how many.
pub(super) fn deep_survey(
    disk: &dyn Disk,
    dir: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Survey, Error> {
    look(disk, dir, true, progress)
}

fn look(
    disk: &dyn Disk,
    dir: &Path,
    deep: bool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Survey, Error> {
    let mut bases = Vec::new();
    for name in disk.list(dir).map_err(Error::io("list", dir))? {
        match file::base_of(&name) {
            Some(base) => bases.push(base),
            None if is_ours(&name) => {}
            None => return Err(Error::NotALog { dir: dir.to_owned(), found: name }),
        }
    }
    bases.sort_unstable();

    let mut survey = Survey { segments: Vec::new(), damage: Vec::new(), missing: Vec::new() };
    let headers = read_headers(disk, dir, &bases, &mut survey.damage)?;
    for (n, (header, mark, file)) in headers.iter().enumerate() {
        let path = dir.join(file::name(header.base));
        let corrupt = |reason: String| Error::Corrupt { path: path.clone(), reason };
        if let Some(before) = survey.segments.last().map(Found::end) {
            if before > header.base {
                return Err(corrupt(format!(
                    "it overlaps the segment before it, which ends at offset {before}"
                )));
            }
            if before < header.base {
                survey.missing.push(before..header.base);
                let reason = "no segment file has them".into();
                survey.damage.push(Damage { offsets: before..header.base, path: dir.to_owned(), reason });
            }
        }
        let next = headers.get(n + 1).map(|(next, ..)| next.base);
        let state = examine(&**file, header, *mark, next, deep)
            .map_err(Error::io("read", &path))?
            .map_err(corrupt)?;
        let found = Found { header: *header, path: path.clone(), state };
        note_damage(&found, deep, &mut survey.damage);
        survey.segments.push(found);
        progress(n + 1, headers.len());
    }
    Ok(survey)
}

type Opened = (Header, u32, Box<dyn File>);

/// The headers of all segments. One that is damaged is made up from the others and from the file's name.
fn read_headers(
    disk: &dyn Disk,
    dir: &Path,
    bases: &[u64],
    damage: &mut Vec<Damage>,
) -> Result<Vec<Opened>, Error> {
    let mut read = Vec::new();
    for &base in bases {
        let path = dir.join(file::name(base));
        let file = disk.open(&path, false).map_err(Error::io("open", &path))?;
        let mut block = [0; BLOCK as usize];
        let header = match file.read_at(&mut block, 0) {
            Ok(()) => Header::decode(&block),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(BadHeader::Damaged),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let header = match header {
            Err(BadHeader::Newer(version)) => return Err(Error::Newer { path, version }),
            Ok((header, _)) if header.base != base => {
                let reason = format!("its name and its header disagree: it begins at offset {}", header.base);
                return Err(Error::Corrupt { path, reason });
            }
            other => other.ok(),
        };
        read.push((base, path, header, file));
    }
    let known: Vec<[u8; 16]> =
        read.iter().filter_map(|(_, _, header, _)| Some(header.as_ref()?.0.log)).collect();
    let mut all = Vec::new();
    for (base, path, header, file) in read {
        let Some(&log) = known.first() else {
            return Err(Error::Corrupt {
                path,
                reason: "its header does not verify, and no other tells what it was".into(),
            });
        };
        let (header, mark) = header.unwrap_or_else(|| {
            let reason = "the segment's header does not verify".into();
            damage.push(Damage { offsets: base..base, path: path.clone(), reason });
            (Header { log, base, capacity: *CAPACITIES.end(), created: 0 }, 0)
        });
        if header.log != log {
            return Err(Error::Corrupt { path, reason: "it belongs to another log".into() });
        }
        all.push((header, mark, file));
    }
    Ok(all)
}

/// Judges one segment. `next` is the base of the one behind it. The inner error is what is beyond repair.
fn examine(
    file: &dyn File,
    header: &Header,
    mark: u32,
    next: Option<u64>,
    deep: bool,
) -> io::Result<Result<State, String>> {
    let footer = Footer::read(file, header)?;
    if let Some(footer) = footer.filter(|_| !deep) {
        return Ok(Ok(State::Sealed(footer)));
    }
    let length = file.len()?;
    let mut bytes = vec![0; length.saturating_sub(FRAMES) as usize];
    if !bytes.is_empty() {
        file.read_at(&mut bytes, FRAMES)?;
    }
    let seed = header.seed();
    let frames =
        footer.map_or(&bytes[..], |footer| &bytes[..(footer.words as usize * WORD).min(bytes.len())]);
    let found = scan::scan(frames, seed);
    let records = found.positions.len() as u32;

    // So many records had been durable, by all that can be known.
    let mut durable = mark;
    let mut beyond = scan::Beyond::default();
    if let Some(footer) = footer {
        durable = durable.max(footer.records);
    } else if let Some(next) = next {
        let Ok(until_next) = u32::try_from(next - header.base) else {
            return Ok(Err("the next segment is too far away".into()));
        };
        durable = durable.max(until_next);
    } else if cut_to_size(&bytes, header, &found) == Some(false) {
        durable = durable.max(records + 1);
    }
    let whole = footer.is_some_and(|footer| footer.records == records && footer.words == found.words);
    if !whole {
        match scan::beyond(frames, seed, found.words, records) {
            Some(there) => beyond = there,
            // Too costly to look: rather say that something may be lost than lose it.
            None => durable = durable.max(records + 1),
        }
        durable = durable.max(beyond.durable);
    }
    if durable > records {
        return Ok(Ok(State::Damaged(wreck(frames, &found, &beyond, durable))));
    }
    if let Some(footer) = footer {
        let index = bytes.get((sealed::index_at(footer.words) - FRAMES) as usize..).unwrap_or_default();
        let good =
            index.get(..records as usize * 4).is_some_and(|index| crc32c::crc32c(index) == footer.index_crc);
        return Ok(Ok(if good && whole { State::Sealed(footer) } else { State::Unsealed(found) }));
    }
    if next.is_some() || cut_to_size(&bytes, header, &found) == Some(true) {
        if next.is_some_and(|next| next != header.base + u64::from(records)) {
            return Ok(Err("it has more records than the segment behind it leaves room for".into()));
        }
        return Ok(Ok(State::Unsealed(found)));
    }
    Ok(Ok(State::Open(bytes, found)))
}

/// Whether the file, which has no footer that verifies, was cut to size when it was sealed: `Some(true)` if its
/// frames are all there, as its length tells; `None` if it still has the length it was made with.
fn cut_to_size(bytes: &[u8], header: &Header, found: &Scan) -> Option<bool> {
    let length = FRAMES + bytes.len() as u64;
    if length >= file::length(header.capacity) {
        return None;
    }
    let records = found.positions.len() as u32;
    Some(records > 0 && length == sealed::footer_at(records, found.words) + BLOCK)
}

/// What is left of a segment of which `durable` records were durable.
fn wreck(frames: &[u8], found: &Scan, beyond: &scan::Beyond, durable: u32) -> Wreck {
    let mut survivors: Vec<u32> = found.positions.iter().map(|position| position + 1).collect();
    let mut words = found.words;
    let mut later = beyond.frames.clone();
    let frame_at = |word: u32| frames.get(word as usize * WORD..).and_then(frame::parse);
    // Of the batch that was being written at the end, nothing counts unless all of it is there.
    while let Some(&(record, word)) = later.last() {
        if record < durable || frame_at(word).is_some_and(|frame| frame.stamp.flags & MORE == 0) {
            break;
        }
        later.pop();
    }
    let most = frames.len() / frame::HEADER; // a segment has no more records than frames fit
    for (record, word) in later.into_iter().filter(|(record, _)| (*record as usize) < most) {
        survivors.resize(record as usize, 0);
        survivors.push(word + 1);
        words = word + frame_at(word).map_or(0, |frame| frame.words());
    }
    survivors.resize(survivors.len().max(durable as usize), 0);
    Wreck { survivors, words }
}

fn note_damage(found: &Found, deep: bool, damage: &mut Vec<Damage>) {
    let base = found.header.base;
    let mut push = |offsets: Range<u64>, reason: &str| {
        damage.push(Damage { offsets, path: found.path.clone(), reason: reason.into() });
    };
    match &found.state {
        State::Damaged(wreck) => {
            let mut record = 0;
            while record < wreck.survivors.len() {
                let start = record;
                while wreck.survivors.get(record) == Some(&0) {
                    record += 1;
                }
                if record > start {
                    push(base + start as u64..base + record as u64, "no frame there verifies");
                }
                record += 1;
            }
        }
        // Derived, and made anew; only a survey that was asked to look at everything reports it.
        State::Unsealed(_) if deep => {
            push(base..base, "the index or footer is missing or wrong; opening or repair makes it anew");
        }
        _ => {}
    }
}

/// Opens the log in `dir`, which is there, for use. `lock` is to be held as long.
pub(super) fn open(
    env: &Environment,
    dir: &Path,
    options: Options,
    budget: &Arc<Budget>,
    lock: Option<Box<dyn Send + Sync>>,
) -> Result<Shared, Error> {
    let disk = &*env.disk;
    let mut surveyed = survey(disk, dir)?;
    let id = match surveyed.segments.first() {
        Some(first) => first.header.log,
        None => new_id(env).map_err(Error::io("make an id for the log in", dir))?,
    };
    let images = open_images(&options, id, dir);
    if let Some(images) = images.as_ref().filter(|_| surveyed.damage.is_empty())
        && images::restore(disk, dir, images, &surveyed)?
    {
        surveyed = survey(disk, dir)?;
    }
    let Survey { segments: found, damage, .. } = surveyed;
    let roller = Roller::new(Arc::clone(budget), images, std::sync::Arc::clone(&env.keepers));
    let opened = if damage.is_empty() {
        resume(env, dir, &options, id, found, &roller)?
    } else {
        read_only(dir, id, found)?
    };
    let Opening { segments, active, done, clock } = opened;
    let durable = active.segment.base() + u64::from(done.records);
    let position = Position::new(&active, done, true);
    roller.home.claim(active.chunk.capacity());
    Ok(Shared {
        options,
        dir: dir.to_owned(),
        env: env.clone(),
        id,
        active: Swap::new(active),
        chain: Swap::new(Arc::new(Chain { segments })),
        durable: Frontier::new(durable),
        published: Frontier::new(durable),
        clock: AtomicU64::new(env.machine.now().max(clock)),
        flush: Flusher::new(position, std::sync::Arc::clone(&env.flushers)),
        roll: roller,
        stopping: AtomicBool::new(false),
        failed: OnceLock::new(),
        damage,
        #[cfg(feature = "store")]
        producers: super::producers::Producers::default(),
        lock: std::sync::Mutex::new(lock),
    })
}

/// Where the log's images are, if there is such a place.
fn open_images(options: &Options, id: [u8; 16], dir: &Path) -> Option<std::sync::Arc<Images>> {
    let at = options.images.as_ref()?;
    match Images::open(at, id, dir) {
        Ok(images) => Some(std::sync::Arc::new(images)),
        Err(error) => {
            tracing::warn!(
                dir = %dir.display(), at = %at.display(), %error,
                "no memory that outlives the process: what is acknowledged in memory is lost with it"
            );
            None
        }
    }
}

/// The id of the log in `dir`, if there is one.
pub(crate) fn id_of(disk: &dyn Disk, dir: &Path) -> Option<[u8; 16]> {
    disk.list(dir).ok()?.iter().filter(|name| file::base_of(name).is_some()).find_map(|name| {
        let mut block = [0; BLOCK as usize];
        disk.open(&dir.join(name), false).ok()?.read_at(&mut block, 0).ok()?;
        Header::decode(&block).ok().map(|(header, _)| header.log)
    })
}

/// Takes the directory's lock, unless the directory is somebody else's.
pub(super) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Send + Sync>, Error> {
    let own = lock_own(disk, dir)?;
    // Whoever has the store open has looked for the lock above before, or finds it held.
    let path = dir.join("..").join(STORE_LOCK);
    let store = disk.join_lock(&path).map_err(|error| not_locked(dir, &path, error))?;
    Ok(Box::new((own, store)))
}

/// Errors if somebody has the log open by itself. For one who has the lock of the store, which keeps out those who
/// come later: so an open log needs no descriptor for a lock.
#[cfg(feature = "store")]
pub(super) fn ensure_free(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    lock_own(disk, dir).map(drop)
}

fn lock_own(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Send + Sync>, Error> {
    for name in disk.list(dir).map_err(Error::io("list", dir))? {
        if !is_ours(&name) {
            return Err(Error::NotALog { dir: dir.to_owned(), found: name });
        }
    }
    let path = dir.join(LOCK);
    disk.lock(&path).map_err(|error| not_locked(dir, &path, error))
}

fn not_locked(dir: &Path, path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => Error::InUse { dir: dir.to_owned() },
        _ => Error::io("lock", path)(error),
    }
}

fn new_id(env: &Environment) -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    env.machine.random(&mut id)?;
    Ok(id)
}

/// What opening has come to.
struct Opening {
    segments: Vec<Arc<Segment>>,
    active: Arc<Active>,
    done: Extent,
    /// No record was appended later than this, in milliseconds since 1970.
    clock: u64,
}

/// Opens what is not damaged for appending.
fn resume(
    env: &Environment,
    dir: &Path,
    options: &Options,
    id: [u8; 16],
    found: Vec<Found>,
    roller: &Roller,
) -> Result<Opening, Error> {
    let disk = &*env.disk;
    for name in disk.list(dir).map_err(Error::io("list", dir))? {
        if file::is_passing(&name) {
            let path = dir.join(name);
            disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
    }
    let (mut segments, mut clock, mut end, mut capacity) = (Vec::new(), 0, 0, options.first_segment_bytes);
    for Found { header, path, state } in found {
        let writable = || disk.open(&path, true).map_err(Error::io("open", &path));
        let sealed = match state {
            State::Sealed(footer) => footer,
            State::Unsealed(scan) => seal(&*writable()?, &header, &scan).map_err(Error::io("seal", &path))?,
            State::Open(bytes, scan) => {
                let written = SegmentFile::resume(writable()?, path.clone(), header.capacity, scan.words);
                written.cut(&bytes, scan.words).map_err(Error::io("cut the torn end of", &path))?;
                let done = Extent { records: scan.positions.len() as u32, words: scan.words };
                clock = clock.max(header.created + scan.times.1);
                // Where other logs of a store have taken the memory, it goes on in a segment of the smallest size.
                let fits =
                    header.capacity <= options.segment_bytes && roller.budget.has_room(header.capacity);
                if fits || done.records == 0 {
                    let capacity = header.capacity.min(bytes.len() as u64 / BLOCK * BLOCK);
                    let mut memory = Memory::shared(header.capacity, roller.images.as_ref())
                        .map_err(Error::io("get memory for", dir))?;
                    memory.label(&header.label());
                    memory.load(&bytes[..capacity as usize]);
                    let home = Some(Arc::clone(&roller.home));
                    let chunk = Arc::new(Chunk::recovered(memory, home, &scan.positions, scan.words));
                    let segment = Arc::new(Segment::new(header, Some(written), Arc::clone(&chunk)));
                    segments.push(Arc::clone(&segment));
                    return Ok(Opening {
                        segments,
                        active: Arc::new(Active { segment, chunk }),
                        done,
                        clock,
                    });
                }
                seal(written.file(), &header, &scan).map_err(Error::io("seal", &path))?
            }
            State::Damaged(_) => unreachable!("damage opens read-only"),
        };
        clock = clock.max(header.created + sealed.last_time);
        end = header.base + u64::from(sealed.records);
        capacity = header.capacity.saturating_mul(4);
        segments.push(Arc::new(Segment::cold(header, sealed.into())));
    }
    // No segment is open: begin one, so that there is always one on the disk, and trimming may drop all others.
    let capacity = capacity.min(options.segment_bytes);
    let capacity = if roller.budget.has_room(capacity) { capacity } else { options.first_segment_bytes };
    let header = Header { log: id, base: end, capacity, created: env.machine.now().max(clock) };
    let segment_file = SegmentFile::prepare(disk, dir, 0, capacity).map_err(|error| {
        if disk::is_full(&error) {
            return Error::Full { reason: error.to_string().into() };
        }
        Error::io("make a segment file in", dir)(error)
    })?;
    segment_file.begin(disk, dir, &header).map_err(Error::io("begin a segment in", dir))?;
    let mut memory =
        Memory::shared(capacity, roller.images.as_ref()).map_err(Error::io("get memory for", dir))?;
    memory.label(&header.label());
    let chunk = Arc::new(Chunk::new(memory, Some(Arc::clone(&roller.home))));
    let segment = Arc::new(Segment::new(header, Some(segment_file), Arc::clone(&chunk)));
    segments.push(Arc::clone(&segment));
    Ok(Opening {
        segments,
        active: Arc::new(Active { segment, chunk }),
        done: Extent::default(),
        clock: header.created,
    })
}

/// Seals a segment whose frames are whole, as after closing it.
pub(super) fn seal(file: &dyn File, header: &Header, scan: &Scan) -> io::Result<Footer> {
    sealed::seal(file, header, scan.words, scan.times, scan.positions.iter().copied())
}

/// Opens what is damaged for reading: nothing is written, and all that verifies is served.
fn read_only(dir: &Path, id: [u8; 16], found: Vec<Found>) -> Result<Opening, Error> {
    let mut segments = Vec::new();
    let mut end = 0;
    for found in found {
        end = found.end();
        let records = found.records();
        let sealed = match found.state {
            State::Sealed(footer) => footer.into(),
            State::Unsealed(scan) | State::Open(_, scan) => Sealed {
                records,
                words: scan.words,
                survivors: Some(scan.positions.iter().map(|position| position + 1).collect()),
            },
            State::Damaged(wreck) => Sealed { records, words: wreck.words, survivors: Some(wreck.survivors) },
        };
        segments.push(Arc::new(Segment::cold(found.header, sealed)));
    }
    let memory = Memory::new(BLOCK).map_err(Error::io("get memory for", dir))?;
    let chunk = Arc::new(Chunk::new(memory, None));
    chunk.close(); // what is appended finds no room, and is then told why
    let header = Header { log: id, base: end, capacity: BLOCK, created: 0 };
    let segment = Arc::new(Segment::new(header, None, Arc::clone(&chunk)));
    Ok(Opening { segments, active: Arc::new(Active { segment, chunk }), done: Extent::default(), clock: 0 })
}
