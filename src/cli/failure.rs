//! What a command says when it fails: one table of words and codes. An error of a directory is said in the words of the
//! client's error for the same thing, so that commands say the same with `--data` as with `--url`.

use millstream::{Code, Error as LogError, client, store};
use std::{borrow::Cow, error::Error, process::ExitCode};

/// Why a command has failed.
pub(super) type Failure = Box<dyn Error>;

/// Incorrect usage that is not found where flags are parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// A failure as it is reported: what it says, and its code, which is one of a server's or one of those below.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{words}")]
pub(super) struct CodedFailure {
    pub(super) words: String,
    pub(super) code: Cow<'static, str>,
}

/// Arguments or settings are wrong, whatever the state of logs and server.
const USAGE: &str = "usage";
/// A signal has ended the command.
const INTERRUPTED: &str = "interrupted";
/// The server cannot be reached.
const UNREACHABLE: &str = "unreachable";
/// Something answers at the address that is not a Millstream server.
const NOT_MILLSTREAM: &str = "not_millstream";
/// `verify` has found damage.
pub(super) const DAMAGED: &str = "damaged";
/// Anything else.
const FAILED: &str = "failed";

/// The codes with which a server refuses an argument, whatever logs it has.
const ARGUMENT_CODES: [Code; 4] =
    [Code::InvalidLogName, Code::InvalidSettings, Code::InvalidProducer, Code::InvalidCursor];

impl CodedFailure {
    pub(super) fn new(code: Code, words: impl Into<String>) -> Self {
        Self { words: words.into(), code: code.as_str().into() }
    }

    pub(super) fn usage(words: String) -> Self {
        Self { words, code: USAGE.into() }
    }

    /// What there is to say about this failure.
    pub(super) fn of(failure: &(dyn Error + 'static)) -> Self {
        if let Some(coded) = failure.downcast_ref::<Self>() {
            return coded.clone();
        }
        let translated = translated(failure);
        if let Some(error) = translated.as_ref().or(failure.downcast_ref()) {
            return Self { words: words(error), code: code(error) };
        }
        Self { words: failure.to_string(), code: own_code(failure).into() }
    }

    /// Adds to what is said.
    pub(super) fn with(mut self, more: &str) -> Self {
        self.words += more;
        self
    }

    /// If there is no such log, says what to do about it.
    pub(super) fn with_advice_if_no_log(self, advice: &str) -> Self {
        if self.is(Code::LogNotFound) && !advice.is_empty() { self.with("; ").with(advice) } else { self }
    }

    pub(super) fn is(&self, code: Code) -> bool {
        self.code == code.as_str()
    }

    /// Whether the arguments, or the settings, were wrong, whatever the state of logs and server.
    fn is_usage(&self) -> bool {
        self.code == USAGE || ARGUMENT_CODES.iter().any(|&code| self.is(code))
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        if self.is_usage() { ExitCode::from(2) } else { ExitCode::FAILURE }
    }

    /// As one line of standard error.
    pub(super) fn line(&self, json: bool) -> String {
        let Self { words, code } = self;
        if json {
            serde_json::json!({ "code": code, "error": words }).to_string()
        } else {
            format!("millstream: {words}")
        }
    }
}

/// The client's error for what went wrong in a directory, if there is one.
fn translated(failure: &(dyn Error + 'static)) -> Option<client::Error> {
    let of_log = match failure.downcast_ref::<store::Error>() {
        Some(store::Error::NotFound { name }) => return Some(client::Error::NoSuchLog { log: name.clone() }),
        Some(store::Error::BadName { name }) => return Some(client::Error::BadName { name: name.clone() }),
        Some(store::Error::Log(error)) => error,
        Some(_) => return None,
        None => failure.downcast_ref::<LogError>()?,
    };
    Some(match *of_log {
        LogError::Trimmed { first, .. } => client::Error::Trimmed { first_offset: first },
        LogError::BeyondEnd { end, .. } => client::Error::BeyondEnd { next_offset: end },
        LogError::Unexpected { next, .. } => client::Error::Unexpected { next_offset: next },
        LogError::UnexpectedCursor { offset } => client::Error::UnexpectedCursor { offset },
        LogError::ProducerOutOfOrder { expected_epoch, .. } => {
            client::Error::TakenOver { epoch: expected_epoch }
        }
        _ => return None,
    })
}

/// The words of the command line, which has flags where the client has methods.
fn words(error: &client::Error) -> String {
    match error {
        client::Error::NoSuchLog { log } => format!("there is no log named {log:?}"),
        client::Error::Damaged { detail, next_readable: Some(next), .. } => {
            format!("{detail}; the next readable record is at {next}: --skip-damaged continues there")
        }
        client::Error::Damaged { detail, .. } => format!("{detail}; --skip-damaged continues after it"),
        // In the words that the error has in a directory.
        client::Error::Refused { code, detail, .. } if !code.is_empty() => detail.clone(),
        other => other.to_string(),
    }
}

fn code(error: &client::Error) -> Cow<'static, str> {
    match error {
        client::Error::BadUrl { .. } => USAGE.into(),
        client::Error::Unreachable { .. } => UNREACHABLE.into(),
        client::Error::Answer { .. } => NOT_MILLSTREAM.into(),
        client::Error::Refused { code, .. } if code.is_empty() => NOT_MILLSTREAM.into(),
        client::Error::Refused { code, .. } => code.clone().into(),
        other => other.code().map_or(FAILED, Code::as_str).into(),
    }
}

/// The code of what no server has said.
fn own_code(failure: &(dyn Error + 'static)) -> &'static str {
    if failure.is::<Usage>() {
        return USAGE;
    }
    if failure.is::<super::signals::Interrupted>() {
        return INTERRUPTED;
    }
    let code = match (failure.downcast_ref::<store::Error>(), failure.downcast_ref::<LogError>()) {
        (Some(store::Error::Log(LogError::BadOptions { .. })), _)
        | (_, Some(LogError::BadOptions { .. })) => {
            return USAGE;
        }
        (Some(error), _) => Code::from(error),
        (_, Some(error)) => Code::from(error),
        _ => return FAILED,
    };
    if code == Code::Internal { FAILED } else { code.as_str() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a directory refuses, and what a server does then.
    #[test]
    fn a_failure_has_the_same_words_and_code_in_a_directory_and_on_a_server() {
        let refused = |error: &store::Error| client::Error::Refused {
            status: 400,
            code: Code::from(error).as_str().to_owned(),
            detail: error.to_string(),
            retry_after: None,
        };
        let exists = store::Error::Exists { name: "a".into(), differences: "values".into() };
        let bad = store::Error::BadSettings { reason: "no".into() };
        let pairs: [(Failure, client::Error); 7] = [
            (
                store::Error::NotFound { name: "a".into() }.into(),
                client::Error::NoSuchLog { log: "a".into() },
            ),
            (store::Error::BadName { name: "/".into() }.into(), client::Error::BadName { name: "/".into() }),
            (LogError::BeyondEnd { offset: 4, end: 3 }.into(), client::Error::BeyondEnd { next_offset: 3 }),
            (LogError::Trimmed { offset: 1, first: 2 }.into(), client::Error::Trimmed { first_offset: 2 }),
            (
                LogError::UnexpectedCursor { offset: Some(1) }.into(),
                client::Error::UnexpectedCursor { offset: Some(1) },
            ),
            (exists.clone().into(), refused(&exists)),
            (bad.clone().into(), refused(&bad)),
        ];
        for (here, there) in pairs {
            assert_eq!(CodedFailure::of(&*here).line(true), CodedFailure::of(&there).line(true));
        }
        let usage = CodedFailure::of(&Usage("no".into()));
        assert_eq!(usage.line(true), r#"{"code":"usage","error":"no"}"#);
        assert!(
            usage.is_usage() && CodedFailure::of(&bad).is_usage() && !CodedFailure::of(&exists).is_usage()
        );
    }
}
