//! Why a run ended early. One type is enough: somebody reads it, no program does.

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

impl<T, E: std::error::Error> Trying<T> for Result<T, E> {
    fn trying(self, action: &str) -> Result<T, Failed> {
        self.map_err(|error| {
            let causes = std::iter::successors(error.source(), |cause| cause.source());
            Failed(causes.fold(format!("cannot {action}: {error}"), |line, cause| format!("{line}: {cause}")))
        })
    }
}
