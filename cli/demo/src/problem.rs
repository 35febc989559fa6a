//! What is said when a step did not go as it should.

use std::path::PathBuf;

/// Why a step failed, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What should have been seen.
    pub(crate) expected: String,
    /// What was seen instead.
    pub(crate) got: String,
    /// What to do about it.
    pub(crate) hint: String,
    /// Logs that may say more.
    pub(crate) logs: Vec<PathBuf>,
}

impl Problem {
    pub(crate) fn new(expected: impl Into<String>, got: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { expected: expected.into(), got: got.into(), hint: hint.into(), logs: Vec::new() }
    }

    /// Something that the demo itself needs from the system.
    pub(crate) fn unforeseen(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        let got = causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"));
        Self::new("the system to do as asked", got, "look at free memory, processes and open files (ulimit -a)")
    }

    /// Adds logs that may say more.
    pub(crate) fn see(mut self, logs: impl IntoIterator<Item = PathBuf>) -> Self {
        self.logs.extend(logs);
        self
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::unforeseen(&error)
    }
}

impl From<peerage_netlab::LabError> for Problem {
    fn from(error: peerage_netlab::LabError) -> Self {
        Self::unforeseen(&error)
    }
}
