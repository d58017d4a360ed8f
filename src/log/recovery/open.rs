//! Opening a log for use: what the survey found is completed from backings and made durable, segments are sealed where
//! they were not, and the last one is resumed; a damaged log is only opened for reading.

use super::{
    super::{
        Damage, Environment, Error, Options,
        budget::{Budget, Claim},
        clock,
        roll::{Active, Roller},
    },
    aside,
    full::{Full, no_room, reserves, sealed_length},
    judge::{Copies, HeaderSource, State},
    restore,
    survey::{Survey, SurveyedSegment, survey},
};
use crate::{
    LogId,
    chunk::{BackingDir, Chunk, ChunkMemory, ChunkPosition, LogBackings, Predecessor, no_backing},
    disk::{self, BLOCK, Disk, File},
    frame,
    parallel::join,
    segment::{
        Segment,
        file::{self, SegmentFile},
        header::{Header, Secret},
        scan::Scan,
        sealed::{self, Footer, Sealed},
        survivors::Survivors,
    },
    sync::Arc,
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// What a log keeps for life.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    log: LogId,
    /// See [`Secret`]; for a log of format 1, the one that its next segment will have.
    secret: [u8; 16],
}

impl Identity {
    /// The identity found in the segments; what is missing is chosen at random.
    fn of(env: &Environment, survey: &Survey, dir: &Path) -> Result<Self, Error> {
        let random = || random(env).map_err(Error::io("make an id for the log in", dir));
        let log = survey.log().map_or_else(|| random().map(LogId), Ok)?;
        Ok(Self { log, secret: survey.secret().map_or_else(random, Ok)? })
    }

    /// The header of a new segment.
    fn header(&self, base: u64, capacity: u64, created: u64) -> Header {
        Header { log: self.log, base, capacity, created, secret: Secret(Some(self.secret)) }
    }
}

fn random<const BYTES: usize>(env: &Environment) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    env.machine.random(&mut bytes)?;
    Ok(bytes)
}

/// A log that is ready for use.
pub(in crate::log) struct Opened {
    pub(in crate::log) id: LogId,
    pub(in crate::log) secret: Secret,
    pub(in crate::log) content: Content,
    pub(in crate::log) roller: Roller,
    /// What is damaged: if there is anything, the log is only read.
    pub(in crate::log) damage: Vec<Damage>,
}

/// The segments of a log that is ready for use.
pub(in crate::log) struct Content {
    pub(in crate::log) segments: Vec<Arc<Segment>>,
    pub(in crate::log) active: Arc<Active>,
    /// How far the active segment is durable.
    pub(in crate::log) done: ChunkPosition,
    /// No record was appended later than this, in milliseconds since 1970.
    pub(in crate::log) newest: u64,
    /// Why it is only read, if that is for lack of room.
    pub(in crate::log) full: Option<Full>,
}

/// Opens the log in `dir`, which must exist, for use. Nobody else may open it meanwhile.
pub(in crate::log) fn open(
    env: &Environment,
    dir: &Path,
    options: &Options,
    budget: &Arc<Budget>,
) -> Result<Opened, Error> {
    let disk = &*env.disk;
    let mut surveyed = survey(disk, dir)?;
    let mut identity = Identity::of(env, &surveyed, dir)?;
    let mut backings = open_backings(env, options, &identity, dir)?;
    let mut full = None;
    if surveyed.damage.is_empty() {
        // First, because what is restored from memory may need the space.
        match remove_temporary(disk, dir) {
            Err(error) if error.keeps_from_writing() => full = Some(Full::new(error, 0)),
            removed => removed?,
        }
    }
    if let Some(shm) = &backings {
        full = restore::restore(disk, dir, &shm.dir, &mut surveyed, options.durability)?.or(full);
        // A log of format 1 may just have got its first segment with a secret.
        if let Some(secret) = surveyed.secret().filter(|&secret| secret != identity.secret) {
            identity.secret = secret;
            backings = open_backings(env, options, &identity, dir)?;
        }
    }
    let Survey { segments, mut damage, .. } = surveyed;
    let roller = Roller::new(Arc::clone(budget), backings, std::sync::Arc::clone(&env.maintenance));
    let opener = Opener { env, dir, options, identity, roller: &roller };
    let content = if damage.is_empty() {
        let resumed = match &full {
            Some(Full { error, .. }) => Err(error.clone()),
            None => opener.resume(segments),
        };
        match resumed {
            // Whichever operation it was that found no room.
            Err(error) if error.keeps_from_writing() => {
                let content;
                (content, damage) = opener.without_room(error, full)?;
                content
            }
            resumed => resumed?,
        }
    } else {
        opener.read_only(segments)?
    };
    Ok(Opened { id: identity.log, secret: Secret(Some(identity.secret)), content, roller, damage })
}

/// The log's backings, if they can be used. A transient failure is an error: a log that opens without its backings
/// would give the offsets of their records to other records.
fn open_backings(
    env: &Environment,
    options: &Options,
    identity: &Identity,
    dir: &Path,
) -> Result<Option<std::sync::Arc<LogBackings>>, Error> {
    let Some(at) = &options.shm_dir else { return Ok(None) };
    let node = env.disk.node(dir).map_err(Error::io("look at", dir))?;
    let number = random(env).map_err(Error::io("get a random number for", dir))?;
    let number = u64::from_le_bytes(number);
    match BackingDir::open(&*env.disk, at, identity.log, dir, node) {
        Ok(backings) => Ok(Some(std::sync::Arc::new(LogBackings::new(backings, identity.secret, number)))),
        Err(error) if disk::is_transient(&error) => Err(Error::io("look for backings in", at)(error)),
        Err(error) => {
            no_backing(dir, &error);
            Ok(None)
        }
    }
}

/// The least memory that is made for a chunk beside other work: less takes no longer than starting a thread.
const MIN_BYTES_FOR_THREAD: u64 = 1 << 20;

/// Makes the content of a file durable: a process that was killed may have written it without getting to sync it. Only
/// afterwards may it be called durable.
fn sync(disk: &dyn Disk, path: &Path, write: bool) -> Result<Box<dyn File>, Error> {
    let file = disk.open(path, write).map_err(Error::io("open", path))?;
    file.sync().map_err(Error::io("sync", path))?;
    Ok(file)
}

/// Removes what was prepared for segments that were never begun.
fn remove_temporary(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    for name in disk.list(dir).map_err(Error::io("list", dir))? {
        if file::is_temporary(&name) {
            let path = dir.join(name);
            disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// What is known of the segments before the current one.
#[derive(Default)]
struct Previous {
    /// The last of them, which is sealed.
    segment: Option<(PathBuf, Header, Footer)>,
    /// No later record has an offset below this.
    end: u64,
    /// When the newest record so far was appended, in milliseconds since 1970.
    newest: u64,
}

impl Previous {
    /// What precedes the segment at `base`.
    fn predecessor(&self, disk: &dyn Disk, base: u64) -> Predecessor {
        let Some((path, header, footer)) = &self.segment else {
            return if base == 0 { Predecessor::Nothing } else { Predecessor::Unknown };
        };
        // A record that cannot be read is an error only for its readers.
        let crc = restore::last_crc_of_sealed(disk, path, header, footer).unwrap_or(None);
        crc.map_or(Predecessor::Unknown, Predecessor::Frame)
    }
}

/// The bytes after the last record.
fn after_last_record<'a>(bytes: &'a [u8], scan: &Scan) -> &'a [u8] {
    &bytes[frame::in_bytes(scan.words).min(bytes.len())..]
}

/// The last segment, which was not sealed, as it was found.
struct Last<'a> {
    header: Header,
    path: &'a Path,
    bytes: &'a [u8],
    scan: &'a Scan,
}

/// What becomes of it.
enum Resumed {
    /// It takes appends, in memory that was claimed.
    Active(Arc<Active>, Claim),
    /// It was sealed: there is no memory for its chunk.
    Sealed(Footer),
    /// There is no memory for its chunk, and it has no records: another segment takes its place, and its file name.
    Replaced,
}

/// How a log is opened: what all steps of it need.
struct Opener<'a> {
    env: &'a Environment,
    dir: &'a Path,
    options: &'a Options,
    identity: Identity,
    roller: &'a Roller,
}

impl Opener<'_> {
    fn disk(&self) -> &dyn Disk {
        &*self.env.disk
    }

    /// Opens an undamaged log for appending.
    fn resume(&self, surveyed: Vec<SurveyedSegment>) -> Result<Content, Error> {
        let (disk, dir) = (self.disk(), self.dir);
        disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        remove_temporary(disk, dir)?;
        let mut segments = Vec::new();
        let mut previous = Previous::default();
        for SurveyedSegment { header, source, path, state, .. } in surveyed {
            if let HeaderSource::Own { copies: Copies::Damaged, mark: Some(mark) } = source {
                rewrite_header(disk, &path, &header, mark).map_err(Error::io("write", &path))?;
            }
            let sealed = match state {
                State::Sealed(footer) => footer,
                State::Unfinished(scan) => {
                    let file = sync(disk, &path, true)?;
                    let seal = file
                        .reserve(sealed_length(&scan), file::written(scan.words))
                        .and_then(|()| seal(&*file, &header, &scan));
                    seal.map_err(Error::io("seal", &path))?
                }
                State::Active(bytes, scan) => {
                    let last = Last { header, path: &path, bytes: &bytes, scan: &scan };
                    match self.resume_last(&previous, &last)? {
                        Resumed::Sealed(footer) => footer,
                        Resumed::Replaced => {
                            (previous.end, previous.newest) =
                                (header.base, previous.newest.max(header.created));
                            break;
                        }
                        Resumed::Active(active, claim) => {
                            segments.push(Arc::clone(&active.segment));
                            let done = ChunkPosition { records: scan.records(), words: scan.words };
                            let newest = previous.newest.max(header.created + scan.times.1);
                            claim.hand_over();
                            return Ok(Content { segments, active, done, newest, full: None });
                        }
                    }
                }
                State::Damaged(_) => unreachable!("damage opens read-only"),
            };
            previous.newest = previous.newest.max(header.created + sealed.last_time);
            if sealed.records == 0 {
                // As `repair` may leave it. The next segment has the same base, and takes its file's name: if both were in
                // the chain, trimming this one would remove the file of that one.
                previous.end = header.base;
                continue;
            }
            previous.segment = Some((path, header, sealed));
            segments.push(Arc::new(Segment::cold(header, sealed.into()).aged(sealed.last_time)));
        }
        // No segment is open: begin one, so that there is always one on the disk and trimming may drop all others.
        self.begin_segment(&previous, segments)
    }

    /// Continues in the last segment. If other logs of a store have taken the memory, the log continues in a segment of the
    /// smallest size, for which there is always room.
    fn resume_last(&self, previous: &Previous, last: &Last<'_>) -> Result<Resumed, Error> {
        let disk = self.disk();
        let dir = self.dir;
        let Last { header, path, bytes, scan } = last;
        let claim = (header.capacity <= self.options.segment_bytes).then(|| {
            let smallest = || self.roller.claim_least(header.capacity);
            let is_small = header.capacity <= self.options.first_segment_bytes;
            self.roller.try_claim(header.capacity).or_else(|| is_small.then(smallest))
        });
        let claim = claim.flatten();
        if claim.is_none() && scan.records() == 0 {
            aside::set_aside(disk, dir, header.base, bytes)?;
            return Ok(Resumed::Replaced);
        }
        let Some(claim) = claim else {
            let written = self.resume_file(last)?;
            return Ok(Resumed::Sealed(seal(written.file(), header, scan).map_err(Error::io("seal", path))?));
        };
        let load = || {
            let mut memory = self.memory(header.capacity)?;
            // Not a byte more: if this process is killed, the next one would restore whatever follows.
            memory.load(&bytes[..frame::in_bytes(scan.words)]);
            // Only then: half of the frames would seem to be another history.
            memory.label(&header.label(), previous.predecessor(disk, header.base));
            io::Result::Ok(memory)
        };
        let parallel = disk.in_parallel() && header.capacity >= MIN_BYTES_FOR_THREAD;
        let (written, memory) = join(parallel, || self.resume_file(last), load);
        let (written, memory) = (written?, memory.map_err(Error::io("get memory for", dir))?);
        let chunk =
            Arc::new(Chunk::recovered(memory, Some(self.roller.share()), &scan.positions, scan.words));
        let segment = Segment::new(*header, Some(written), Arc::clone(&chunk)).aged(scan.times.1);
        Ok(Resumed::Active(Arc::new(Active { segment: Arc::new(segment), chunk }), claim))
    }

    /// Prepares the last segment's file for more appends: its records are durable, zeros follow them, and its full length
    /// is reserved.
    fn resume_file(&self, last: &Last<'_>) -> Result<SegmentFile, Error> {
        let &Last { header, path, bytes, scan } = last;
        let file = sync(self.disk(), path, true)?;
        // A file that was copied, or restored from a backup, may have holes.
        file.reserve(file::length(header.capacity), file::written(scan.words))
            .map_err(Error::io("reserve the room of", path))?;
        let next = header.base + u64::from(scan.records());
        aside::set_aside(self.disk(), self.dir, next, after_last_record(bytes, scan))?;
        let written = SegmentFile::resume(file, path.to_owned(), header.capacity, scan.words);
        written.zero_after(bytes, scan.words).map_err(Error::io("cut the torn end of", path))?;
        Ok(written)
    }

    /// Begins the segment after `previous`.
    fn begin_segment(&self, previous: &Previous, mut segments: Vec<Arc<Segment>>) -> Result<Content, Error> {
        let disk = self.disk();
        let dir = self.dir;
        let last = previous.segment.as_ref();
        let capacity =
            last.map_or(self.options.first_segment_bytes, |(_, header, _)| header.capacity.saturating_mul(4));
        let base = last.map_or(0, |(_, header, footer)| header.base + u64::from(footer.records));
        let base = base.max(previous.end);
        let capacity = capacity.min(self.options.segment_bytes);
        let claim = self.roller.try_claim(capacity);
        let capacity = if claim.is_some() { capacity } else { self.options.first_segment_bytes };
        let smallest = self.options.first_segment_bytes.min(capacity);
        let prepare = |capacity| (capacity, SegmentFile::prepare(disk, dir, 0, capacity));
        let (capacity, segment_file) = match prepare(capacity) {
            // If the disk has no room for that, a segment of the smallest size may still fit.
            (_, Err(error)) if disk::is_full(&error) && smallest < capacity => prepare(smallest),
            prepared => prepared,
        };
        let claim = claim.filter(|claim| claim.capacity() == capacity);
        let claim = claim.unwrap_or_else(|| self.roller.claim_least(capacity));
        let header = self.identity.header(
            base,
            capacity,
            clock::start_of_segment(self.env.machine.now(), previous.newest),
        );
        let segment_file = segment_file.map_err(|error| {
            if disk::is_full(&error) {
                return Error::full(error);
            }
            Error::io("make a segment file in", dir)(error)
        })?;
        let begun = segment_file.begin(disk, dir, &header);
        begun.inspect_err(|_| segment_file.discard(disk)).map_err(Error::io("begin a segment in", dir))?;
        let mut memory = self.memory(capacity).map_err(Error::io("get memory for", dir))?;
        memory.label(&header.label(), previous.predecessor(disk, base));
        let chunk = Arc::new(Chunk::new(memory, Some(self.roller.share())));
        let segment = Arc::new(Segment::new(header, Some(segment_file), Arc::clone(&chunk)));
        segments.push(Arc::clone(&segment));
        claim.hand_over();
        Ok(Content {
            segments,
            active: Arc::new(Active { segment, chunk }),
            done: ChunkPosition::default(),
            newest: if previous.newest > 0 { previous.newest } else { header.created },
            full: None,
        })
    }

    /// Opens a log read-only that could not be resumed because of `error`. `before` says why it was short of room
    /// earlier, if it was. Surveys the log again, and also returns the damage found then.
    fn without_room(&self, error: Error, before: Option<Full>) -> Result<(Content, Vec<Damage>), Error> {
        let Survey { segments: again, damage, .. } = survey(self.disk(), self.dir)?; // some may be sealed, or unreadable, now
        if again.last().is_none_or(|last| last.end() == 0) {
            return Err(no_room(error)); // there is nothing to read
        }
        let kept = again.last().map_or(0, |last| match &last.state {
            State::Active(bytes, scan) => aside::to_be_kept(after_last_record(bytes, scan)).len(),
            _ => 0,
        });
        let (needed_before, was_read_only) =
            before.map_or((0, false), |full| (full.needs, full.is_read_only));
        let mut full = Full::new(error, self.options.first_segment_bytes + kept as u64 + needed_before);
        full.is_read_only |= was_read_only;
        full.reserves = reserves(&again);
        let full = damage.is_empty().then_some(full);
        Ok((Content { full, ..self.read_only(again)? }, damage))
    }

    /// Opens a log for reading only, if it is damaged or its disk has no room: nothing is written, and everything that
    /// verifies can be read.
    fn read_only(&self, surveyed: Vec<SurveyedSegment>) -> Result<Content, Error> {
        let (disk, dir) = (self.disk(), self.dir);
        // What can be read depends on the names of the files too: a power failure could take the last one's name, and
        // damage before it would then be taken for a torn end.
        disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        let mut segments = Vec::new();
        let (mut end, mut newest) = (0, 0);
        for surveyed in surveyed {
            if !matches!(surveyed.state, State::Sealed(_)) {
                sync(disk, &surveyed.path, false)?;
            }
            end = surveyed.end();
            let records = surveyed.records();
            let (sealed, age) = match surveyed.state {
                State::Sealed(footer) => (footer.into(), Some(footer.last_time)),
                State::Unfinished(scan) | State::Active(_, scan) => {
                    let survivors = Survivors::all(&scan.positions);
                    (Sealed::damaged(records, scan.words, survivors), Some(scan.times.1))
                }
                State::Damaged(wreck) => (Sealed::damaged(records, wreck.words, wreck.survivors), None),
            };
            newest = newest.max(surveyed.header.created + age.unwrap_or(0));
            let segment = Segment::cold(surveyed.header, sealed);
            segments.push(Arc::new(match age {
                Some(age) => segment.aged(age),
                None => segment,
            }));
        }
        let memory = ChunkMemory::new(BLOCK).map_err(Error::io("get memory for", dir))?;
        let chunk = Arc::new(Chunk::new(memory, None));
        chunk.close(); // appends find no room, and then get the reason
        let header = self.identity.header(end, BLOCK, 0);
        let segment = Arc::new(Segment::new(header, None, Arc::clone(&chunk)));
        let active = Arc::new(Active { segment, chunk });
        self.roller.claim_least(BLOCK).hand_over();
        Ok(Content { segments, active, done: ChunkPosition::default(), newest, full: None })
    }

    /// Memory for the chunk of the last segment.
    fn memory(&self, capacity: u64) -> io::Result<ChunkMemory> {
        let memory = self.roller.memory(capacity, capacity, self.env.machine.elapsed())?;
        self.roller.note_begun(&memory);
        Ok(memory)
    }
}

/// Rewrites the header block of a segment that was begun, with this mark. Durable on return.
pub(in crate::log) fn rewrite_header(
    disk: &dyn Disk,
    path: &Path,
    header: &Header,
    mark: u32,
) -> io::Result<()> {
    file::write_header(&*disk.open(path, true)?, header, mark)
}

/// Seals a segment whose frames are whole, as when it was closed normally.
pub(in crate::log) fn seal(file: &dyn File, header: &Header, scan: &Scan) -> io::Result<Footer> {
    sealed::seal(file, header, scan.summary(), scan.positions.iter().copied())
}
