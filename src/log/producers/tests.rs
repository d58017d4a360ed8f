//! Producers that repeat themselves, crash, and are saved by several threads at once.

use super::{
    table::{PRODUCERS, REMEMBERED, first_epoch},
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
    waiting_on(&Sim::new(1), which, nth)
}

/// The same, with this disk behind it.
fn waiting_on(sim: &Sim, which: Operation, nth: usize) -> (Arc<Gate>, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let ((go, wait), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
    let state = Mutex::new((0, wait));
    let gate = Gate::new(Arc::new(sim.clone()), move |operation, path| {
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

/// Stores a batch whatever its epoch and its id, as earlier versions did; the table does not hear of it.
fn store_as_before(log: &Log, batch: &ProducerBatch<'_>) -> u64 {
    let mut first = block(batch);
    set_count(&mut first, 1);
    first.push(b'x');
    let values: &[&[u8]] = &[b"x"];
    append::append(&log.shared, &Extended { first: &first, values }, None, MayBlock::Yes).unwrap()
}

/// A machine whose clocks the test sets, in milliseconds.
struct Clocks(std::sync::atomic::AtomicU64);

impl crate::log::Machine for Clocks {
    fn now(&self) -> u64 {
        1_800_000_000_000 + self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }
    fn random(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(std::io::Error::other)
    }
}

/// A client sent epoch 4294967295, as any client can. There is none after it: its producer was given that epoch again
/// each time it started, and what was new was dropped as repeated, or refused.
#[test]
fn an_epoch_that_a_batch_names_is_never_the_last_and_a_producer_in_the_last_one_is_told() {
    let sim = Sim::new(1);
    let clocks = Arc::new(Clocks(0.into()));
    let open = |sim: &Sim| {
        let on = crate::log::Environment::on(Arc::new(sim.clone()));
        let env = crate::log::Environment { machine: Arc::clone(&clocks) as _, ..on };
        Log::open_in(&env, Path::new("/log"), small()).unwrap()
    };
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
        let opened = log.open_producer("p").unwrap();
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
    assert_eq!(log.open_producer("one left").unwrap().epoch, u32::MAX);
    for id in ["last", "one left"] {
        let used_up = log.open_producer(id).unwrap_err();
        assert!(used_up.to_string().contains("use another id"), "{used_up}");
        let next = u64::from(id == "last");
        let goes_on = append(&log, &ProducerBatch::new(id, u32::MAX, next), &[b"y"]).unwrap();
        assert!(!goes_on.repeated);
        assert_eq!(log.producer(id).unwrap().unwrap().last_sequence, Some(next));
    }
    // The way out that does not take another id.
    let after_an_hour = |_: i32| {
        clocks.0.fetch_add(3_600_000, std::sync::atomic::Ordering::SeqCst);
        log.open_producer("last").ok()
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
        let log = first_producer(gate);
        let refuse = |really| refuses.store(really, std::sync::atomic::Ordering::SeqCst);
        let epoch = log.open_producer("p").unwrap().epoch;
        send(&log, "p", epoch, 0).unwrap();
        log.flush().unwrap();
        let before = log.producer("p").unwrap();
        refuse(true);
        for id in ["p", "new"] {
            let failed = log.open_producer(id).unwrap_err();
            assert!(matches!(failed, Error::Io { .. }), "{which:?}: {failed}");
        }
        assert_eq!(log.producer("p").unwrap(), before, "{which:?}");
        assert_eq!(log.producer("new").unwrap(), None, "{which:?}");
        assert!(!send(&log, "p", epoch, 1).unwrap().repeated, "{which:?}");
        refuse(false);
        log.keep_producers().unwrap(); // as the store does each second; what was renamed is replaced
        log.flush().unwrap();
        std::mem::forget(log);
        let sim = sim.after(crate::disk::sim::Cut::Kill);
        let log = on(&sim);
        assert!(!send(&log, "p", epoch, 2).unwrap().repeated, "{which:?}");
        let opened = log.open_producer("p").unwrap();
        assert!(opened.epoch > epoch);
        assert_eq!(opened.earlier.unwrap().1.len(), 3, "{which:?}");
        expected(send(&log, "p", epoch, 3));
    }
}

/// The next epoch was in force before it was on the disk. Batches of the old one that come until then are accepted, and
/// the producer that begins the next one is told of them.
#[test]
fn batches_that_come_while_the_next_epoch_is_written_to_the_disk_are_stored_and_told_of() {
    let sim = Sim::new(1);
    let (gate, go, told) = waiting_on(&sim, Operation::WriteFile, 3);
    let log = first_producer(gate);
    let epoch = log.open_producer("p").unwrap().epoch; // the second write, after that of the first producer ever
    send(&log, "p", epoch, 0).unwrap();
    let opened = std::thread::scope(|scope| {
        let opens = scope.spawn(|| log.open_producer("p").unwrap());
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
    let again = log.open_producer("p").unwrap();
    assert_eq!((again.mark, again.earlier), (opened.mark, opened.earlier));
    assert!(again.epoch > opened.epoch);
}

/// The same, while a producer sends as fast as it can: what was accepted of it is what the next one is told.
#[test]
fn what_is_stored_of_an_epoch_until_the_next_one_begins_is_what_that_is_told() {
    let sim = Sim::new(1);
    let log = first_producer(Arc::new(sim.clone()));
    let mut opened = log.open_producer("p").unwrap();
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
            let opens = scope.spawn(|| log.open_producer("p").unwrap());
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
    let log = first_producer(gate);
    let mut epochs: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    std::thread::scope(|scope| {
        let log = &log;
        let first = scope.spawn(|| log.open_producer("first").unwrap());
        told.recv().unwrap();
        let others: Vec<_> = (0..100)
            .map(|n| {
                let id = format!("p{}", n % 40); // some of them twice, or three times
                scope.spawn(move || (log.open_producer(&id).unwrap().epoch, id))
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

/// An id with a tab could append, and neither be asked about nor begin an epoch over HTTP; one that is a space could
/// begin an epoch, and no header carries it.
#[test]
fn an_id_that_a_header_or_a_path_cannot_carry_is_refused_and_one_that_is_stored_is_read() {
    let sim = Sim::new(1);
    let log = on(&sim);
    let bad = ["a\tb", " ", " a", "a ", "ü", "a\nb", "\u{7f}"];
    for id in bad {
        let refused = log.open_producer(id);
        assert!(matches!(refused, Err(Error::BadProducer)), "{id:?}: {refused:?}");
        let refused = append(&log, &ProducerBatch::new(id, 0, 0), &[b"x"]);
        assert!(matches!(refused, Err(Error::BadProducer)), "{id:?}: {refused:?}");
    }
    for id in ["a b", "~", "!", "im port/1", &"x".repeat(64)] {
        append(&log, &ProducerBatch::new(id, 0, 0), &[b"x"]).unwrap();
        log.open_producer(id).unwrap();
    }
    for id in bad {
        store_as_before(&log, &ProducerBatch::new(id, 7, 0).with_mark("m"));
    }
    log.close().unwrap();
    sim.damage(Path::new("/log/producers.json"), |bytes| bytes[5] ^= 1); // which is then read from the log
    for _ in 0..2 {
        let log = on(&sim);
        for id in bad {
            let known = log.producer(id).unwrap().unwrap();
            assert_eq!((known.epoch, known.mark.as_deref()), (7, Some("m")), "{id:?}");
        }
        log.close().unwrap();
    }
}

/// After the last batch of a producer the file was not written any more, and all that others appended was read when the
/// log was opened again.
#[test]
fn a_file_of_producers_is_due_by_its_size_and_by_what_was_committed() {
    let mut file = Saved { bytes: 4_700_000, tried: Duration::from_secs(100), ..Saved::default() };
    file.committed = 1000;
    let due = |file: &Saved, second, committed| file.is_due(Duration::from_secs(second), committed);
    assert!(!due(&file, 101, 2000) && !due(&file, 117, 2000) && due(&file, 118, 2000));
    assert!(due(&file, 101, 1000 + SAVED_AFTER) && !due(&file, 101, 999 + SAVED_AFTER));
    file.read = 1; // at opening, behind what the file covers
    assert!(due(&file, 101, 999 + SAVED_AFTER));
    file.bytes = SAVED_PER_SECOND;
    assert!(due(&file, 101, 1000));

    let sim = Sim::new(1);
    let large = Options { segment_bytes: 4 << 20, memory_bytes: 32 << 20, ..small() };
    let log = Log::open_on(Arc::new(sim.clone()), Path::new("/log"), large).unwrap();
    send(&log, "p", 0, 0).unwrap();
    log.flush().unwrap();
    log.keep_producers().unwrap();
    let up_to = || {
        let text = sim.dump().remove(&Path::new("/log").join(PRODUCERS_FILE)).unwrap();
        serde_json::from_slice::<Snapshot>(&text).unwrap().up_to
    };
    let before = up_to();
    let of_others = vec![7; 1 << 20];
    for n in 0..66 {
        assert!(n > 60 || up_to() == before, "{n}");
        log.append(&of_others).and_then(|at| log.wait_durable(at)).unwrap();
        log.keep_producers_soon();
    }
    assert!(up_to() > before + 60);
}
