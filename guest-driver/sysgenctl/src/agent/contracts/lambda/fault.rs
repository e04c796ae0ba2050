//! What a runtime says of its failure: nothing that may be trusted, so it is cut and made printable.

use std::fmt;

use serde_json::Value;

/// How many characters of each part are kept.
const LENGTH: usize = 200;

/// A failure as the runtime tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    kind: String,
    message: String,
}

impl Fault {
    /// Of a request's body, and of its header `Lambda-Runtime-Function-Error-Type`.
    pub(super) fn of(body: &[u8], header: Option<&[u8]>) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let said = |name: &str| body.get(name).and_then(Value::as_str).map(printable);
        let header = header.map(|kind| printable(&String::from_utf8_lossy(kind)));
        Self {
            kind: said("errorType")
                .or(header)
                .unwrap_or_else(|| "Unknown".into()),
            message: said("errorMessage").unwrap_or_default(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.is_empty() {
            true => f.write_str(&self.kind),
            false => write!(f, "{}: {}", self.kind, self.message),
        }
    }
}

/// What can be shown of a text from elsewhere.
pub(super) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let mut kept: String = text.chars().take(LENGTH).map(shown).collect();
    if text.chars().nth(LENGTH).is_some() {
        kept.push_str("...");
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_says_is_one_bounded_line() {
        let fault =
            |body: &str, header: Option<&[u8]>| Fault::of(body.as_bytes(), header).to_string();
        let body = r#"{"errorType":"ValueError","errorMessage":"no\u001b[2J\nluck"}"#;
        assert_eq!(fault(body, Some(b"Runtime.X")), "ValueError: no [2J luck");
        assert_eq!(fault("not JSON", Some(b"Runtime.X")), "Runtime.X");
        assert_eq!(fault("[1]", None), "Unknown");
        assert_eq!(fault(r#"{"errorType":7}"#, None), "Unknown");
        let long = format!(r#"{{"errorMessage":"{}"}}"#, "ä".repeat(100_000));
        assert_eq!(
            fault(&long, None).chars().count(),
            "Unknown: ...".len() + LENGTH
        );
    }
}
