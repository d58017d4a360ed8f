//! Where the tests of this process keep what outlives processes: a directory of its own, so that what a server leaves
//! when a test kills it does not stay in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

const PREFIX: &str = "millstream-tests-";

/// The directory, created at the first call. It is removed when this process has ended, however it ended: a shell waits
/// for that. If the shell was killed too, the next process that calls this removes the directory.
#[allow(clippy::zombie_processes, reason = "the shell ends after this process")]
pub fn dir() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let at = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        sweep(&at, |pid| Path::new("/proc").join(pid).exists());
        let place = at.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        // The shell's input ends with the last process that has the other end, which only this one has.
        let mut waiting = Command::new("sh")
            .args(["-c", "trap '' INT TERM HUP; read -r _; rm -rf \"$1\"", "sh"])
            .arg(&place)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::mem::forget(waiting.stdin.take());
        place
    })
}

/// Removes the directories of processes that have ended.
pub fn sweep(at: &Path, is_alive: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !is_alive(pid)) {
            let _ = fs::remove_dir_all(entry.path()); // another process may be removing it
        }
    }
}
