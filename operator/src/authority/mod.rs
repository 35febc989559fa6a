//! The keys that vouch for this cluster's agents, and what is done when they are not as they were left.
//!
//! They lie in one Secret of the operator's namespace, so that every change is one write. A ConfigMap beside it
//! remembers whose they are. Minting new ones where there were others would make every agent a stranger to all its
//! peers, so that happens only where nothing remembers an authority. What to do is decided here, from what was read;
//! [`store`] reads and writes.

pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use peerage_model::authority::AuthoritySecrets;
use peerage_model::id::sha256;
use peerage_model::{AgreementSecret, Authority, AuthorityRecord, Fingerprint, UnixTime};
use zeroize::Zeroizing;

/// The Secret with the keys, and the ConfigMap that remembers whose they are.
pub const NAME: &str = "peerage-authority";
/// Annotation of the Secret, with any value, that asks for new keys.
pub const ROTATE: &str = "peerage.dev/rotate";
/// The keys in use.
const CURRENT: &str = "current";
/// The keys that follow them.
const NEXT: &str = "next";
/// When [`NEXT`] was made, in seconds of Unix time.
const SINCE: &str = "next-since";

/// For how long new keys are known before they are used: every replica reads them and every agent hears of them first.
/// A tunnel is dialled with the first key that one side knows, and the other side must know it then.
pub const PROMOTED_AFTER: Duration = Duration::from_secs(120);
/// When the old keys are forgotten: the last passport under them has ended, and an hour.
pub const RETIRED_AFTER: Duration = Duration::from_secs(25 * 3600);

/// Keys as they are stored.
#[derive(Clone, Debug)]
pub struct Stored {
    current: Authority,
    next: Option<(Authority, UnixTime)>,
}

/// The keys to use at a time: those that sign, and those that count besides.
#[derive(Clone, Debug)]
pub struct Keyring {
    active: Authority,
    other: Option<Authority>,
}

/// Why there are no keys to use. Each says how to go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The Secret is gone.
    #[error(
        "Secret {NAME} is gone, and this cluster's agents belong to authority {fingerprint}. Restore the Secret from a backup. \
         To give that authority up, so that every agent and every link starts anew, delete ConfigMap {NAME} and the status \
         of the AgentPeers"
    )]
    Lost {
        /// Whose keys they were.
        fingerprint: Fingerprint,
    },
    /// The Secret holds something else.
    #[error("Secret {NAME} does not hold an authority's keys ({cause}). Restore it from a backup; it is not replaced")]
    Damaged {
        /// What is wrong with it.
        cause: String,
    },
    /// The Secret is of somebody else.
    #[error(
        "Secret {NAME} holds the keys of authority {found}, and this cluster's agents belong to {remembered}. Restore the \
         right Secret from a backup, or delete ConfigMap {NAME} to change over to the other authority"
    )]
    Foreign {
        /// Whose keys are in the Secret.
        found: Fingerprint,
        /// Whose they should be.
        remembered: Fingerprint,
    },
}

/// What to do about the keys.
#[derive(Debug)]
pub enum Decision {
    /// Use them.
    Use(Stored),
    /// Use them, and remember whose they are.
    Remember(Stored),
    /// There never were any: make them.
    Mint,
}

/// Decides from the Secret's data, from what the ConfigMap remembers, and from what statuses of AgentPeers say.
///
/// # Errors
/// [`Unusable`] where new keys would make strangers of agents that exist.
pub fn decide(
    secret: Option<&BTreeMap<String, Vec<u8>>>,
    remembered: Option<Fingerprint>,
    in_status: &BTreeSet<Fingerprint>,
    now: UnixTime,
) -> Result<Decision, Unusable> {
    let Some(data) = secret else {
        return match remembered.or_else(|| in_status.first().copied()) {
            Some(fingerprint) => Err(Unusable::Lost { fingerprint }),
            None => Ok(Decision::Mint),
        };
    };
    let stored = Stored::read(data, now)?;
    let found = stored.current.fingerprint();
    match remembered {
        None => Ok(Decision::Remember(stored)),
        Some(remembered) if remembered == found => Ok(Decision::Use(stored)),
        Some(remembered) => Err(Unusable::Foreign { found, remembered }),
    }
}

impl Stored {
    /// The first keys of a new authority, from 96 random bytes.
    #[must_use]
    pub fn mint(random: &Zeroizing<[u8; 96]>, now: UnixTime) -> Self {
        Self { current: Authority::new(random, now), next: None }
    }

    /// From a Secret's data.
    ///
    /// # Errors
    /// [`Unusable::Damaged`].
    pub fn read(data: &BTreeMap<String, Vec<u8>>, now: UnixTime) -> Result<Self, Unusable> {
        let damaged = |cause: String| Unusable::Damaged { cause };
        let current = data.get(CURRENT).ok_or_else(|| damaged(format!("there is no `{CURRENT}` in it")))?;
        let current = restore(CURRENT, current, now)?;
        let Some(next) = data.get(NEXT) else { return Ok(Self { current, next: None }) };
        let next = restore(NEXT, next, now)?;
        if next.fingerprint() != current.fingerprint() || next.record().sequence() <= current.record().sequence() {
            return Err(damaged(format!("`{NEXT}` does not follow `{CURRENT}`")));
        }
        let since = data.get(SINCE).and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
        let since = since.ok_or_else(|| damaged(format!("`{SINCE}` is no time")))?;
        Ok(Self { current, next: Some((next, UnixTime(since))) })
    }

    /// As a Secret's data.
    #[must_use]
    pub fn write(&self) -> BTreeMap<String, Vec<u8>> {
        let encoded = |authority: &Authority| {
            let mut bytes = peerage_model::cbor::to_vec(&authority.secrets());
            let checksum = sha256(&[&bytes]);
            bytes.extend_from_slice(&checksum);
            bytes
        };
        let mut data = BTreeMap::from([(CURRENT.to_owned(), encoded(&self.current))]);
        if let Some((next, since)) = &self.next {
            data.insert(NEXT.to_owned(), encoded(next));
            data.insert(SINCE.to_owned(), since.0.to_string().into_bytes());
        }
        data
    }

    /// Whose keys these are.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.current.fingerprint()
    }

    /// The keys to use at `now`.
    #[must_use]
    pub fn keyring(&self, now: UnixTime) -> Keyring {
        match &self.next {
            None => Keyring { active: self.current.clone(), other: None },
            Some((next, since)) if now < since.plus(PROMOTED_AFTER) => {
                Keyring { active: self.current.clone(), other: Some(next.clone()) }
            }
            Some((next, since)) => {
                let old = (now < since.plus(RETIRED_AFTER)).then(|| self.current.clone());
                Keyring { active: next.clone(), other: old }
            }
        }
    }

    /// With new daily keys to follow the current ones, from 64 random bytes. `None` while an earlier rotation is under
    /// way: a third pair of keys would cut off who knows the first.
    #[must_use]
    pub fn rotated(&self, random: &Zeroizing<[u8; 64]>, now: UnixTime) -> Option<Self> {
        let settled = self.settled(now);
        let from = settled.as_ref().unwrap_or(self);
        from.next
            .is_none()
            .then(|| Self { current: from.current.clone(), next: Some((from.current.rotate(random, now), now)) })
    }

    /// Without the old keys, once they are of no use; `None` while there is nothing to drop.
    #[must_use]
    pub fn settled(&self, now: UnixTime) -> Option<Self> {
        let (next, since) = self.next.as_ref()?;
        (now >= since.plus(RETIRED_AFTER)).then(|| Self { current: next.clone(), next: None })
    }
}

fn restore(key: &str, bytes: &[u8], now: UnixTime) -> Result<Authority, Unusable> {
    let damaged = |cause: String| Unusable::Damaged { cause };
    // X25519 ignores some bits of a secret, and pair secrets do not: keys that fit their record may still be damaged.
    let (bytes, checksum) =
        bytes.split_last_chunk::<32>().ok_or_else(|| damaged(format!("`{key}` has only {} bytes", bytes.len())))?;
    if sha256(&[bytes]) != *checksum {
        return Err(damaged(format!("`{key}` is not what was written: its checksum differs")));
    }
    let secrets: AuthoritySecrets = minicbor::decode(bytes).map_err(|_| damaged(format!("`{key}` cannot be read")))?;
    Authority::restore(&secrets, now).map_err(|error| damaged(format!("`{key}`: {error}")))
}

impl Keyring {
    /// What signs.
    #[must_use]
    pub fn active(&self) -> &Authority {
        &self.active
    }

    /// The agreement secrets that count, the one to dial with first.
    #[must_use]
    pub fn agreements(&self) -> Vec<AgreementSecret> {
        [Some(&self.active), self.other.as_ref()].into_iter().flatten().map(|keys| keys.agreement().clone()).collect()
    }

    /// The records that count.
    pub fn records(&self) -> impl Iterator<Item = &AuthorityRecord> {
        [Some(&self.active), self.other.as_ref()].into_iter().flatten().map(Authority::record)
    }

    /// Which keys these are, so that a change can be seen.
    #[must_use]
    pub fn sequences(&self) -> Vec<u64> {
        self.records().map(AuthorityRecord::sequence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn stored(seed: u8) -> Stored {
        Stored::mint(&Zeroizing::new([seed; 96]), NOW)
    }

    fn decided(
        secret: Option<&Stored>,
        remembered: Option<Fingerprint>,
        status: &[Fingerprint],
    ) -> Result<Decision, Unusable> {
        let data = secret.map(Stored::write);
        decide(data.as_ref(), remembered, &status.iter().copied().collect(), NOW)
    }

    #[test]
    fn keys_are_made_only_where_nothing_remembers_any() {
        let old = stored(1).fingerprint();
        assert!(matches!(decided(None, None, &[]), Ok(Decision::Mint)));
        assert!(matches!(decided(None, Some(old), &[]), Err(Unusable::Lost { fingerprint }) if fingerprint == old));
        assert!(matches!(decided(None, None, &[old]), Err(Unusable::Lost { fingerprint }) if fingerprint == old));
    }

    #[test]
    fn a_secret_of_another_authority_is_not_used() {
        let (ours, theirs) = (stored(1), stored(2));
        assert!(matches!(decided(Some(&ours), Some(ours.fingerprint()), &[]), Ok(Decision::Use(_))));
        assert!(matches!(decided(Some(&ours), None, &[]), Ok(Decision::Remember(_))));
        let foreign = decided(Some(&theirs), Some(ours.fingerprint()), &[]);
        assert!(matches!(foreign, Err(Unusable::Foreign { .. })), "{foreign:?}");
    }

    #[test]
    fn no_damage_to_a_secret_goes_unseen() {
        let good = stored(1).rotated(&Zeroizing::new([2; 64]), NOW).expect("nothing is under way").write();
        for key in [CURRENT, NEXT] {
            for at in 0..good[key].len() {
                let mut bad = good.clone();
                bad.get_mut(key).expect("it is there")[at] ^= 1;
                assert!(matches!(Stored::read(&bad, NOW), Err(Unusable::Damaged { .. })), "byte {at} of {key}");
            }
            let mut cut = good.clone();
            cut.get_mut(key).expect("it is there").pop();
            assert!(matches!(Stored::read(&cut, NOW), Err(Unusable::Damaged { .. })));
        }
        for key in [CURRENT, SINCE] {
            let mut bad = good.clone();
            bad.remove(key);
            assert!(matches!(Stored::read(&bad, NOW), Err(Unusable::Damaged { .. })), "without {key}");
        }
    }

    #[test]
    fn new_keys_are_known_before_they_are_used_and_old_ones_until_no_passport_needs_them() {
        let before = stored(1);
        let during = before.rotated(&Zeroizing::new([2; 64]), NOW).expect("nothing is under way");
        let during = Stored::read(&during.write(), NOW).expect("it is whole");
        let sequences = |after: Duration| during.keyring(NOW.plus(after)).sequences();
        assert_eq!(sequences(Duration::ZERO), [1, 2]);
        assert_eq!(sequences(PROMOTED_AFTER), [2, 1]);
        assert_eq!(sequences(RETIRED_AFTER), [2]);
        assert_eq!(during.fingerprint(), before.fingerprint(), "the root is the authority for life");
        assert!(during.rotated(&Zeroizing::new([3; 64]), NOW).is_none(), "one rotation at a time");
        let later = during.rotated(&Zeroizing::new([3; 64]), NOW.plus(RETIRED_AFTER)).expect("the first is over");
        assert_eq!(later.keyring(NOW.plus(RETIRED_AFTER)).sequences(), [2, 3]);
        assert!(during.settled(NOW).is_none());
        assert!(during.settled(NOW.plus(RETIRED_AFTER)).expect("the old keys are of no use").next.is_none());
    }

    #[test]
    fn through_a_rotation_two_agents_always_share_a_secret_even_when_replicas_differ_by_a_minute() {
        let during = stored(1).rotated(&Zeroizing::new([2; 64]), NOW).expect("nothing is under way");
        let agreements = |keyring: Keyring| keyring.agreements().iter().map(|key| *key.expose()).collect::<Vec<_>>();
        for second in (0..RETIRED_AFTER.as_secs() + 120).step_by(10) {
            let at = |ahead: u64| agreements(during.keyring(NOW.plus(Duration::from_secs(second + ahead))));
            let (slow, fast) = (at(0), at(60));
            assert!(
                slow.contains(&fast[0]) && fast.contains(&slow[0]) || second > PROMOTED_AFTER.as_secs(),
                "at {second} s"
            );
            assert!(slow.contains(&fast[0]), "at {second} s");
        }
        let unaware = agreements(stored(1).keyring(NOW));
        for second in 0..PROMOTED_AFTER.as_secs() {
            let aware = agreements(during.keyring(NOW.plus(Duration::from_secs(second))));
            assert!(unaware.contains(&aware[0]), "who has not read the Secret for {second} s is understood");
        }
    }
}
