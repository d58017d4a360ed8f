//! Where a command finds its logs: on a server, or in a directory that no server has open.

use super::{
    Usage,
    failure::{CodedFailure, Failure},
    progress,
};
use clap::Args;
use millstream::{
    Code, Error as LogError, Log,
    client::{self, Client, CursorInfo, DamageInfo, LogInfo, Page, Record},
    http::{TIMES, parse_time},
    store::{self, LogSettings, Store, StoreOptions},
};
use std::{ffi::OsString, path::PathBuf};

/// The flags that choose the target.
#[derive(Debug, Clone, Args)]
pub(super) struct TargetFlags {
    /// The server's address [env: `MILLSTREAM_URL`] [default: `http://127.0.0.1:4437`]
    // The variables are not clap's, for which they would contradict the flags.
    #[arg(long, global = true)]
    url: Option<String>,
    /// A directory of logs to use instead of a server; no server may have it open [env: `MILLSTREAM_DATA`, unless an
    /// address is given]
    #[arg(long, global = true, conflicts_with = "url")]
    data: Option<PathBuf>,
}

/// The environment variable with the server's address.
pub(super) const URL: &str = "MILLSTREAM_URL";
/// The environment variable with the directory, of `serve` as well.
const DATA: &str = "MILLSTREAM_DATA";

/// The most items of damage that are described, as by a server.
const MAX_DAMAGE: usize = 100;

/// Where the logs are, by the flags and the environment.
enum Location {
    Server(String),
    Directory(PathBuf),
}

/// The server or the directory that a command works on.
pub(super) enum Target {
    Server(Box<Client>),
    Directory(Box<Store>),
}

impl TargetFlags {
    /// Flags take precedence over variables, and an address over a directory: `MILLSTREAM_DATA` may be set for a server
    /// whose address is in `MILLSTREAM_URL`.
    fn location(&self) -> Result<Location, Failure> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let not_text = |url: OsString| Usage(format!("{URL} is not text: {}", url.display()));
        Ok(match (&self.url, &self.data, variable(URL), variable(DATA)) {
            (Some(url), ..) => Location::Server(url.clone()),
            (_, Some(data), ..) => Location::Directory(data.clone()),
            (_, _, Some(url), _) => Location::Server(url.into_string().map_err(not_text)?),
            (.., Some(data)) => Location::Directory(data.into()),
            _ => Location::Server("http://127.0.0.1:4437".to_owned()),
        })
    }

    pub(super) fn open(&self) -> Result<Target, Failure> {
        if let Location::Directory(data) = self.location()? {
            super::must_exist(&data)?;
        }
        self.open_or_create()
    }

    /// Like [`open`](Self::open), but makes a directory that does not exist, as `serve` does.
    pub(super) fn open_or_create(&self) -> Result<Target, Failure> {
        let data = match self.location()? {
            Location::Server(url) => return Ok(Target::Server(Box::new(Client::new(&url)?))),
            Location::Directory(data) => data,
        };
        match Store::open(data, StoreOptions::default().with_scrub_bytes_per_second(0)) {
            Ok(store) => Ok(Target::Directory(Box::new(store))),
            Err(error @ store::Error::Log(LogError::InUse { .. })) if self.data.is_none() => {
                Err(format!("{error}; {DATA} names it: give the address of its server with --url").into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The parameter of a range that says whether damaged records are skipped, with the separator before it.
fn damaged_query(skip: bool) -> &'static str {
    if skip { "&damaged=skip" } else { "" }
}

/// Reads up to `limit` records of a log. Damage ends the page, or is an error if nothing is before it, unless
/// `skip_damaged`.
fn read_in_order(log: &Log, offset: u64, limit: u64, skip_damaged: bool) -> Result<Page, Failure> {
    let mut reader = log.reader(offset);
    let mut records = Vec::new();
    while (records.len() as u64) < limit {
        let at = reader.offset();
        match reader.read_next() {
            Ok(None) => break,
            Ok(Some(record)) => records.push(Record::from(&record)),
            Err(error) if error.bad_record().is_none() => return Err(error.into()),
            Err(_) if skip_damaged => {
                reader.seek_readable(at + 1)?;
            }
            Err(_) if !records.is_empty() => {
                reader.seek(at);
                break;
            }
            Err(error) => {
                let next_readable = Some(log.next_readable(at + 1)?);
                let (detail, code) = (error.to_string(), Code::from(&error));
                return Err(client::Error::Damaged { offset: at, next_readable, detail, code }.into());
            }
        }
    }
    Ok(Page { records, next_offset: reader.offset() })
}

/// Runs something that talks to a server. Does not wait for what it has left behind.
pub(super) fn block_on<T>(run: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(run);
    runtime.shutdown_background();
    done
}

/// Where a cursor is expected to be: nowhere, if it must not exist.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected(Option<u64>);

impl std::str::FromStr for Expected {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("none", _) => Ok(Self(None)),
            (_, Ok(offset)) if !text.starts_with('+') => Ok(Self(Some(offset))),
            _ => Err("it must be an offset, or none"),
        }
    }
}

impl Target {
    /// Reads up to `limit` records, or as many as are returned at once.
    pub(super) async fn read(
        &self,
        log: &str,
        offset: u64,
        limit: u64,
        skip_damaged: bool,
    ) -> Result<Page, Failure> {
        match self {
            Self::Server(client) => {
                let damaged = damaged_query(skip_damaged);
                Ok(client.read_query(log, &format!("offset={offset}&limit={limit}{damaged}")).await?)
            }
            Self::Directory(store) => {
                let log = store.get(log)?;
                let next_offset = log.visible_offset();
                if offset > next_offset {
                    return Err(client::Error::BeyondEnd { next_offset }.into());
                }
                read_in_order(&log, offset, limit.min(1000), skip_damaged)
            }
        }
    }

    /// The offset of the first record that was appended at this time or later.
    pub(super) async fn since(&self, log: &str, time: &str, skip_damaged: bool) -> Result<u64, Failure> {
        match self {
            Self::Server(client) => {
                let time = form_urlencoded::byte_serialize(time.as_bytes()).collect::<String>();
                let damaged = damaged_query(skip_damaged);
                let page = client.read_query(log, &format!("since={time}&limit=1{damaged}")).await?;
                Ok(page.records.first().map_or(page.next_offset, |record| record.offset))
            }
            Self::Directory(store) => {
                let millis = parse_time(time).ok_or(TIMES)?;
                Ok(store.get(log)?.offset_since(millis)?)
            }
        }
    }

    /// Creates a log if it does not exist, and describes it.
    pub(super) async fn create(&self, log: &str, settings: &LogSettings) -> Result<LogInfo, Failure> {
        match self {
            Self::Server(client) => Ok(client.create(log, settings).await?),
            Self::Directory(store) => {
                store.create(log, settings)?;
                self.describe(log).await
            }
        }
    }

    /// Whether there is a log of this name.
    pub(super) async fn has(&self, name: &str) -> Result<bool, Failure> {
        match self {
            Self::Server(client) => match client.describe(name).await {
                Ok(_) => Ok(true),
                Err(client::Error::NoSuchLog { .. } | client::Error::Deleted { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            },
            Self::Directory(store) => match store.get(name) {
                Ok(_) => Ok(true),
                Err(store::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Deletes a log.
    pub(super) async fn delete(&self, log: &str) -> Result<(), Failure> {
        match self {
            Self::Server(client) => client.delete(log).await?,
            Self::Directory(store) => store.delete(log)?,
        }
        Ok(())
    }

    /// Describes a log.
    pub(super) async fn describe(&self, name: &str) -> Result<LogInfo, Failure> {
        match self {
            Self::Server(client) => Ok(client.describe(name).await?),
            Self::Directory(store) => Ok(LogInfo::from(&*store.get(name)?)),
        }
    }

    /// Describes a log, with what is damaged in its sealed segments: a server has scrubbed them, and in a directory they are
    /// read now.
    pub(super) async fn examine(&self, name: &str) -> Result<LogInfo, Failure> {
        let mut described = self.describe(name).await?;
        let Self::Directory(store) = self else { return Ok(described) };
        let (log, mut from) = (store.get(name)?, described.first_offset);
        let (bar, known) = (progress::bytes(described.bytes), &mut described.damage);
        let pace = |bytes| {
            bar.inc(bytes);
            true
        };
        while let Some(scrubbed) = log.scrub(from, pace)? {
            let found = scrubbed.damage.into_iter().map(DamageInfo::from);
            let is_new =
                |found: &DamageInfo| !known.iter().any(|known| known.first_offset == found.first_offset);
            let new: Vec<_> = found.filter(is_new).collect();
            known.extend(new);
            from = scrubbed.next;
        }
        bar.finish_and_clear();
        known.sort_by_key(|damage| damage.first_offset);
        known.truncate(MAX_DAMAGE);
        Ok(described)
    }

    /// Drops whole segments below `before`, or all records if that is the next offset; returns the first offset that is
    /// left.
    pub(super) async fn trim(&self, log: &str, before: u64) -> Result<u64, Failure> {
        match self {
            Self::Server(client) => Ok(client.trim(log, before).await?),
            Self::Directory(store) => Ok(store.get(log)?.trim_to(before)?),
        }
    }

    /// All cursors of a log.
    pub(super) async fn cursors(&self, log: &str) -> Result<Vec<CursorInfo>, Failure> {
        match self {
            Self::Server(client) => Ok(client.cursors(log).await?),
            Self::Directory(store) => {
                let log = store.get(log)?;
                let all = log.cursors()?;
                Ok(all.iter().map(|(name, &offset)| CursorInfo::new(&log, name, offset)).collect())
            }
        }
    }

    /// Where a cursor is, which must exist.
    pub(super) async fn cursor(&self, log: &str, name: &str) -> Result<CursorInfo, Failure> {
        check_cursor(name)?;
        let found = match self {
            Self::Server(client) => client.cursor(log, name)?.get().await?,
            Self::Directory(store) => {
                let log = store.get(log)?;
                log.cursor(name)?.offset()?.map(|offset| CursorInfo::new(&log, name, offset))
            }
        };
        found.ok_or_else(|| no_cursor(log, name))
    }

    /// Sets a cursor, if it is where it is `expected` to be; returns where it is now.
    pub(super) async fn set_cursor(
        &self,
        log: &str,
        name: &str,
        expected: Option<Expected>,
        offset: u64,
    ) -> Result<CursorInfo, Failure> {
        check_cursor(name)?;
        match self {
            Self::Server(client) => {
                let cursor = client.cursor(log, name)?;
                Ok(match expected {
                    None => cursor.set(offset).await?,
                    Some(Expected(at)) => cursor.set_if(at, offset).await?,
                })
            }
            Self::Directory(store) => {
                let log = store.get(log)?;
                let cursor = log.cursor(name)?;
                match expected {
                    None => cursor.set(offset)?,
                    Some(Expected(at)) => cursor.set_if(at, offset)?,
                }
                Ok(CursorInfo::new(&log, name, offset))
            }
        }
    }

    /// Removes a cursor, which must exist.
    pub(super) async fn remove_cursor(&self, log: &str, name: &str) -> Result<(), Failure> {
        check_cursor(name)?;
        let existed = match self {
            Self::Server(client) => client.cursor(log, name)?.remove().await?,
            Self::Directory(store) => store.get(log)?.cursor(name)?.remove()?,
        };
        if existed { Ok(()) } else { Err(no_cursor(log, name)) }
    }
}

fn no_cursor(log: &str, name: &str) -> Failure {
    CodedFailure::new(
        Code::CursorNotFound,
        format!("the log {log:?} has no cursor named {name:?}; set it first"),
    )
    .into()
}

/// Fails if no cursor can have this name.
fn check_cursor(name: &str) -> Result<(), Failure> {
    if client::is_name(name) {
        return Ok(());
    }
    let bad = client::Error::BadName { name: name.to_owned() };
    Err(CodedFailure::new(Code::InvalidCursor, bad.to_string()).into())
}
