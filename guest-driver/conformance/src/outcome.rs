//! How a test says that it failed.

use std::fmt::Debug;

use crate::raw::Answer;

/// Nothing, or why the device does not keep its word.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// What was expected of the device, and what it did.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// `what` was answered with `got`, and should have been with `should`.
pub(crate) fn wanted<T: Debug + PartialEq>(
    what: &str,
    got: Answer<T>,
    should: Answer<T>,
) -> Outcome {
    if got == should {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{what}: {got:?} instead of {should:?}"
    )))
}

/// What `what` returned, where it has to succeed.
pub(crate) fn success<T>(what: &str, got: Answer<T>) -> Outcome<T> {
    got.map_err(|errno| Failure::new(format!("{what}: errno {errno}")))
}

/// `what` has to be refused with `errno`.
pub(crate) fn refused<T>(what: &str, got: Answer<T>, errno: i32) -> Outcome {
    wanted(what, got.map(drop), Err(errno))
}

pub(crate) fn equal<T: Debug + PartialEq>(what: &str, got: T, should: T) -> Outcome {
    wanted(what, Ok(got), Ok(should))
}

pub(crate) fn holds(what: &str, condition: bool) -> Outcome {
    if condition {
        return Ok(());
    }
    Err(Failure::new(what))
}
