//! Waiting for what other processes do.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks: less than what is measured.
const LOOK: Duration = Duration::from_millis(1);

/// Looks until there is something.
///
/// # Errors
/// It cannot be looked at, or there is nothing for longer than anything may take.
pub fn until<T>(what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = found()? {
            return Ok(found);
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("waited {} s for {what}", PATIENCE.as_secs()).into());
        }
        sleep(LOOK);
    }
}
