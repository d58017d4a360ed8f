//! Histories of one log, and whether they are linearizable: whether every request can be assigned a moment between its
//! sending and its answer, such that a log that processes one request at a time, in the order of these moments, gives
//! the same answers.
//!
//! # Why the check is exact
//! For an arbitrary kind of object this takes a search, in exponential time. A log is simpler, because the answers
//! contain offsets. It is known which appends took place, and in which order: the answers tell their offsets, or,
//! without an answer, a reading of the whole log at the end does. So all that is unknown is *when* each growth of the
//! log took place: moments `t(1) <= t(2) <= …`, with `t(i)` between the sending and the answer of the append that
//! caused it.
//!
//! Any other request needs a moment, between its sending and its answer, at which the log's length is at least `low`
//! and at most `high`. Let growth `a` be the one that makes the length `low` or more, and `b` the one that makes it
//! more than `high`. Such a moment exists if and only if `t(a)` is not after the request's answer, and `t(b)` is not
//! before its sending (`t(a) <= t(b)` always holds, because `a` comes before `b`). Each of these conditions bounds one
//! growth on one side. So each growth has an earliest and a latest moment, and ordered moments exist if and only if no
//! growth's latest moment is before the earliest moment of itself or of an earlier one. Requests that change nothing do
//! not depend on each other in any other way.
//!
//! A test below checks that this gives the same result as a search through all orders, for small random histories.

use std::collections::BTreeMap;

/// What a client requested, and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These values were appended from `first` on; under the condition `expect`, if there is one.
    Appended { values: Vec<u64>, expect: Option<u64>, first: u64 },
    /// No answer came: it took place or it did not.
    Unknown { values: Vec<u64>, expect: Option<u64> },
    /// It was refused, because the next offset is not `expect` but `next`.
    Unexpected { expect: u64, next: u64 },
    /// The record at this offset was read; `None` if there was none.
    Read { offset: u64, value: Option<u64> },
    /// All records from an offset on were read.
    ReadFrom { offset: u64, values: Vec<u64> },
    /// It was refused to read from this offset on, because the next offset is `next`, which is before it.
    Beyond { offset: u64, next: u64 },
}

/// An event with the times of the request and of the answer, in any unit.
#[derive(Debug, Clone)]
pub struct Call {
    pub sent: u64,
    pub answered: u64,
    pub event: Event,
}

/// A change of the log's length.
struct Growth<'a> {
    call: &'a Call,
    length: u64,
    earliest: u64,
    latest: u64,
}

/// The appends that took place, in the order of their offsets; an error unless they are exactly what the log contains.
fn growths<'a>(calls: &'a [Call], log: &[u64]) -> Result<Vec<Growth<'a>>, String> {
    let mut at = BTreeMap::new();
    for call in calls {
        let (first, values, expect) = match &call.event {
            Event::Appended { values, expect, first } => (*first, values, *expect),
            Event::Unknown { values, expect } => {
                let Some(first) = log.iter().position(|value| *value == values[0]) else { continue };
                (first as u64, values, *expect)
            }
            _ => continue,
        };
        if expect.is_some_and(|expect| expect != first) {
            return Err(format!("stored in spite of its condition: {call:?}"));
        }
        if log.get(first as usize..first as usize + values.len()) != Some(&values[..]) {
            return Err(format!("the log does not have what was appended: {call:?}"));
        }
        if at.insert(first, (call, values.len() as u64)).is_some() {
            return Err(format!("the offset {first} was given twice"));
        }
    }
    let mut length = 0;
    let mut growths = Vec::new();
    for (first, (call, count)) in at {
        if first != length {
            return Err(format!("nobody has appended what is at offset {length}"));
        }
        length += count;
        growths.push(Growth { call, length, earliest: call.sent, latest: call.answered });
    }
    if length != log.len() as u64 {
        return Err(format!("nobody has appended what is at offset {length}"));
    }
    Ok(growths)
}

/// See the module's documentation. `log` is the content of the log at the end.
///
/// # Errors
/// Something that no log would do.
pub fn check(calls: &[Call], log: &[u64]) -> Result<(), String> {
    let mut growths = growths(calls, log)?;
    for call in calls {
        let (low, high) = match &call.event {
            Event::Appended { .. } | Event::Unknown { .. } => continue,
            Event::Unexpected { expect, next } if expect == next => return Err(format!("refused: {call:?}")),
            Event::Beyond { offset, next } if offset <= next => return Err(format!("refused: {call:?}")),
            Event::Unexpected { next, .. } | Event::Beyond { next, .. } => (*next, *next),
            Event::Read { offset, value: None } => (0, *offset),
            Event::Read { offset, value: Some(value) } => {
                if log.get(*offset as usize) != Some(value) {
                    return Err(format!("not what was appended: {call:?}"));
                }
                (offset + 1, u64::MAX)
            }
            Event::ReadFrom { offset, values } if values.is_empty() => (0, *offset),
            Event::ReadFrom { offset, values } => {
                let end = *offset as usize + values.len();
                if log.get(*offset as usize..end) != Some(&values[..]) {
                    return Err(format!("not what was appended: {call:?}"));
                }
                (end as u64, end as u64)
            }
        };
        let reaches = growths.partition_point(|growth| growth.length < low);
        let passes = growths.partition_point(|growth| growth.length <= high);
        if low > 0 {
            if reaches == passes {
                return Err(format!("the log never had such a length: {call:?}"));
            }
            growths[reaches].latest = growths[reaches].latest.min(call.answered);
        }
        if let Some(growth) = growths.get_mut(passes) {
            growth.earliest = growth.earliest.max(call.sent);
        }
    }
    let mut earliest = 0;
    for growth in &growths {
        earliest = earliest.max(growth.earliest);
        if growth.latest < earliest {
            return Err(format!(
                "the log had {} records by {}, and fewer at {earliest} still: {:?}",
                growth.length, growth.latest, growth.call
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(sent: u64, answered: u64, event: Event) -> Call {
        Call { sent, answered, event }
    }

    fn appended(first: u64, values: &[u64]) -> Event {
        Event::Appended { values: values.to_vec(), expect: None, first }
    }

    fn read(offset: u64, value: Option<u64>) -> Event {
        Event::Read { offset, value }
    }

    #[test]
    fn histories_of_a_log_are_accepted() {
        let history = [
            call(0, 10, appended(0, &[7])),
            call(1, 9, read(0, None)),
            call(2, 8, read(0, Some(7))), // while both are in flight
            call(11, 30, appended(1, &[8, 9])),
            call(12, 13, Event::Unexpected { expect: 0, next: 1 }),
            call(14, 15, Event::ReadFrom { offset: 0, values: vec![7, 8, 9] }),
            call(16, 17, Event::Beyond { offset: 4, next: 3 }),
            call(20, 99, Event::Unknown { values: vec![10], expect: Some(3) }),
            call(21, 99, Event::Unknown { values: vec![11], expect: Some(3) }),
        ];
        check(&history, &[7, 8, 9, 10]).unwrap();
    }

    #[test]
    fn impossible_histories_are_refused() {
        let refused: [(&[Call], &[u64]); 13] = [
            (&[call(0, 1, appended(0, &[7]))], &[]),
            (&[call(0, 1, appended(0, &[7]))], &[8]),
            (&[call(0, 1, appended(0, &[7])), call(2, 3, appended(0, &[7]))], &[7]),
            (&[call(0, 1, appended(0, &[7])), call(2, 3, appended(2, &[8]))], &[7, 0, 8]),
            (&[call(0, 1, appended(0, &[7])), call(2, 3, read(0, None))], &[7]), // a stale read
            (&[call(0, 1, read(0, Some(7))), call(2, 3, appended(0, &[7]))], &[7]), // a read from the future
            // Present, and then absent, while the append is in flight.
            (&[call(0, 9, appended(0, &[7])), call(1, 2, read(0, Some(7))), call(3, 4, read(0, None))], &[7]),
            (&[call(0, 1, appended(1, &[8])), call(2, 3, appended(0, &[7]))], &[7, 8]), // the later one comes first
            // Told of a record that does not exist afterwards.
            (
                &[
                    call(0, 9, appended(0, &[7])),
                    call(1, 2, Event::Unexpected { expect: 5, next: 1 }),
                    call(3, 4, read(0, None)),
                ],
                &[7],
            ),
            // Told that the log ends before a record that was there already, and that it ends after a record that
            // was asked for.
            (&[call(0, 1, appended(0, &[7])), call(2, 3, Event::Beyond { offset: 1, next: 0 })], &[7]),
            (&[call(0, 1, appended(0, &[7])), call(2, 3, Event::Beyond { offset: 1, next: 1 })], &[7]),
            // A read of a part of a batch.
            (
                &[call(0, 9, appended(0, &[7, 8])), call(1, 8, Event::Unexpected { expect: 0, next: 1 })],
                &[7, 8],
            ),
            (&[call(0, 1, Event::Appended { values: vec![7], expect: Some(1), first: 0 })], &[7]),
        ];
        for (history, log) in refused {
            assert!(check(history, log).is_err(), "{history:?}");
        }
    }

    /// Whether a log could behave like this in some order of the calls in which a call that was answered before
    /// another was sent comes before it.
    fn search(calls: &mut Vec<Call>, log: &mut Vec<u64>, end: &[u64]) -> bool {
        let answered = |call: &Call| !matches!(call.event, Event::Unknown { .. });
        if !calls.iter().any(answered) && log == end {
            return true;
        }
        let first = calls.iter().map(|call| call.answered).min().unwrap_or(0);
        for n in 0..calls.len() {
            if calls[n].sent > first {
                continue;
            }
            let call = calls.remove(n);
            let length = log.len();
            let here = length as u64;
            let fits = match &call.event {
                Event::Appended { values, expect, first } => {
                    log.extend(values);
                    *first == here && expect.is_none_or(|expect| expect == here)
                }
                Event::Unknown { values, expect } => {
                    log.extend(values);
                    expect.is_none_or(|expect| expect == here)
                }
                Event::Unexpected { expect, next } => *next == here && *expect != here,
                Event::Beyond { offset, next } => *next == here && *offset > here,
                Event::Read { offset, value } => log.get(*offset as usize) == value.as_ref(),
                Event::ReadFrom { offset, values } => {
                    log.get(*offset as usize..).unwrap_or_default() == values
                }
            };
            let found = fits && search(calls, log, end);
            log.truncate(length);
            // A call without an answer may also not have taken place.
            let found = found || matches!(call.event, Event::Unknown { .. }) && search(calls, log, end);
            calls.insert(n, call);
            if found {
                return true;
            }
        }
        false
    }

    #[test]
    fn the_check_finds_what_a_search_of_all_orders_finds() {
        let mut random = 1u64;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        let mut verdicts = [0, 0];
        for _ in 0..60_000 {
            let log: Vec<u64> = (0..below(4)).map(|n| 100 + n).collect();
            let length = log.len() as u64;
            let mut calls = Vec::new();
            let mut offset = 0;
            let mut time = |event| {
                let sent = below(8);
                call(sent, sent + 1 + below(6), event)
            };
            while offset < length {
                let count = if offset + 1 < length && time(appended(0, &[])).sent < 3 { 2 } else { 1 };
                let values = log[offset as usize..(offset + count) as usize].to_vec();
                let made = time(Event::Appended { values: values.clone(), expect: None, first: offset });
                calls.push(match made.sent % 3 {
                    0 => Call { answered: 20, event: Event::Unknown { values, expect: None }, ..made },
                    _ => made,
                });
                offset += count;
            }
            for _ in 0..3 {
                let made = time(read(0, None));
                let at = made.answered % (length + 1);
                let event = match made.sent % 5 {
                    0 => read(at, log.get(at as usize).copied()),
                    1 => read(at, None),
                    2 => Event::Unexpected { expect: 9, next: at },
                    3 => Event::Beyond { offset: 2, next: at },
                    _ => Event::ReadFrom { offset: 0, values: log[..at as usize].to_vec() },
                };
                calls.push(Call { event, ..made });
            }
            let found = check(&calls, &log);
            assert_eq!(
                found.is_ok(),
                search(&mut calls.clone(), &mut Vec::new(), &log),
                "{calls:?}: {found:?}"
            );
            verdicts[usize::from(found.is_ok())] += 1;
        }
        assert!(verdicts.iter().all(|count| *count > 5000), "{verdicts:?}");
    }
}
