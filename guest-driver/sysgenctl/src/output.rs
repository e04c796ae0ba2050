//! How results, log lines and errors are shown.

use std::error::Error;
use std::io::{self, Write};

use serde_json::{Map, Value};

/// An error with everything that caused it.
pub(crate) fn report(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// One line on the standard output: `value` as JSON, or `text`. Flushed, as somebody may be waiting.
pub(crate) fn line(json: bool, value: &Value, text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{value}")?;
    } else {
        writeln!(out, "{}", text.trim_end())?;
    }
    out.flush()
}

/// The agent's log: the standard error, which a service manager keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    pub(crate) json: bool,
}

impl Log {
    /// One line: an object with `event` and `fields`, or `text`.
    ///
    /// A log that cannot be written is no reason to leave a generation without its hooks.
    pub(crate) fn say<const N: usize>(self, event: &str, fields: [(&str, Value); N], text: &str) {
        let mut err = io::stderr().lock();
        let _ = if self.json {
            let mut object = Map::new();
            object.insert("event".into(), event.into());
            object.extend(fields.into_iter().map(|(name, value)| (name.into(), value)));
            writeln!(err, "{}", Value::Object(object))
        } else {
            writeln!(err, "sysgenctl: {text}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_the_device_and_the_cause() {
        let error = sysgenid::Counter::open_at("/nonexistent/sysgenid").unwrap_err();
        assert_eq!(
            report(&error),
            "could not open /nonexistent/sysgenid: No such file or directory (os error 2)"
        );
    }
}
