//! Epochs that begin, and do not.

use super::{super::table::first_epoch, *};
use crate::log::environment::clocks::Clocks;
use std::{collections::BTreeMap, time::Duration};

/// A producer that needs another epoch took its id back from the one that had fenced it off.
#[test]
fn an_epoch_that_is_to_follow_one_begins_only_if_no_later_one_has() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let first = log.begin_epoch_after("p", 0).unwrap().epoch; // the log does not know it
    let second = log.begin_epoch_after("p", first).unwrap().epoch;
    assert!(second > first);
    let refused = |asked: Result<BegunEpoch, Error>| match asked {
        Err(Error::ProducerOutOfOrder { expected_epoch, expected_sequence }) => {
            (expected_epoch, expected_sequence)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(log.begin_epoch_after("p", first)), (second, 0));
    // A batch may have begun the later one, too. It is durable when that is said.
    let done = append(&log, &ProducerBatch::new("p", second + 1, 0), &[b"x"]).unwrap();
    assert_eq!(refused(log.begin_epoch_after("p", second)), (second + 1, 1));
    assert!(log.durable_offset() > done.first_offset);
    assert_eq!(log.producer("p").unwrap().unwrap().epoch, second + 1, "nothing has begun");
    // Of those that are asked for together, too, only one follows it.
    let asked =
        [Some(second + 1), Some(second + 1), None].map(|after| log.ask_for_epoch("p", after).unwrap());
    let [one, other, any] = asked.each_ref().map(|asked| log.begin_asked_epoch(asked));
    let one = one.unwrap().epoch;
    assert_eq!(refused(other), (one, 0));
    assert!(any.unwrap().epoch > one);
}

/// A producer that started again with epoch 0 and sequence 0 had its new records dropped, as repeats.
#[test]
fn a_producer_that_starts_again_gets_a_higher_epoch_and_its_mark_and_the_old_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    assert_eq!(log.producer("p").unwrap(), None);
    let (mut before, mut mark, mut sent) = (None, None, None);
    for run in 0..6 {
        let opened = log.begin_epoch("p").unwrap();
        assert!(before.is_none_or(|before| before < opened.epoch), "{opened:?} after {before:?}");
        assert_eq!(opened.mark, mark, "{run}");
        // What became of the last batches is told also after an epoch without any.
        let earlier =
            opened.earlier.map(|(epoch, batches)| (epoch, batches.iter().map(|one| one.sequence).collect()));
        assert_eq!(earlier, sent.map(|epoch| (epoch, vec![0, 1, 2])), "{run}"); // `None`: it is new
        if let Some(old) = before {
            let refused = append(&log, &ProducerBatch::new("p", old, 1), &[b"late"]);
            assert_eq!(expected(refused), (opened.epoch, 0));
        }
        if run != 3 {
            // Without a mark, the last one stays.
            let batch = ProducerBatch::new("p", opened.epoch, 0);
            append(&log, &batch, &[b"same", b"same"]).unwrap();
            let text = format!("up to {run}");
            append(&log, &ProducerBatch::new("p", opened.epoch, 1).with_mark(&text), &[b"x"]).unwrap();
            let done = append(&log, &ProducerBatch::new("p", opened.epoch, 2), &[b"y"]).unwrap();
            (mark, sent) = (Some(text), Some(opened.epoch));
            let known = log.producer("p").unwrap().unwrap();
            assert_eq!((known.last_sequence, known.last_offset), (Some(2), Some(done.first_offset)));
            assert_eq!((known.epoch, &known.mark), (opened.epoch, &mark));
        }
        before = Some(opened.epoch);
        log.close().unwrap();
        if run == 4 {
            // What only the file has is lost with it: an epoch without batches. The clock gives a higher one.
            std::fs::write(dir.path().join(PRODUCERS_FILE), b"{").unwrap();
        }
        log = open(dir.path());
    }
    // Nor does a log that was made anew give an epoch that was used before.
    let other = tempfile::tempdir().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(open(other.path()).begin_epoch("p").unwrap().epoch > before.unwrap() - 6);
    for id in ["", &"x".repeat(65)] {
        assert!(matches!(log.begin_epoch(id), Err(Error::BadProducer)));
    }
    let too_long = "m".repeat(129);
    let batch = ProducerBatch::new("p", u32::MAX, 0).with_mark(&too_long);
    assert!(matches!(append(&log, &batch, &[b"x"]), Err(Error::BadProducer)));
}

/// A client sent epoch 4294967295, as any client can. There is none after it: its producer was given that epoch again
/// each time it started, and what was new was dropped as repeated, or refused.
#[test]
fn an_epoch_that_a_batch_names_is_never_the_last_and_a_producer_in_the_last_one_is_told() {
    let sim = Sim::new(1);
    let clocks = Clocks::new();
    let open =
        |sim: &Sim| Log::open_in(&clocks.on(Arc::new(sim.clone())), Path::new("/log"), small()).unwrap();
    let log = open(&sim);
    let highest = u32::MAX >> 1;
    for known in [false, true] {
        for epoch in [highest + 1, u32::MAX - 1, u32::MAX] {
            let refused = append(&log, &ProducerBatch::new("p", epoch, 0), &[b"x"]);
            assert!(refused.is_err(), "{epoch}: {refused:?}");
        }
        if !known {
            append(&log, &ProducerBatch::new("p", highest, 0), &[b"x"]).unwrap();
        }
    }
    assert!(first_epoch(u64::MAX) <= highest, "whatever the clock says");
    for n in 1..4 {
        let opened = log.begin_epoch("p").unwrap();
        assert_eq!(opened.epoch, highest + n);
        append(&log, &ProducerBatch::new("p", opened.epoch, 0), &[&[n as u8]]).unwrap();
        append(&log, &ProducerBatch::new("p", opened.epoch, 1), &[&[n as u8]]).unwrap();
        let beyond = append(&log, &ProducerBatch::new("p", opened.epoch + 1, 0), &[b"x"]);
        assert!(beyond.is_err(), "{beyond:?}");
    }
    // What an earlier version has stored.
    for (id, epoch) in [("last", u32::MAX), ("one left", u32::MAX - 1)] {
        store_as_before(&log, &ProducerBatch::new(id, epoch, 0));
    }
    log.close().unwrap();
    sim.damage(Path::new("/log/producers.json"), |bytes| bytes[5] ^= 1); // which is then read from the log
    let log = open(&sim);
    assert_eq!(log.begin_epoch("one left").unwrap().epoch, u32::MAX);
    for id in ["last", "one left"] {
        let used_up = log.begin_epoch(id).unwrap_err();
        assert!(used_up.to_string().contains("use another id"), "{used_up}");
        let next = u64::from(id == "last");
        let goes_on = append(&log, &ProducerBatch::new(id, u32::MAX, next), &[b"y"]).unwrap();
        assert!(!goes_on.repeated);
        assert_eq!(log.producer(id).unwrap().unwrap().last_sequence, Some(next));
    }
    // The way out that does not take another id.
    let after_an_hour = |_: i32| {
        clocks.pass(3_600_000);
        log.begin_epoch("last").ok()
    };
    let opened = (0..8 * 24).find_map(after_an_hour).unwrap();
    assert!(opened.epoch <= highest && opened.earlier.is_none(), "{opened:?}");
    log.close().unwrap();
    assert_eq!(open(&sim).producer("last").unwrap().unwrap().epoch, opened.epoch);
}

/// A disk that refuses what it is asked for, as long as the test says so.
fn refusing(sim: &Sim, which: Operation, error: i32) -> (Arc<Gate>, Arc<std::sync::atomic::AtomicBool>) {
    let refuses = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::clone(&refuses);
    let gate = Gate::new(Arc::new(sim.clone()), move |operation, path| {
        let hit = operation == which
            && (which == Operation::SyncDir || path.to_string_lossy().contains(PRODUCERS_FILE))
            && asked.load(std::sync::atomic::Ordering::SeqCst);
        if hit { Err(std::io::Error::from_raw_os_error(error)) } else { Ok(()) }
    });
    (gate, refuses)
}

/// The file could not be written: beginning an epoch was an error, and the producer's batches were refused all the
/// same, by a state that was not on the disk: after a kill the old epoch was accepted again.
#[test]
fn an_epoch_that_cannot_be_written_to_the_disk_has_not_begun() {
    let cases = [(Operation::WriteFile, 28), (Operation::Rename, 5), (Operation::SyncDir, 5)];
    for (which, error) in cases {
        let sim = Sim::new(1);
        let (gate, refuses) = refusing(&sim, which, error);
        let log = open_on(gate);
        let refuse = |really| refuses.store(really, std::sync::atomic::Ordering::SeqCst);
        let epoch = log.begin_epoch("p").unwrap().epoch;
        send(&log, "p", epoch, 0).unwrap();
        log.flush().unwrap();
        let before = log.producer("p").unwrap();
        refuse(true);
        for id in ["p", "new"] {
            let failed = log.begin_epoch(id).unwrap_err();
            assert!(matches!(failed, Error::Io { .. }), "{which:?}: {failed}");
        }
        assert_eq!(log.producer("p").unwrap(), before, "{which:?}");
        assert_eq!(log.producer("new").unwrap(), None, "{which:?}");
        assert!(!send(&log, "p", epoch, 1).unwrap().repeated, "{which:?}");
        refuse(false);
        log.save_producers().unwrap(); // as the store does each second; what was renamed is replaced
        log.flush().unwrap();
        std::mem::forget(log);
        let sim = sim.after(crate::disk::sim::Cut::Kill);
        let log = on(&sim);
        assert!(!send(&log, "p", epoch, 2).unwrap().repeated, "{which:?}");
        let opened = log.begin_epoch("p").unwrap();
        assert!(opened.epoch > epoch);
        assert_eq!(opened.earlier.unwrap().1.len(), 3, "{which:?}");
        expected(send(&log, "p", epoch, 3));
    }
}

/// The next epoch was in force before it was on the disk. Batches of the old one that come until then are accepted, and
/// the producer that begins the next one is told of them.
#[test]
fn batches_that_arrive_while_an_epoch_is_written_are_stored_and_included_in_its_answer() {
    let sim = Sim::new(1);
    let (gate, go, told) = waiting_on(&sim, Operation::WriteFile, 3);
    let log = open_on(gate);
    let epoch = log.begin_epoch("p").unwrap().epoch; // the second write, after that of the first producer ever
    send(&log, "p", epoch, 0).unwrap();
    let opened = std::thread::scope(|scope| {
        let opens = scope.spawn(|| log.begin_epoch("p").unwrap());
        told.recv().unwrap();
        let known = log.producer("p").unwrap().unwrap();
        let marked = ProducerBatch::new("p", epoch, 1).with_mark("meanwhile");
        let stored = append(&log, &marked, &[b"x"]);
        go.send(()).unwrap();
        assert_eq!(known.epoch, epoch, "the next one is not on the disk");
        assert!(!stored.unwrap().repeated);
        opens.join().unwrap()
    });
    assert!(opened.epoch > epoch);
    assert_eq!(opened.mark.as_deref(), Some("meanwhile"));
    let (of, batches) = opened.earlier.clone().unwrap();
    assert_eq!((of, batches.iter().map(|one| one.sequence).collect()), (epoch, vec![0, 1]));
    assert!(log.durable_offset() > batches[1].first_offset, "what is told of is on the disk");
    assert_eq!(expected(send(&log, "p", epoch, 2)), (opened.epoch, 0));
    // Nor does the next process not know of them, which reads the file and what came after it.
    std::mem::forget(log);
    let log = on(&sim.after(crate::disk::sim::Cut::Kill));
    let again = log.begin_epoch("p").unwrap();
    assert_eq!((again.mark, again.earlier), (opened.mark, opened.earlier));
    assert!(again.epoch > opened.epoch);
}

/// While an epoch is written, its producer sends as fast as it can: what was accepted of it is what the next one is told.
#[test]
fn what_is_stored_of_an_epoch_until_the_next_one_begins_is_what_that_is_told() {
    let sim = Sim::new(1);
    let log = open_on(Arc::new(sim.clone()));
    let mut opened = log.begin_epoch("p").unwrap();
    for round in 0..100 {
        let epoch = opened.epoch;
        let (accepted, next) = std::thread::scope(|scope| {
            let sends = scope.spawn(|| {
                let refused =
                    (0..).find_map(|sequence| send(&log, "p", epoch, sequence).err().map(|_| sequence));
                refused.unwrap()
            });
            if round % 2 == 0 {
                std::thread::sleep(Duration::from_micros(300));
            }
            let opens = scope.spawn(|| log.begin_epoch("p").unwrap());
            (sends.join().unwrap(), opens.join().unwrap())
        });
        let (of, batches) = next.earlier.clone().unwrap();
        let last = batches.last().map(|last| last.sequence + 1);
        assert_eq!(last.filter(|_| of == epoch).unwrap_or(0), accepted, "{round}: {next:?}");
        assert!(batches.iter().all(|last| last.first_offset < log.durable_offset()));
        opened = next;
    }
}

/// Each producer that began an epoch wrote the whole file, one after the other: 400 of them that came at once, of a log
/// with 10,000, took 12 s.
#[test]
fn epochs_that_are_asked_for_at_once_are_written_to_the_disk_together() {
    let ((go, wait), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
    let state = Mutex::new((0, wait));
    let writes = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&writes);
    let sim = Sim::new(1);
    let gate = Gate::new(Arc::new(sim.clone()), move |operation, path| {
        if operation == Operation::WriteFile && path.to_string_lossy().contains(PRODUCERS_FILE) {
            let mut state = state.lock().unwrap();
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            state.0 += 1;
            if state.0 == 2 {
                tell.send(()).unwrap();
                let _ = state.1.recv();
            }
        }
        Ok(())
    });
    let log = open_on(gate);
    let mut epochs: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    std::thread::scope(|scope| {
        let log = &log;
        let first = scope.spawn(|| log.begin_epoch("first").unwrap());
        told.recv().unwrap();
        let others: Vec<_> = (0..100)
            .map(|n| {
                let id = format!("p{}", n % 40); // some of them twice, or three times
                scope.spawn(move || (log.begin_epoch(&id).unwrap().epoch, id))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500)); // they wait
        go.send(()).unwrap();
        first.join().unwrap();
        for other in others {
            let (epoch, id) = other.join().unwrap();
            epochs.entry(id).or_default().push(epoch);
        }
    });
    let writes = writes.load(std::sync::atomic::Ordering::SeqCst);
    assert!(writes <= 12, "{writes} writes for 101 epochs");
    for (id, mut epochs) in epochs {
        epochs.sort_unstable();
        assert!(epochs.is_sorted_by(|one, next| one < next), "{id}: {epochs:?}");
        assert_eq!(log.producer(&id).unwrap().unwrap().epoch, *epochs.last().unwrap());
    }
}
