//! The tunnel of an agent that has none at first, and another one after it was denied.
//!
//! Names and listeners begin before the operator has said who we are; the tunnel needs a passport. So they get this.

use std::sync::{Arc, PoisonError, RwLock};

use peerage_model::AgentId;
use peerage_model::stream::StreamHeader;

use crate::daemon::link::{Boxed, Link};
use crate::tunnel::{Dial, DialError, Opened};

/// A tunnel, once there is one.
#[derive(Default)]
pub(super) struct Tunnel(RwLock<Option<Arc<dyn Link>>>);

impl Tunnel {
    pub(super) fn get(&self) -> Option<Arc<dyn Link>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another in its place, and gives the one that was there.
    pub(super) fn replace(&self, link: Option<Arc<dyn Link>>) -> Option<Arc<dyn Link>> {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), link)
    }
}

impl Dial for Tunnel {
    fn dial<'a>(&'a self, peer: &'a AgentId, header: StreamHeader) -> Boxed<'a, Result<Opened, DialError>> {
        match self.get() {
            Some(link) => Box::pin(async move { link.dial(peer, header).await }),
            None => Box::pin(std::future::ready(Err(DialError::NotTrusted { peer: peer.clone() }))),
        }
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tunnel").field(&self.get().is_some()).finish()
    }
}
