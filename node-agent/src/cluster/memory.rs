//! What the memory volume of the pod holds, so that a container that restarts needs nobody.
//!
//! | file | holds |
//! |---|---|
//! | `instance.key` | the instance key, its passport and enrolment, the highest record of the authority that was seen |
//! | `followed` | whom the agent may talk to, tombstones, denied instances, and when that was heard |
//! | `heard` | when an operator last confirmed it, which is more often than anything changes |
//! | `addresses`, `lock`, `control.sock` | as outside of clusters |
//!
//! Both files are CBOR, 0600, replaced whole. One that cannot be read is as good as none: the agent enrols again. What is
//! lost with it are tombstones, which only a damaged volume can do.

use std::fmt;
use std::path::PathBuf;

use minicbor::{Decode, Encode};
use peerage_model::operator::Passport;
use peerage_model::{AgreementSecret, Credential, Fingerprint, UnixTime, cbor};

use super::follow::Kept;
use crate::state::{Home, Place, StateError, random, read_private, write_atomic};

const INSTANCE: &str = "instance.key";
const FOLLOWED: &str = "followed";
const HEARD: &str = "heard";

/// The files, held by this process alone.
#[derive(Debug)]
pub(super) struct Memory(Home);

/// Which running agent this is.
#[derive(Clone, Encode, Decode)]
#[cbor(map)]
pub(super) struct Instance {
    /// Whose it is; another authority's is not ours.
    #[n(0)]
    pub(super) authority: Fingerprint,
    #[n(1)]
    pub(super) key: AgreementSecret,
    #[n(2)]
    pub(super) passport: Option<Passport>,
    /// The highest sequence of the authority's record that was seen.
    #[n(3)]
    pub(super) record_seen: u64,
}

/// Whom it follows, and when it last heard of that from a replica that is not behind.
#[derive(Clone, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub(super) struct Followed {
    #[n(0)]
    pub(super) kept: Kept,
    #[n(1)]
    pub(super) heard: Option<UnixTime>,
}

impl Memory {
    pub(super) fn take(place: Place) -> Result<Self, StateError> {
        place.take().map(Self)
    }

    pub(super) fn place(&self) -> &Place {
        self.0.place()
    }

    /// The instance that was here, if it is of `authority`; else a new one.
    pub(super) fn instance(&self, authority: Fingerprint) -> Instance {
        let known = self.read::<Instance>(INSTANCE);
        known.filter(|instance| instance.authority == authority).unwrap_or_else(|| Instance::new(authority, 0))
    }

    pub(super) fn followed(&self) -> Followed {
        let followed: Followed = self.read(FOLLOWED).unwrap_or_default();
        let confirmed = followed.heard.and_then(|_| self.read::<UnixTime>(HEARD));
        Followed { heard: followed.heard.max(confirmed), ..followed }
    }

    /// An operator has confirmed what is followed.
    pub(super) fn keep_heard(&self, heard: UnixTime) -> Result<(), StateError> {
        write_atomic(&self.path(HEARD), &cbor::to_vec(&heard))
    }

    pub(super) fn keep_instance(&self, instance: &Instance) -> Result<(), StateError> {
        write_atomic(&self.path(INSTANCE), &cbor::to_vec(instance))
    }

    pub(super) fn keep_followed(&self, followed: &Followed) -> Result<(), StateError> {
        write_atomic(&self.path(FOLLOWED), &cbor::to_vec(followed))
    }

    fn read<T: for<'b> Decode<'b, ()>>(&self, name: &str) -> Option<T> {
        let bytes = match read_private(&self.path(name)) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::error!(%error, name, "what the memory volume holds is not used");
                return None;
            }
        };
        let read = minicbor::decode(&bytes);
        read.map_err(|error| tracing::error!(%error, name, "what the memory volume holds is damaged")).ok()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place().file(name)
    }
}

impl Instance {
    /// A new one, without a passport.
    pub(super) fn new(authority: Fingerprint, record_seen: u64) -> Self {
        Self { authority, key: AgreementSecret::from_bytes(*random::<32>()), passport: None, record_seen }
    }

    /// Its passport, if it counts at `now`.
    pub(super) fn credential(&self, now: UnixTime) -> Option<Credential> {
        let credential = Credential::verify(&self.passport.as_ref()?.credential, now).ok()?;
        is_ours(&credential, self.authority, &self.key).then_some(credential)
    }
}

/// Whether a verified passport is `authority`'s, for `key`.
pub(super) fn is_ours(credential: &Credential, authority: Fingerprint, key: &AgreementSecret) -> bool {
    credential.agent().authority == authority && *credential.instance_key() == key.public()
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("authority", &self.authority).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn memory(dir: &std::path::Path) -> Memory {
        Memory::take(Place::find(Some(dir)).expect("a place")).expect("nobody else has it")
    }

    #[test]
    fn an_instance_survives_a_restart_and_is_for_nobody_elses_eyes() {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = Fingerprint([1; 32]);
        let first = memory(dir.path());
        let instance = Instance { record_seen: 3, ..first.instance(ours) };
        first.keep_instance(&instance).expect("it writes");
        drop(first);
        let again = memory(dir.path()).instance(ours);
        assert_eq!((again.key.expose(), again.record_seen), (instance.key.expose(), 3));
        let mode = fs::metadata(dir.path().join(INSTANCE)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_was_confirmed_since_it_was_written_is_as_young_as_that_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = memory(dir.path());
        first.keep_heard(UnixTime(9)).expect("it writes");
        assert_eq!(first.followed().heard, None, "nothing is followed that could have been confirmed");
        first.keep_followed(&Followed { heard: Some(UnixTime(5)), ..Followed::default() }).expect("it writes");
        drop(first);
        assert_eq!(memory(dir.path()).followed().heard, Some(UnixTime(9)));
    }

    #[test]
    fn another_authoritys_instance_and_a_damaged_file_are_as_good_as_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = memory(dir.path());
        let instance = memory.instance(Fingerprint([1; 32]));
        memory.keep_instance(&instance).expect("it writes");
        assert_ne!(memory.instance(Fingerprint([2; 32])).key.expose(), instance.key.expose());
        write_atomic(&memory.path(INSTANCE), b"not CBOR").expect("it writes");
        assert_ne!(memory.instance(Fingerprint([1; 32])).key.expose(), instance.key.expose());
        write_atomic(&memory.path(FOLLOWED), b"").expect("it writes");
        assert_eq!(memory.followed().kept, Kept::default());
    }
}
