//! How connections ended.
//!
//! Once a control connection carries a peer's bytes it has no room for words. So the daemon keeps the reason, and the
//! caller asks for it afterwards.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::control::{Code, Failure};
use crate::tunnel::DialError;

/// Reasons kept; a caller asks at once.
const KEPT: usize = 256;

/// The latest reasons. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcomes(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    failures: BTreeMap<u64, Failure>,
}

impl Outcomes {
    /// A number for a connection that begins.
    pub(super) fn begin(&self) -> u64 {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.next += 1;
        kept.next
    }

    /// Notes how it ended. A caller that hung up itself does not ask.
    pub(super) fn end(&self, connection: u64, result: &io::Result<()>) {
        let Err(error) = result else { return };
        let failure = of_tunnel(error).unwrap_or_else(|| {
            Failure::new(
                Code::SessionEnded,
                format!("the connection ended early: {error}"),
                "the service at the other side closed it, or went away; its log may say why",
            )
        });
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.failures.insert(connection, failure);
        while kept.failures.len() > KEPT {
            kept.failures.pop_first();
        }
    }

    /// Hands the reason out, once.
    pub(super) fn take(&self, connection: u64) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failures.remove(&connection)
    }
}

/// What the tunnel said, if this error is its.
pub(super) fn of_tunnel(error: &io::Error) -> Option<Failure> {
    error.get_ref()?.downcast_ref::<DialError>().cloned().map(Failure::from)
}
