//! The metrics as Prometheus reads them.

use std::fmt::Write as _;

use vmgenie_devices::metrics::Kind;

use super::{Sample, samples};

/// All metrics in Prometheus' text format, version 0.0.4: `vmgenie_<group>_<name>`, counters with `_total`, with the label `id`; those of
/// drives and network interfaces with the label `device` as well.
pub fn prometheus(id: &str) -> String {
    text(id, &samples())
}

fn text(id: &str, samples: &[Sample]) -> String {
    let id = escaped(id);
    let mut lines: Vec<(String, &'static str, String)> = Vec::with_capacity(samples.len());
    for Sample {
        group,
        device,
        number,
    } in samples
    {
        let mut name = format!("vmgenie_{group}_{}", number.name);
        if let Some(part) = number.part {
            let _ = write!(name, "_{part}");
        }
        let kind = match number.kind {
            Kind::Counter => {
                name.push_str("_total");
                "counter"
            }
            Kind::Gauge | Kind::Min | Kind::Max => "gauge",
        };
        let device = match device {
            Some(device) => format!(",device=\"{}\"", escaped(device)),
            None => String::new(),
        };
        let value = format!("{name}{{id=\"{id}\"{device}}} {}", number.value);
        lines.push((name, kind, value));
    }
    // All lines of a metric are to be in one place: those of several devices are not.
    let mut order: Vec<&str> = Vec::new();
    for (name, ..) in &lines {
        if !order.contains(&name.as_str()) {
            order.push(name);
        }
    }
    let mut text = String::new();
    for name in order {
        let mut of_metric = lines.iter().filter(|(other, ..)| other == name).peekable();
        if let Some((_, kind, _)) = of_metric.peek() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# TYPE {name} {kind}");
        }
        for (_, _, value) in of_metric {
            let _ = writeln!(text, "{value}");
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
            assert!(value.starts_with(r#"{id="a\"b\\c\nd""#), "{line}");
            let value = line.rsplit(' ').next().unwrap();
            value.parse::<u64>().unwrap();
        }
        assert!(values > 100, "{values}");
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
