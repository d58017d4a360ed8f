//! What `millstream append` says of what it did.

use super::{
    super::{
        counted,
        failure::{CodedFailure, Failure},
        stderr, stdout,
    },
    Append,
    sink::Appended,
};
use millstream::Code;

/// What to do if there is no such log.
pub(in super::super) const WITHOUT_LOG: &str = "create it first, or append with --create";

/// What was done.
#[derive(Default)]
pub(super) struct Done {
    pub(super) appended: Appended,
    pub(super) passed_over: u64,
    /// Whether a last line without its end was left for the next run.
    pub(super) is_unfinished: bool,
    /// Whether a part of a record was read before a signal, and is not stored.
    pub(super) is_cut: bool,
    /// The signal that has ended it; what was read until then is stored.
    pub(super) signalled: Option<u8>,
    /// Why it was not all.
    pub(super) failure: Option<Failure>,
    /// Whether more than that may have been stored.
    pub(super) is_uncertain: bool,
}

impl Append {
    /// A failure in the words of this command, which has imports, and no producers.
    pub(super) fn in_own_words(&self, failure: Failure, done: &Done) -> Failure {
        let coded = CodedFailure::of(&*failure);
        match &self.import {
            Some(name) if coded.is(Code::ProducerOutOfOrder) => {
                let words = format!("another run of the import {name:?} has taken over");
                CodedFailure { words, ..coded }.into()
            }
            // All before it are stored, and it is alone: what is too large together is divided.
            _ if coded.is(Code::RecordTooLarge) && !failure.is::<CodedFailure>() => {
                let number = done.passed_over + done.appended.records + 1;
                let words = format!(
                    "record {number} is larger than the log takes: a record must fit in a segment, with some 28 bytes beside \
                     it, and have no more than `record_bytes`; split it"
                );
                CodedFailure { words, ..coded }.into()
            }
            _ => failure,
        }
    }

    /// Says what was done. If that is not all, and nothing was stored, the failure says it.
    pub(super) fn report(&self, done: Done) -> Result<Done, Failure> {
        let Done { appended, passed_over, is_unfinished, failure, is_uncertain, .. } = &done;
        let (Appended { records: stored, first_offset, last_offset }, is_uncertain) =
            (appended, *is_uncertain);
        if *is_unfinished {
            stderr::say(format_args!(
                "the last line has no end: it is left for the next run (--last-line appends it as it is)"
            ));
        }
        if done.is_cut {
            stderr::say(format_args!("a part of a record was read before the signal: it is not appended"));
        }
        if self.json {
            let mut report = serde_json::json!({
                "log": self.log, "records": stored, "first_offset": first_offset, "last_offset": last_offset,
            });
            if self.import.is_some() {
                report["passed_over"] = (*passed_over).into();
            }
            if *is_unfinished || done.is_cut {
                report["unfinished"] = true.into();
            }
            if let Some(failure) = failure {
                let CodedFailure { words, code } =
                    CodedFailure::of(&**failure).with_advice_if_no_log(WITHOUT_LOG);
                (report["error"], report["code"]) = (words.into(), code.into());
                report["uncertain"] = is_uncertain.into();
            }
            return stdout::line(format_args!("{report}")).map(|()| done);
        }
        if failure.is_some() && *stored == 0 && !is_uncertain {
            return Ok(done);
        }
        let at = match (first_offset, last_offset) {
            (Some(first), Some(last)) if first < last => format!(", offsets {first} to {last}"),
            (Some(only), _) => format!(", offset {only}"),
            _ => String::new(),
        };
        let passed = match passed_over {
            0 => String::new(),
            1 => "; 1 stored before was passed over".to_owned(),
            over => format!("; {over} stored before were passed over"),
        };
        let all = match failure {
            Some(_) if is_uncertain => {
                "; then it failed, and it is not known whether later records were stored"
            }
            Some(_) => "; then it failed",
            None => "",
        };
        let stored = counted(*stored, "record");
        stdout::line(format_args!("{stored} appended to {}{at}{passed}{all}", self.log))?;
        Ok(done)
    }
}
