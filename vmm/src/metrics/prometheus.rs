//! The metrics as Prometheus reads them.

use std::fmt::Write as _;

use vmgenie_devices::metrics::Kind;

use super::{Sample, samples};

/// All metrics in Prometheus' text format, version 0.0.4: `vmgenie_<group>_<name>`, counters with `_total`, with the label `id`; those of
/// drives and network interfaces with the label `device` as well, and histograms with `le` in the unit of their name.
pub fn prometheus(id: &str) -> String {
    text(id, &samples())
}

/// A line, and the metric that it is of.
struct Line {
    metric: String,
    kind: &'static str,
    text: String,
}

impl Line {
    fn of(id: &str, sample: &Sample) -> Self {
        let Sample {
            group,
            device,
            number,
        } = sample;
        let mut name = format!("vmgenie_{group}_{}", number.name);
        let part = number
            .part
            .map(|part| format!("_{part}"))
            .unwrap_or_default();
        let mut labels = format!("id=\"{id}\"");
        if let Some(device) = device {
            let _ = write!(labels, ",device=\"{}\"", escaped(device));
        }
        // Writing to a string cannot fail.
        let _ = match number.kind {
            Kind::Bucket(None) => write!(labels, ",le=\"+Inf\""),
            Kind::Bucket(Some(bound)) => write!(labels, ",le=\"{bound}\""),
            _ => Ok(()),
        };
        let kind = match number.kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::Min | Kind::Max => "gauge",
            Kind::Bucket(_) | Kind::Total => "histogram",
        };
        if kind == "histogram" {
            // The parts are one metric.
            return Self {
                text: format!("{name}{part}{{{labels}}} {}", number.value),
                metric: name,
                kind,
            };
        }
        name.push_str(&part);
        if kind == "counter" {
            name.push_str("_total");
        }
        Self {
            text: format!("{name}{{{labels}}} {}", number.value),
            metric: name,
            kind,
        }
    }
}

fn text(id: &str, samples: &[Sample]) -> String {
    let id = escaped(id);
    let lines: Vec<_> = samples.iter().map(|sample| Line::of(&id, sample)).collect();
    // All lines of a metric are to be in one place: those of several devices are not.
    let mut order: Vec<&str> = Vec::new();
    for Line { metric, .. } in &lines {
        if !order.contains(&metric.as_str()) {
            order.push(metric);
        }
    }
    let mut text = String::new();
    for metric in order {
        let mut of_metric = lines.iter().filter(|line| line.metric == metric).peekable();
        if let Some(Line { kind, .. }) = of_metric.peek() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# TYPE {metric} {kind}");
        }
        for line in of_metric {
            let _ = writeln!(text, "{}", line.text);
        }
    }
    text
}

/// As the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use vmgenie_devices::metrics::Number;

    use super::*;

    #[test]
    fn prometheus_text_has_a_type_and_a_value_for_each_metric() {
        let text = text("a\"b\\c\nd", &samples());
        let mut name = "";
        let mut values = 0;
        for line in text.lines() {
            if let Some(typed) = line.strip_prefix("# TYPE ") {
                name = typed.split(' ').next().unwrap();
                continue;
            }
            values += 1;
            let value = line.strip_prefix(name).unwrap();
            let part = ["_bucket", "_sum", "_count"].into_iter();
            let value = part.fold(value, |value, part| {
                value.strip_prefix(part).unwrap_or(value)
            });
            assert!(value.starts_with(r#"{id="a\"b\\c\nd""#), "{line}");
            let value = line.rsplit(' ').next().unwrap();
            value.parse::<u64>().unwrap();
        }
        assert!(values > 100, "{values}");
    }

    #[test]
    fn a_histogram_is_one_metric_of_many_lines() {
        let number = |part, kind, value| Sample {
            group: "restore",
            device: None,
            number: Number {
                name: "took_us",
                part: Some(part),
                kind,
                value,
            },
        };
        let samples = [
            number("bucket", Kind::Bucket(Some(1000)), 1),
            number("bucket", Kind::Bucket(None), 2),
            number("sum", Kind::Total, 5001),
            number("count", Kind::Total, 2),
        ];
        assert_eq!(
            text("vm", &samples),
            "# TYPE vmgenie_restore_took_us histogram\n\
             vmgenie_restore_took_us_bucket{id=\"vm\",le=\"1000\"} 1\n\
             vmgenie_restore_took_us_bucket{id=\"vm\",le=\"+Inf\"} 2\n\
             vmgenie_restore_took_us_sum{id=\"vm\"} 5001\n\
             vmgenie_restore_took_us_count{id=\"vm\"} 2\n"
        );
    }

    #[test]
    fn the_lines_of_a_metric_lie_together_with_a_label_for_each_device() {
        let sample = |device: &str, name, kind| Sample {
            group: "block",
            device: Some(device.to_owned()),
            number: Number {
                name,
                part: (kind == Kind::Max).then_some("max_us"),
                kind,
                value: 7,
            },
        };
        let samples = [
            sample("a", "reads", Kind::Counter),
            sample("a", "took", Kind::Max),
            sample("b", "reads", Kind::Counter),
            sample("b", "took", Kind::Max),
        ];
        assert_eq!(
            text("vm", &samples),
            "# TYPE vmgenie_block_reads_total counter\n\
             vmgenie_block_reads_total{id=\"vm\",device=\"a\"} 7\n\
             vmgenie_block_reads_total{id=\"vm\",device=\"b\"} 7\n\
             # TYPE vmgenie_block_took_max_us gauge\n\
             vmgenie_block_took_max_us{id=\"vm\",device=\"a\"} 7\n\
             vmgenie_block_took_max_us{id=\"vm\",device=\"b\"} 7\n"
        );
    }
}
