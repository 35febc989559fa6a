//! Who may be spoken to: the verifier that every handshake of this node asks.
//!
//! A credential passes if its signatures and times are good, it names the key that the peer proved to hold, the
//! instance is not denied, and it is who this pair expects. Anything else ends the handshake in silence.

use core::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgentId, Credential, UnixTime};

use crate::noise::{Peer, PeerRejected, VerifyPeer};

/// What all verifiers of a node share: the time, and who is denied.
#[derive(Clone)]
pub(super) struct Judge {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    wall: UnixTime,
    denied: Vec<DeniedInstance>,
}

impl Judge {
    pub(super) fn new(wall: UnixTime) -> Self {
        Self { shared: Arc::new(Mutex::new(Shared { wall, denied: Vec::new() })) }
    }

    pub(super) fn set_time(&self, wall: UnixTime) {
        self.lock().wall = wall;
    }

    pub(super) fn set_denied(&self, denied: Vec<DeniedInstance>) {
        self.lock().denied = denied;
    }

    /// Whether this credential's instance is denied at the moment.
    pub(super) fn is_denied(&self, credential: &Credential) -> bool {
        self.lock().denies(credential)
    }

    /// The verifier for a pair whose other side must be `expected`; `None` accepts any agent, which only a
    /// request-only session may do.
    pub(super) fn expecting(&self, expected: Option<AgentId>) -> Arc<dyn VerifyPeer> {
        Arc::new(Expecting { judge: self.clone(), expected })
    }

    /// Verifies a credential outside a handshake: a renewal for a session that is up.
    pub(super) fn verify(&self, credential: &[u8]) -> Result<Credential, PeerRejected> {
        let shared = self.lock();
        let credential = Credential::verify(credential, shared.wall).map_err(|e| PeerRejected(e.to_string()))?;
        match shared.denies(&credential) {
            true => Err(PeerRejected("the instance is denied".into())),
            false => Ok(credential),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn denies(&self, credential: &Credential) -> bool {
        let instance = credential.instance();
        let authority = credential.agent().authority;
        self.denied.iter().any(|d| d.instance == instance && d.authority == authority && self.wall < d.until)
    }
}

struct Expecting {
    judge: Judge,
    expected: Option<AgentId>,
}

impl VerifyPeer for Expecting {
    fn verify(&self, credential: &[u8], noise_static: &[u8; 32]) -> Result<Peer, PeerRejected> {
        let credential = self.judge.verify(credential)?;
        if credential.instance_key().0 != *noise_static {
            return Err(PeerRejected("the passport is for another key".into()));
        }
        if self.expected.as_ref().is_some_and(|expected| expected != credential.agent()) {
            return Err(PeerRejected("the passport is another agent's".into()));
        }
        Ok(Arc::new(credential))
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judge(..)")
    }
}
