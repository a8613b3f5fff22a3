//! Metrics as text: Envoy's `/stats`, its JSON, and Prometheus' exposition format.

use std::fmt::Write;

use super::{BUCKETS, Sample, Value};

/// Which metrics are shown.
#[derive(Debug, Default)]
pub struct Filter {
    /// On the full name, anywhere in it.
    pub name: Option<regex::Regex>,
    /// Only counters and gauges that are not zero and histograms that hold values.
    pub used_only: bool,
}

impl Filter {
    fn shows(&self, sample: &Sample) -> bool {
        let used = match &sample.value {
            Value::Counter(value) | Value::Gauge(value) => *value != 0,
            Value::Histogram { count, .. } => *count != 0,
            Value::Text(_) => true,
        };
        (used || !self.used_only) && self.name.as_ref().is_none_or(|name| name.is_match(&sample.full_name()))
    }
}

/// `cluster.edge.upstream_rq_total: 5`, one line for each.
#[must_use]
pub fn text(samples: &[Sample], filter: &Filter) -> String {
    let mut out = String::new();
    for sample in samples.iter().filter(|sample| filter.shows(sample)) {
        let name = sample.full_name();
        // Writing to a String cannot fail.
        let _ = match &sample.value {
            Value::Counter(value) | Value::Gauge(value) => writeln!(out, "{name}: {value}"),
            Value::Text(value) => writeln!(out, "{name}: {value:?}"),
            Value::Histogram { buckets, count, .. } => writeln!(out, "{name}: {}", quantiles_text(buckets, *count)),
        };
    }
    out
}

/// Envoy's `/stats?format=json`: `{"stats":[{"name":..,"value":..}, ..]}`.
#[must_use]
pub fn json(samples: &[Sample], filter: &Filter) -> String {
    let mut out = String::from("{\"stats\":[");
    let mut first = true;
    for sample in samples.iter().filter(|sample| filter.shows(sample)) {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        let name = json_string(&sample.full_name());
        let _ = match &sample.value {
            Value::Counter(value) | Value::Gauge(value) => write!(out, "{{\"name\":{name},\"value\":{value}}}"),
            Value::Text(value) => write!(out, "{{\"name\":{name},\"value\":{}}}", json_string(value)),
            Value::Histogram { buckets, count, sum_milliseconds } => {
                let quantiles: Vec<String> = QUANTILES
                    .iter()
                    .map(|quantile| {
                        format!("{{\"quantile\":{quantile},\"value\":{}}}", quantile_of(buckets, *count, *quantile))
                    })
                    .collect();
                write!(
                    out,
                    "{{\"name\":{name},\"count\":{count},\"sum\":{sum_milliseconds},\"quantiles\":[{}]}}",
                    quantiles.join(",")
                )
            }
        };
    }
    out.push_str("]}");
    out
}

/// Prometheus' text format, version 0.0.4, with Envoy's names and tags.
#[must_use]
pub fn prometheus(samples: &[Sample], filter: &Filter) -> String {
    let mut series: Vec<Series<'_>> =
        samples.iter().filter(|sample| filter.shows(sample)).filter_map(Series::new).collect();
    series.sort_by(|a, b| (&a.name, &a.labels).cmp(&(&b.name, &b.labels)));
    let mut out = String::new();
    let mut previous = "";
    for one in &series {
        if one.name != previous {
            let _ = writeln!(out, "# TYPE {} {}", one.name, one.kind);
            previous = &one.name;
        }
        one.write(&mut out);
    }
    out
}

/// One sample under Prometheus' name.
struct Series<'a> {
    name: String,
    /// `a="b",c="d"`
    labels: String,
    kind: &'static str,
    value: &'a Value,
}

impl<'a> Series<'a> {
    fn new(sample: &'a Sample) -> Option<Self> {
        let kind = match sample.value {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram { .. } => "histogram",
            Value::Text(_) => return None,
        };
        let (metric, class) = response_class(&sample.name);
        let mut labels = String::new();
        let path = &sample.path;
        let tags = path.name.iter().chain(&path.inner).map(|tag| (tag.key, &*tag.value));
        for (key, value) in class.into_iter().chain(tags) {
            let comma = if labels.is_empty() { "" } else { "," };
            let _ = write!(labels, "{comma}{key}=\"{}\"", label_value(value));
        }
        let name = sample.path.prometheus_prefix() + &metric;
        let name = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
        Some(Self { name, labels, kind, value: &sample.value })
    }

    fn write(&self, out: &mut String) {
        let (name, labels) = (&self.name, &self.labels);
        match self.value {
            Value::Counter(value) | Value::Gauge(value) => {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            }
            Value::Histogram { buckets, count, sum_milliseconds } => {
                let comma = if labels.is_empty() { "" } else { "," };
                let mut below = 0;
                for (bound, bucket) in BUCKETS.iter().zip(buckets) {
                    below += bucket;
                    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
                }
                let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
                let _ = writeln!(out, "{name}_sum{{{labels}}} {sum_milliseconds}");
                let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
            }
            Value::Text(_) => {}
        }
    }
}

/// Envoy takes the status out of the name: `upstream_rq_2xx` is `upstream_rq_xx{envoy_response_code_class="2"}`, and
/// `upstream_rq_200` is `upstream_rq{envoy_response_code="200"}`.
fn response_class(name: &str) -> (String, Option<(&'static str, &str)>) {
    if let Some((head, code)) = name.rsplit_once("_rq_")
        && code.len() == 3
        && code.starts_with(|c: char| c.is_ascii_digit())
    {
        if code.ends_with("xx") {
            return (format!("{head}_rq_xx"), Some(("envoy_response_code_class", &code[..1])));
        }
        if code.bytes().all(|b| b.is_ascii_digit()) {
            return (format!("{head}_rq"), Some(("envoy_response_code", code)));
        }
    }
    (name.to_owned(), None)
}

fn label_value(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn quantiles_text(buckets: &[u64], count: u64) -> String {
    if count == 0 {
        return "No recorded values".to_owned();
    }
    let parts: Vec<String> = QUANTILES
        .iter()
        .map(|quantile| format!("P{}({})", quantile * 100.0, quantile_of(buckets, count, *quantile)))
        .collect();
    parts.join(" ")
}

/// The value below which that share of all values lies, interpolated within its bucket.
#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn quantile_of(buckets: &[u64], count: u64, quantile: f64) -> f64 {
    let wanted = quantile * count as f64;
    let mut below = 0.0;
    let mut lower = 0.0;
    for (bucket, upper) in buckets.iter().zip(BUCKETS) {
        let held = *bucket as f64;
        if held > 0.0 && below + held >= wanted {
            let share = ((wanted - below) / held).clamp(0.0, 1.0);
            return ((lower + (upper - lower) * share) * 1000.0).round() / 1000.0;
        }
        below += held;
        lower = upper;
    }
    lower
}

/// Envoy's.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 1.0];
