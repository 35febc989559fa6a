//! The authority's own keys on disk. The root is made once in the life of a state, never again; the keys in daily use may be
//! followed by others, and then both count for a while, because peers learn the new ones in their next session.

use minicbor::{Decode, Encode};
use peerage_model::authority::{AuthoritySecrets, RecordError};
use peerage_model::{Authority, Fingerprint, UnixTime, cbor};
use zeroize::Zeroizing;

use super::error::StateError;
use super::file::{read_private, remove, write_atomic};
use super::home::Home;

/// The secrets, as CBOR.
const KEY: &str = "authority.key";
/// What was in daily use before, and until when it counts, as CBOR.
const FORMER: &str = "authority.former.key";
/// Whose state this is, as text. It outlives the key on purpose: see [`load_or_create`].
const FINGERPRINT: &str = "authority.fingerprint";

/// An authority's keys of the time before a rotation.
#[derive(Clone, Debug)]
pub struct Former {
    /// The authority with those keys.
    pub authority: Authority,
    /// When they stop counting.
    pub until: UnixTime,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredFormer {
    #[n(0)]
    secrets: AuthoritySecrets,
    #[n(1)]
    until: UnixTime,
}

/// The authority of this state, made now if the state has none. Where the fingerprint file says that there was one,
/// a missing or unreadable key is an error: a new one would silently be another identity, which no peer trusts.
///
/// # Errors
/// [`StateError`]; the key is written before the fingerprint, so a crash between the two is no error.
pub(super) fn load_or_create(home: &Home, now: UnixTime) -> Result<Authority, StateError> {
    let (expected, key) = (read_fingerprint(home)?, read_private(&home.file(KEY))?.map(Zeroizing::new));
    let authority = match (key, expected) {
        (Some(bytes), _) => decode(home, &bytes, now)?,
        (None, Some(authority)) => {
            return Err(StateError::Missing { path: home.file(KEY), authority });
        }
        (None, None) => create(home, now)?,
    };
    match expected {
        Some(expected) if expected != authority.fingerprint() => {
            Err(StateError::WrongKey { path: home.file(KEY), found: authority.fingerprint(), expected })
        }
        Some(_) => Ok(authority),
        None => {
            let line = format!("{}\n", authority.fingerprint());
            write_atomic(&home.file(FINGERPRINT), line.as_bytes())?;
            Ok(authority)
        }
    }
}

/// The keys before the latest rotation, while they count.
///
/// # Errors
/// [`StateError`] when the file is damaged or of another authority.
pub(super) fn load_former(home: &Home, current: &Authority, now: UnixTime) -> Result<Option<Former>, StateError> {
    let path = home.file(FORMER);
    let Some(bytes) = read_private(&path)?.map(Zeroizing::new) else {
        return Ok(None);
    };
    let damaged = |what: String| StateError::Damaged { path: path.clone(), what };
    let stored: StoredFormer = minicbor::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
    if stored.until <= now {
        return Ok(None);
    }
    let authority = Authority::restore(&stored.secrets, now).map_err(|error| damaged(error.to_string()))?;
    if authority.fingerprint() != current.fingerprint() {
        return Err(damaged("it is another authority's".into()));
    }
    // The same keys: the rotation ended before it began, by a crash between its two writes.
    let precedes = authority.record().sequence() < current.record().sequence();
    Ok(precedes.then_some(Former { authority, until: stored.until }))
}

/// Keeps what was in use until then, and follows it by fresh keys. A crash in between leaves the keys as they were.
pub(super) fn rotate(
    home: &Home,
    current: &Authority,
    now: UnixTime,
    until: UnixTime,
) -> Result<Authority, StateError> {
    let former = StoredFormer { secrets: current.secrets(), until };
    write_atomic(&home.file(FORMER), &Zeroizing::new(cbor::to_vec(&former)))?;
    let next = current.rotate_ending(&random(), until, now);
    write_atomic(&home.file(KEY), &Zeroizing::new(cbor::to_vec(&next.secrets())))?;
    Ok(next)
}

/// Forgets the keys of before.
pub(super) fn forget_former(home: &Home) -> Result<(), StateError> {
    remove(&home.file(FORMER))
}

/// Whose state this is; `None` before the first start.
pub(super) fn read_fingerprint(home: &Home) -> Result<Option<Fingerprint>, StateError> {
    let path = home.file(FINGERPRINT);
    let Some(bytes) = read_private(&path)? else {
        return Ok(None);
    };
    let parsed = str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    match parsed {
        Some(fingerprint) => Ok(Some(fingerprint)),
        None => Err(StateError::Damaged { path, what: "it is not a fingerprint of 64 hex digits".into() }),
    }
}

/// Fills `buffer` from the operating system. Panics where that has no randomness, since nothing safe can follow.
pub fn random<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    let mut filled = 0;
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the operating system gives no random bytes: {error}"),
        }
    }
    bytes
}

fn create(home: &Home, now: UnixTime) -> Result<Authority, StateError> {
    let authority = Authority::new(&random(), now);
    let bytes = Zeroizing::new(cbor::to_vec(&authority.secrets()));
    write_atomic(&home.file(KEY), &bytes)?;
    Ok(authority)
}

fn decode(home: &Home, bytes: &[u8], now: UnixTime) -> Result<Authority, StateError> {
    let damaged = |what: String| StateError::Damaged { path: home.file(KEY), what };
    let secrets: AuthoritySecrets = minicbor::decode(bytes).map_err(|error| damaged(error.to_string()))?;
    Authority::restore(&secrets, now).map_err(|error: RecordError| damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::state::home::Place;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn home(dir: &Path) -> Home {
        Place::find(Some(dir)).expect("a flag is a place").take().expect("nobody else is here")
    }

    #[test]
    fn the_authority_is_the_same_at_the_next_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = home(dir.path());
        let first = load_or_create(&home, NOW).expect("a new state gets an authority");
        let second = load_or_create(&home, NOW).expect("it is found again");
        assert_eq!(first.fingerprint(), second.fingerprint());
    }

    #[test]
    fn a_lost_key_is_never_replaced_by_a_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = home(dir.path());
        load_or_create(&home, NOW).expect("a new state gets an authority");
        fs::remove_file(dir.path().join(KEY)).expect("it was there");
        let refused = load_or_create(&home, NOW);
        assert!(matches!(refused, Err(StateError::Missing { .. })), "{refused:?}");
        assert!(!dir.path().join(KEY).exists(), "nothing was minted");
    }

    #[test]
    fn a_damaged_key_is_named_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = home(dir.path());
        load_or_create(&home, NOW).expect("a new state gets an authority");
        let path = dir.path().join(KEY);
        let good = fs::read(&path).expect("it is there");
        for bad in [&good[..good.len() - 1], b"", b"not cbor"] {
            write_atomic(&path, bad).expect("it writes");
            let refused = load_or_create(&home, NOW);
            assert!(matches!(refused, Err(StateError::Damaged { .. })), "{refused:?}");
            assert_eq!(fs::read(&path).expect("it is there"), bad);
        }
    }

    #[test]
    fn a_rotation_that_broke_off_between_its_writes_did_not_happen() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = home(dir.path());
        let first = load_or_create(&home, NOW).expect("a new state gets an authority");
        let later = NOW.plus(std::time::Duration::from_secs(60));
        let before = fs::read(dir.path().join(KEY)).expect("it is there");
        let second = rotate(&home, &first, NOW, later).expect("it writes");
        let former = load_former(&home, &second, NOW).expect("it reads").expect("both count");
        assert_eq!(former.authority.record(), first.record());
        write_atomic(&dir.path().join(KEY), &before).expect("it writes");
        let again = load_or_create(&home, NOW).expect("the keys are as they were");
        assert!(load_former(&home, &again, NOW).expect("it reads").is_none());
    }

    #[test]
    fn another_authoritys_key_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = home(dir.path());
        load_or_create(&home, NOW).expect("a new state gets an authority");
        create(&home, NOW).expect("it writes another key over the first");
        let refused = load_or_create(&home, NOW);
        assert!(matches!(refused, Err(StateError::WrongKey { .. })), "{refused:?}");
    }
}
