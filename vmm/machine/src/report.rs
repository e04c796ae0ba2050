//! How an error is told, by the API, the command line and the log alike: what was being done, and behind a colon each why, in one line.

use std::error::Error;
use std::fmt::Write;

/// An error with everything that caused it.
pub fn report(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors of other crates repeat their cause.
        let told = cause.to_string();
        if !text.ends_with(&told) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {told}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    enum Nested {
        #[error("the disk is full")]
        Inner,
        #[error("could not write")]
        Outer(#[source] Box<Nested>),
        #[error("{0}")]
        Transparent(#[source] Box<Nested>),
    }

    #[test]
    fn an_error_is_told_with_its_causes_each_once() {
        let inner = || Box::new(Nested::Inner);
        assert_eq!(report(&Nested::Inner), "the disk is full");
        let outer = Nested::Outer(inner());
        assert_eq!(report(&outer), "could not write: the disk is full");
        let transparent = Nested::Transparent(Box::new(Nested::Outer(inner())));
        assert_eq!(report(&transparent), "could not write: the disk is full");
    }
}
