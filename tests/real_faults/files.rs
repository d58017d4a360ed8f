//! Files that are damaged while the server has them open: what is left is served, reading anything else is an error of
//! that read, and the server continues. After a restart the damage is reported, and the rest is still served.

use crate::{
    full::Disk,
    load::{chance, mix},
    support::{Client, Server, processor::Processor},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

const RECORDS: u64 = 6000;
/// How many requests are sent before their answers are read.
const AT_ONCE: u64 = 50;

fn value(offset: u64) -> Vec<u8> {
    (0..32 + mix(offset) % 64).flat_map(|n| mix(offset << 32 | n).to_le_bytes()).collect()
}

/// Segments of 64 KiB, and so little memory that all but the last few are read from the disk.
fn flags(shm_dir: &Path) -> [&str; 6] {
    ["--segment-bytes", "65536", "--memory-bytes", "262144", "--shm-dir", shm_dir.to_str().unwrap()]
}

fn fill(client: &mut Client) {
    assert_eq!(client.request("PUT", "/v1/logs/harmed", b"").unwrap().status, 201);
    for from in (0..RECORDS).step_by(50) {
        let body: Vec<u8> = (from..from + 50)
            .flat_map(|offset| {
                let value = value(offset);
                [&(value.len() as u32).to_le_bytes()[..], &value].concat()
            })
            .collect();
        let headers = [("Content-Type", crate::load::FRAMES)];
        let reply = client.exchange("POST", "/v1/logs/harmed/records", &headers, &body).unwrap();
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    }
}

/// The segments, each with its first offset.
fn segments(data: &Path) -> BTreeMap<u64, PathBuf> {
    let paths = fs::read_dir(data.join("harmed")).unwrap().map(|entry| entry.unwrap().path());
    let segments = paths.filter(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.map(|path| (path.file_stem().unwrap().to_str().unwrap().parse().unwrap(), path)).collect()
}

/// Reads every record separately. A record outside the damaged range must exist with its value; one within it must
/// exist, or be reported as an error. Returns how many are missing.
fn read_all(client: &mut Client, harmed: &std::ops::Range<u64>) -> u64 {
    let mut missing = 0;
    for offset in 0..RECORDS {
        if offset.is_multiple_of(AT_ONCE) {
            // Several at once, because waiting for each answer takes most of the time.
            let mut requests = Vec::new();
            for offset in offset..RECORDS.min(offset + AT_ONCE) {
                let target = format!("/v1/logs/harmed/records/{offset}");
                write!(requests, "GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            }
            client.send(&requests).unwrap();
        }
        let reply = client.reply().unwrap();
        if reply.status == 200 {
            assert!(reply.body == value(offset), "offset {offset} has changed");
        } else {
            let said = String::from_utf8_lossy(&reply.body);
            assert!(harmed.contains(&offset), "offset {offset}: {} {said}", reply.status);
            assert!(matches!(reply.status, 410 | 500), "offset {offset}: {} {said}", reply.status);
            missing += 1;
        }
    }
    missing
}

/// Damages a sealed segment that is read from the disk while the server runs; reads, appends, kills, starts again.
fn harm(data: &Path, harm: impl FnOnce(&Path)) {
    let _processor = Processor::take();
    let backings = tempfile::tempdir_in(crate::support::shm::dir()).unwrap();
    let flags = flags(backings.path());
    let server = Server::start(data, &flags);
    let mut client = server.connect();
    fill(&mut client);
    let segments = segments(data);
    let bases: Vec<u64> = segments.keys().copied().collect();
    assert!(bases.len() > 30, "{} segments", bases.len());
    let at = 5 + chance(10) as usize;
    let harmed = bases[at]..bases[at + 1];
    assert_eq!(read_all(&mut client, &(0..0)), 0);
    harm(&segments[&harmed.start]);
    assert!(read_all(&mut client, &harmed) > 0, "the harm was not noticed");
    let next = client.exchange("POST", "/v1/logs/harmed/records", &[], b"goes on").unwrap();
    assert_eq!(next.status, 200, "{}", String::from_utf8_lossy(&next.body));
    server.kill();

    let server = Server::start(data, &flags);
    let mut client = server.connect();
    assert!(read_all(&mut client, &harmed) > 0, "the harm was not noticed");
    let last = client.exchange("GET", &format!("/v1/logs/harmed/records/{RECORDS}"), &[], b"").unwrap();
    assert_eq!((last.status, &last.body[..]), (200, &b"goes on"[..]));
    server.kill();
    let report = millstream::verify(data.join("harmed")).unwrap();
    assert!(!report.damage.is_empty(), "verify sees no damage");
}

#[test]
fn a_sealed_segment_is_truncated_while_it_is_open() {
    let data = tempfile::tempdir().unwrap();
    harm(data.path(), |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2 + chance(500)).unwrap();
    });
}

#[test]
fn a_sealed_segment_is_overwritten_while_it_is_open() {
    let data = tempfile::tempdir().unwrap();
    harm(data.path(), |path| {
        let mut noise = vec![0; 20_000];
        File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
        File::options().write(true).open(path).unwrap().write_all_at(&noise, 8192 + chance(20_000)).unwrap();
    });
}

#[test]
fn a_sealed_segment_is_removed_while_it_is_open() {
    let data = tempfile::tempdir().unwrap();
    harm(data.path(), |path| fs::remove_file(path).unwrap());
}

/// A file that appears in another place, until this is dropped.
struct Bound(PathBuf);

impl Bound {
    fn new(file: &Path, at: &Path) -> Self {
        let status = Command::new("mount").arg("--bind").args([file, at]).status().unwrap();
        assert!(status.success());
        Self(at.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status(); // the test must not fail because of this
    }
}

/// Sectors cannot be read: the disk ends before them, and the system reports `EIO`. This happens first while the
/// segment is open, and then when it is opened.
#[test]
fn sectors_of_a_sealed_segment_cannot_be_read() {
    let _processor = Processor::take();
    let Some(disk) = Disk::new("ext4", 16) else { return };
    let data = tempfile::tempdir().unwrap();
    let backings = tempfile::tempdir_in(crate::support::shm::dir()).unwrap();
    let flags = flags(backings.path());
    let mut server = Server::start(data.path(), &flags);
    fill(&mut server.connect());
    assert_eq!(server.terminate(), Some(0));

    // One segment, with all its bytes, is on the disk that will fail.
    let segments = segments(data.path());
    let mut bases = segments.keys().copied().skip(5 + chance(10) as usize);
    let harmed = bases.next().unwrap()..bases.next().unwrap();
    let first = harmed.start + 20; // the records before it stay readable
    let segment = disk.at.join("segment");
    fs::copy(&segments[&harmed.start], &segment).unwrap();
    let mut end = 0;
    disk.remount(|backing| {
        let (bytes, needle) = (fs::read(backing).unwrap(), value(first));
        let place = memchr::memmem::find(&bytes, &needle).expect("the value is on the disk");
        end = (place as u64).next_multiple_of(4096);
    });
    let bound = Bound::new(&segment, &segments[&harmed.start]);
    let server = Server::start(data.path(), &flags);
    let mut client = server.connect();
    assert_eq!(client.request("GET", "/v1/logs/harmed", b"").unwrap().status, 200);
    File::options().write(true).open(&disk.backing).unwrap().set_len(end).unwrap();
    assert!(read_all(&mut client, &(first..harmed.end)) > 0, "all could be read");
    let next = client.exchange("POST", "/v1/logs/harmed/records", &[], b"goes on").unwrap();
    assert_eq!(next.status, 200, "{}", String::from_utf8_lossy(&next.body));
    server.kill();

    let server = Server::start(data.path(), &flags);
    assert!(read_all(&mut server.connect(), &harmed) > 0);
    server.kill();
    drop(bound);
}

/// Sectors of the segment that is being written cannot be read, while the server is not running: their content is unknown,
/// so the log is opened read-only. When they can be read again, nothing is missing.
#[test]
fn sectors_of_the_open_segment_cannot_be_read() {
    let _processor = Processor::take();
    let Some(disk) = Disk::new("ext4", 16) else { return };
    let data = tempfile::tempdir().unwrap();
    let backings = tempfile::tempdir_in("/dev/shm").unwrap();
    let flags = flags(backings.path());
    let mut server = Server::start(data.path(), &flags);
    fill(&mut server.connect());
    assert_eq!(server.terminate(), Some(0));

    let segments = segments(data.path());
    let (&last, path) = segments.last_key_value().unwrap();
    let segment = disk.at.join("segment");
    fs::copy(path, &segment).unwrap();
    let mut end = 0;
    disk.remount(|backing| {
        let (bytes, needle) = (fs::read(backing).unwrap(), value(last));
        let place = memchr::memmem::find(&bytes, &needle).expect("the value is on the disk");
        end = (place as u64).next_multiple_of(4096);
    });
    let bound = Bound::new(&segment, path);
    let whole = fs::read(&disk.backing).unwrap();
    File::options().write(true).open(&disk.backing).unwrap().set_len(end).unwrap();

    let server = Server::start(data.path(), &flags);
    let mut client = server.connect();
    assert!(read_all(&mut client, &(last..RECORDS)) > 0, "all could be read");
    let refused = client.exchange("POST", "/v1/logs/harmed/records", &[], b"no").unwrap();
    assert!(refused.status >= 500, "{}", refused.status);
    assert!(String::from_utf8_lossy(&refused.body).contains("read_only"), "{:?}", refused.body);
    let metrics = client.request("GET", "/metrics", b"").unwrap().body;
    assert!(metrics.contains("millstream_refusing_logs 1\n"), "{metrics}");
    server.kill();

    fs::write(&disk.backing, whole).unwrap();
    let server = Server::start(data.path(), &flags);
    let mut client = server.connect();
    assert_eq!(read_all(&mut client, &(0..0)), 0);
    let next = client.exchange("POST", "/v1/logs/harmed/records", &[], b"goes on").unwrap();
    assert_eq!(next.status, 200, "{}", String::from_utf8_lossy(&next.body));
    let metrics = client.request("GET", "/metrics", b"").unwrap().body;
    assert!(metrics.contains("millstream_refusing_logs 0\n"), "{metrics}");
    server.kill();
    drop(bound);
}
