//! The load: what sends requests, and what follows the logs, all on one thread.

use super::{
    Bench, Ended, Failure, embedded, http1, http2, log_name,
    run::Run,
    series::{Second, millis},
    tails,
};
use crate::cli::{signals::Signals, stderr, target::Target};
use millstream::store::OpenLog;
use std::{
    fmt::Display,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

/// How long requests on their way, and tails, are waited for at the end.
const MAX_WAIT_FOR_ANSWERS: Duration = Duration::from_secs(10);

/// Runs the load on logs that exist, and prints progress every second. Ends at a signal.
pub(super) async fn run(bench: &Bench, target: &Target, signals: &mut Signals) -> Result<Ended, Failure> {
    let logs: Rc<[Arc<OpenLog>]> = match target {
        Target::Server(_) => Rc::new([]),
        Target::Directory(store) => {
            (0..bench.logs).map(|n| store.get(&log_name(n))).collect::<Result<Vec<_>, _>>()?.into()
        }
    };
    let run = Rc::new(Run::new(bench));
    let tasks = LocalSet::new();
    let (answered, signalled) = tokio::select! {
        answered = tasks.run_until(until_all_is_answered(&run, target, &logs)) => (answered, None),
        signal = signals.next() => (true, Some(signal)),
    };
    drop(tasks);
    let run = Rc::into_inner(run).ok_or("a part of the load did not end")?;
    let mut measured = run.measured.into_inner();
    if signalled.is_some() {
        // What is on its way is no failure.
        let measured = measured.interrupt(Instant::now()).then(|| Box::new(measured));
        return Ok(Ended { measured, signalled });
    }
    let unanswered = measured.unanswered(bench.rate);
    if unanswered > 0 || !answered {
        measured.appends.failed_many(unanswered.max(1), || {
            "requests were not sent, or not answered within 10 s after the end".to_owned()
        });
    }
    Ok(Ended { measured: Some(Box::new(measured)), signalled })
}

/// Returns whether all was answered in time.
async fn until_all_is_answered(run: &Rc<Run>, target: &Target, logs: &Rc<[Arc<OpenLog>]>) -> bool {
    let senders: Vec<_> = match target {
        Target::Server(client) => {
            (0..run.bench.connections).map(|n| connection(run, n, client.authority())).collect()
        }
        Target::Directory(_) => {
            let all = 0..run.bench.senders();
            all.map(|n| {
                let logs = Rc::clone(logs);
                task(run, async move |run| embedded::requests(&run, n, &logs).await)
            })
            .collect()
        }
    };
    let tails: Vec<_> = (0..run.bench.tails).map(|n| tail(run, n, target, logs)).collect();
    spawn_local(print_progress(Rc::clone(run)));
    let answered = all_end(senders, run.end() + MAX_WAIT_FOR_ANSWERS).await;
    run.over.set(true);
    if !all_end(tails, Instant::now() + MAX_WAIT_FOR_ANSWERS).await {
        let why = || "readers did not get all records within 10 s after the end".to_owned();
        run.measured.borrow_mut().tails.failed_many(1, why);
    }
    answered
}

/// Waits for all of these; returns whether they have ended in time.
async fn all_end(tasks: Vec<JoinHandle<()>>, deadline: Instant) -> bool {
    let all = async {
        for task in tasks {
            let _ = task.await; // a panic was printed
        }
    };
    tokio::time::timeout_at(deadline.into(), all).await.is_ok()
}

/// Starts a part of the load; if it fails, that is counted.
fn task<E: Display>(
    run: &Rc<Run>,
    part: impl AsyncFnOnce(Rc<Run>) -> Result<(), E> + 'static,
) -> JoinHandle<()> {
    let run = Rc::clone(run);
    spawn_local(async move {
        if let Err(error) = part(Rc::clone(&run)).await {
            run.broken(&error);
        }
    })
}

fn connection(run: &Rc<Run>, n: u32, address: &str) -> JoinHandle<()> {
    let address = address.to_owned();
    if run.bench.http2 {
        task(run, async move |run| http2::requests(run, n, address).await)
    } else if run.bench.session {
        task(run, async move |run| http1::session(&run, n, &address).await)
    } else {
        task(run, async move |run| http1::requests(&run, n, &address).await)
    }
}

fn tail(run: &Rc<Run>, n: u32, target: &Target, logs: &Rc<[Arc<OpenLog>]>) -> JoinHandle<()> {
    let log = (n % run.bench.logs) as usize;
    match target {
        Target::Server(client) => {
            let client = client.clone();
            task(run, async move |run| tails::of_server(&run, log, &client).await)
        }
        Target::Directory(_) => {
            let open = Arc::clone(&logs[log]);
            task(run, async move |run| tails::embedded(&run, log, &open).await)
        }
    }
}

/// Prints progress every second.
async fn print_progress(run: Rc<Run>) {
    let mut said = 0;
    while Instant::now() < run.end() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let measured = run.measured.borrow();
        // A second is over when the next one has begun.
        while said + 1 < measured.appends.seconds.len() {
            let second = &measured.appends.seconds[said];
            let count = |seconds: &[Second]| seconds.get(said).map_or(0, |second| second.requests);
            let reads = match run.bench.reads {
                0 => String::new(),
                _ => format!("  {} reads", count(&measured.reads.seconds)),
            };
            let failed: u64 = measured
                .all()
                .iter()
                .filter_map(|series| series.seconds.get(said))
                .map(|second| second.failed)
                .sum();
            said += 1;
            stderr::say(format_args!(
                "{said:>4} s  {:>8} per second, p50 {:.3} ms, p99 {:.3} ms{reads}, {failed} failed",
                second.requests,
                millis(&second.latency, 0.5),
                millis(&second.latency, 0.99),
            ));
        }
    }
}
