//! Taking up the images that a process left which ended without closing the log: before anything else looks at the
//! segment files, what an image has and they have not is written to them. Recovery then finds it there, and needs
//! to know nothing of images.
//!
//! A record counts if its frame verifies and follows without a gap, just as on disk. With `Durability::Memory`, and
//! with an append that waits for `published`, nothing is acknowledged while an earlier record is still being copied,
//! so what stands behind a gap was never acknowledged. Being killed in here does no harm: the images go last.

use super::{
    Error,
    recover::{Found as File, State, Survey, id_of},
};
use crate::{
    chunk::{Chunk, Extent, Found, Images, Label, Memory},
    disk::Disk,
    segment::{
        file::SegmentFile,
        header::Header,
        scan::{self, Scan},
    },
};
use std::path::Path;

/// Where the segment files end.
struct End {
    offset: u64,
    /// The last segment, if it is open, with the frames that its file has.
    open: Option<(Header, u32, Vec<u8>)>,
}

/// Completes the segment files from the images; says whether there was anything. `images` are removed then.
pub(super) fn restore(disk: &dyn Disk, dir: &Path, images: &Images, survey: &Survey) -> Result<bool, Error> {
    let (found, names) = images
        .find(|dir| id_of(disk, dir) == Some(images.log()))
        .map_err(Error::io("look for images of", dir))?;
    let mut end = end_of(survey);
    let mut restored = false;
    while let Some((image, scan)) = next(&found, &end, images.log()) {
        let header = header(images.log(), &image.label);
        let records = header.base + scan.positions.len() as u64 - end.offset;
        tracing::info!(dir = %dir.display(), base = header.base, records, "taking up records from memory");
        write(disk, dir, &header, &end, image, &scan).map_err(Error::io("write from memory to", dir))?;
        end = End { offset: header.base + scan.positions.len() as u64, open: None };
        restored = true;
    }
    for name in names {
        images.remove(&name);
    }
    Ok(restored)
}

fn end_of(survey: &Survey) -> End {
    let Some(last) = survey.segments.last() else { return End { offset: 0, open: None } };
    let open = match &last.state {
        State::Open(bytes, scan) => {
            Some((last.header, scan.words, bytes[..scan.words as usize * 8].to_vec()))
        }
        _ => None,
    };
    End { offset: File::end(last), open }
}

fn header(log: [u8; 16], label: &Label) -> Header {
    Header { log, base: label.base, capacity: label.capacity, created: label.created }
}

/// The image that goes on where the files end, and what it has.
fn next<'a>(found: &'a [Found], end: &End, log: [u8; 16]) -> Option<(&'a Found, Scan)> {
    let fits = |image: &&Found| {
        let header = header(log, &image.label);
        let same = end.open.as_ref().is_some_and(|(open, words, bytes)| {
            *open == header && image.frames.get(..*words as usize * 8) == Some(bytes)
        });
        same || image.label.base == end.offset
    };
    let scanned = found.iter().filter(fits).map(|image| {
        let seed = header(log, &image.label).seed();
        (image, scan::scan(&image.frames, seed))
    });
    // Of two with the same base one is of a chunk that was replaced while it was empty.
    scanned
        .filter(|(image, scan)| image.label.base + scan.positions.len() as u64 > end.offset)
        .max_by_key(|(_, scan)| scan.positions.len())
}

fn write(
    disk: &dyn Disk,
    dir: &Path,
    header: &Header,
    end: &End,
    image: &Found,
    scan: &Scan,
) -> std::io::Result<()> {
    let mut memory = Memory::new(header.capacity)?;
    memory.load(&image.frames[..scan.words as usize * 8]);
    let chunk = Chunk::recovered(memory, None, &scan.positions, scan.words);
    let (file, from) = match &end.open {
        Some((open, words, _)) if open == header => {
            let path = dir.join(crate::segment::file::name(header.base));
            let file = SegmentFile::resume(disk.open(&path, true)?, path, header.capacity, *words);
            (file, Extent { records: (end.offset - header.base) as u32, words: *words })
        }
        _ => {
            let file = SegmentFile::prepare(disk, dir, 0, header.capacity)?;
            file.begin(disk, dir, header)?;
            (file, Extent::default())
        }
    };
    let to = Extent { records: scan.positions.len() as u32, words: scan.words };
    file.write(&chunk, from, to)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{
        chunk::{Batch, Imprint, Placed},
        disk::sim::Sim,
        log::{Log, Options},
    };
    use std::sync::Arc;

    const DIR: &str = "/log";

    fn options(images: &Path) -> Options {
        Options {
            segment_bytes: 8 << 10,
            first_segment_bytes: 4 << 10,
            memory_bytes: 64 << 10,
            images: Some(images.to_owned()),
            ..Options::default()
        }
    }

    fn open(sim: &Sim, at: &Path) -> Log {
        Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options(at)).unwrap()
    }

    /// Leaves an image of a segment at `base` as a killed process would, with `records` whole records and, if
    /// `torn`, a batch of which the second half is missing.
    fn leave(images: &Arc<Images>, base: u64, records: u64, torn: bool) {
        let label = Label { base, capacity: 8192, created: 1_700_000_000_000 };
        let header = header(images.log(), &label);
        let mut memory = Memory::shared(label.capacity, Some(images)).unwrap();
        memory.label(&label);
        let chunk = Chunk::new(memory, None);
        let imprint = Imprint { seed: header.seed(), lead: 0, time: 0 };
        for record in 0..records {
            let value = (base + record).to_le_bytes();
            let placed = chunk.append(Batch::new(&[&value[..]], 8192).unwrap(), None, imprint);
            assert!(matches!(placed, Placed::At(_)));
        }
        if torn {
            let (half, lost) = ([1u8; 100], [2u8; 100]);
            chunk.append(Batch::new(&[&half[..], &lost[..]], 8192).unwrap(), None, imprint);
            let end = chunk.contiguous(Extent::default(), u32::MAX).words;
            drop(chunk);
            let at = images.latest().unwrap();
            let mut bytes = std::fs::read(&at).unwrap();
            bytes[4096 + end as usize * 8 - 50] ^= 1;
            std::fs::write(&at, bytes).unwrap();
        }
    }

    fn values(log: &Log) -> Vec<u64> {
        let value = |record: crate::log::Record| u64::from_le_bytes(record.value().try_into().unwrap());
        log.iter(log.first_offset()).map(|record| value(record.unwrap())).collect()
    }

    #[test]
    fn what_was_in_memory_only_is_there_after_opening_again_and_what_does_not_fit_is_not() {
        let (sim, at) = (Sim::new(1), tempfile::tempdir().unwrap());
        let log = open(&sim, at.path());
        for n in 0..10u64 {
            log.append(&n.to_le_bytes()).unwrap();
        }
        let id = log.id();
        log.close().unwrap();
        let left = || {
            let images = Arc::new(Images::open(at.path(), id, Path::new(DIR)).unwrap());
            images.keep();
            images
        };
        assert_eq!(left().find(|_| false).unwrap().1.len(), 0, "a clean close leaves none");
        leave(&left(), 10, 20, false);
        leave(&left(), 30, 5, true); // the batch at its end is torn
        leave(&left(), 37, 5, false); // does not follow
        leave(&left(), 3, 4, false); // older than what is on disk
        let other = Arc::new(Images::open(at.path(), [7; 16], Path::new("/other")).unwrap());
        other.keep();
        leave(&other, 35, 5, false);
        let log = open(&sim, at.path());
        assert_eq!(values(&log), (0..35).collect::<Vec<_>>());
        assert_eq!(log.durable_offset(), 35);
        assert_eq!(log.append(&35u64.to_le_bytes()).unwrap(), 35);
        log.close().unwrap();
        assert_eq!(left().find(|_| false).unwrap().1.len(), 0, "taken up, and left behind");
        assert_eq!(other.find(|_| false).unwrap().1.len(), 1, "another log's");
        assert_eq!(values(&open(&sim, at.path())), (0..36).collect::<Vec<_>>());
    }

    #[test]
    fn an_image_goes_on_in_the_open_segment_only_if_it_begins_as_that_does() {
        for same in [true, false] {
            let (sim, at) = (Sim::new(1), tempfile::tempdir().unwrap());
            let log = open(&sim, at.path());
            for n in 0..10u64 {
                log.append(&n.to_le_bytes()).unwrap();
            }
            log.flush().unwrap();
            let images = log.shared.roll.images.clone().unwrap();
            let image = images.latest_labelled(0);
            let mut bytes = std::fs::read(&image).unwrap();
            log.close().unwrap();
            // As if two more had been appended before the process was killed.
            let label = Label { base: 0, ..images_label(&bytes) };
            let seed = header(images.log(), &label).seed();
            for record in 10..12u32 {
                let at = 4096 + record as usize * 32;
                let stamp = crate::frame::Stamp { record, behind: 1, time: 0, flags: 0 };
                crate::frame::encode(&mut bytes[at..at + 32], seed, stamp, &u64::from(record).to_le_bytes());
            }
            if !same {
                bytes[4096 + 30] ^= 1;
            }
            std::fs::write(&image, &bytes).unwrap();
            let expected = if same { 12 } else { 10 };
            assert_eq!(values(&open(&sim, at.path())), (0..expected).collect::<Vec<_>>());
        }
    }

    fn images_label(bytes: &[u8]) -> Label {
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        Label { base: word(64), capacity: word(72), created: word(80) }
    }
}
