//! `millstream serve`.

mod names;
mod open_files;
mod stop;

use super::{Outcome, Usage, failure::Failure, shm_dir, size, stderr::Lines};
use clap::{ValueEnum, builder::RangedU64ValueParser, value_parser};
use millstream::{
    Durability, Options,
    http::{Server, Settings},
    store::{Store, StoreOptions},
};
use std::{
    io::IsTerminal,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};
use tracing_subscriber::EnvFilter;

/// What the server would shorten is refused.
const MAX_SECONDS: u64 = Settings::MAX_TIME.as_secs();
/// A gibibyte, well within what HTTP/2 can announce.
const MAX_HEADER_BYTES: u64 = 1 << 30;
/// A tebibyte, more memory than a system has.
const MAX_BODY_BYTES: u64 = 1 << 40;
/// More than the open files that a system allows a process.
const MAX_CONNECTIONS: u64 = 1 << 24;

/// Serve logs over HTTP
///
/// Stops at SIGINT, SIGTERM or SIGHUP: finishes the requests in flight, makes all logs durable, and exits with 0. At a
/// second SIGINT or SIGTERM, exits at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream serve --data /var/lib/millstream --create-logs\n  \
    MILLSTREAM_LOG_FILTER=debug millstream serve --listen 127.0.0.1:0\n  \
    millstream serve --print-config > millstream.toml; millstream serve --config millstream.toml")]
pub(super) struct Serve {
    /// A TOML file with settings, named like the flags with _ instead of -; flags and environment variables take
    /// precedence over it
    #[arg(long, env = "MILLSTREAM_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Print the settings that would be used, as a TOML file, and exit
    #[arg(long)]
    pub(super) print_config: bool,
    /// The address to listen on, such as localhost:4437; port 0 chooses a free port
    #[arg(long, env = "MILLSTREAM_LISTEN", default_value = "127.0.0.1:4437", value_parser = address)]
    listen: Address,
    /// The directory of the logs; created if it does not exist
    #[arg(long, env = "MILLSTREAM_DATA", default_value = "./data")]
    data: PathBuf,
    /// When an append is answered, and which records readers see
    #[arg(long, env = "MILLSTREAM_DURABILITY", value_enum, default_value_t = DurabilityArg::Disk, help_heading = "Logs")]
    durability: DurabilityArg,
    /// Server threads [default: one per core]
    #[arg(long, env = "MILLSTREAM_THREADS", value_parser = value_parser!(u16).range(1..=1024), help_heading = "Server")]
    threads: Option<u16>,
    /// The largest segment in bytes; a record must fit in one
    #[arg(long, env = "MILLSTREAM_SEGMENT_BYTES", default_value_t = Options::default().segment_bytes, value_parser = size::size, help_heading = "Logs")]
    segment_bytes: u64,
    /// Memory in bytes, for all logs together, for records being written and for recent ones
    #[arg(long, env = "MILLSTREAM_MEMORY_BYTES", default_value_t = StoreOptions::default().log.memory_bytes, value_parser = size::size, help_heading = "Memory")]
    memory_bytes: u64,
    /// A file system in memory for records that are not on disk yet, so that they survive kill -9; or "none"
    #[arg(
        long,
        alias = "images",
        env = "MILLSTREAM_SHM_DIR",
        default_value = SHM_DIR,
        help_heading = "Memory"
    )]
    shm_dir: PathBuf,
    /// The largest request body in bytes
    #[arg(long, alias = "max-body", env = "MILLSTREAM_MAX_BODY_BYTES", default_value_t = Settings::default().body_bytes, value_parser = size::within(1..=MAX_BODY_BYTES), help_heading = "Limits of clients")]
    max_body_bytes: usize,
    /// The largest header section in bytes, at least 8192
    #[arg(long, alias = "max-header", env = "MILLSTREAM_MAX_HEADER_BYTES", default_value_t = Settings::default().header_bytes, value_parser = size::within(8192..=MAX_HEADER_BYTES), help_heading = "Limits of clients")]
    max_header_bytes: usize,
    /// Connections at once; for each one beyond that, a slow or idle one is closed. Fewer if the limit of open files is
    /// too low
    #[arg(long, env = "MILLSTREAM_MAX_CONNECTIONS", default_value_t = Settings::default().connections, value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_CONNECTIONS), help_heading = "Limits of clients")]
    max_connections: usize,
    /// Seconds that a header section may take to arrive, and that a connection may be idle
    #[arg(long, env = "MILLSTREAM_HEADER_SECONDS", default_value_t = Settings::default().header_time.as_secs(), value_parser = value_parser!(u64).range(1..=MAX_SECONDS), help_heading = "Limits of clients")]
    header_seconds: u64,
    /// Seconds that a body may take to arrive, and that a client may go without reading any of an answer
    #[arg(long, env = "MILLSTREAM_BODY_SECONDS", default_value_t = Settings::default().body_time.as_secs(), value_parser = value_parser!(u64).range(1..=MAX_SECONDS), help_heading = "Limits of clients")]
    body_seconds: u64,
    /// The largest request body in bytes after decompression
    #[arg(long, alias = "max-decoded", env = "MILLSTREAM_MAX_DECODED_BYTES", default_value_t = Settings::default().decoded_bytes, value_parser = size::within(1..=MAX_BODY_BYTES), help_heading = "Limits of clients")]
    max_decoded_bytes: usize,
    /// Memory in bytes, for all clients together, for bodies and answers; requests beyond that are answered with 503
    #[arg(long, alias = "max-http-memory", env = "MILLSTREAM_MAX_HTTP_MEMORY_BYTES", default_value_t = Settings::default().memory_bytes, value_parser = size::within(0..=u64::MAX), help_heading = "Memory")]
    max_http_memory_bytes: usize,
    /// The longest that a read may wait for new records, in seconds
    #[arg(long, env = "MILLSTREAM_WAIT_SECONDS", default_value_t = Settings::default().wait_time.as_secs(), value_parser = value_parser!(u64).range(0..=MAX_SECONDS), help_heading = "Limits of clients")]
    wait_seconds: u64,
    /// Seconds between comments on a live tail without news
    #[arg(long, env = "MILLSTREAM_HEARTBEAT_SECONDS", default_value_t = Settings::default().heartbeat.as_secs(), value_parser = value_parser!(u64).range(1..=MAX_SECONDS), help_heading = "Limits of clients")]
    heartbeat_seconds: u64,
    /// Names by which clients may call this server, in addition to its own; *.NAME for all names below NAME, * for any
    /// name
    #[arg(long, env = "MILLSTREAM_ALLOW_HOST", value_name = "NAME", value_delimiter = ',', value_parser = names::host, help_heading = "Browsers")]
    allow_host: Vec<String>,
    /// Origins whose pages may use this server from a browser, such as `https://app.example.com`; * for all
    #[arg(long, env = "MILLSTREAM_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = names::origin, help_heading = "Browsers")]
    allow_origin: Vec<String>,
    /// Create a log when a record is appended to it
    #[arg(long, env = "MILLSTREAM_CREATE_LOGS", help_heading = "Logs")]
    create_logs: bool,
    /// The most logs that are kept open; each takes one open file. Logs in use stay open, even beyond that
    #[arg(long, env = "MILLSTREAM_MAX_OPEN_LOGS", default_value_t = StoreOptions::default().open_logs, help_heading = "Logs")]
    max_open_logs: usize,
    /// Seconds after which an unused log is closed; it is opened again on demand
    #[arg(long, env = "MILLSTREAM_IDLE_SECONDS", default_value_t = StoreOptions::default().idle.as_secs(), value_parser = value_parser!(u64).range(0..=MAX_SECONDS), help_heading = "Logs")]
    idle_seconds: u64,
    /// How many bytes of sealed segments are verified per second, in the background, to find damage before somebody reads
    /// it; 0 for none. A pass through all logs begins at most once a day
    #[arg(long, env = "MILLSTREAM_SCRUB_BYTES_PER_SECOND", default_value_t = StoreOptions::default().scrub_bytes_per_second, value_parser = size::size, help_heading = "Logs")]
    scrub_bytes_per_second: u64,
    /// The format of the server's own log on standard error; `MILLSTREAM_LOG_FILTER`, for example debug, sets what is
    /// logged
    #[arg(long, env = "MILLSTREAM_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, help_heading = "Server")]
    log_format: LogFormat,
    /// Seconds to wait for requests in flight when stopping
    #[arg(long, env = "MILLSTREAM_GRACE_SECONDS", default_value_t = Settings::default().grace.as_secs(), value_parser = value_parser!(u64).range(0..=MAX_SECONDS), help_heading = "Server")]
    grace_seconds: u64,
}

/// An address to listen on, and what was given.
#[derive(Debug, Clone)]
struct Address {
    given: String,
    resolved: SocketAddr,
}

/// Resolves an address: of those that a name has, the first one of IPv4, or else the first one.
fn address(text: &str) -> Result<Address, String> {
    let found = text.to_socket_addrs();
    let found: Vec<_> =
        found.map_err(|error| format!("it is not HOST:PORT, or has no address: {error}"))?.collect();
    let resolved = found.iter().find(|address| address.is_ipv4()).or(found.first());
    let resolved = *resolved.ok_or("the name has no address")?;
    Ok(Address { given: text.to_owned(), resolved })
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum DurabilityArg {
    /// Once the record is on disk: it survives kill -9 and loss of power
    Disk,
    /// Once the record is in memory: it survives kill -9, and is on disk within about a millisecond
    Memory,
}

impl From<DurabilityArg> for Durability {
    fn from(durability: DurabilityArg) -> Self {
        match durability {
            DurabilityArg::Disk => Self::Disk,
            DurabilityArg::Memory => Self::Memory,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Text for people
    Text,
    /// One JSON object per line
    Json,
}

/// Where memory that outlives the process is by default.
const SHM_DIR: &str = "/dev/shm";

/// What is logged by default. h2 warns of each connection whose client resets streams, as often as that happens.
const FILTER: &str = "info,h2=error";

/// The environment variable that says what is logged, and its old name.
pub(super) const LOG_FILTERS: [&str; 2] = ["MILLSTREAM_LOG_FILTER", "MILLSTREAM_LOG"];

/// What is logged, as the environment says it.
fn filter() -> Result<EnvFilter, Failure> {
    let given = LOG_FILTERS.into_iter().find(|name| std::env::var_os(name).is_some());
    let Some(name) = given else { return Ok(EnvFilter::new(FILTER)) };
    Ok(EnvFilter::try_from_env(name).map_err(|error| Usage(format!("{name} is not a filter: {error}")))?)
}

impl Serve {
    /// Serves, and says of these variables that they are no settings.
    pub(super) fn run(&self, unknown_variables: &[String]) -> Outcome {
        let filter = filter()?;
        self.check_shm_dir()?;
        let stderr = Lines::new()?;
        let writer = stderr.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(move || writer.clone())
            .log_internal_errors(false); // they would be reported by something that panics if standard error is closed
        match self.log_format {
            LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
            LogFormat::Json => subscriber.json().flatten_event(true).init(),
        }

        for variable in unknown_variables {
            tracing::warn!(%variable, "no setting has this variable; --print-config prints all settings");
        }
        let done = self.serve(&stderr);
        stderr.flush(MAX_LOG_FLUSH_TIME);
        done
    }

    fn serve(&self, stderr: &Lines) -> Outcome {
        let defaults = Settings::default();
        let threads = self.threads.map_or(defaults.threads, usize::from);
        let limit = open_files::limit();
        let files = open_files::to_share(limit, threads)?;
        let (connections, open_logs) = open_files::shares(files, self.max_connections, self.max_open_logs);
        if connections < self.max_connections || open_logs < self.max_open_logs {
            tracing::warn!(
                limit,
                connections,
                open_logs,
                "the limit of open files (ulimit -n) leaves room for this many connections and open logs"
            );
        }
        let settings = Settings {
            threads,
            body_bytes: self.max_body_bytes,
            header_bytes: self.max_header_bytes,
            connections,
            header_time: Duration::from_secs(self.header_seconds),
            body_time: Duration::from_secs(self.body_seconds),
            grace: Duration::from_secs(self.grace_seconds),
            decoded_bytes: self.max_decoded_bytes,
            memory_bytes: self.max_http_memory_bytes,
            allow_hosts: self.allow_host.clone(),
            allow_origins: self.allow_origin.clone(),
            wait_time: Duration::from_secs(self.wait_seconds),
            heartbeat: Duration::from_secs(self.heartbeat_seconds),
            create_logs: self.create_logs,
            ..defaults
        };
        let stop = stop::signalled(stderr)?;
        let server = Server::bind(self.listen.resolved, settings).map_err(|error| {
            if error.kind() == std::io::ErrorKind::InvalidInput && error.raw_os_error().is_none() {
                let error =
                    format!("--max-http-memory-bytes: {error} (--max-body-bytes, --max-decoded-bytes)");
                return Failure::from(Usage(error));
            }
            let at = &self.listen.given;
            format!("cannot listen at {at}: {error}; name another address with --listen").into()
        })?;
        let store = Store::open(&self.data, self.store_options(open_logs))?;
        let address = server.address()?;
        let logs = store.counts().logs;
        let listening = async move {
            tracing::info!(%address, data = %self.data.display(), logs, "listening");
            let _ = stop.await; // an error would mean that nobody listens for signals any more, which cannot happen
        };
        server.run(store, listening)?;
        tracing::info!("stopped");
        Ok(ExitCode::SUCCESS)
    }

    /// A directory that was named must exist: without it, records that are acknowledged in memory are lost with the
    /// process.
    fn check_shm_dir(&self) -> Result<(), Failure> {
        let at = &self.shm_dir;
        if shm_dir(at).is_none() || at.as_os_str() == SHM_DIR || at.is_dir() {
            return Ok(());
        }
        Err(format!("there is no directory {} (--shm-dir)", at.display()).into())
    }

    fn store_options(&self, open_logs: usize) -> StoreOptions {
        let log = Options {
            durability: self.durability.into(),
            segment_bytes: self.segment_bytes,
            memory_bytes: self.memory_bytes,
            shm_dir: shm_dir(&self.shm_dir).map(PathBuf::from),
            ..Options::default()
        };
        let idle = Duration::from_secs(self.idle_seconds);
        let scrub_bytes_per_second = self.scrub_bytes_per_second;
        StoreOptions { log, open_logs, idle, scrub_bytes_per_second }
    }
}

/// How long to wait for the last lines of the log to be written.
const MAX_LOG_FLUSH_TIME: Duration = Duration::from_millis(500);
