//! The file of producers: behind the log and ahead of it, damaged, written by several threads.

use super::{
    super::{
        file::{SAVED_AFTER, SAVED_PER_SECOND, Snapshot, checksum},
        table::KnownProducer,
    },
    *,
};
use std::{collections::BTreeMap, time::Duration};

/// The first file covered everything that was appended, durable or not. The records that replaced those lost in a power
/// failure were then not read after the next crash: a sequence was stored again.
#[test]
fn the_first_producers_file_covers_only_what_is_durable() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let log = open_on(Arc::new(sim.clone()));
        log.append(b"durable").unwrap();
        log.flush().unwrap();
        sim.hold(true);
        for _ in 0..10 {
            log.append(b"not yet").unwrap();
        }
        log.learn_producers().unwrap();
        let live = sim.reboot();
        sim.hold(false);
        drop(log);
        let log = open_on(Arc::new(live.clone()));
        let mut sent = Vec::new();
        for sequence in 0..3 {
            let done = send(&log, "p", 0, sequence).unwrap();
            log.wait_durable(done.first_offset + done.count - 1).unwrap();
            sent.push(done);
        }
        let killed = live.reboot();
        drop(log);
        let log = open_on(Arc::new(killed));
        for sequence in (0..3).rev() {
            let expected = Produced { repeated: true, ..sent[sequence as usize] };
            assert_eq!(send(&log, "p", 0, sequence).unwrap(), expected, "seed {seed}");
        }
    }
}

/// Early versions noted no kinds, and the first ones no content at all.
#[test]
fn a_batch_that_an_early_version_noted_is_recognised_by_what_it_noted() {
    let dir = tempfile::tempdir().unwrap();
    let send = |log: &Log, bytes: &[u8], json| {
        log.try_append_once(&ProducerBatch::new("p", 0, 0), &[Payload { bytes, json }], None)
    };
    let log = open(dir.path());
    let stored = send(&log, b"1", true).unwrap();
    log.close().unwrap();
    let path = dir.path().join(PRODUCERS_FILE);
    for (content, kinds) in [(true, true), (true, false), (false, false)] {
        let mut snapshot: Snapshot = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let batch = &mut snapshot.producers.get_mut("p").unwrap().batches[0];
        (batch.content, batch.kinds) = (batch.content.filter(|_| content), batch.kinds.filter(|_| kinds));
        snapshot.crc = checksum(snapshot.up_to, &snapshot.producers, snapshot.before);
        std::fs::write(&path, serde_json::to_vec(&snapshot).unwrap()).unwrap();
        let log = open(dir.path());
        assert_eq!(send(&log, b"1", true).unwrap(), Produced { repeated: true, ..stored });
        for (bytes, json, is_known) in [(b"1", false, kinds), (b"2", true, content)] {
            let again = send(&log, bytes, json);
            let is_refused = matches!(again, Err(Error::NotARepeat { .. }));
            assert_eq!(is_refused, is_known, "with {content}, {kinds}: {json} {again:?}");
        }
        log.close().unwrap();
    }
}

/// A program may have written the file without waiting until what it covers was durable.
#[test]
fn a_producers_file_that_is_ahead_of_the_log_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let sent = [0, 1].map(|sequence| send(&log, "p", 0, sequence).unwrap());
    log.close().unwrap();
    let lost = StoredBatch::new(2, 3, 3);
    let mut batches: VecDeque<_> = sent
        .iter()
        .zip(0..)
        .map(|(done, sequence)| StoredBatch::new(sequence, done.first_offset, done.count))
        .collect();
    batches.push_back(lost);
    let producers = BTreeMap::from([(
        "p".to_owned(),
        KnownProducer { epoch: 0, batches, batches_epoch: None, used: now(), last_change: 0, mark: None },
    )]);
    let snapshot = Snapshot { up_to: 9, crc: checksum(9, &producers, None), producers, before: None };
    std::fs::write(dir.path().join(PRODUCERS_FILE), serde_json::to_vec(&snapshot).unwrap()).unwrap();
    let log = open(dir.path());
    let again = send(&log, "p", 0, 2).unwrap();
    assert_eq!(again, Produced { first_offset: 3, count: 3, repeated: false });
    // Nor may the next process believe it after a kill: by then the log may be as long as the file says.
    let text = std::fs::read(dir.path().join(PRODUCERS_FILE)).unwrap();
    assert!(serde_json::from_slice::<Snapshot>(&text).unwrap().up_to <= 3);
    for (sequence, done) in sent.into_iter().enumerate() {
        assert_eq!(send(&log, "p", 0, sequence as u64).unwrap(), Produced { repeated: true, ..done });
    }
}

/// Callers that asked whether producers are known waited until these had been read: among them a thread of the server,
/// with all its connections.
#[test]
fn asking_whether_producers_are_known_never_waits_for_the_disk() {
    let cases = [(Operation::Open, 1), (Operation::WriteFile, 1), (Operation::WriteFile, 2)];
    for (which, nth) in cases {
        let (gate, go, told) = waiting(which, nth);
        let log = open_on(gate);
        let known = nth > 1;
        if known {
            send(&log, "p", 0, 0).unwrap();
        }
        let (tell, answered) = mpsc::channel();
        std::thread::scope(|scope| {
            let (log, going) = (&log, go);
            let working = scope.spawn(|| if known { log.save_producers() } else { log.learn_producers() });
            told.recv().unwrap();
            scope.spawn(move || {
                let known = log.knows_producers();
                let state = known.then(|| log.producer("p").unwrap()).flatten();
                let appended = known.then(|| send(log, "p", 0, 1).unwrap());
                tell.send((known, appended.is_some() && state.is_some())).unwrap();
            });
            let answer = answered.recv_timeout(Duration::from_secs(5));
            going.send(()).unwrap();
            working.join().unwrap().unwrap();
            assert_eq!(answer, Ok((known, known)), "{which:?}");
        });
    }
}

#[test]
fn an_older_state_never_takes_the_place_of_a_newer_one() {
    let sim = Sim::new(1);
    let log = open_on(Arc::new(sim.clone()));
    let told_of = || {
        let text = sim.dump().remove(&Path::new("/log").join(PRODUCERS_FILE)).unwrap();
        serde_json::from_slice::<Snapshot>(&text).unwrap().up_to
    };
    send(&log, "p0", 0, 0).unwrap();
    let rounds = 300;
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (log, told_of) = (&log, &told_of);
            scope.spawn(move || {
                for round in 1..rounds {
                    let done = send(log, &format!("p{thread}"), 1, round - 1).unwrap();
                    if round % 2 == 0 {
                        log.save_producers().unwrap();
                    } else {
                        log.trim(done.first_offset).unwrap();
                    }
                    let up_to = told_of();
                    assert!(round % 2 == 1 || up_to > done.first_offset, "{up_to} after {done:?}");
                }
            });
        }
    });
}

/// The log lost its end to rot and `repair`, and other records were appended. A repeat of a lost batch was answered as
/// stored, though another record is in its place: the file covered no more offsets than the log had.
#[test]
fn a_producers_file_with_batches_that_repair_gave_up_is_not_believed() {
    let sim = Sim::new(1);
    let log = on(&sim);
    for sequence in 0..10 {
        send(&log, "p", 0, sequence).unwrap();
    }
    log.flush().unwrap();
    log.save_producers().unwrap(); // as the store does each second
    let kept = log.next_offset();
    std::mem::forget(log);
    let sim = sim.after(crate::disk::sim::Cut::Kill);
    // The file is cut short, as by the repair of a file system.
    let path = Path::new("/log/00000000000000000000.seg");
    sim.damage(path, |bytes| bytes.truncate(4096 + 512));
    assert!(!on(&sim).damage().is_empty());
    crate::log::repair_on(&sim, Path::new("/log"), None, &mut |_, _| ()).unwrap();
    let log = on(&sim);
    assert!(log.next_offset() < kept);
    while log.next_offset() < kept + 5 {
        log.append(b"another").unwrap();
    }
    log.close().unwrap();
    let log = on(&sim);
    let (epoch, sequence) = expected(send(&log, "p", 0, 9));
    assert!((epoch, sequence) < (0, 9), "{sequence}");
    // What is left of the producer is known, and continues.
    assert!(send(&log, "p", 0, sequence - 1).unwrap().repeated);
    assert!(!send(&log, "p", 0, sequence).unwrap().repeated);
    log.close().unwrap();
    assert!(send(&on(&sim), "p", 0, sequence).unwrap().repeated);
}

/// What a producer had stored last was lost, and the file was written with nothing that shows which log it belongs to.
/// Then the log lost its end, and had grown again by the time that a producer came: a repeat was answered as stored,
/// though another record is in its place.
#[test]
fn a_producers_file_written_after_a_lost_record_is_not_believed_where_another_one_is() {
    let path = Path::new("/log/00000000000000000000.seg");
    let repair =
        |sim: &Sim| drop(crate::log::repair_on(sim, Path::new("/log"), None, &mut |_, _| ()).unwrap());
    // Marked as lost; and in a segment that is sealed, where rot is not an error of opening.
    for is_marked in [true, false] {
        let sim = Sim::new(1);
        let log = on(&sim);
        for sequence in 0..10 {
            append(&log, &ProducerBatch::new("p", 0, sequence), &[b"p"]).unwrap();
        }
        if !is_marked {
            log.roll().unwrap();
        }
        log.close().unwrap();
        let bytes = sim.dump().remove(path).unwrap();
        let after = |at: usize| at + crate::frame::in_bytes(crate::frame::peek_words(&bytes[at..]).unwrap());
        let frame = |record| (0..record).fold(4096, |at, _| after(at));
        let (cut, last) = (frame(5), frame(9));
        sim.damage(path, |bytes| bytes[last + 40] ^= 1);
        if is_marked {
            repair(&sim);
        }
        let log = on(&sim);
        assert_eq!((log.next_offset(), log.damage()), (10, &[][..]));
        log.begin_epoch("q").unwrap(); // the file is written
        log.close().unwrap();
        // The directory is set back: what came after the first records is gone.
        for later in sim.dump().into_keys().filter(|name| name.extension().is_some_and(|end| end == "seg")) {
            if later != path {
                crate::disk::Disk::remove(&sim, &later).unwrap();
            }
        }
        crate::disk::Disk::sync_dir(&sim, Path::new("/log")).unwrap();
        sim.damage(path, |bytes| {
            bytes.truncate(cut);
            bytes[512..1024].fill(0); // the mark of a clean close
        });
        repair(&sim);
        let log = on(&sim);
        assert_eq!(log.next_offset(), 5, "marked {is_marked}");
        for _ in 5..20 {
            log.append(b"another").unwrap();
        }
        log.flush().unwrap();
        // What is left of the producer is known.
        let done = append(&log, &ProducerBatch::new("p", 0, 8), &[b"p"]);
        assert_eq!(expected(done), (0, 5), "marked {is_marked}");
    }
}

/// Files of early versions do not say which record precedes what they do not cover.
#[test]
fn a_producers_file_of_an_early_version_is_believed() {
    let sim = Sim::new(1);
    let log = on(&sim);
    send(&log, "p", 0, 0).unwrap();
    log.close().unwrap();
    let path = Path::new("/log").join(PRODUCERS_FILE);
    let mut saved: Snapshot = serde_json::from_slice(&sim.dump()[&path]).unwrap();
    let known = saved.producers.remove("p").unwrap();
    saved.producers.insert("of whom the log has nothing".to_owned(), known); // so that it is known from where this is
    for before in [saved.before, None] {
        let crc = checksum(saved.up_to, &saved.producers, before);
        let file = Snapshot { before, crc, producers: saved.producers.clone(), ..saved };
        let text = serde_json::to_vec(&file).unwrap();
        sim.damage(&path, |bytes| bytes.clone_from(&text));
        let log = on(&sim);
        log.learn_producers().unwrap();
        let known = log.producer("of whom the log has nothing").unwrap();
        assert!(known.is_some() && log.producer("p").unwrap().is_none(), "{before:?}");
    }
}

/// The saved file covered little, and a sector of a sealed segment could not be read: no producer could append any
/// more, and nothing be trimmed. With rot in place of the sector both worked.
#[test]
fn a_sector_that_cannot_be_read_ends_neither_producers_nor_trimming() {
    for spoilt in [false, true] {
        let sim = Sim::new(1);
        let log = on(&sim);
        for sequence in 0..300 {
            let done = send(&log, "p", 0, sequence).unwrap();
            log.wait_durable(done.first_offset).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
        std::mem::forget(log); // no producers were saved since the first one came
        let sim = sim.after(crate::disk::sim::Cut::Kill);
        let path = Path::new("/log/00000000000000000000.seg");
        if spoilt {
            sim.spoil_at(path, 4096 + 1024);
        } else {
            sim.damage(path, |bytes| bytes[4096 + 1030] ^= 1);
        }
        let log = on(&sim);
        assert_eq!(log.damage(), []);
        let trimmed = log.trim(100);
        assert!(trimmed.as_ref().is_ok_and(|&first| first > 0), "spoilt {spoilt}: {trimmed:?}");
        send(&log, "p", 0, 300).unwrap();
    }
}

/// Rot in the file was repaired, but an unreadable sector in it stopped all producers, and trimming with them, for
/// good.
#[test]
fn an_unreadable_producers_file_is_treated_as_a_damaged_one() {
    let sim = Sim::new(1);
    let log = on(&sim);
    for sequence in 0..300 {
        let done = send(&log, "p", 0, sequence).unwrap();
        log.wait_durable(done.first_offset).unwrap();
    }
    log.close().unwrap();
    let path = Path::new("/log/producers.json");
    sim.spoil_at(path, 10);
    let log = on(&sim);
    assert!(send(&log, "p", 0, 299).unwrap().repeated, "what is in the log is known");
    assert!(!send(&log, "p", 0, 300).unwrap().repeated);
    send(&log, "q", 0, 0).unwrap();
    assert!(log.trim(100).unwrap() > 0);
    log.close().unwrap();
    assert!(crate::disk::tree::read(&sim, path).unwrap().is_some(), "it was rewritten");
    let log = on(&sim);
    assert!(send(&log, "p", 0, 300).unwrap().repeated && send(&log, "q", 0, 0).unwrap().repeated);
}

/// After the last batch of a producer the file was not written any more, and all that others appended was read when the
/// log was opened again.
#[test]
fn a_producers_file_is_due_by_its_size_and_by_what_was_committed() {
    let mut file = Saved { bytes: 4_700_000, tried: Duration::from_secs(100), ..Saved::default() };
    file.committed = 1000;
    let due = |file: &Saved, second, committed| file.is_due(Duration::from_secs(second), committed);
    assert!(!due(&file, 101, 2000) && !due(&file, 117, 2000) && due(&file, 118, 2000));
    assert!(due(&file, 101, 1000 + SAVED_AFTER) && !due(&file, 101, 999 + SAVED_AFTER));
    file.read = 1; // at opening, after what the file covers
    assert!(due(&file, 101, 999 + SAVED_AFTER));
    file.bytes = SAVED_PER_SECOND;
    assert!(due(&file, 101, 1000));

    let sim = Sim::new(1);
    let large = Options { segment_bytes: 4 << 20, memory_bytes: 32 << 20, ..small() };
    let log = Log::open_on(Arc::new(sim.clone()), Path::new("/log"), large).unwrap();
    send(&log, "p", 0, 0).unwrap();
    log.flush().unwrap();
    log.save_producers().unwrap();
    let up_to = || {
        let text = sim.dump().remove(&Path::new("/log").join(PRODUCERS_FILE)).unwrap();
        serde_json::from_slice::<Snapshot>(&text).unwrap().up_to
    };
    let before = up_to();
    let of_others = vec![7; 1 << 20];
    for n in 0..66 {
        assert!(n > 60 || up_to() == before, "{n}");
        log.append(&of_others).and_then(|at| log.wait_durable(at)).unwrap();
        log.save_producers_soon();
    }
    assert!(up_to() > before + 60);
}

/// Who limits how often clients cause a write of the whole file goes by this.
#[cfg(feature = "server")]
#[test]
fn an_epoch_that_was_asked_for_knows_the_last_write_of_the_file_until_it_has_begun() {
    let sim = Sim::new(1);
    let log = on(&sim);
    let opened = log.begin_epoch("p").unwrap();
    assert_eq!(opened.epoch, log.producer("p").unwrap().unwrap().epoch);
    let asked = log.ask_for_epoch("p", None).unwrap();
    let small = log.last_write_of_producers(&asked).unwrap();
    for n in 0..100 {
        append(&log, &ProducerBatch::new(&format!("{n:064}"), 0, 0), &[b"x"]).unwrap();
    }
    // While the file is written, somebody else asks.
    let later = log.ask_for_epoch("q", None).unwrap();
    log.begin_asked_epoch(&asked).unwrap();
    assert!(log.last_write_of_producers(&later).is_none(), "it has begun with the other one");
    let latest = log.ask_for_epoch("r", None).unwrap();
    let large = log.last_write_of_producers(&latest).unwrap();
    assert!(large.bytes > small.bytes + 6400, "{small:?}, then {large:?}");
    std::thread::sleep(Duration::from_millis(2));
    assert!(log.last_write_of_producers(&latest).unwrap().ago >= large.ago + Duration::from_millis(2));
}
