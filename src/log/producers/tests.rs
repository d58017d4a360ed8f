//! Producers that repeat themselves, crash, and are saved by several threads at once.

use super::{
    table::{PRODUCERS, REMEMBERED},
    *,
};
use crate::{
    disk::{
        gate::{Gate, Operation},
        sim::Sim,
    },
    frame::EXTENSION_LENGTH,
    log::{Options, environment::now},
};
use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, mpsc},
};

fn small() -> Options {
    Options {
        segment_bytes: 8 << 10,
        first_segment_bytes: 4 << 10,
        memory_bytes: 64 << 10,
        shm_dir: None,
        ..Options::default()
    }
}

fn open(dir: &Path) -> Log {
    Log::open(dir, small()).unwrap()
}

fn send(log: &Log, id: &str, epoch: u32, sequence: u64) -> Result<Produced, Error> {
    let values: Vec<_> = (0..=sequence % 3).map(|n| vec![sequence as u8; 20 + n as usize]).collect();
    let payloads: Vec<_> = values.iter().map(|bytes| Payload { bytes, json: false }).collect();
    let batch = ProducerBatch::new(id, epoch, sequence);
    loop {
        match log.try_append_once(&batch, &payloads, None) {
            Err(Error::WouldBlock) => std::thread::yield_now(),
            done => return done,
        }
    }
}

fn expected(result: Result<Produced, Error>) -> (u32, u64) {
    match result {
        Err(Error::ProducerOutOfOrder { expected_epoch, expected_sequence }) => {
            (expected_epoch, expected_sequence)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn repeats_are_answered_gaps_and_old_epochs_refused_also_after_opening_again_and_trimming() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    log.append(b"before any producer").unwrap();
    let mut sent = Vec::new();
    for sequence in 0..120 {
        let done = send(&log, "a", 3, sequence).unwrap();
        assert!(!done.repeated);
        sent.push(done);
        match sequence {
            30 => {
                drop(log);
                log = open(dir.path());
            }
            60 => {
                log.flush().unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20)); // the maintenance task seals
                assert!(log.trim(log.next_offset()).unwrap() > 10);
            }
            90 => {
                // As after SIGKILL: the saved file is older than the log.
                log.keep_producers().unwrap();
                let old = std::fs::read(dir.path().join(PRODUCERS_FILE)).unwrap();
                send(&log, "b", 1, 0).unwrap();
                drop(log);
                std::fs::write(dir.path().join(PRODUCERS_FILE), old).unwrap();
                log = open(dir.path());
                assert!(send(&log, "b", 1, 0).unwrap().repeated);
            }
            _ => {}
        }
        for back in 0..REMEMBERED as u64 {
            let Some(earlier) = sequence.checked_sub(back) else { break };
            let again = send(&log, "a", 3, earlier).unwrap();
            let first = sent[earlier as usize];
            assert_eq!(again, Produced { repeated: true, ..first }, "{earlier} after {sequence}");
        }
        let next = log.next_offset();
        assert_eq!(expected(send(&log, "a", 3, sequence + 2)), (3, sequence + 1));
        assert_eq!(expected(send(&log, "a", 2, 0)), (3, sequence + 1));
        assert_eq!(expected(send(&log, "a", 4, 1)), (4, 0));
        assert_eq!(expected(send(&log, "new", 0, 1)), (0, 0));
        assert_eq!(log.next_offset(), next, "something was stored");
    }
    assert!(!send(&log, "a", 4, 0).unwrap().repeated);
    assert_eq!(expected(send(&log, "a", 3, 120)), (4, 1));
    log.flush().unwrap();
    // The block is not part of the value.
    let last = log.read(log.next_offset() - 1).unwrap().unwrap();
    assert_eq!(last.value(), [0; 20]);
    log.close().unwrap();
    assert_eq!(crate::verify(dir.path()).unwrap().damage, []);
}

/// Opens the log on this disk.
fn first_producer(disk: std::sync::Arc<dyn crate::disk::Disk>) -> Log {
    Log::open_on(disk, Path::new("/log"), small()).unwrap()
}

/// The first file covered everything that was appended, durable or not. The records that replaced those lost in a power
/// failure were then not read after the next crash: a sequence was stored again.
#[test]
fn the_first_file_tells_of_no_more_than_is_durable() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let log = first_producer(Arc::new(sim.clone()));
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
        let log = first_producer(Arc::new(live.clone()));
        let mut sent = Vec::new();
        for sequence in 0..3 {
            let done = send(&log, "p", 0, sequence).unwrap();
            log.wait_durable(done.first_offset + done.count - 1).unwrap();
            sent.push(done);
        }
        let killed = live.reboot();
        drop(log);
        let log = first_producer(Arc::new(killed));
        for sequence in (0..3).rev() {
            let expected = Produced { repeated: true, ..sent[sequence as usize] };
            assert_eq!(send(&log, "p", 0, sequence).unwrap(), expected, "seed {seed}");
        }
    }
}

/// The same, if a program wrote the file without waiting.
#[test]
fn a_file_that_tells_of_more_than_the_log_has_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let sent = [0, 1].map(|sequence| send(&log, "p", 0, sequence).unwrap());
    log.close().unwrap();
    let lost = StoredBatch { sequence: 2, first_offset: 3, count: 3, content: None };
    let mut batches: VecDeque<_> = sent
        .iter()
        .zip(0..)
        .map(|(done, sequence)| StoredBatch {
            sequence,
            first_offset: done.first_offset,
            count: done.count,
            content: None,
        })
        .collect();
    batches.push_back(lost);
    let producers = BTreeMap::from([(
        "p".to_owned(),
        KnownProducer { epoch: 0, batches, of: None, used: now(), mark: None },
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

/// A disk on which the `nth` operation of this kind on a producers file waits until it is told to continue. Returns it
/// with the sender for that, and the receiver that learns when it waits.
fn waiting(which: Operation, nth: usize) -> (Arc<Gate>, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let ((go, wait), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
    let state = Mutex::new((0, wait));
    let gate = Gate::new(Arc::new(Sim::new(1)), move |operation, path| {
        if operation == which && path.to_string_lossy().contains(PRODUCERS_FILE) {
            let mut state = state.lock().unwrap();
            state.0 += 1;
            if state.0 == nth {
                tell.send(()).unwrap();
                let _ = state.1.recv(); // or the test is over
            }
        }
        Ok(())
    });
    (gate, go, told)
}

/// Callers that asked whether producers are known waited until these had been read: among them a thread of the server,
/// with all its connections.
#[test]
fn nobody_who_only_asks_waits_while_producers_are_learnt_or_written_down() {
    let cases = [(Operation::Open, 1), (Operation::WriteFile, 1), (Operation::WriteFile, 2)];
    for (which, nth) in cases {
        let (gate, go, told) = waiting(which, nth);
        let log = first_producer(gate);
        let known = nth > 1;
        if known {
            send(&log, "p", 0, 0).unwrap();
        }
        let (tell, answered) = mpsc::channel();
        std::thread::scope(|scope| {
            let (log, going) = (&log, go);
            let working = scope.spawn(|| if known { log.keep_producers() } else { log.learn_producers() });
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
    let log = first_producer(Arc::new(sim.clone()));
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
                        log.keep_producers().unwrap();
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

#[test]
fn the_least_recently_used_is_forgotten_beyond_the_limit() {
    let mut table = Table::default();
    let batch = StoredBatch { sequence: 0, first_offset: 0, count: 1, content: None };
    for n in 0..PRODUCERS as u64 + 2 {
        table.note(&ProducerBatch::new(&format!("p{n}"), 0, 0), batch, n);
    }
    assert_eq!(table.producers.len(), PRODUCERS);
    assert!(!table.producers.contains_key("p1") && table.producers.contains_key("p2"));
}

fn on(sim: &Sim) -> Log {
    Log::open_on(Arc::new(sim.clone()), Path::new("/log"), small()).unwrap()
}

/// The log lost its end to rot and `repair`, and other records were appended. A repeat of a lost batch was answered as
/// stored, though another record is in its place: the file covered no more offsets than the log had.
#[test]
fn a_file_that_tells_of_what_repair_gave_up_is_not_believed() {
    let sim = Sim::new(1);
    let log = on(&sim);
    for sequence in 0..10 {
        send(&log, "p", 0, sequence).unwrap();
    }
    log.flush().unwrap();
    log.keep_producers().unwrap(); // as the store does each second
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
fn a_file_that_cannot_be_read_is_as_good_as_one_that_does_not_verify() {
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

fn append(log: &Log, batch: &ProducerBatch<'_>, values: &[&[u8]]) -> Result<Produced, Error> {
    let payloads: Vec<_> = values.iter().map(|bytes| Payload { bytes, json: false }).collect();
    log.try_append_once(batch, &payloads, None)
}

/// A producer that started again with epoch 0 and sequence 0 had its new records dropped, as repeats.
#[test]
fn a_producer_that_starts_again_gets_a_higher_epoch_and_its_mark_and_the_old_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    assert_eq!(log.producer("p").unwrap(), None);
    let (mut before, mut mark, mut sent) = (None, None, None);
    for run in 0..6 {
        let opened = log.open_producer("p").unwrap();
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
    assert!(open(other.path()).open_producer("p").unwrap().epoch > before.unwrap() - 6);
    for id in ["", &"x".repeat(65)] {
        assert!(matches!(log.open_producer(id), Err(Error::BadProducer)));
    }
    let too_long = "m".repeat(129);
    let batch = ProducerBatch::new("p", u32::MAX, 0).with_mark(&too_long);
    assert!(matches!(append(&log, &batch, &[b"x"]), Err(Error::BadProducer)));
}

/// The first run of a producer and the second one had batches of one number: the second one was dropped, and answered
/// as stored.
#[test]
fn a_batch_with_the_number_of_another_one_is_no_repeat_also_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    let values: [&[&[u8]]; 3] = [&[b"", b"a"], &[b"bc"], &[b"d", b"", b""]];
    let mut stored = Vec::new();
    for (sequence, values) in (0..).zip(values) {
        stored.push(append(&log, &ProducerBatch::new("p", 7, sequence), values).unwrap());
        log.append(b"of nobody").unwrap();
    }
    for round in ["as appended", "from the file and the log", "from the log", "from the file"] {
        for (sequence, (values, stored)) in (0..).zip(values.iter().zip(&stored)) {
            let batch = ProducerBatch::new("p", 7, sequence);
            let again = append(&log, &batch, values).unwrap();
            assert_eq!((again.repeated, again.first_offset), (true, stored.first_offset), "{round}");
            let others: [&[&[u8]]; 6] =
                [&[b"a", b""], &[b"", b"b"], &[b"a"], &[b"b", b"c"], &[b"d", b""], &[b"", b"", b"", b""]];
            for other in others {
                let refused = append(&log, &batch, other);
                assert!(
                    matches!(refused, Err(Error::NotARepeat { first_offset, count })
                        if (first_offset, count) == (stored.first_offset, stored.count)),
                    "{round}: {other:?} for {values:?} gets {refused:?}"
                );
            }
        }
        if round == "from the log" {
            log.keep_producers().unwrap();
        }
        log.close().unwrap();
        if round == "from the file and the log" {
            std::fs::write(dir.path().join(PRODUCERS_FILE), b"{").unwrap();
        }
        log = open(dir.path());
    }
}

#[test]
fn blocks_are_read_as_they_were_written_with_and_without_a_mark() {
    for (id, mark) in
        [("p", None), (&*"i".repeat(64), None), ("p", Some("")), (&*"i".repeat(64), Some(&*"ü".repeat(64)))]
    {
        for count in [1, 5, (1 << 31) - 1] {
            let mut batch = ProducerBatch::new(id, 0x0102_0304, u64::MAX - 1);
            batch.mark = mark;
            let mut block = block(&batch);
            set_count(&mut block, count);
            let length = usize::from(u16::from_le_bytes([block[0], block[1]]));
            assert_eq!(block.len(), EXTENSION_LENGTH + length);
            assert_eq!(parse_block(&block[EXTENSION_LENGTH..]), Some((batch, count)));
            for cut in 0..length {
                let _ = parse_block(&block[EXTENSION_LENGTH..][..cut]); // must not panic
            }
        }
    }
}
