//! The proof in a BIND: two key agreements and two signatures, some 0.2 ms, and nothing of the relay but its key.
//!
//! So whoever runs a relay can look at it away from the tables that every packet needs: [`super::Relay::receive`] admits a BIND
//! and hands out a [`Proof`], [`Proof::check`] does the work, [`super::Relay::conclude`] lets the relay act on what came out.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use peerage_model::passport::MAX_CREDENTIAL;
use peerage_model::relay::frame::keys::{MacKey, Opening};
use peerage_model::relay::frame::{Cookie, Frame, Refusal, SEAL_TAG, Tag};
use peerage_model::{AgreementKey, AgreementSecret, Credential};

use super::Ingress;
use crate::place::Place;

/// A BIND that was admitted, and is not believed yet.
pub struct Proof {
    pub(super) key: Arc<AgreementSecret>,
    pub(super) relay: AgreementKey,
    pub(super) ingress: Ingress,
    pub(super) tag: Tag,
    pub(super) cookie: Cookie,
    pub(super) e: AgreementKey,
    pub(super) datagram: Box<[u8]>,
}

/// What a [`Proof`] turned out to be.
pub struct Proven {
    pub(super) ingress: Ingress,
    pub(super) tag: Tag,
    pub(super) e: AgreementKey,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    /// Not proven: no answer.
    Silence,
    /// Sealed to us, by who may not bind with that. The key authenticates REFUSED.
    Refused(MacKey, Refusal),
    /// Somebody's own.
    Proven { credential: Box<Credential>, session: MacKey, refusal: MacKey },
}

impl Proof {
    /// Who sent it: where its answer goes.
    #[must_use]
    pub fn from(&self) -> Place {
        self.ingress.from
    }

    /// Which of the machine's addresses it came to.
    #[must_use]
    pub fn local(&self) -> Option<IpAddr> {
        self.ingress.local
    }

    /// Does the work.
    #[must_use]
    pub fn check(self) -> Proven {
        let outcome = self.outcome().unwrap_or(Outcome::Silence);
        Proven { ingress: self.ingress, tag: self.tag, e: self.e, outcome }
    }

    fn outcome(&self) -> Option<Outcome> {
        let Ok((_, Frame::Bind { sealed, .. })) = Frame::parse(&self.datagram) else { return None };
        let es = self.key.agree(&self.e).ok()?;
        let opening = Opening::new(es, &self.relay, &self.e, self.cookie);
        let mut buffer = [0; MAX_CREDENTIAL + SEAL_TAG];
        let credential = opening.open(&self.datagram, sealed, &mut buffer)?;
        let Ok(credential) = Credential::verify(credential, self.ingress.wall) else {
            return Some(Outcome::Refused(opening.refusal(), Refusal::Credential));
        };
        let instance = *credential.instance_key();
        let ss = self.key.agree(&instance).ok()?;
        let session = opening.session(&ss, &instance);
        session.verifies(&self.datagram).then(|| Outcome::Proven {
            credential: Box::new(credential),
            session,
            refusal: opening.refusal(),
        })
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("bytes", &self.datagram.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proven = matches!(self.outcome, Outcome::Proven { .. });
        f.debug_struct("Proven").field("proven", &proven).finish_non_exhaustive()
    }
}
