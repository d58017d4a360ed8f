//! The results as a table, as JSON, and as a page with plots.

use super::{
    Bench, Failure,
    series::{Measured, Second, Series, millis},
};
use hdrhistogram::Histogram;
use std::fmt::Write;

/// The quantiles that are reported.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

/// Requests, records and bytes per second.
fn rates(series: &Series) -> [f64; 3] {
    [series.requests, series.records, series.bytes].map(|count| count as f64 / series.time().as_secs_f64())
}

/// What was measured, by name: appends, and what else was asked for.
fn kinds<'a>(bench: &Bench, measured: &'a Measured) -> impl Iterator<Item = (&'static str, &'a Series)> {
    let reads = (bench.reads > 0).then_some(("reads", &measured.reads));
    let tails = (bench.tails > 0).then_some(("tails", &measured.tails));
    [("appends", &measured.appends)].into_iter().chain(reads).chain(tails)
}

pub(super) fn table(bench: &Bench, measured: &Measured) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<20} {value:>12}"); // to a string: cannot fail
    };
    if let Some(wanted) = bench.rate {
        row("wanted per second", wanted.to_string());
    }
    if measured.is_interrupted {
        row("interrupted after s", format!("{:.1}", measured.appends.time().as_secs_f64()));
    }
    let several = kinds(bench, measured).count() > 1;
    for (kind, series) in kinds(bench, measured) {
        if several {
            row(kind, String::new());
        }
        let [requests, records, bytes] = rates(series);
        match kind {
            "tails" => {}
            _ if bench.session => row("batches per second", format!("{requests:.0}")),
            _ => row("requests per second", format!("{requests:.0}")),
        }
        row("records per second", format!("{records:.0}"));
        row("MiB per second", format!("{:.1}", bytes / f64::from(1 << 20)));
        for (name, quantile) in QUANTILES.iter().filter(|_| series.requests > 0) {
            row(&format!("{name} in ms"), format!("{:.3}", millis(&series.latency, *quantile)));
        }
    }
    row("failed", measured.failed().to_string());
    if let Some(failure) = measured.failure() {
        let _ = writeln!(text, "the first failure: {}", failure.trim_end());
    }
    text
}

fn quantiles(latency: &Histogram<u64>) -> serde_json::Value {
    let all =
        QUANTILES.iter().map(|(name, quantile)| ((*name).to_owned(), millis(latency, *quantile).into()));
    serde_json::Value::Object(all.collect())
}

fn series_json(series: &Series) -> serde_json::Value {
    let [requests, records, bytes] = rates(series);
    let seconds = series.seconds.iter().map(|second| {
        serde_json::json!({
            "requests": second.requests, "failed": second.failed, "latency_ms": quantiles(&second.latency),
        })
    });
    serde_json::json!({
        "requests_per_second": requests, "records_per_second": records, "bytes_per_second": bytes,
        "latency_ms": quantiles(&series.latency),
        "requests": series.requests, "records": series.records, "failed": series.failed,
        "first_failure": series.failure,
        "seconds": seconds.collect::<Vec<_>>(),
    })
}

pub(super) fn json(bench: &Bench, measured: &Measured) -> Result<String, Failure> {
    let mut report = serde_json::json!({ "settings": bench });
    for (kind, series) in kinds(bench, measured) {
        report[kind] = series_json(series);
    }
    if measured.is_interrupted {
        report["interrupted_after_seconds"] = measured.appends.time().as_secs_f64().into();
    }
    Ok(format!("{}\n", serde_json::to_string(&report)?))
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 220.0;
/// Room for the numbers beside a plot.
const LEFT: f64 = 70.0;
/// Room for the numbers below a plot.
const BELOW: f64 = 34.0;

/// How many steps the numbers below a plot have.
const STEPS: u32 = 5;

/// A line of a plot: its name, and its points.
struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// A plot of some lines, as SVG. Each line has a color of its own, set by the page.
fn plot(title: &str, x_name: &str, y_name: &str, lines: &[Line], x_label: impl Fn(f64) -> String) -> String {
    let all = || lines.iter().flat_map(|line| line.points.iter().copied());
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let x_max = largest(&mut all().map(|(x, _)| x)).max(f64::MIN_POSITIVE);
    let y_max = axis_end(largest(&mut all().map(|(_, y)| y)));
    let (x_at, y_at) =
        (|x: f64| LEFT + x / x_max * (WIDTH - LEFT - 10.0), |y: f64| HEIGHT - y / y_max * (HEIGHT - 10.0));
    let (width, height) = (WIDTH, HEIGHT + BELOW);
    let mut svg = format!(
        "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">"
    );
    for step in 0..=4 {
        let y = y_max * f64::from(step) / 4.0;
        let at = y_at(y);
        let _ =
            write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            short(y)
        );
    }
    for step in 0..=STEPS {
        let x = x_max * f64::from(step) / f64::from(STEPS);
        let anchor = if step == STEPS { "end" } else { "middle" };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            x_at(x),
            HEIGHT + 16.0,
            x_label(x)
        );
    }
    for (n, line) in lines.iter().enumerate() {
        let points: Vec<_> =
            line.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", x_at(x), y_at(y))).collect();
        let _ = write!(svg, "<polyline class=\"line{n}\" points=\"{}\"/>", points.join(" "));
    }
    let names: Vec<_> = lines
        .iter()
        .enumerate()
        .map(|(n, line)| format!("<tspan class=\"name{n}\">{}</tspan>", line.name))
        .collect();
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\">{y_name} over {x_name}: {}</text></svg></figure>",
        HEIGHT + 31.0,
        names.join(" · ")
    );
    svg
}

/// The names of quantiles with 0 nines and more.
const NINES: [&str; STEPS as usize + 1] = ["p0", "p90", "p99", "p99.9", "p99.99", "p99.999"];

/// The quantile with this many nines, if it has a name.
fn quantile_name(nines: f64) -> &'static str {
    let named = (0..).map(f64::from).zip(NINES).find(|(n, _)| (n - nines).abs() < 0.01);
    named.map_or("", |(_, name)| name)
}

/// The smallest round number ≥ `max`, for the end of an axis.
fn axis_end(max: f64) -> f64 {
    if max <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(max.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 10.0].iter().map(|step| step * power).find(|&end| end >= max).unwrap_or(max)
}

fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{:.1} M", value / 1e6),
        1e4.. => format!("{:.0} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// A page that needs nothing else.
pub(super) fn html(bench: &Bench, measured: &Measured) -> String {
    let appends = &measured.appends;
    let over_time = |name, series: &Series, of: &dyn Fn(&Second) -> f64| Line {
        name,
        points: series.seconds.iter().enumerate().map(|(n, second)| (n as f64, of(second))).collect(),
    };
    let digits = usize::from(appends.seconds.len() < 20);
    let seconds = move |x: f64| format!("{x:.digits$} s");
    let requests = |second: &Second| second.requests as f64;
    let sent = kinds(bench, measured).filter(|(kind, _)| *kind != "tails");
    let rates: Vec<_> = sent.map(|(kind, series)| over_time(kind, series, &requests)).collect();
    let rate = plot("Rate", "time", "requests per second", &rates, seconds);
    let latency = plot(
        "Latency of appends",
        "time",
        "ms",
        &[
            over_time("p50", appends, &|second| millis(&second.latency, 0.5)),
            over_time("p99", appends, &|second| millis(&second.latency, 0.99)),
        ],
        seconds,
    );
    // So that the rare ones have as much room as the common ones: one step for each further nine.
    let distribution = |(name, series): (&'static str, &Series)| {
        let at = |nines: f64| (nines, millis(&series.latency, 1.0 - 10f64.powf(-nines)));
        Line { name, points: (0..=10 * STEPS).map(|step| at(f64::from(step) / 10.0)).collect() }
    };
    let lines: Vec<_> = kinds(bench, measured).map(distribution).collect();
    let spread =
        plot("Distribution of latencies", "quantile", "ms", &lines, |nines| quantile_name(nines).to_owned());
    let escaped = table(bench, measured).replace('&', "&amp;").replace('<', "&lt;");
    let settings = format!("{bench:?}").replace('&', "&amp;").replace('<', "&lt;");
    include_str!("page.html")
        .replace("TABLE", &escaped)
        .replace("PLOTS", &[rate, latency, spread].concat())
        .replace("SETTINGS", &settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_at_a_number_that_looks_well() {
        for (max, end) in
            [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (3.2, 4.0), (41_000.0, 50_000.0), (99.0, 100.0)]
        {
            assert!((axis_end(max) - end).abs() < 1e-9, "{max}: {}", axis_end(max));
        }
        assert_eq!([0.0, 1.0, 2.0, 4.0].map(quantile_name), ["p0", "p90", "p99", "p99.99"]);
        assert_eq!([0.5, 250.0, 12_345.0, 2_500_000.0].map(short), ["0.50", "250", "12 k", "2.5 M"]);
    }
}
