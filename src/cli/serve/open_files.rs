//! How many files the process may have open, and how connections and logs share them.

/// Files that the process has open for itself, before any client connects.
const OWN_FILES: usize = 17;
/// Files that each server thread has open, before any client connects.
const THREAD_FILES: usize = 5;
/// Files to keep free besides those of connections and open logs, for reading from the disk and for preparing segments.
const SPARE_FILES: usize = 256;
/// The minimum of [`SPARE_FILES`], if there are few files.
const MIN_SPARE_FILES: usize = 17;
/// The minimum for connections and open logs together.
const MIN_SHARES: usize = 20;

/// The number of files available for connections and open logs, and for work on their behalf.
pub(super) fn to_share(limit: usize, threads: usize) -> Result<usize, String> {
    let own = OWN_FILES + threads * THREAD_FILES;
    let least = own + MIN_SPARE_FILES + MIN_SHARES;
    if limit < least {
        return Err(format!(
            "the limit of open files (ulimit -n) is {limit}, and with {threads} server threads at least {least} are needed: \
             raise it (ulimit -n {least}, LimitNOFILE={least}), or set fewer --threads"
        ));
    }
    Ok(limit - own)
}

/// How many connections and open logs are allowed with this many files. If there are too few for all, connections get
/// up to two thirds of them, so that clients that only connect never prevent a log from being opened.
pub(super) fn shares(files: usize, connections: usize, logs: usize) -> (usize, usize) {
    let files = files.saturating_sub(SPARE_FILES.min(files / 4).max(MIN_SPARE_FILES));
    let connections = connections.min(files.saturating_sub(logs).max(files / 3 * 2)).max(1);
    (connections, logs.min(files.saturating_sub(connections)))
}

/// How many files this process may have open, after raising the limit as far as the system allows.
pub(super) fn limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    limit.map_or(usize::MAX, |limit| limit as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_logs() {
        assert_eq!(shares(usize::MAX, 4096, 10_000), (4096, 10_000));
        assert_eq!(shares(20_000, 4096, 10_000), (4096, 10_000));
        assert_eq!(shares(1024, 4096, 10_000), (512, 256));
        assert_eq!(shares(1024, 4096, 50), (718, 50));
        assert_eq!(shares(1024, 100, 10_000), (100, 668));
        assert_eq!(shares(37, 4096, 10_000), (12, 8));
        assert_eq!(shares(0, 4096, 10_000), (1, 0));
    }

    /// With 24 files, the only message was "Too many open files"; with 30, there was no file for a third log.
    #[test]
    fn too_low_a_file_limit_is_reported() {
        assert_eq!(to_share(1024, 2), Ok(997));
        assert_eq!(to_share(64, 2), Ok(37));
        let refused = to_share(63, 2).unwrap_err();
        assert!(refused.contains("ulimit -n) is 63") && refused.contains("at least 64"), "{refused}");
    }
}
