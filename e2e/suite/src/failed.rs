//! Why a test ended early. Somebody reads it, no program does.

use std::error::Error;

/// What was expected, and what was seen instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

impl Failed {
    /// A failure in words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Says what was being done when something failed.
pub trait Trying<T> {
    /// Puts "cannot `action`" before the error and its causes.
    ///
    /// # Errors
    /// The error that was there.
    fn trying(self, action: &str) -> Result<T, Failed>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Trying<T> for Result<T, E> {
    fn trying(self, action: &str) -> Result<T, Failed> {
        self.map_err(|error| {
            let error = error.into();
            let causes = std::iter::successors(error.source(), |cause| (**cause).source());
            Failed(causes.fold(format!("cannot {action}: {error}"), |line, cause| format!("{line}: {cause}")))
        })
    }
}

/// Fails with `what` unless it holds.
///
/// # Errors
/// It does not hold.
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed(what())) }
}
