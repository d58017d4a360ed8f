//! The scrubber of a real server: it finds a bit that flips in a sealed segment, and nothing where nothing is damaged; at
//! the rate that was set.

use crate::support::{Client, Server, program};
use millstream::{Log, Options};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const SEGMENTS: usize = 1000;
/// Records of 1,000 bytes take 1,024 in a segment, after its header; seven of them fill one.
const RECORD: usize = 1000;

/// A log with a thousand sealed segments, and one that is being written; returns the bytes of the sealed ones.
fn filled(data: &Path) -> u64 {
    let options =
        Options::default().with_segment_bytes(8 << 10).with_memory_bytes(4 << 20).with_shm_dir(None);
    let log = Log::open(data.join("a"), options).unwrap();
    for _ in 0..SEGMENTS {
        log.append_batch(&[&[7; RECORD][..]; 7]).unwrap();
    }
    log.roll().unwrap();
    log.append_wait_durable(b"the last one").unwrap();
    log.close().unwrap();
    let sealed = segments(data);
    let sealed = &sealed[..sealed.len() - 1];
    assert!(sealed.len() >= SEGMENTS, "{}", sealed.len());
    sealed.iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

/// The segment files, in order.
fn segments(data: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data.join("a")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    all.sort();
    all
}

/// A server, and what it writes to its log.
struct Watched {
    server: Server,
    lines: Arc<Mutex<String>>,
    begun: Instant,
}

impl Watched {
    fn start(data: &Path, rate: &str) -> Self {
        let flags = ["--scrub-bytes-per-second", rate, "--segment-bytes", "8KiB"];
        let begun = Instant::now();
        let mut child: Child = Server::command(data, &flags).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "{line}");
            if let Some((_, rest)) = line.split_once("address=") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
        };
        let lines = Arc::new(Mutex::new(line));
        let written = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                *written.lock().unwrap() += &(line + "\n");
            }
        });
        Self { server: Server { child, address }, lines, begun }
    }

    fn log(&self) -> String {
        self.lines.lock().unwrap().clone()
    }

    /// Bytes scrubbed, segments found damaged, and records.
    fn counts(client: &mut Client) -> [u64; 3] {
        let text = client.request("GET", "/metrics", b"").unwrap().body;
        ["scrubbed_bytes", "scrub_damaged_segments", "scrub_damaged_records"].map(|name| {
            let name = format!("millstream_{name}_total ");
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
        })
    }

    /// Waits until so many bytes are scrubbed. Meanwhile, asserts that the rate is kept: 1 MiB more at most.
    fn wait_for(&self, client: &mut Client, bytes: u64, rate: u64) -> [u64; 3] {
        loop {
            let counts = Self::counts(client);
            let max = self.begun.elapsed().as_millis() as u64 * rate / 1000 + (1 << 20);
            assert!(counts[0] <= max, "{} bytes after {:?}", counts[0], self.begun.elapsed());
            if counts[0] >= bytes {
                return counts;
            }
            assert!(self.begun.elapsed() < Duration::from_secs(120), "{counts:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many segment files the server has open.
    fn open_segments(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.server.child.id())).unwrap().flatten();
        let target = |file: fs::DirEntry| fs::read_link(file.path()).unwrap_or_default();
        files.map(target).filter(|target| target.extension().is_some_and(|end| end == "seg")).count()
    }
}

#[test]
fn a_healthy_log_of_a_thousand_segments_is_scrubbed_and_nothing_is_reported() {
    let data = tempfile::tempdir().unwrap();
    let bytes = filled(data.path());
    let mut watched = Watched::start(data.path(), "64MiB");
    let mut client = watched.server.connect();
    let counts = watched.wait_for(&mut client, bytes, 64 << 20);
    assert_eq!(counts, [bytes, 0, 0], "each is read once");
    let described = client.request("GET", "/v1/logs/a", b"").unwrap().body;
    assert!(described.contains("\"next_offset\":7001") && !described.contains("damage"), "{described}");
    assert!(watched.open_segments() <= 2, "{} descriptors", watched.open_segments());
    assert!(!watched.log().contains("scrub"), "{}", watched.log());
    assert_eq!(watched.server.terminate(), Some(0));
}

#[test]
fn a_bit_that_flips_in_a_sealed_segment_while_the_server_runs_is_found() {
    let data = tempfile::tempdir().unwrap();
    let bytes = filled(data.path());
    let rate = 8 << 20;
    let mut watched = Watched::start(data.path(), "8MiB");
    let mut client = watched.server.connect();
    let paths = segments(data.path());
    let last = &paths[paths.len() - 2];
    let base: u64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let file = File::options().read(true).write(true).open(last).unwrap();
    let (mut byte, at) = ([0], 4096 + 1024 + 500);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    assert_eq!(Watched::counts(&mut client)[1..], [0, 0], "the scrubber was quicker");

    let counts = watched.wait_for(&mut client, bytes, rate);
    assert_eq!(counts[1..], [1, 1]);
    let damaged = base + 1;
    let expected =
        format!(r#""damage":[{{"first_offset":{damaged},"next_offset":{},"reason":""#, damaged + 1);
    // It is listed a moment after it is counted.
    let begun = Instant::now();
    let described = loop {
        let described = client.request("GET", "/v1/logs/a", b"").unwrap().body;
        if described.contains("damage") || begun.elapsed() > Duration::from_secs(10) {
            break described;
        }
    };
    assert!(described.contains(&expected) && !described.contains("not_writable"), "{described}");
    let line = format!("the scrubber has found damage log=\"a\" damage=\"offset {damaged}: ");
    let log = watched.log();
    assert_eq!(log.matches("the scrubber").count(), 1, "{log}");
    assert!(log.contains(&line), "{log}");
    let url = format!("http://{}", watched.server.address);
    let output = program::millstream().args(["logs", "describe", "a", "--url", &url]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains(&format!("a is damaged, offset {damaged}: ")), "{printed}");
    assert!(watched.open_segments() <= 2, "{} descriptors", watched.open_segments());
    assert_eq!(watched.server.terminate(), Some(0));
}
