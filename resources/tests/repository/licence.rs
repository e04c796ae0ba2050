//! Licence expressions, as packages have them (SPDX 2.3, annex D; and the older `MIT/Apache-2.0`).

use std::collections::BTreeSet;

/// A licence expression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Licence {
    /// One licence, with its exception.
    One(String),
    /// Any of these.
    Or(Vec<Licence>),
    /// All of these.
    And(Vec<Licence>),
}

impl Licence {
    /// `None` for what is no expression.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.replace('(', " ( ").replace(')', " ) ");
        let text = text.replace('/', " OR ");
        let mut words = text.split_whitespace().peekable();
        let licence = or(&mut words)?;
        words.next().is_none().then_some(licence)
    }

    /// Whether what is allowed is enough.
    pub(crate) fn is_allowed(&self, allowed: &BTreeSet<String>) -> bool {
        match self {
            Self::One(name) => allowed.contains(name),
            Self::Or(any) => any.iter().any(|one| one.is_allowed(allowed)),
            Self::And(all) => all.iter().all(|one| one.is_allowed(allowed)),
        }
    }

    /// All licences in it.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name.clone()],
            Self::Or(some) | Self::And(some) => some.iter().flat_map(Self::names).collect(),
        }
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn or(words: &mut Words<'_>) -> Option<Licence> {
    list(words, "OR", and, Licence::Or)
}

fn and(words: &mut Words<'_>) -> Option<Licence> {
    list(words, "AND", one, Licence::And)
}

fn list(
    words: &mut Words<'_>,
    between: &str,
    item: fn(&mut Words<'_>) -> Option<Licence>,
    made: fn(Vec<Licence>) -> Licence,
) -> Option<Licence> {
    let mut items = vec![item(words)?];
    while words.next_if_eq(&between).is_some() {
        items.push(item(words)?);
    }
    match items.len() {
        1 => items.pop(),
        _ => Some(made(items)),
    }
}

fn one(words: &mut Words<'_>) -> Option<Licence> {
    if words.next_if_eq(&"(").is_some() {
        let inner = or(words)?;
        return words.next_if_eq(&")").map(|_| inner);
    }
    let name = words.next_if(|word| !["OR", "AND", "WITH", ")"].contains(word))?;
    Some(Licence::One(match words.next_if_eq(&"WITH") {
        Some(_) => format!("{name} WITH {}", words.next()?),
        None => name.to_owned(),
    }))
}

#[test]
fn an_expression_is_allowed_if_a_choice_in_it_is() {
    let allowed = ["MIT", "ISC", "A WITH X"].map(str::to_owned).into();
    let is_allowed = |text| Licence::parse(text).unwrap().is_allowed(&allowed);
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "ISC AND (GPL-3.0 OR MIT) AND MIT",
        "A WITH X",
        "GPL-3.0 AND X OR MIT",
    ] {
        assert!(is_allowed(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "A", "MIT AND (GPL-3.0 OR A)"] {
        assert!(!is_allowed(bad), "{bad}");
    }
    for none in ["", "MIT OR", "(MIT", "MIT)", "MIT ISC", "AND MIT"] {
        assert_eq!(Licence::parse(none), None, "{none}");
    }
}
