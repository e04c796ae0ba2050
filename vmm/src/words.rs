//! What one word of the command line says: a value with options behind commas.

use vmgenie_machine::config::ConfigError;

/// `VALUE[,OPTION...]`, where an option is `NAME` or `NAME=VALUE`. Two commas are one that belongs to the text, as in QEMU's options.
#[derive(Debug)]
pub(crate) struct Words(Vec<String>);

impl Words {
    pub(crate) fn of(text: &str) -> Self {
        let mut words = vec![String::new()];
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            match (letter, words.last_mut()) {
                (',', _) if letters.next_if_eq(&',').is_none() => words.push(String::new()),
                (letter, Some(word)) => word.push(letter),
                // There is one from the beginning.
                (_, None) => {}
            }
        }
        Self(words)
    }

    /// The value and the options.
    pub(crate) fn parts(&self) -> (&str, impl Iterator<Item = (&str, Option<&str>)>) {
        let mut words = self.0.iter().map(String::as_str);
        let value = words.next().unwrap_or_default();
        let option = |word| match str::split_once(word, '=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        (value, words.map(option))
    }
}

/// Refuses an option.
pub(crate) fn unknown<T>(name: &str, known: &str) -> Result<T, String> {
    Err(format!(
        "{name:?} is none of the options {known} (a comma that belongs to the value is written twice)"
    ))
}

/// The message of a value that is out of range.
pub(crate) fn told(error: ConfigError) -> String {
    error.to_string()
}

/// A number.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Vec<String>) {
        let words = Words::of(text);
        let (value, options) = words.parts();
        let options = options.map(|option| format!("{option:?}"));
        (value.to_owned(), options.collect())
    }

    #[test]
    fn two_commas_are_one_of_the_text() {
        assert_eq!(parts("/a/b").0, "/a/b");
        assert_eq!(parts("").0, "");
        assert_eq!(parts("/a,,b,,,ro").0, "/a,b,");
        assert_eq!(parts("/a,,b,,,ro").1, [r#"("ro", None)"#]);
        assert_eq!(
            parts("/a,x=1,,2,y").1,
            [r#"("x", Some("1,2"))"#, r#"("y", None)"#]
        );
        assert_eq!(parts(",,").0, ",");
        assert_eq!(parts(",").1, [r#"("", None)"#]);
    }
}
