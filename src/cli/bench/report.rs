//! The results as a table, as JSON, and as a page with plots.

use super::{
    Bench, Failure,
    series::{Second, Series, millis},
};
use hdrhistogram::Histogram;
use std::fmt::Write;

/// The quantiles that are reported.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

/// Requests, records and bytes per second.
fn rates(bench: &Bench, series: &Series) -> (f64, f64, f64) {
    let requests = series.requests as f64 / series.measured().as_secs_f64();
    let records = requests * f64::from(bench.batch);
    (requests, records, records * bench.bytes as f64)
}

pub(super) fn table(bench: &Bench, series: &Series) -> String {
    let (requests, records, bytes) = rates(bench, series);
    let what = if bench.session { "batches per second" } else { "requests per second" };
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<20} {value:>12}"); // to a string: cannot fail
    };
    row(what, format!("{requests:.0}"));
    if let Some(wanted) = series.wanted {
        row("wanted per second", wanted.to_string());
    }
    row("records per second", format!("{records:.0}"));
    row("MiB per second", format!("{:.1}", bytes / f64::from(1 << 20)));
    for (name, quantile) in QUANTILES {
        row(&format!("{name} in ms"), format!("{:.3}", millis(&series.latency, quantile)));
    }
    row("failed", series.failed.to_string());
    if let Some(failure) = &series.failure {
        let _ = writeln!(text, "the first failure: {}", failure.trim_end());
    }
    text
}

pub(super) fn json(bench: &Bench, series: &Series) -> Result<String, Failure> {
    let (requests, records, bytes) = rates(bench, series);
    let quantiles = |latency: &Histogram<u64>| {
        let all =
            QUANTILES.iter().map(|(name, quantile)| ((*name).to_owned(), millis(latency, *quantile).into()));
        all.collect::<serde_json::Map<_, serde_json::Value>>()
    };
    let seconds: Vec<_> = series
        .seconds
        .iter()
        .map(|second| {
            serde_json::json!({
                "requests": second.requests, "failed": second.failed, "latency_ms": quantiles(&second.latency),
            })
        })
        .collect();
    let report = serde_json::json!({
        "settings": bench,
        "requests_per_second": requests, "records_per_second": records, "bytes_per_second": bytes,
        "latency_ms": quantiles(&series.latency),
        "requests": series.requests, "failed": series.failed, "first_failure": series.failure,
        "seconds": seconds,
    });
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
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let x_most = most(&mut all().map(|(x, _)| x)).max(f64::MIN_POSITIVE);
    let y_most = nice(most(&mut all().map(|(_, y)| y)));
    let (x_at, y_at) =
        (|x: f64| LEFT + x / x_most * (WIDTH - LEFT - 10.0), |y: f64| HEIGHT - y / y_most * (HEIGHT - 10.0));
    let (width, height) = (WIDTH, HEIGHT + BELOW);
    let mut svg = format!(
        "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">"
    );
    for step in 0..=4 {
        let y = y_most * f64::from(step) / 4.0;
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
        let x = x_most * f64::from(step) / f64::from(STEPS);
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

/// The smallest round number ≥ `most`, for the end of an axis.
fn nice(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 10.0].iter().map(|step| step * power).find(|&end| end >= most).unwrap_or(most)
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
pub(super) fn html(bench: &Bench, series: &Series) -> String {
    let over_time = |name, of: &dyn Fn(&Second) -> f64| Line {
        name,
        points: series.seconds.iter().enumerate().map(|(n, second)| (n as f64, of(second))).collect(),
    };
    let digits = usize::from(series.seconds.len() < 20);
    let seconds = move |x: f64| format!("{x:.digits$} s");
    let rate = plot(
        "Rate",
        "time",
        "requests per second",
        &[over_time("requests", &|second| second.requests as f64)],
        seconds,
    );
    let latency = plot(
        "Latency",
        "time",
        "ms",
        &[
            over_time("p50", &|second| millis(&second.latency, 0.5)),
            over_time("p99", &|second| millis(&second.latency, 0.99)),
        ],
        seconds,
    );
    // So that the rare ones have as much room as the common ones: one step for each further nine.
    let nines: Vec<_> = (0..=10 * STEPS)
        .map(|step| f64::from(step) / 10.0)
        .map(|nines| (nines, millis(&series.latency, 1.0 - 10f64.powf(-nines))))
        .collect();
    let spread = plot(
        "Distribution of latencies",
        "quantile",
        "ms",
        &[Line { name: "latency", points: nines }],
        |nines| quantile_name(nines).to_owned(),
    );
    let escaped = table(bench, series).replace('&', "&amp;").replace('<', "&lt;");
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
        for (most, end) in
            [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (3.2, 4.0), (41_000.0, 50_000.0), (99.0, 100.0)]
        {
            assert!((nice(most) - end).abs() < 1e-9, "{most}: {}", nice(most));
        }
        assert_eq!([0.0, 1.0, 2.0, 4.0].map(quantile_name), ["p0", "p90", "p99", "p99.99"]);
        assert_eq!([0.5, 250.0, 12_345.0, 2_500_000.0].map(short), ["0.50", "250", "12 k", "2.5 M"]);
    }
}
