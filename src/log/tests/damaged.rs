//! What reading records costs that are damaged, or that a damaged index does not lead to.

use super::{DIR, Sim};
use crate::{
    disk::gate::{Gate, Operation},
    log::{Error, Log, Options},
    segment::sealed,
};
use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, mpsc},
    time::Duration,
};

const SEGMENT: &str = "/log/00000000000000000000.seg";
/// Records of 32 bytes with their headers: more than a segment has room for, so that the first one is sealed.
const RECORDS: usize = 150_000;

fn open(sim: &Sim) -> Log {
    let options = Options {
        segment_bytes: 4 << 20,
        first_segment_bytes: 4 << 20,
        memory_bytes: 64 << 20,
        shm_dir: None,
        ..Options::default()
    };
    Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options).unwrap()
}

/// Operations of the disk, and bytes that were read, since tracing began.
fn read(sim: &Sim) -> (usize, usize) {
    let trace = sim.take_trace();
    let reads = trace.lines().filter_map(|line| line.split_once(" read "));
    let bytes: usize = reads.filter_map(|(_, of)| of.rsplit(' ').next()?.parse::<usize>().ok()).sum();
    (trace.lines().count(), bytes)
}

/// For each of them all frames of the segment were read and searched, and the disk was asked for the unreadable ones
/// one by one.
#[test]
fn all_frames_of_a_damaged_segment_are_searched_only_once() {
    const LOST: u64 = 32_640;
    for what in ["a bit", "a sector", "a sector of the index"] {
        let sim = Sim::new(1);
        let log = open(&sim);
        for _ in 0..RECORDS / 1000 {
            log.append_batch(&[&[7; 8][..]; 1000]).unwrap();
        }
        log.close().unwrap();
        let file = &sim.dump()[Path::new(SEGMENT)];
        let footer: [u8; 40] = *file[file.len() - 4096..].first_chunk().unwrap();
        let words = u32::from_le_bytes(footer[36..].try_into().unwrap());
        let (from, at) = match what {
            "a sector of the index" => (0, sealed::index_at(words) as usize),
            _ => (LOST, 4096 + LOST as usize * 32),
        };
        match what {
            "a bit" => sim.damage(Path::new(SEGMENT), |bytes| bytes[at + 20] ^= 1),
            _ => sim.spoil_at(Path::new(SEGMENT), at),
        }
        let log = open(&sim);
        assert_eq!(log.damage(), [], "{what}");
        sim.begin_trace();
        let mut good = 0;
        for offset in (from..from + 16).cycle().take(64) {
            good += usize::from(log.read(offset).is_ok());
        }
        let mut reader = log.reader(from);
        while reader.offset() < from + 16 {
            let at = reader.offset();
            match reader.read_next() {
                Ok(_) => good += 1,
                Err(_) => reader.seek(at + 1),
            }
        }
        let (operations, bytes) = read(&sim);
        println!("{what}: {good} of 80 read, {operations} operations, {bytes} bytes");
        let expected = match what {
            "a bit" => 15 * 5,
            "a sector" => 0,
            _ => 16 * 5,
        };
        assert_eq!(good, expected, "{what}");
        assert!(operations < 272 + 80 * 6 + 272 && bytes < 3 * RECORDS * 32, "{what}: {operations}, {bytes}");
        // As soon as it can be read again, it is.
        sim.heal();
        if what != "a bit" {
            assert_eq!(log.read(from + 3).unwrap().unwrap().value(), [7; 8], "{what}");
        }
    }
}

/// Records of 128 bytes, in segments of 8 KiB.
fn filled() -> Sim {
    let sim = Sim::new(3);
    let log = super::open(&sim).unwrap();
    for n in 0..200u32 {
        let offset = log.append(&[n as u8; 100]).unwrap();
        log.wait_durable(offset).unwrap();
    }
    log.close().unwrap();
    sim
}

/// Where the records from this one on start in the first segment, if they are as in [`filled`].
const fn at(record: usize) -> usize {
    4096 + record * 128
}

/// They waited for a lock that was held while all frames were read and looked at.
#[test]
fn good_records_are_read_while_another_reader_searches_their_segment() {
    let sim = filled();
    sim.damage(Path::new(SEGMENT), |bytes| bytes[at(3) + 50] ^= 1);
    let state = Arc::new((Mutex::new((0, false)), Condvar::new())); // reads of whoever searches; whether they go on
    let asks = Arc::clone(&state);
    let ask = move |operation, path: &Path| {
        let searches = std::thread::current().name() == Some("searches");
        if operation == Operation::Read && path == Path::new(SEGMENT) && searches {
            let mut held = asks.0.lock().unwrap();
            held.0 += 1;
            if held.0 >= 3 {
                asks.1.notify_all();
                drop(asks.1.wait_while(held, |held| !held.1).unwrap());
            }
        }
        Ok(())
    };
    let disk = Gate::new(Arc::new(sim), ask);
    let log = Arc::new(Log::open_on(disk, Path::new(DIR), super::small()).unwrap());
    let (thread, damaged) = (std::thread::Builder::new().name("searches".into()), Arc::clone(&log));
    let searches = thread.spawn(move || damaged.read(3).is_err()).unwrap();
    drop(state.1.wait_while(state.0.lock().unwrap(), |held| held.0 < 3).unwrap());
    let (tell, told) = mpsc::channel();
    for offset in [0, 7, 9] {
        let (log, tell) = (Arc::clone(&log), tell.clone());
        std::thread::spawn(move || {
            let length = log.reader(offset).peek().unwrap().unwrap().head.unwrap().length;
            tell.send((length, log.read(offset).unwrap().unwrap().value().len())).unwrap();
        });
    }
    let read: Vec<_> = (0..3).map(|_| told.recv_timeout(Duration::from_secs(5))).collect();
    state.0.lock().unwrap().1 = true;
    state.1.notify_all();
    assert!(searches.join().unwrap());
    assert_eq!(read, [Ok((100, 100)); 3], "while another reader searches");
}

/// Of such a segment no record was found any more, and it was read again for each: 50 MB for 16 records.
#[test]
fn a_truncated_segment_is_searched_once_and_its_remaining_records_are_read() {
    let sim = Sim::new(1);
    let log = open(&sim);
    for _ in 0..RECORDS / 1000 {
        log.append_batch(&[&[7; 8][..]; 1000]).unwrap();
    }
    log.close().unwrap();
    let log = open(&sim);
    let cut = (3 << 20) + 4096;
    let left = (cut as u64 - 4096) / 32; // the records before the cut
    sim.damage(Path::new(SEGMENT), |bytes| bytes.truncate(cut));
    sim.begin_trace();
    let offsets = (0..16).chain(left - 16..left + 16);
    for offset in offsets.clone() {
        let found = log.read(offset);
        assert_eq!(found.is_ok(), offset < left, "{offset} of {left}: {found:?}");
        assert!(found.is_ok() || matches!(found, Err(Error::Damaged { .. })), "{offset}: {found:?}");
    }
    let mut reader = log.reader(0);
    for offset in offsets {
        reader.seek(offset);
        let found = reader.read_next();
        assert_eq!(found.is_ok(), offset < left, "{offset} of {left}: {found:?}");
    }
    let (operations, bytes) = read(&sim);
    println!("{operations} operations, {bytes} bytes");
    assert!(operations < 600 && bytes < 16 << 20, "{operations} operations, {bytes} bytes");
}

/// A reader that came from the record before believed the header, which was told by its length alone to be wrong.
#[test]
fn an_impossible_length_is_not_believed_wherever_it_was_read() {
    let sim = filled();
    sim.damage(Path::new(SEGMENT), |bytes| bytes[at(3) + 7] ^= 0x40);
    let log = super::open(&sim).unwrap();
    let alone = log.reader(3).peek().unwrap();
    let mut reader = log.reader(0);
    while reader.offset() < 3 {
        reader.read_next().unwrap().unwrap();
    }
    assert_eq!(reader.peek().unwrap(), alone);
    assert_eq!(alone.unwrap().head, None);
    assert!(alone.unwrap().cold_bytes <= 8 << 10, "{alone:?}: more than the segment has");
}

/// A record that was damaged counted as older than any time, and with it all before it that were younger.
#[test]
fn the_first_record_since_a_time_is_found_wherever_others_are_damaged() {
    const FIRST: u64 = 31; // records of the first segment
    for damaged in (0..FIRST as usize).map(|at| at..at + 1).chain([0..31, 3..20, 29..31, 20..30]) {
        let sim = filled();
        sim.damage(Path::new(SEGMENT), |bytes| {
            for record in damaged.clone() {
                bytes[at(record) + 50] ^= 1;
            }
        });
        let log = super::open(&sim).unwrap();
        let is_damaged = |offset: u64| damaged.contains(&(offset as usize));
        let readable = |from: u64| (from..200).find(|&offset| !is_damaged(offset)).unwrap();
        for offset in 0..FIRST {
            assert_eq!(log.next_readable(offset).unwrap(), readable(offset), "{damaged:?}");
            let Ok(Some(record)) = log.read(offset) else { continue };
            let time = record.time();
            let first = (0..200).filter(|&offset| !is_damaged(offset));
            let first =
                first.filter_map(|offset| log.read(offset).ok()?).find(|record| record.time() >= time);
            let found = log.offset_since(time).unwrap();
            assert_eq!(readable(found), first.unwrap().offset(), "{damaged:?}, since {offset}: {found}");
        }
        assert_eq!(log.next_readable(200).unwrap(), 200);
        assert_eq!(log.next_readable(1000).unwrap(), 1000);
    }
}
