//! The signals that stop the server.

use crate::cli::stderr::Lines;
use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// Completes at SIGINT, SIGTERM or SIGHUP, which are caught from this call on. At a second SIGINT or SIGTERM the
/// process exits at once: what was acknowledged survives that, as it survives SIGKILL. SIGHUP means that the terminal
/// is gone, and may come more than once; if it is ignored (`nohup`), it stays ignored.
pub(super) fn signalled(stderr: &Lines) -> std::io::Result<oneshot::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _within = runtime.enter();
        let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, hangup)
    };
    let (stop, stopped) = oneshot::channel();
    let stderr = stderr.clone();
    // On a thread of its own, so that nothing in the server can keep signals from being noticed.
    let listen = async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => (Signal::INT, "SIGINT"),
                _ = terminate.recv() => (Signal::TERM, "SIGTERM"),
            }
        };
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        let name = tokio::select! {
            (_, name) = next() => name,
            () = hung_up => "SIGHUP",
        };
        tracing::info!("{name}: stopping");
        let _ = stop.send(()); // the server may have ended already
        let (signal, name) = next().await;
        tracing::warn!("{name}, again: ending at once, without waiting for requests in flight");
        stderr.flush(super::MAX_LOG_FLUSH_TIME);
        std::process::exit(128 + signal.as_raw());
    };
    std::thread::Builder::new().name("millstream-signals".into()).spawn(move || runtime.block_on(listen))?;
    Ok(stopped)
}

/// Whether this process was started with SIGHUP ignored; if the system does not say so, it was not.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or(0) & 1 << (Signal::HUP.as_raw() - 1) != 0
}
