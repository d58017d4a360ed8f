//! A real disk that fills up while it is written to, and is then enlarged.

use crate::{
    load::{Expected, Kind, Numbers, produce},
    support::{Server, skipped::skipped},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// A file system of its own, in a file, on a loop device.
pub struct Disk {
    pub at: PathBuf,
    kind: &'static str,
    device: String,
    pub backing: PathBuf,
    _place: tempfile::TempDir,
}

/// The output of a command, if it exists and succeeds.
fn run(command: &str, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(command).args(arguments).output().map_err(|error| format!("{command}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Disk {
    /// `None`, with a message, if this needs more rights or tools than there are.
    pub fn new(kind: &'static str, mib: u64) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let (backing, at) = (place.path().join("backing"), place.path().join("mounted"));
        std::fs::create_dir(&at).unwrap();
        File::create(&backing).unwrap().set_len(mib << 20).unwrap();
        let path = backing.to_str().unwrap();
        let mounted = run(&format!("mkfs.{kind}"), &["-q", path])
            .and_then(|_| run("losetup", &["--find", "--show", path]))
            .and_then(|device| {
                run("mount", &[&device, at.to_str().unwrap()]).map(|_| device.clone()).inspect_err(|_| {
                    let _ = run("losetup", &["-d", &device]); // the error of the mount is reported
                })
            });
        match mounted {
            Ok(device) => Some(Self { at, kind, device, backing, _place: place }),
            Err(error) => {
                skipped(format_args!(
                    "a disk with {kind} takes root, mkfs.{kind} and a loop device: {error}"
                ));
                None
            }
        }
    }

    fn grow(&self, mib: u64) {
        File::options().write(true).open(&self.backing).unwrap().set_len(mib << 20).unwrap();
        run("losetup", &["-c", &self.device]).unwrap();
        let grown = match self.kind {
            "ext4" => run("resize2fs", &[&self.device]),
            _ => run("xfs_growfs", &[self.at.to_str().unwrap()]),
        };
        if let Err(error) = grown {
            let kind = self.kind;
            skipped(format_args!("enlarging {kind} while it is mounted; a file is removed instead: {error}"));
            std::fs::remove_file(self.at.join("ballast")).unwrap();
        }
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.at).unwrap();
        found.f_bfree * found.f_frsize // root may use the reserved blocks
    }

    /// Creates a file that takes all but `all_but` bytes.
    fn fill(&self, name: &str, all_but: u64) {
        let file = match File::create(self.at.join(name)) {
            Err(error) if all_but == 0 && error.kind() == std::io::ErrorKind::StorageFull => return, // not even an inode
            file => file.unwrap(),
        };
        let mut step = 64 << 20;
        let mut length = 0;
        while step >= 4096 {
            let fits = all_but == 0 || self.free() > all_but + step;
            let mode = rustix::fs::FallocateFlags::empty();
            if fits && rustix::fs::fallocate(&file, mode, length, step).is_ok() {
                length += step;
            } else {
                step /= 2;
            }
        }
    }

    /// Fills the file system by writing, also where no room can be reserved, until nothing is left. The file may exist.
    fn fill_up(&self, name: &str) {
        let mut file = File::options().create(true).append(true).open(self.at.join(name)).unwrap();
        for size in [1 << 20, 4096, 512] {
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
        let _ = file.sync_all(); // or it says that there is no room
    }

    /// Unmounts and mounts again, so that none of its content is in memory, with a change of the backing in between.
    pub fn remount(&self, change: impl FnOnce(&Path)) {
        let at = self.at.to_str().unwrap();
        run("umount", &[at]).unwrap();
        change(&self.backing);
        run("mount", &[&self.device, at]).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = run("umount", &["-l", self.at.to_str().unwrap()]);
        let detached = run("losetup", &["-d", &self.device]);
        if let Err(error) = unmounted.and(detached) {
            println!("{error}"); // the test must not fail because of this
        }
    }
}

/// Fills the disk under load; kills the server; starts it on the full disk; enlarges the disk.
fn fill_and_grow(kind: &'static str, mib: u64) {
    let Some(disk) = Disk::new(kind, mib) else { return };
    disk.fill("ballast", 24 << 20);
    let data = disk.at.join("data");
    let backings = tempfile::tempdir_in(crate::support::shm::dir()).unwrap();
    let flags =
        ["--create-logs", "--segment-bytes", "1048576", "--shm-dir", backings.path().to_str().unwrap()];
    let mut logs =
        [Kind::Mixed, Kind::Tiny, Kind::Mixed].map(|kind| Expected::new(format!("{kind:?}"), kind));
    logs[2].name = "third".into();
    let mut numbers = Numbers::new();
    let mut fill_up = |server: &Server, logs: &mut [Expected]| {
        let (stored, ()) = produce(server, logs, 3, "", &mut numbers, false, |failed| {
            let end = Instant::now() + Duration::from_secs(30);
            while failed.load(Ordering::Relaxed) < 20 {
                assert!(Instant::now() < end, "the disk does not fill up");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        stored
    };

    let server = Server::start(&data, &flags);
    let stored = fill_up(&server, &mut logs);
    assert!(stored > 10, "only {stored} batches fit");
    let mut client = server.connect();
    for log in &mut logs {
        log.check_reading(&mut client);
    }
    disk.fill("rest", 0);
    server.kill();

    let server = Server::start(&data, &flags);
    let mut client = server.connect();
    for log in &mut logs {
        log.check_reading(&mut client);
    }
    fill_up(&server, &mut logs);

    disk.grow(mib + 64);
    let mut client = server.connect();
    for log in &mut logs {
        log.check(&mut client);
    }
    server.kill();
    let server = Server::start(&data, &flags);
    for log in &mut logs {
        log.check(&mut server.connect());
    }
    server.kill();
}

#[test]
fn an_ext4_disk_fills_up_and_is_enlarged() {
    fill_and_grow("ext4", 64);
}

#[test]
fn an_xfs_disk_fills_up_and_is_enlarged() {
    fill_and_grow("xfs", 320);
}

#[test]
fn a_log_cannot_be_created_on_a_full_disk_and_can_once_there_is_room() {
    let Some(disk) = Disk::new("ext4", 32) else { return };
    let data = disk.at.join("data");
    let server = Server::start(&data, &["--shm-dir", "none"]);
    let mut client = server.connect();
    // With nothing free, and then with a little more each time: for the directory, for the settings, for the segment.
    for (n, left) in [0, 4 << 10, 8 << 10, 12 << 10, 20 << 10, 60 << 10].into_iter().enumerate() {
        disk.fill("ballast", left);
        let made = client.request("PUT", "/v1/logs/late", b"").unwrap();
        assert_eq!(made.status, 507, "with {left} bytes free: {}", made.body);
        let listed = client.request("GET", "/v1/logs", b"").unwrap().body;
        assert!(!listed.contains("late"), "{listed}");
        std::fs::remove_file(disk.at.join("ballast")).unwrap();
        let made = client.request("PUT", "/v1/logs/late", b"").unwrap();
        assert_eq!(made.status, 201, "with room again, {n}: {}", made.body);
        assert_eq!(client.request("DELETE", "/v1/logs/late", b"").unwrap().status, 204);
    }
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with(".deleted")), "{left:?}");
    server.kill();
}

/// Not even `verify` could look at a log there, and no server started: a lock required creating a file.
#[test]
fn on_a_read_only_file_system_all_is_served_and_appends_continue_when_it_is_writable_again() {
    let Some(disk) = Disk::new("ext4", 64) else { return };
    let data = disk.at.join("data");
    let backings = tempfile::tempdir_in(crate::support::shm::dir()).unwrap();
    let flags = ["--segment-bytes", "16384", "--shm-dir", backings.path().to_str().unwrap()];
    let server = Server::start(&data, &flags);
    let mut client = server.connect();
    for _ in 0..100 {
        client.append(&[7; 1000]).unwrap();
    }
    server.kill();
    let mount = |how: &str| run("mount", &["-o", how, disk.at.to_str().unwrap()]).unwrap();
    mount("remount,ro");
    let dir = data.join("default");
    let verify = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.args(["verify", dir.to_str().unwrap(), "--shm-dir", "none"]).output().unwrap()
    };
    let verified = verify();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let server = Server::start(&data, &flags);
    assert!(!verify().status.success(), "while a server has it open");
    let mut client = server.connect();
    for offset in [0, 50, 99] {
        assert_eq!(client.read(offset).unwrap().as_deref(), Some(&[7; 1000][..]));
    }
    let refused = client.request("POST", "/v1/logs/default/records", b"x").unwrap();
    assert!(
        refused.status == 507 && refused.body.contains("Read-only"),
        "{} {}",
        refused.status,
        refused.body
    );
    // Segments that cannot be removed are not hidden either, because they would come back with the next opening.
    let refused = client.request("POST", "/v1/logs/default/trim", br#"{"before":90}"#).unwrap();
    assert!(refused.status == 507, "{} {}", refused.status, refused.body);
    assert_eq!(client.read(0).unwrap().as_deref(), Some(&[7; 1000][..]));
    mount("remount,rw");
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.append(b"again").is_err() {
        assert!(Instant::now() < deadline, "it is writable, and appends are refused");
        std::thread::sleep(Duration::from_millis(100));
        client = server.connect();
    }
    assert_eq!(client.read(100).unwrap().as_deref(), Some(&b"again"[..]));
    drop(server); // before the disk
}

/// Appends until the disk is full, each by a connection of its own, because what has its place in the log waits for room;
/// makes room, and checks what was acknowledged. Returns how many were.
fn append_until_full(server: &Server, value: &'static [u8], stored: u64, make_room: impl FnOnce()) -> u64 {
    let (tell, told) = std::sync::mpsc::channel();
    let send = || {
        let (mut client, tell) = (server.connect(), tell.clone());
        std::thread::spawn(move || {
            let answer = client.request("POST", "/v1/logs/default/records", value).unwrap();
            tell.send((answer.status, answer.body)).unwrap(); // the receiver is there to the end
        });
    };
    let (mut requests, mut statuses) = (0, Vec::new());
    let note = |(status, body): (u16, String)| {
        assert!([200, 201, 507].contains(&status), "{status} {body}");
        status
    };
    let refused = |statuses: &[u16]| statuses.iter().filter(|&&status| status == 507).count() as u64;
    let end = Instant::now() + Duration::from_secs(30);
    while refused(&statuses) < 3 {
        assert!(Instant::now() < end, "the disk does not fill up");
        send();
        requests += 1;
        statuses.extend(told.recv_timeout(Duration::from_millis(300)).into_iter().map(note));
    }
    make_room();
    let end = Instant::now() + Duration::from_secs(10);
    let mut client = server.connect();
    while client.append(value).is_err() {
        assert!(Instant::now() < end, "there is room, and appends are refused");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(tell);
    statuses.extend(told.iter().map(note));
    assert_eq!(statuses.len(), requests, "those that waited have an answer");
    let all = stored + (requests as u64 - refused(&statuses)) + 1;
    for offset in 0..all {
        assert_eq!(client.read(offset).unwrap().as_deref(), Some(value), "{offset} of {all}");
    }
    assert_eq!(client.read(all).unwrap(), None);
    all
}

/// On a file system without `fallocate` only writing shows whether there is room. The log failed with the first write for
/// which there was none, and stayed failed; and a spare segment that could not be made was told as a lack of descriptors.
#[test]
fn a_disk_on_which_no_room_can_be_reserved_fills_up_and_appends_continue_when_there_is_some() {
    const VALUE: &[u8] = &[7; 200 << 10];
    let Some(disk) = Disk::new("ext2", 24) else { return };
    let data = disk.at.join("data");
    let flags = ["--shm-dir", "none"];
    let server = Server::start(&data, &flags);
    let mut client = server.connect();
    for _ in 0..10 {
        client.append(VALUE).unwrap();
    }
    disk.fill_up("filler");
    let remove = || std::fs::remove_file(disk.at.join("filler")).unwrap();
    let stored = append_until_full(&server, VALUE, 10, remove);
    disk.fill_up("filler");
    server.kill();
    // Started where there is no room.
    let server = Server::start(&data, &flags);
    let stored = append_until_full(&server, VALUE, stored, remove);
    server.kill();
    let server = Server::start(&data, &flags);
    let mut client = server.connect();
    assert_eq!(client.read(stored - 1).unwrap().as_deref(), Some(VALUE));
    assert_eq!(client.read(stored).unwrap(), None);
    drop(server); // before the disk
}

/// A copy that shares its blocks with the log (`cp --reflink`) takes from it the room that it had reserved.
#[test]
fn a_log_whose_blocks_are_shared_with_a_copy_fills_the_disk_up_and_continues_when_there_is_room() {
    const VALUE: &[u8] = &[7; 1 << 10];
    let Some(disk) = Disk::new("xfs", 320) else { return };
    let data = disk.at.join("data");
    let server = Server::start(&data, &["--shm-dir", "none"]);
    let mut client = server.connect();
    for _ in 0..100 {
        client.append(VALUE).unwrap();
    }
    let copy = disk.at.join("copy");
    let copied = run("cp", &["-r", "--reflink=always", data.to_str().unwrap(), copy.to_str().unwrap()]);
    if let Err(error) = copied {
        return skipped(format_args!("this takes a file system whose files can share blocks: {error}"));
    }
    disk.fill("filler", 0);
    disk.fill_up("filler");
    let stored = append_until_full(&server, VALUE, 100, || {
        std::fs::remove_file(disk.at.join("filler")).unwrap();
    });
    server.kill();
    // Opening gives it blocks of its own.
    let server = Server::start(&data, &["--shm-dir", "none"]);
    let mut client = server.connect();
    assert_eq!(client.read(stored - 1).unwrap().as_deref(), Some(VALUE));
    disk.fill("filler", 0);
    disk.fill_up("filler");
    for _ in 0..100 {
        client.append(VALUE).unwrap();
    }
    drop(server); // before the disk
}

/// The holes of a log that was copied do not fit on the disk any more. Trying to fill them took all room that was left,
/// for good, and so from all other logs on the disk.
#[test]
fn a_log_whose_holes_do_not_fit_takes_nothing_from_the_others() {
    let Some(disk) = Disk::new("ext4", 96) else { return };
    let dir = disk.at.join("log");
    let options = || millstream::Options {
        segment_bytes: 32 << 20,
        first_segment_bytes: 32 << 20,
        shm_dir: None,
        ..millstream::Options::default()
    };
    let log = millstream::Log::open(&dir, options()).unwrap();
    log.append(b"one").and_then(|at| log.wait_durable(at)).unwrap();
    log.close().unwrap();
    let copy = disk.at.join("copy");
    run("cp", &["-r", "--sparse=always", dir.to_str().unwrap(), copy.to_str().unwrap()]).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    disk.fill("ballast", 12 << 20);
    let before = disk.free();
    let log = millstream::Log::open(&copy, options()).unwrap();
    assert!(matches!(log.append(b"two"), Err(millstream::Error::Full { .. })));
    assert_eq!(log.read(0).unwrap().unwrap().value(), b"one");
    let after = disk.free();
    assert!(after + (1 << 20) > before, "{before} bytes were free, and then {after}");
    drop(log);
    std::fs::remove_file(disk.at.join("ballast")).unwrap();
    let log = millstream::Log::open(&copy, options()).unwrap();
    log.append(b"two").and_then(|at| log.wait_durable(at)).unwrap();
    drop(log); // before the disk
}
