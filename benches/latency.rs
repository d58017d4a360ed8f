//! How long one append takes while the flusher writes all the time, at a steady rate and as fast as possible.
//! `cargo bench --bench latency -- [APPENDS PER SECOND] [SECONDS]`

mod common;

use common::{dir, open};
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

fn report(label: &str, latency: &Histogram<u64>) {
    let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{label:<28} {} appends, p50 {:.2} µs, p99 {:.2} µs, p99.99 {:.1} µs, max {:.0} µs",
        latency.len(),
        at(0.5),
        at(0.99),
        at(0.9999),
        latency.max() as f64 / 1000.0
    );
}

/// Nanoseconds of each append of 100 bytes, one every `every`. The chunks have been faulted in before.
fn measure(every: Duration, seconds: u64) -> Histogram<u64> {
    let place = dir();
    let log = open(place.path());
    let value = [7u8; 100];
    for _ in 0..3 {
        for _ in 0..1 << 20 {
            log.append(&value).unwrap();
        }
        log.flush().unwrap();
        log.trim(u64::MAX).unwrap();
    }
    let mut latency = Histogram::new(3).unwrap();
    let mut appender = log.appender();
    let (begun, end) = (Instant::now(), Duration::from_secs(seconds));
    let mut due = Duration::ZERO;
    while begun.elapsed() < end {
        while begun.elapsed() < due {
            std::hint::spin_loop();
        }
        let before = Instant::now();
        appender.append(&value).unwrap();
        latency.record(before.elapsed().as_nanos() as u64).unwrap();
        due += every;
    }
    log.flush().unwrap();
    latency
}

/// How long the timing itself takes.
fn clock() -> Histogram<u64> {
    let mut latency = Histogram::new(3).unwrap();
    for _ in 0..1_000_000 {
        let before = Instant::now();
        latency.record(before.elapsed().as_nanos() as u64).unwrap();
    }
    latency
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (rate, seconds) =
        (numbers.first().copied().unwrap_or(200_000).max(1), numbers.get(1).copied().unwrap_or(10));
    report("floor: the clock", &clock());
    report(&format!("{rate} a second"), &measure(Duration::from_nanos(1_000_000_000 / rate), seconds));
    report("as fast as it goes", &measure(Duration::ZERO, seconds));
}
