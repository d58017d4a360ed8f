#[cfg(feature = "store")]
mod backings;
mod clock;
mod clones;
#[cfg(feature = "server")]
mod copying;
mod damaged;
mod embedding;
#[cfg(feature = "store")]
mod emptied;
#[cfg(feature = "store")]
mod quiet;
mod refused;
mod scrubbing;
mod waiting;

use super::*;
use crate::disk::{Disk, sim::Sim};
use std::{future::Future, path::Path, time::Instant};

pub(super) const DIR: &str = "/log";

pub(super) fn small() -> Options {
    Options {
        segment_bytes: 8 << 10,
        first_segment_bytes: 4 << 10,
        memory_bytes: 64 << 10,
        shm_dir: None, // the simulated disk's machine has none that survive
        ..Options::default()
    }
}

pub(super) fn open(sim: &Sim) -> Result<Log, Error> {
    Log::open_on(std::sync::Arc::new(sim.clone()), Path::new(DIR), small())
}

pub(super) fn values(log: &Log) -> Vec<Vec<u8>> {
    log.iter(log.first_offset()).map(|record| record.unwrap().value().to_vec()).collect()
}

#[test]
fn appended_records_are_read_across_segments_and_after_reopening() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let expected: Vec<Vec<u8>> = (0..500u32).map(|n| vec![n as u8; n as usize % 300]).collect();
    for (n, value) in expected.iter().enumerate() {
        assert_eq!(log.append(value).unwrap(), n as u64);
    }
    log.flush().unwrap();
    assert!(values(&log) == expected);
    log.close().unwrap();
    for _ in 0..2 {
        let log = open(&sim).unwrap();
        assert_eq!((log.first_offset(), log.next_offset(), log.durable_offset()), (0, 500, 500));
        assert!(values(&log) == expected);
        log.close().unwrap();
    }
    let report = inspect::verify_on(&sim, Path::new(DIR), None, &mut |_, _| ()).unwrap();
    assert_eq!((report.damage, report.next), (vec![], 500));
}

#[test]
fn a_second_opening_is_refused_while_the_first_is_there() {
    let sim = Sim::new(1);
    let first = open(&sim).unwrap();
    assert!(matches!(open(&sim), Err(Error::InUse { .. })));
    drop(first);
    open(&sim).unwrap();
}

#[test]
fn trimming_drops_whole_segments_and_offsets_continue_after_opening_again() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    for _ in 0..300 {
        log.append(&[7; 100]).unwrap();
    }
    log.close().unwrap();
    let log = open(&sim).unwrap();
    let first = log.trim(u64::MAX).unwrap();
    assert!(first > 0 && first <= 300);
    assert!(matches!(log.read(0), Err(Error::Trimmed { offset: 0, .. })));
    log.close().unwrap();
    let log = open(&sim).unwrap();
    assert_eq!((log.first_offset(), log.next_offset()), (first, 300));
}

/// The power goes at each changing operation in turn, torn write and unsynced names included; then again while
/// recovering. What was acknowledged is kept, batches are whole, and appending continues.
#[test]
fn no_acknowledged_record_is_lost_wherever_the_power_goes() {
    for seed in 0..400u64 {
        let sim = Sim::new(seed);
        sim.cut_power_after(1 + seed % 97);
        let (mut acknowledged, mut appended) = (0, 0u64);
        let mut live = sim;
        for round in 0..3 {
            if let Ok(log) = open(&live) {
                assert!(log.damage().is_empty(), "seed {seed}: {:?}", log.damage());
                let next = log.next_offset();
                assert!(
                    next >= acknowledged && next <= appended,
                    "seed {seed}, round {round}: {next} of {acknowledged}..={appended}"
                );
                assert_eq!(next % 3, 0, "seed {seed}: a batch was torn");
                for offset in log.first_offset()..next {
                    let value = match log.read(offset) {
                        Ok(value) => value.unwrap(),
                        Err(error) => {
                            assert!(error.to_string().contains("the power is off"), "seed {seed}: {error}");
                            break;
                        }
                    };
                    let expected = vec![offset as u8; offset as usize * 37 % 290];
                    assert_eq!(value.value(), expected, "seed {seed}: offset {offset}");
                }
                appended = next;
                acknowledged = next;
                for _ in 0..40 {
                    let batch: Vec<Vec<u8>> =
                        (appended..appended + 3).map(|n| vec![n as u8; n as usize * 37 % 290]).collect();
                    let batch: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
                    let Ok(first) = log.append_batch(&batch) else { break };
                    assert_eq!(first, appended);
                    appended += 3;
                    if log.wait_durable(first + 2).is_err() {
                        break;
                    }
                    acknowledged = appended;
                }
            }
            let next = live.reboot();
            if round == 0 {
                next.cut_power_after(1 + seed % 13);
            }
            live = next;
        }
    }
}

fn filled(records: u32) -> (Sim, Vec<Vec<u8>>) {
    let sim = Sim::new(3);
    let log = open(&sim).unwrap();
    let all: Vec<Vec<u8>> = (0..records).map(|n| vec![n as u8; 100]).collect();
    for value in &all {
        let offset = log.append(value).unwrap();
        log.wait_durable(offset).unwrap();
    }
    log.close().unwrap();
    (sim, all)
}

#[test]
fn damage_in_the_open_segment_opens_read_only_serves_the_rest_and_is_repaired() {
    let (sim, all) = filled(10);
    let path = Path::new(DIR).join("00000000000000000000.seg");
    sim.damage(&path, |bytes| bytes[4096 + 3 * 128 + 50] ^= 1);
    let before = sim.dump();
    let log = open(&sim).unwrap();
    assert_eq!(log.damage().len(), 1);
    assert_eq!(log.damage()[0].offsets, 3..4);
    assert!(matches!(log.append(b"x"), Err(Error::ReadOnly { .. })));
    assert!(matches!(log.read(3), Err(Error::Damaged { offset: 3 })));
    for offset in [0, 1, 2, 4, 9] {
        assert_eq!(log.read(offset).unwrap().unwrap().value(), all[offset as usize]);
    }
    drop(log);
    assert_eq!(sim.dump(), before, "opening read-only changes nothing");

    let repaired = repair::repair_on(&sim, Path::new(DIR), None, &mut |_, _| ()).unwrap();
    assert_eq!((repaired.damage.len(), repaired.kept.len()), (1, 1));
    let log = open(&sim).unwrap();
    assert_eq!(log.append(b"x").unwrap(), 10);
    let (lost, before) = (log.read(3).unwrap().unwrap(), log.read(2).unwrap().unwrap());
    assert!(lost.is_lost() && lost.value().is_empty() && lost.time() == before.time() && !before.is_lost());
    assert_eq!(log.read(9).unwrap().unwrap().value(), all[9]);
}

#[test]
fn a_damaged_last_record_after_a_clean_close_is_damage_and_not_a_torn_tail() {
    let (sim, _) = filled(10);
    let path = Path::new(DIR).join("00000000000000000000.seg");
    sim.damage(&path, |bytes| bytes[4096 + 9 * 128 + 50] ^= 1);
    assert_eq!(open(&sim).unwrap().damage()[0].offsets, 9..10);
}

#[test]
fn damage_in_a_sealed_segment_is_an_error_of_that_read_and_verify_finds_it() {
    let (sim, all) = filled(200);
    let path = Path::new(DIR).join("00000000000000000000.seg");
    sim.damage(&path, |bytes| bytes[4096 + 3 * 128 + 50] ^= 1);
    let log = open(&sim).unwrap();
    assert!(matches!(log.read(3), Err(Error::Damaged { offset: 3 })));
    assert_eq!(log.read(4).unwrap().unwrap().value(), all[4]);
    let read = log.iter(0).filter_map(Result::ok).count();
    assert_eq!(read, 199);
    drop(log);
    let report = inspect::verify_on(&sim, Path::new(DIR), None, &mut |_, _| ()).unwrap();
    assert_eq!(report.damage[0].offsets, 3..4);
}

/// The size of a record was known only once it had been read; and one that was known to be lost was thought to take as
/// much as its whole segment.
#[cfg(feature = "server")]
#[test]
fn a_peek_at_a_record_agrees_with_reading_it() {
    let (sim, all) = filled(200);
    let path = Path::new(DIR).join("00000000000000000000.seg");
    sim.damage(&path, |bytes| bytes[4096 + 3 * 128 + 22] ^= 0x40); // a flag that nobody knows
    let log = open(&sim).unwrap();
    let mut reader = log.reader(0);
    let mut searched = false;
    for (offset, released) in (0..200).chain((0..200).rev()).zip([false, true, false].into_iter().cycle()) {
        if released {
            reader.release();
        }
        reader.seek(offset);
        let hot = log.reads_without_disk(offset);
        assert_eq!(reader.next_without_disk(), hot, "{offset}");
        let ahead = reader.peek().unwrap().unwrap();
        assert_eq!((ahead.hot, reader.offset()), (hot, offset));
        if offset == 3 {
            // The first time, its whole segment is searched for it.
            let expected = if searched { 0..=0 } else { 3000..=usize::MAX };
            assert!(ahead.head.is_none() && expected.contains(&ahead.length()), "{ahead:?}");
            searched = true;
            assert!(matches!(reader.read_one(), Err(Error::Damaged { offset: 3 })));
            assert!(matches!(reader.read_next(), Err(Error::Damaged { offset: 3 })));
            continue;
        }
        let record = reader.read_one().unwrap().unwrap();
        assert_eq!((ahead.head, record.value()), (Some(record.head()), &all[offset as usize][..]));
        assert_eq!(ahead.cold_bytes, if hot { 0 } else { 128 });
        let again = reader.read(offset).unwrap().unwrap();
        assert_eq!((again.head(), again.value), (record.head(), record.value()));
        assert_eq!(reader.offset(), offset + 1);
    }
    reader.seek(200);
    assert!(
        reader.next_without_disk()
            && reader.peek().unwrap().is_none()
            && reader.read_one().unwrap().is_none()
    );
}

#[test]
fn a_missing_segment_is_damage_and_the_rest_is_served() {
    let (sim, all) = filled(200);
    let names: Vec<_> = sim.dump().into_keys().collect();
    Disk::remove(&sim, &names[1]).unwrap();
    let log = open(&sim).unwrap();
    let gap = log.damage()[0].offsets.clone();
    assert!(matches!(log.read(gap.start), Err(Error::Damaged { .. })));
    assert_eq!(log.next_readable(gap.start).unwrap(), gap.end);
    assert_eq!(log.read(gap.end).unwrap().unwrap().value(), all[gap.end as usize]);
    drop(log);
    repair::repair_on(&sim, Path::new(DIR), None, &mut |_, _| ()).unwrap();
    let log = open(&sim).unwrap();
    assert_eq!(log.append(b"x").unwrap(), 200);
    let lost = |offset| log.read(offset).unwrap().unwrap().is_lost();
    assert!((0..200).all(|offset| lost(offset) == gap.contains(&offset)));
}

#[test]
fn a_failed_write_fails_appends_for_good_and_reads_continue() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let first = log.append(b"a").unwrap();
    log.wait_durable(first).unwrap();
    sim.fail_after(1);
    let second = log.append(b"b").unwrap();
    assert!(matches!(log.wait_durable(second), Err(Error::Failed { .. })));
    assert!(matches!(log.append(b"c"), Err(Error::Failed { .. })));
    assert_eq!(log.read(0).unwrap().unwrap().value(), b"a");
    assert!(log.read(1).unwrap().is_none(), "what may be lost is not shown");
    assert!(log.close().is_err());
    assert_eq!(open(&sim).unwrap().read(0).unwrap().unwrap().value(), b"a");
}

#[test]
fn a_full_disk_is_reported_and_appends_continue_when_there_is_room() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    sim.set_room(Some(0));
    let mut appended = 0;
    let error = loop {
        match log.append(&[1; 500]) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
        assert!(appended < 1000);
    };
    assert!(matches!(error, Error::Full { .. }), "{error}");
    log.flush().unwrap();
    sim.set_room(None);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while log.append(&[2; 500]).is_err() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    log.close().unwrap();
    assert_eq!(values(&open(&sim).unwrap()).len(), appended + 1);
}

fn with(durability: Durability) -> Options {
    Options { durability, ..small() }
}

/// Appenders in a race over many rolls, singles and batches, and readers that follow them: each reader gets every
/// record once, in order, and a batch is never seen in part.
#[test]
fn readers_that_follow_get_every_record_in_order_while_appenders_roll() {
    const EACH: u64 = 400;
    for durability in [Durability::Disk, Durability::Memory] {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), with(durability)).unwrap();
        let total = 3 * EACH * 3;
        std::thread::scope(|scope| {
            for thread in 0..3u8 {
                let log = &log;
                scope.spawn(move || {
                    let mut appender = log.appender();
                    for n in 0..EACH {
                        let value = vec![thread; n as usize % 50];
                        // Three records of a batch, or one by one.
                        if n % 2 == 0 {
                            appender.append_batch(&[&value, &value, &value]).unwrap();
                        } else {
                            for _ in 0..3 {
                                log.append(&value).unwrap();
                            }
                        }
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut reader = log.reader(0);
                    let mut seen = 0;
                    while seen < total {
                        assert!(
                            reader.wait(Some(Duration::from_secs(20))).unwrap(),
                            "nothing came at {seen}"
                        );
                        while let Some(record) = reader.read_next().unwrap() {
                            assert_eq!(record.offset, seen);
                            seen += 1;
                        }
                    }
                });
            }
        });
        assert_eq!(log.next_offset(), total);
        let mut counts = [0u64; 3];
        for record in log.iter(0).map(Result::unwrap) {
            record.value().first().into_iter().for_each(|&thread| counts[usize::from(thread)] += 1);
        }
        assert_eq!(counts, [(EACH - EACH / 50) * 3; 3]);
        log.close().unwrap();
        assert_eq!(verify(dir.path()).unwrap().damage, []);
    }
}

#[test]
fn with_memory_durability_acknowledged_records_can_be_read_before_they_are_on_disk() {
    let sim = Sim::new(1);
    let log =
        Log::open_on(std::sync::Arc::new(sim.clone()), Path::new(DIR), with(Durability::Memory)).unwrap();
    sim.hold(true);
    // As many as the first segment has room for: the held disk makes no other one.
    for n in 0..20u64 {
        let offset = log.append(&[n as u8; 100]).unwrap();
        assert_eq!(log.read(offset).unwrap().unwrap().value(), [n as u8; 100]);
    }
    assert!(log.durable_offset() < 20);
    sim.hold(false);
    log.flush().unwrap();
    assert_eq!(log.durable_offset(), 20);
}

#[test]
fn when_the_disk_is_behind_memory_is_bounded_and_appends_are_told() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    sim.hold(true);
    let mut appended = 0u64;
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    // The maintenance task may be a little behind as well: what counts is that it ends.
    let mut refusals = 0;
    while refusals < 20 {
        assert!(std::time::Instant::now() < deadline);
        match log.try_append(&[3; 500]) {
            Ok(_) => appended += 1,
            Err(Error::WouldBlock) => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(appended * 500 <= small().memory_bytes, "{appended} records of 500 B are more than the budget");
    // A blocking append, and one that awaits room, continue when the disk does.
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| log.append(b"patient"));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!blocked.is_finished());
        sim.hold(false);
        blocked.join().unwrap().unwrap();
    });
    log.flush().unwrap();
    assert_eq!(log.durable_offset(), appended + 1);
    assert_eq!(values(&log).len() as u64, appended + 1);
}

#[test]
fn recovering_twice_gives_the_same_as_once() {
    for seed in 0..60 {
        let sim = Sim::new(seed);
        sim.cut_power_after(3 + seed);
        if let Ok(log) = open(&sim) {
            for n in 0..60u8 {
                if log.append(&[n; 90]).and_then(|offset| log.wait_durable(offset)).is_err() {
                    break;
                }
            }
        }
        let mut states = Vec::new();
        let mut live = sim.reboot();
        for _ in 0..2 {
            let log = open(&live).unwrap();
            states.push((log.first_offset(), log.next_offset(), values(&log)));
            drop(log);
            live = live.reboot();
        }
        assert!(states[0] == states[1], "seed {seed}");
    }
}

#[test]
fn closing_while_others_append_keeps_all_that_they_were_given() {
    for _ in 0..20 {
        let sim = Sim::new(1);
        let log = open(&sim).unwrap();
        let mut appender = log.appender();
        let appending = std::thread::spawn(move || {
            let mut last = None;
            while let Ok(offset) = appender.append(&[9; 200]) {
                last = Some(offset);
            }
            last
        });
        std::thread::sleep(Duration::from_millis(2));
        log.close().unwrap();
        let last = appending.join().unwrap();
        let log = open(&sim).unwrap();
        assert_eq!(log.next_offset(), last.map_or(0, |last| last + 1));
    }
}

#[test]
fn async_waiting_completes_when_the_record_is_durable() {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    sim.hold(true);
    let offset = log.append(b"x").unwrap();
    let mut waiting = pin!(log.durable(offset));
    let mut visible = pin!(log.visible(offset));
    let mut context = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    assert!(visible.as_mut().poll(&mut context).is_pending());
    sim.hold(false);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while log.durable_offset() <= offset {
        assert!(std::time::Instant::now() < deadline, "the kick did not reach the flusher");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(waiting.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
    assert!(matches!(visible.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
}

#[test]
fn what_was_appended_as_json_says_so_in_memory_and_from_disk() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let payloads: Vec<_> = (0..40).map(|n| Payload { bytes: b"{\"n\":1}", json: n % 3 == 0 }).collect();
    assert_eq!(log.try_append_payloads(&payloads, Some(0)).unwrap(), 0);
    assert!(matches!(log.try_append_payloads(&payloads, Some(0)), Err(Error::Unexpected { next: 40, .. })));
    log.flush().unwrap();
    let marks = |log: &Log| log.iter(0).map(|record| record.unwrap().is_json()).collect::<Vec<_>>();
    let expected: Vec<_> = (0..40).map(|n| n % 3 == 0).collect();
    assert_eq!(marks(&log), expected);
    log.close().unwrap();
    let log = open(&sim).unwrap();
    assert_eq!(marks(&log), expected);
    assert!(log.read(0).unwrap().unwrap().is_json());
}

/// Each segment holds the one after it. Whoever held an old one last dropped them all, one within the other, and the
/// process ended for lack of stack.
#[test]
fn dropping_the_last_handle_of_an_old_segment_does_not_recurse() {
    const SEGMENTS: u64 = 3000;
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    log.append(&[7; 3000]).unwrap();
    log.flush().unwrap();
    let mut reader = log.reader(0);
    reader.read_next().unwrap().unwrap();
    let appender = log.appender();
    while log.shared.active.load().segment.base() < SEGMENTS {
        let at = log.append(&[7; 6000]).unwrap();
        log.wait_durable(at).unwrap();
    }
    log.close().unwrap();
    let stack = std::thread::Builder::new().stack_size(128 << 10);
    let drops = stack.spawn(move || {
        drop(appender);
        drop(reader);
    });
    drops.unwrap().join().unwrap();
}

/// The time of its end cannot be represented, and computing it panicked.
#[test]
fn an_infinite_timeout_waits_without_a_deadline() {
    let log = open(&Sim::new(1)).unwrap();
    log.append(b"a").unwrap();
    log.flush().unwrap();
    assert!(log.reader(0).wait(Some(Duration::MAX)).unwrap());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| log.reader(1).wait(Some(Duration::MAX)));
        std::thread::sleep(Duration::from_millis(20));
        log.append(b"b").unwrap();
        log.flush().unwrap();
        assert!(waits.join().unwrap().unwrap());
    });
}

/// Whoever had looked up the segments before the log moved on and was trimmed found a segment that ends before the
/// record, and took the record for damaged.
#[test]
fn trimmed_records_are_reported_as_trimmed_even_by_an_older_chain() {
    let log = open(&Sim::new(1)).unwrap();
    log.append(&[7; 3000]).unwrap();
    log.flush().unwrap();
    let old = log.shared.chain.load_full();
    for _ in 0..50 {
        let at = log.append(&[7; 3000]).unwrap();
        log.wait_durable(at).unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while log.trim(40).unwrap() < 10 {
        assert!(std::time::Instant::now() < deadline); // until they are sealed
    }
    let first = log.first_offset();
    let found = log.shared.source_in(&old, first - 3);
    assert!(matches!(&found, Ok(None)), "it is looked up again");
    assert!(matches!(log.read(first - 3), Err(Error::Trimmed { .. })));
    assert!(log.shared.source_in(&old, first).is_ok());
    assert_eq!(log.read(first).unwrap().unwrap().offset(), first);
}
