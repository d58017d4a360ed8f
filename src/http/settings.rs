//! The settings of a server.

use std::time::Duration;

/// The settings of a server. Its limits hold whatever clients send.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The number of runtimes, each with one thread. Default: one per core.
    pub threads: usize,
    /// The most bytes of a request's body. Default: 16 MiB.
    pub body_bytes: usize,
    /// The most bytes of a request's header section; at least 8 KiB. Default: 64 KiB.
    pub header_bytes: usize,
    /// The most connections at once. For each one beyond that, a slow or idle one is closed; if all are in use, the new
    /// one waits until one ends. Default: 4,096.
    pub connections: usize,
    /// How long a request's header section may take to arrive, from the start of the connection or the end of the
    /// previous request, and how long a connection may be idle. Default: 60 s.
    pub header_time: Duration,
    /// How long a request's body may take to arrive, and how long a client may go without taking a byte of an answer.
    /// Default: 30 s.
    pub body_time: Duration,
    /// How long a request waits for what others use, before it is refused: for room while the disk is behind (then an
    /// append is answered with 429), or in line for a permit or for memory (503). Default: 2 s.
    pub queue_time: Duration,
    /// The most bytes of a body after decompression. Default: 64 MiB.
    pub decoded_bytes: usize,
    /// The longest time that a read may wait for new records. Default: 60 s.
    pub wait_time: Duration,
    /// How often a live tail without news is sent a comment, so that no intermediary assumes that it is dead. Default:
    /// 15 s.
    pub heartbeat: Duration,
    /// The most bytes of bodies that are being received or parsed, and of answers being sent, for all clients together;
    /// requests beyond that are answered with 503. Default: 256 MiB.
    pub memory_bytes: usize,
    /// Names by which clients may call this server, in addition to those that are known to be its own; with `*.` in
    /// front, also all names below a name; `*` for any name. Default: none.
    pub allow_hosts: Vec<String>,
    /// Origins whose pages may use this server from a browser, such as `https://app.example.com`; `*` for all. Default:
    /// none.
    pub allow_origins: Vec<String>,
    /// Whether appending to a log that does not exist creates it. Default: no.
    pub create_logs: bool,
    /// How long stopping waits for requests in flight. Default: 30 s.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            body_bytes: 16 << 20,
            header_bytes: 64 << 10,
            connections: 4096,
            header_time: Duration::from_secs(60),
            body_time: Duration::from_secs(30),
            queue_time: Duration::from_secs(2),
            decoded_bytes: 64 << 20,
            memory_bytes: 256 << 20,
            allow_hosts: Vec::new(),
            allow_origins: Vec::new(),
            wait_time: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            create_logs: false,
            grace: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// A year, to which longer times are shortened: they make no difference to a caller that waits, and could not be
    /// added to every point in time.
    pub const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    pub(super) fn clamp_times(&mut self) {
        let Self { header_time, body_time, queue_time, wait_time, heartbeat, grace, .. } = self;
        for time in [header_time, body_time, queue_time, wait_time, heartbeat, grace] {
            *time = Self::MAX_TIME.min(*time);
        }
    }
}
