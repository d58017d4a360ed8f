//! Taking up the images that a process left which ended without closing the log: before anything else judges the
//! segment files, what an image has and they have not is written to them. Recovery then finds it there, and needs
//! to know nothing of images.
//!
//! A record counts if its frame verifies and follows without a gap, just as on disk. With `Durability::Memory`, and
//! with an append that waits for `published`, nothing is acknowledged while an earlier record is still being copied,
//! so what stands behind a gap was never acknowledged. Being killed in here does no harm: the images go last.
//!
//! # What always holds
//! - An image goes on only behind its own history: in the segment that its process has begun, behind the very bytes
//!   that it begins with; or behind the frame that stood before it, told by that frame's CRC.
//! - An image is removed only if it holds no record, or the disk has all its records, byte for byte, or had them before
//!   they were trimmed. Any other stays, and is told of.

use super::{
    super::{Error, stats},
    survey::{Found as SegmentFound, State, Survey},
};
use crate::{
    chunk::{Before, Chunk, Content, Extent, Images, Label, Memory},
    disk::{Disk, is_transient},
    segment::{
        FRAMES,
        file::{self, SegmentFile},
        header::{Header, Secret},
        scan::{self, Scan},
        sealed::{self, Sealed},
    },
};
use std::{io, path::Path};

/// Where the segment files end.
struct End {
    offset: u64,
    /// The frame before that.
    before: Before,
    /// The last segment, if it is not sealed: its header, and what verifies of it from its beginning.
    open: Option<(Header, Extent)>,
    /// Whether the next segment may be begun at `offset`: there is no damage before it.
    whole: bool,
}

/// What an image holds.
struct Image {
    name: String,
    header: Header,
    incarnation: u64,
    before: Before,
    records: u32,
    words: u32,
    last_crc: Option<u32>,
}

impl Image {
    fn end(&self) -> u64 {
        self.header.base + u64::from(self.records)
    }
}

/// Completes the segment files from the images; says whether there was anything to be written. Images of which nothing
/// is needed any more are removed.
pub(super) fn restore(disk: &dyn Disk, dir: &Path, images: &Images, survey: &Survey) -> Result<bool, Error> {
    let io = |error| Error::io("look for images of", dir)(error);
    let Some(mut end) = End::of(disk, survey).map_err(Error::io("read", dir))? else {
        tell(images, images.find().map_err(io)?.iter().map(|found| &*found.name), "the log is damaged");
        return Ok(false);
    };
    let log = survey.segments.first().map(|first| first.header.log);
    let mut held = Vec::new();
    for found in images.find().map_err(io)? {
        match found.content {
            Content::Spare => images.remove(&found.name),
            Content::Strange => tell(images, [&*found.name], "it cannot be understood"),
            Content::Elsewhere(owner) => {
                tracing::debug!(dir = %dir.display(), owner = %owner.display(), "an image of a copy of this log is left alone");
            }
            Content::Segment { label, incarnation, before, secret } => {
                let header = header(images, log, &label, secret);
                match Image::read(images, found.name.clone(), header, incarnation, before) {
                    Ok(image) => held.push(image),
                    // The next time it may be read: until then nothing else gets the offsets of its records.
                    Err(error) if is_transient(&error) => return Err(io(error)),
                    Err(error) => {
                        tell(images, [&*found.name], &format!("it cannot be read: {error}"));
                    }
                }
            }
        }
    }
    let (first, mut restored) = (survey.segments.first().map_or(0, |first| first.header.base), false);
    while let Some(image) = next(disk, dir, images, &held, &end).map_err(io)? {
        let records = image.end() - end.offset;
        tracing::info!(dir = %dir.display(), base = image.header.base, records, "taking up records from memory");
        write(disk, dir, images, &end, image).map_err(Error::io("write from memory to", dir))?;
        let before = image.last_crc.map_or(Before::Unknown, Before::Frame);
        end = End { offset: image.end(), before, open: None, whole: true };
        restored = true;
    }
    for image in &held {
        let needless = image.records == 0
            || image.end() <= first
            || same_on_disk(disk, dir, images, image).map_err(io)?;
        if needless {
            images.remove(&image.name);
        } else {
            tell(images, [&*image.name], "its records do not go on where the log ends");
        }
    }
    Ok(restored)
}

/// Says of images that they stay, and why.
fn tell<'a>(images: &Images, names: impl IntoIterator<Item = &'a str>, why: &str) {
    for name in names {
        stats::kept_image();
        tracing::warn!(
            image = %images.path(name).display(), why,
            "memory of a process that was killed is kept: it may hold records that the disk does not have"
        );
    }
}

fn header(images: &Images, log: Option<[u8; 16]>, label: &Label, secret: Option<[u8; 16]>) -> Header {
    let Label { base, capacity, created, version } = *label;
    let secret = Secret(secret.filter(|_| version > 1));
    Header { log: log.unwrap_or_else(|| images.log()), base, capacity, created, secret }
}

impl Image {
    fn read(
        images: &Images,
        name: String,
        header: Header,
        incarnation: u64,
        before: Before,
    ) -> io::Result<Self> {
        let Scan { positions, words, last_crc, .. } =
            scan::scan(&images.frames(&name, usize::MAX)?, header.key());
        Ok(Self { name, header, incarnation, before, records: positions.len() as u32, words, last_crc })
    }
}

impl End {
    /// `None` if there is damage that no image can mend.
    fn of(disk: &dyn Disk, survey: &Survey) -> io::Result<Option<Self>> {
        let Some((last, others)) = survey.segments.split_last() else {
            return Ok(Some(Self { offset: 0, before: Before::Nothing, open: None, whole: true }));
        };
        let elsewhere = survey.damage.iter().any(|damage| damage.path != last.path);
        let broken = matches!(&last.state, State::Damaged(wreck) if !wreck.cut_short);
        if elsewhere || !survey.damage.is_empty() && !broken {
            return Ok(None);
        }
        let extent = |scan: &Scan| Extent { records: scan.records(), words: scan.words };
        let (offset, open, whole) = match &last.state {
            State::Open(_, scan) => (last.end(), Some((last.header, extent(scan))), true),
            // What is broken here may be whole in the image.
            State::Damaged(wreck) => {
                let good = wreck.whole;
                (last.header.base + u64::from(good.records), Some((last.header, good)), false)
            }
            State::Sealed(_) | State::Unsealed(_) => (last.end(), None, true),
        };
        let before = if offset > last.header.base {
            crc_of(disk, last, (offset - last.header.base) as u32)?
        } else {
            match others.last() {
                Some(previous) => crc_of(disk, previous, previous.records())?,
                None if offset == 0 => Before::Nothing,
                None => Before::Unknown, // it was trimmed
            }
        };
        Ok(Some(Self { offset, before, open, whole }))
    }
}

/// The CRC of the frame before the record with this number.
fn crc_of(disk: &dyn Disk, found: &SegmentFound, record: u32) -> io::Result<Before> {
    let Some(last) = record.checked_sub(1) else { return Ok(Before::Unknown) };
    let crc = match &found.state {
        State::Unsealed(scan) | State::Open(_, scan) => scan.last_crc,
        State::Sealed(footer) => {
            let file = disk.open(&found.path, false)?;
            sealed::crc_of(&*file, &Sealed::from(*footer), found.header.key(), last)?
        }
        State::Damaged(_) => None,
    };
    Ok(crc.map_or(Before::Unknown, Before::Frame))
}

/// The image that goes on where the files end.
fn next<'a>(
    disk: &dyn Disk,
    dir: &Path,
    images: &Images,
    held: &'a [Image],
    end: &End,
) -> io::Result<Option<&'a Image>> {
    let mut best: Option<&Image> = None;
    for image in held.iter().filter(|image| image.end() > end.offset) {
        let fits = match &end.open {
            Some((header, done)) if *header == image.header => {
                image.words >= done.words && same_bytes(disk, dir, images, image, done.words)?
            }
            _ => end.whole && image.header.base == end.offset && follows(image, held, end),
        };
        // Of two with the same base one is of a chunk that was replaced while it was empty.
        if fits && best.is_none_or(|best| best.records < image.records) {
            best = Some(image);
        }
    }
    Ok(best)
}

/// Whether the frame before the image's first record is the one before the log's end.
fn follows(image: &Image, held: &[Image], end: &End) -> bool {
    // What stands before a chunk is noted when it is durable; until then the chunk before is in memory as well.
    let before = match image.before {
        Before::Unknown => held
            .iter()
            .filter(|other| other.incarnation == image.incarnation && other.end() == image.header.base)
            .find_map(|other| other.last_crc)
            .map_or(Before::Unknown, Before::Frame),
        known => known,
    };
    match (before, end.before) {
        // Format 1 noted nothing.
        (Before::Unknown, _) => image.incarnation == 0,
        (before, at_end) => before == at_end,
    }
}

/// Whether the segment's file begins with the image's first `words` words.
fn same_bytes(disk: &dyn Disk, dir: &Path, images: &Images, image: &Image, words: u32) -> io::Result<bool> {
    const PIECE: usize = 1 << 20;
    let file = disk.open(&dir.join(file::name(image.header.base)), false)?;
    let frames = images.frames(&image.name, words as usize * 8)?;
    if frames.len() < words as usize * 8 {
        return Ok(false);
    }
    let mut bytes = vec![0; PIECE.min(frames.len())];
    for (n, piece) in frames.chunks(PIECE).enumerate() {
        let bytes = &mut bytes[..piece.len()];
        match file.read_at(bytes, FRAMES + (n * PIECE) as u64) {
            Ok(()) if bytes == piece => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Whether the disk has all that is in the image.
fn same_on_disk(disk: &dyn Disk, dir: &Path, images: &Images, image: &Image) -> io::Result<bool> {
    match same_bytes(disk, dir, images, image, image.words) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        same => same,
    }
}

fn write(disk: &dyn Disk, dir: &Path, images: &Images, end: &End, image: &Image) -> io::Result<()> {
    let header = &image.header;
    let frames = images.frames(&image.name, image.words as usize * 8)?;
    let scan = scan::scan(&frames, header.key());
    let mut memory = Memory::new(header.capacity)?;
    memory.load(&frames[..scan.words as usize * 8]);
    let chunk = Chunk::recovered(memory, None, &scan.positions, scan.words);
    let (file, from) = match &end.open {
        Some((open, done)) if open == header => {
            let path = dir.join(file::name(header.base));
            (SegmentFile::resume(disk.open(&path, true)?, path, header.capacity, done.words), *done)
        }
        _ => {
            let file = SegmentFile::prepare(disk, dir, 0, header.capacity)?;
            file.begin(disk, dir, header)?;
            (file, Extent::default())
        }
    };
    file.write(&chunk, from, Extent { records: scan.records(), words: scan.words })
}
