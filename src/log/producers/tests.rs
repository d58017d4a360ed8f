//! Producers that repeat themselves.

mod epochs;
mod file;

use super::{
    block::parse_block,
    table::{MAX_PRODUCERS, MAX_REMEMBERED},
    *,
};
use crate::{
    disk::{
        gate::{Gate, Operation},
        sim::Sim,
    },
    frame::EXTENSION_LENGTH,
    log::{Options, environment::now, recovery::PRODUCERS as PRODUCERS_FILE},
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

fn on(sim: &Sim) -> Log {
    open_on(Arc::new(sim.clone()))
}

fn open_on(disk: Arc<dyn crate::disk::Disk>) -> Log {
    Log::open_on(disk, Path::new("/log"), small()).unwrap()
}

fn send(log: &Log, id: &str, epoch: u32, sequence: u64) -> Result<Produced, Error> {
    let values: Vec<_> = (0..=sequence % 3).map(|n| vec![sequence as u8; 20 + n as usize]).collect();
    let values: Vec<_> = values.iter().map(Vec::as_slice).collect();
    append(log, &ProducerBatch::new(id, epoch, sequence), &values)
}

fn append(log: &Log, batch: &ProducerBatch<'_>, values: &[&[u8]]) -> Result<Produced, Error> {
    let payloads: Vec<_> = values.iter().map(|bytes| Payload { bytes, json: false }).collect();
    loop {
        match log.try_append_once(batch, &payloads, None) {
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

/// Stores a batch whatever its epoch and its id, as earlier versions did; the table does not hear of it.
fn store_as_before(log: &Log, batch: &ProducerBatch<'_>) -> u64 {
    let mut first = block(batch);
    set_count(&mut first, 1);
    first.push(b'x');
    let values: &[&[u8]] = &[b"x"];
    append::append(&log.shared, &Extended { first: &first, values }, None, WaitFor::Anything).unwrap()
}

/// A disk on which the `nth` operation of this kind on a producers file waits until it is told to continue. Returns it
/// with the sender for that, and the receiver that learns when it waits.
fn waiting(which: Operation, nth: usize) -> (Arc<Gate>, mpsc::Sender<()>, mpsc::Receiver<()>) {
    waiting_on(&Sim::new(1), which, nth)
}

/// Like [`waiting`], with this disk behind it.
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
                log.roll().unwrap(); // all before it is sealed
                assert!(log.trim(log.next_offset()).unwrap() > 10);
            }
            90 => {
                // As after SIGKILL: the saved file is older than the log.
                log.save_producers().unwrap();
                let old = std::fs::read(dir.path().join(PRODUCERS_FILE)).unwrap();
                send(&log, "b", 1, 0).unwrap();
                drop(log);
                std::fs::write(dir.path().join(PRODUCERS_FILE), old).unwrap();
                log = open(dir.path());
                assert!(send(&log, "b", 1, 0).unwrap().repeated);
            }
            _ => {}
        }
        for back in 0..MAX_REMEMBERED as u64 {
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

#[test]
fn the_least_recently_used_is_forgotten_beyond_the_limit() {
    let mut table = Table::default();
    let batch = StoredBatch::new(0, 0, 1);
    for n in 0..MAX_PRODUCERS as u64 + 2 {
        table.note(&ProducerBatch::new(&format!("p{n}"), 0, 0), batch, n);
    }
    assert_eq!(table.producers.len(), MAX_PRODUCERS);
    assert!(!table.producers.contains_key("p1") && table.producers.contains_key("p2"));
}

/// The first run of a producer and the second one had batches of one number: the second one was dropped, and answered
/// as stored.
#[test]
fn a_batch_with_the_number_of_another_one_is_not_a_repeat_also_after_opening_again() {
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
            log.save_producers().unwrap();
        }
        log.close().unwrap();
        if round == "from the file and the log" {
            std::fs::write(dir.path().join(PRODUCERS_FILE), b"{").unwrap();
        }
        log = open(dir.path());
    }
}

/// The mark of a lost record, which has no value, was taken for the record: an honest repeat was refused.
#[test]
fn a_repeat_of_a_batch_of_which_a_record_was_lost_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let (batch, values): (_, [&[u8]; 3]) =
        (ProducerBatch::new("p", 7, 0), [b"first", b"to be lost", b"last"]);
    append(&log, &batch, &values).unwrap();
    log.close().unwrap();
    std::fs::write(dir.path().join(PRODUCERS_FILE), b"{").unwrap(); // so that it is read from the log
    let path = dir.path().join("00000000000000000000.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(10).position(|window| window == values[1]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    crate::repair(dir.path()).unwrap();
    let log = open(dir.path());
    assert!(log.read(1).unwrap().unwrap().is_lost());
    let again = append(&log, &batch, &values).unwrap();
    assert_eq!((again.repeated, again.first_offset, again.count), (true, 0, 3));
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

/// An id with a tab could append, and neither be asked about nor begin an epoch over HTTP; one that is a space could
/// begin an epoch, and no header carries it.
#[test]
fn an_id_that_a_header_or_a_path_cannot_carry_is_refused_and_one_that_is_stored_is_read() {
    let sim = Sim::new(1);
    let log = on(&sim);
    let bad = ["a\tb", " ", " a", "a ", "ü", "a\nb", "\u{7f}"];
    for id in bad {
        let refused = log.begin_epoch(id);
        assert!(matches!(refused, Err(Error::BadProducer)), "{id:?}: {refused:?}");
        let refused = append(&log, &ProducerBatch::new(id, 0, 0), &[b"x"]);
        assert!(matches!(refused, Err(Error::BadProducer)), "{id:?}: {refused:?}");
    }
    for id in ["a b", "~", "!", "im port/1", &"x".repeat(64)] {
        append(&log, &ProducerBatch::new(id, 0, 0), &[b"x"]).unwrap();
        log.begin_epoch(id).unwrap();
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

/// While the clock was ahead, as many producers came as are remembered. Once it was right again, each new one took the
/// place of the newest: two of them were forgotten in turns, and their repeats stored again.
#[test]
fn new_producers_are_remembered_after_the_clock_was_ahead() {
    let mut table = Table::default();
    let batch = StoredBatch::new(0, 0, 1);
    let (now, day) = (1_800_000_000_000, 24 * 3_600_000);
    for n in 0..MAX_PRODUCERS as u64 {
        table.note(&ProducerBatch::new(&format!("p{n}"), 0, 0), batch, now + day + n);
    }
    table.note(&ProducerBatch::new("a", 0, 0), batch, now);
    table.note(&ProducerBatch::new("b", 0, 0), batch, now + 1);
    let repeat = table.find(&ProducerBatch::new("a", 0, 0), 1, Content::default()).unwrap();
    assert!(repeat.is_some(), "the batch of a millisecond ago is stored again");
}
