//! What `/metrics` shows, for Prometheus. Only the lag of cursors is labelled by name, for the 1,000 largest.

use super::{
    answer::{Answer, full},
    memory::Memory,
    problem::Problem,
};
use crate::{
    log::{self, Stats, stats},
    store::{Counts, Store},
};
use hyper::{
    Response,
    header::{CONTENT_TYPE, HeaderValue},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::{fmt, sync::Arc, time::Duration};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

type Durations = Family<RouteLabel, Histogram, fn() -> Histogram>;

/// The metrics of the whole server.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    durations: Durations,
    appended: Counter,
    appended_bytes: Counter,
    batch_records: Histogram,
    /// Requests that wait for a commit.
    waiters: Gauge,
    /// Live tails.
    pub(super) tails: Gauge,
    pub(super) readers_dropped: Counter,
    pub(super) connections: Gauge,
    memory: Gauge,
}

/// Counts a request that waits for a commit, until it is dropped.
pub(super) struct WaitingRequest(Gauge);

impl Drop for WaitingRequest {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// A request begins to wait for a commit.
    pub(super) fn waiting(&self) -> WaitingRequest {
        self.waiters.inc();
        WaitingRequest(self.waiters.clone())
    }

    pub(super) fn new(store: &Arc<Store>) -> Self {
        let mut registry = Registry::with_prefix("millstream");
        let durations: Durations =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_05, 2.0, 18)));
        let this = Self {
            requests: Family::default(),
            durations,
            appended: Counter::default(),
            appended_bytes: Counter::default(),
            batch_records: Histogram::new(exponential_buckets(1.0, 4.0, 9)),
            waiters: Gauge::default(),
            tails: Gauge::default(),
            readers_dropped: Counter::default(),
            connections: Gauge::default(),
            memory: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Requests answered", this.requests.clone());
        registry.register("request_seconds", "Time to the head of the answer", this.durations.clone());
        registry.register("appended_records", "Records appended", this.appended.clone());
        registry.register("appended_bytes", "Bytes of the values appended", this.appended_bytes.clone());
        registry.register("batch_records", "Records in a request", this.batch_records.clone());
        registry.register("waiters", "Requests that wait for a commit", this.waiters.clone());
        registry.register("tails", "Live tails", this.tails.clone());
        registry.register(
            "readers_dropped",
            "Readers dropped: for reading too slowly, or with a connection that failed or was closed",
            this.readers_dropped.clone(),
        );
        registry.register("connections", "Connections", this.connections.clone());
        registry.register(
            "http_memory_bytes",
            "Memory of bodies that come in and of answers that go out",
            this.memory.clone(),
        );
        registry.register_collector(Box::new(Engine(Arc::downgrade(store))));
        Self { registry, ..this }
    }

    pub(super) fn answered(&self, route: &'static str, status: u16, time: Duration) {
        // Access to a family takes a lock and a hash lookup; so each thread keeps the metrics that it has used.
        type Kept = Vec<(&'static str, u16, Counter, Histogram)>;
        thread_local!(static KEPT: std::cell::RefCell<Kept> = const { std::cell::RefCell::new(Vec::new()) });
        KEPT.with_borrow_mut(|kept| {
            let is_it = |one: &(&'static str, u16, _, _)| std::ptr::eq(one.0, route) && one.1 == status;
            let at = kept.iter().position(is_it).unwrap_or_else(|| {
                let count = self.requests.get_or_create(&Request { route, status }).clone();
                let durations = self.durations.get_or_create(&RouteLabel { route }).clone();
                kept.push((route, status, count, durations));
                kept.len() - 1
            });
            kept[at].2.inc();
            kept[at].3.observe(time.as_secs_f64());
        });
    }

    pub(super) fn appended(&self, records: u64, bytes: u64) {
        self.appended.inc_by(records);
        self.appended_bytes.inc_by(bytes);
        self.batch_records.observe(records as f64);
    }

    pub(super) fn render(&self, memory: &Arc<Memory>) -> Result<Answer, Problem> {
        self.memory.set(memory.used().cast_signed() as i64);
        let mut text = String::new();
        let _ = encode(&mut text, &self.registry); // writing to a string cannot fail
        let mut answer = Response::new(full(memory.hold_answer(text.into_bytes())?));
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        Ok(answer)
    }
}

/// The most cursors whose lag is shown.
const MAX_SHOWN_LAGS: usize = 1000;

/// What the engine counts.
#[derive(Debug)]
struct Engine(std::sync::Weak<Store>);

/// Values that go up and down: the name, help text and current value of each. Without a store, its counts are 0.
fn gauges(chunk_bytes: u64, store: Option<&Store>) -> [(&'static str, &'static str, u64); 5] {
    let Counts { logs, open, unusable, refusing } = store.map(Store::counts).unwrap_or_default();
    [
        ("chunk_memory_bytes", "Memory of chunks", chunk_bytes),
        ("logs", "Logs in the store", logs),
        ("open_logs", "Logs that are open", open),
        ("unusable_logs", "Logs that could not be opened because of what is in their directories", unusable),
        (
            "refusing_logs",
            "Open logs that refuse appends: damaged, failed, or without room on the disk",
            refusing,
        ),
    ]
}

impl Collector for Engine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Stats {
            commit_micros,
            commit_records,
            committed_bytes,
            rolls,
            backpressure,
            chunk_bytes,
            shm_fallbacks,
            backings_kept,
            torn_ends_kept,
            scrubbed_bytes,
            scrub_damaged_segments,
            scrub_damaged_records,
        } = stats();
        let store = self.0.upgrade();
        histogram(&mut encoder, "commit_seconds", "Time of a commit to disk", &commit_micros, 1e-6)?;
        histogram(&mut encoder, "commit_records", "Records made durable by a commit", &commit_records, 1.0)?;
        for (name, help, count) in [
            ("committed_bytes", "Bytes of frames committed", committed_bytes),
            ("rolls", "Times appends moved to the next segment", rolls),
            ("backpressure", "Appends that found no room because the disk was behind", backpressure),
            ("shm_fallbacks", "Segments begun in memory that does not outlive the process", shm_fallbacks),
            ("backings_kept", "Backings of killed processes that were not restored, but kept", backings_kept),
            ("torn_ends_kept", "Torn ends of segments that were cut off, and kept", torn_ends_kept),
            ("scrubbed_bytes", "Bytes of sealed segments that were scrubbed", scrubbed_bytes),
            (
                "scrub_damaged_segments",
                "Times that a scrub has found a segment damaged",
                scrub_damaged_segments,
            ),
            ("scrub_damaged_records", "Times that a scrub has found a record damaged", scrub_damaged_records),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        for (name, help, value) in gauges(chunk_bytes, store.as_deref()) {
            let gauge = ConstGauge::new(value.cast_signed());
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let cursors = store.map_or_else(Vec::new, |store| store.cursor_lags(MAX_SHOWN_LAGS));
        let help = "Records between a cursor and the end of its log; the 1,000 largest, of open logs";
        let mut family = encoder.encode_descriptor("cursor_lag_records", help, None, MetricType::Gauge)?;
        for (log, cursor, lag) in cursors {
            let gauge = ConstGauge::new(lag.cast_signed());
            gauge.encode(family.encode_family(&[("log", log), ("cursor", cursor)])?)?;
        }
        Ok(())
    }
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    buckets: &log::Histogram,
    unit: f64,
) -> fmt::Result {
    use prometheus_client::encoding::NoLabelSet;
    let bound = |bound: u64| if bound == u64::MAX { f64::MAX } else { bound as f64 * unit };
    let counts: Vec<(f64, u64)> = buckets.counts.iter().map(|&(top, count)| (bound(top), count)).collect();
    let total = counts.iter().map(|(_, count)| count).sum();
    encoder.encode_descriptor(name, help, None, MetricType::Histogram)?.encode_histogram::<NoLabelSet>(
        buckets.sum as f64 * unit,
        total,
        &counts,
        None,
    )
}
