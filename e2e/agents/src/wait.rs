//! Waiting for something to be so.

use std::time::{Duration, Instant};

use peerage_suite::failed::Failed;

/// Far above what anything here takes, also on a busy machine; only a failure waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what has no event.
pub const LOOK: Duration = Duration::from_millis(10);

/// Looks until `look` finds something, and returns it.
///
/// # Errors
/// It was not found within [`PATIENCE`], or looking failed.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>, Failed>) -> Result<T, Failed> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if begun.elapsed() > PATIENCE {
            return Err(Failed::new(format!("{what}: not within {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(LOOK);
    }
}
