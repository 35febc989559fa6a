//! An agent's state outside Kubernetes: who it is, whom it trusts, what it offers.
//!
//! One directory, 0700, in which every file is 0600 and replaced whole:
//!
//! | file | holds |
//! |---|---|
//! | `state.json` | everything that is not secret ([`Document`]), for people to read and back up |
//! | `authority.key` | the authority's secrets, made once |
//! | `authority.former.key` | what was in daily use before the latest rotation, while it counts |
//! | `authority.fingerprint` | whose state this is; with it, a lost key is an error and not a new identity |
//! | `invites.key` | what open invitations are answered with: derived secrets, not the tickets themselves |
//! | `addresses` | which loopback address stands for which peer |
//! | `lock` | held by the one daemon that may write |
//!
//! The instance key and its passport are not here: they live and die with the process.

pub mod change;
pub mod document;
pub mod encoding;
mod error;
mod file;
mod home;
mod keys;
pub mod lookup;
mod service;
pub mod time;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::control::MAX_PREDECESSORS;
use peerage_model::{Authority, InstanceId, PairSecret, TrustId, UnixTime};
use serde_json::Value;
use zeroize::Zeroizing;

pub use self::change::{ChangeError, Consent};
pub use self::document::Document;
pub use self::error::StateError;
pub(crate) use self::home::MAX_SOCKET_PATH;
pub use self::home::{Home, Place, STATE_VARIABLE};
pub use self::keys::{Former, random};
pub use self::lookup::PeerRef;
pub use self::service::InvalidService;

pub(crate) use self::file::{read_private, write_atomic};

const DOCUMENT: &str = "state.json";
const INVITES: &str = "invites.key";
/// The instances of the latest runs, newest first, one a line.
const RUNS: &str = "runs";

/// What open invitations are answered with.
pub type InviteSecrets = BTreeMap<TrustId, PairSecret>;

/// The state of one agent, open for reading and writing. A clone is for reading on while another is changed: the one that was
/// changed last is what is on disk.
#[derive(Clone, Debug)]
pub struct Store {
    home: Arc<Home>,
    authority: Authority,
    former: Option<Former>,
    document: Document,
    invites: InviteSecrets,
    /// The document says more than its file does.
    unwritten: bool,
}

/// Why a change was not made, or not kept.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The change itself is not possible.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It could not be written.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Store {
    /// Notes that a run with this instance begins, and gives those before it, newest first. They have ended: this process
    /// holds the lock that they held.
    ///
    /// # Errors
    /// [`StateError`] when the file `runs` cannot be read or written.
    pub fn begin_run(&self, instance: InstanceId) -> Result<Vec<InstanceId>, StateError> {
        let path = self.home.file(RUNS);
        let text = read_private(&path)?.unwrap_or_default();
        // A line that is no instance id says nothing, and losing it costs a peer a few seconds of doubt.
        let earlier = String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>();
        let lines = std::iter::once(&instance).chain(&earlier).take(MAX_PREDECESSORS);
        let text: String = lines.map(|instance| format!("{instance}\n")).collect();
        write_atomic(&path, text.as_bytes())?;
        Ok(earlier)
    }

    /// Reads the state in `home`, making a new one where there is none.
    ///
    /// # Errors
    /// [`StateError`] when anything is missing, damaged, too new or readable by others.
    pub fn open(home: Home, now: UnixTime) -> Result<Self, StateError> {
        // Before anything is made: a state that has an authority has a document, and losing that is not a fresh start.
        let document = read_document(&home)?;
        let document = match (document, keys::read_fingerprint(&home)?) {
            (Some(document), _) => document,
            (None, Some(authority)) => {
                return Err(StateError::Missing { path: home.file(DOCUMENT), authority });
            }
            (None, None) => {
                let document = Document::default();
                write_document(&home, &document)?;
                document
            }
        };
        let authority = keys::load_or_create(&home, now)?;
        let former = keys::load_former(&home, &authority, now)?;
        let invites = read_invites(&home)?;
        Ok(Self { home: Arc::new(home), authority, former, document, invites, unwritten: false })
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        self.home.place()
    }

    /// Our own authority.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Its keys from before the latest rotation, while they count.
    #[must_use]
    pub fn former(&self) -> Option<&Former> {
        self.former.as_ref()
    }

    /// Every set of its keys that counts; the first dials, since it is the one that all peers know.
    #[must_use]
    pub fn authorities(&self) -> Vec<&Authority> {
        self.former.iter().map(|former| &former.authority).chain([&self.authority]).collect()
    }

    /// Follows the keys in daily use by fresh ones. Both count for `overlap`. Without one every earlier key ends, also one that
    /// an earlier rotation has left: who was robbed does not wait for that to be over.
    ///
    /// # Errors
    /// [`ChangeError::Rotating`] while an earlier rotation is under way, unless `overlap` is zero; or [`StateError`].
    pub fn rotate(&mut self, now: UnixTime, overlap: Duration) -> Result<(), UpdateError> {
        if let Some(former) = self.former.as_ref().filter(|_| !overlap.is_zero()) {
            return Err(ChangeError::Rotating { until: former.until }.into());
        }
        let until = now.plus(overlap);
        let next = keys::rotate(&self.home, &self.authority, now, until)?;
        let authority = std::mem::replace(&mut self.authority, next);
        self.former = Some(Former { authority, until });
        self.retire_former(now)?;
        Ok(())
    }

    /// Forgets the keys from before a rotation when their time is over.
    ///
    /// # Errors
    /// [`StateError`] when their file cannot be removed; they do not count any more all the same.
    pub fn retire_former(&mut self, now: UnixTime) -> Result<(), StateError> {
        if self.former.as_ref().is_some_and(|former| former.until <= now) {
            self.former = None;
            keys::forget_former(&self.home)?;
        }
        Ok(())
    }

    /// The earliest moment at which something ends by itself.
    #[must_use]
    pub fn next_end(&self) -> Option<UnixTime> {
        let former = self.former.as_ref().map(|former| former.until);
        self.document.next_end().into_iter().chain(former).min()
    }

    /// Everything that is not secret.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// What open invitations are answered with.
    #[must_use]
    pub fn invites(&self) -> &InviteSecrets {
        &self.invites
    }

    /// Makes a change, whole and on disk, or not at all.
    ///
    /// # Errors
    /// The change's own, or [`StateError`] when it cannot be written.
    pub fn change<T, E>(&mut self, change: impl FnOnce(&mut Document) -> Result<T, E>) -> Result<T, E>
    where
        E: From<StateError>,
    {
        let mut changed = self.document.clone();
        let result = change(&mut changed)?;
        self.keep(changed)?;
        Ok(result)
    }

    /// Opens an invitation that is answered with `secret`.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn invite(&mut self, id: TrustId, secret: PairSecret, expires: UnixTime) -> Result<(), UpdateError> {
        let mut changed = self.document.clone();
        changed.invite(id, expires)?;
        // The secret first: an invitation without one is dead, a secret without one is swept up.
        self.invites.insert(id, secret);
        write_invites(&self.home, &self.invites)?;
        self.keep(changed)?;
        Ok(())
    }

    /// Makes a change that takes something back, also where that cannot be written down: a full disk must not keep a door open.
    /// It is written with the next change that can be, and the second value says why it is not yet.
    ///
    /// # Errors
    /// The change's own.
    pub fn take_back<T>(
        &mut self,
        change: impl FnOnce(&mut Document) -> Result<T, ChangeError>,
    ) -> Result<(T, Result<(), StateError>), ChangeError> {
        let mut changed = self.document.clone();
        let result = change(&mut changed)?;
        let kept = self.keep(changed.clone());
        self.unwritten |= self.document != changed;
        self.document = changed;
        if kept.is_err() {
            // An invitation without its secret is dead, so a restart does not open it again if that much can be done.
            self.sweep_secrets();
        }
        Ok((result, kept))
    }

    /// The open invitation that a ticket with this secret is for.
    #[must_use]
    pub fn invited_by(&self, secret: &PairSecret) -> Option<TrustId> {
        self.invites.iter().find(|(_, known)| *known == secret).map(|(id, _)| *id)
    }

    /// Whether something counts that a restart would forget.
    #[must_use]
    pub fn is_unwritten(&self) -> bool {
        self.unwritten
    }

    /// Finds out whether this state can be written at the moment, in a file beside it that is gone afterwards.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn try_writing(&self) -> Result<(), StateError> {
        // As large as the next change will be: a disk may have room for a byte, and not for that.
        let path = self.home.file(&format!("trial-{}", data_encoding::HEXLOWER.encode(&*random::<8>())));
        let written = write_atomic(&path, text_of(&self.document).as_bytes());
        let removed = file::remove(&path).and(file::remove(&path.with_extension("new")));
        written.and(removed)
    }

    fn keep(&mut self, changed: Document) -> Result<(), StateError> {
        if changed != self.document || self.unwritten {
            write_document(&self.home, &changed)?;
            self.document = changed;
            self.unwritten = false;
        }
        self.sweep_secrets();
        Ok(())
    }

    /// Removes secrets whose invitations are not open any more. They open nothing, so the change that closed those is made also where
    /// this cannot be written; then the next one tries again.
    fn sweep_secrets(&mut self) {
        let open = |id: &TrustId| self.document.invites.iter().any(|invite| invite.id == *id);
        if self.invites.keys().all(open) {
            return;
        }
        let mut left = self.invites.clone();
        left.retain(|id, _| open(id));
        let written = match left.is_empty() {
            // A full disk lets this be done.
            true => file::remove(&self.home.file(INVITES)),
            false => write_invites(&self.home, &left),
        };
        match written {
            Ok(()) => self.invites = left,
            Err(error) => tracing::warn!(%error, "cannot remove the secrets of invitations that are closed"),
        }
    }
}

fn read_document(home: &Home) -> Result<Option<Document>, StateError> {
    let path = home.file(DOCUMENT);
    let Some(bytes) = read_private(&path)? else {
        return Ok(None);
    };
    let damaged = |error: serde_json::Error| StateError::Damaged { path: path.clone(), what: error.to_string() };
    // The version first, so that a later format is not called damage.
    let value: Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    match value.get("version").and_then(Value::as_u64) {
        Some(document::VERSION) => serde_json::from_slice(&bytes).map(Some).map_err(damaged),
        Some(found) if found > document::VERSION => Err(StateError::Newer { path, found, known: document::VERSION }),
        Some(_) | None => Err(StateError::Damaged { path, what: "it does not say which format it has".into() }),
    }
}

fn write_document(home: &Home, document: &Document) -> Result<(), StateError> {
    write_atomic(&home.file(DOCUMENT), text_of(document).as_bytes())
}

fn text_of(document: &Document) -> String {
    let mut text =
        serde_json::to_string_pretty(document).expect("maps here have text for keys, and writing to memory works");
    text.push('\n');
    text
}

fn read_invites(home: &Home) -> Result<InviteSecrets, StateError> {
    let path = home.file(INVITES);
    let Some(bytes) = read_private(&path)?.map(Zeroizing::new) else {
        return Ok(InviteSecrets::new());
    };
    minicbor::decode(&bytes).map_err(|error| StateError::Damaged { path, what: error.to_string() })
}

fn write_invites(home: &Home, invites: &InviteSecrets) -> Result<(), StateError> {
    let bytes = Zeroizing::new(minicbor::to_vec(invites).expect("writing to memory works"));
    write_atomic(&home.file(INVITES), &bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn open(dir: &Path) -> Result<Store, StateError> {
        Store::open(Place::find(Some(dir)).expect("a flag is a place").take()?, NOW)
    }

    fn invite(store: &mut Store, id: u8, expires: UnixTime) {
        store.invite(TrustId([id; 16]), PairSecret::from_bytes([id; 32]), expires).expect("there is room");
    }

    #[test]
    fn everything_is_there_again_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        let expose = |document: &mut Document| document.expose(&"mcp=80:8080".parse().expect("a service"));
        store.change(|document| expose(document).map_err(UpdateError::from)).expect("it is free");
        invite(&mut store, 1, NOW);
        let (document, invites) = (store.document().clone(), store.invites().clone());
        drop(store);
        let again = open(dir.path()).expect("the same state");
        assert_eq!((again.document(), again.invites()), (&document, &invites));
    }

    #[test]
    fn a_run_learns_which_runs_came_before_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = |id: u8| open(dir.path()).expect("the state").begin_run(InstanceId([id; 8])).expect("it is written");
        assert_eq!(run(1), []);
        assert_eq!(run(2), [InstanceId([1; 8])]);
        let many: Vec<_> = (3..9).map(run).collect();
        let newest_first = [7, 6, 5, 4].map(|id| InstanceId([id; 8]));
        assert_eq!(many.last().map(Vec::as_slice), Some(&newest_first[..]), "the latest four are kept");
    }

    #[test]
    fn a_rotation_is_there_again_after_a_restart_and_ends_by_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        let before = store.authority().record().clone();
        store.rotate(NOW, Duration::from_secs(60)).expect("nothing is under way");
        let refused = store.rotate(NOW, Duration::from_secs(60));
        assert!(matches!(refused, Err(UpdateError::Change(ChangeError::Rotating { .. }))), "{refused:?}");
        drop(store);
        let mut store = open(dir.path()).expect("the same state");
        let records: Vec<_> = store.authorities().iter().map(|authority| authority.record().clone()).collect();
        assert_eq!((records.len(), &records[0]), (2, &before), "the one that peers know dials");
        assert_eq!(records[1].fingerprint(), before.fingerprint());
        let end = store.next_end().expect("the former keys have an end");
        store.retire_former(end).expect("it removes them");
        assert_eq!(store.authorities().len(), 1);
        drop(store);
        assert_eq!(open(dir.path()).expect("the same state").authority().record(), &records[1]);
    }

    #[test]
    fn a_rotation_without_an_overlap_leaves_nothing_of_the_former_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        store.rotate(NOW, Duration::ZERO).expect("nothing is under way");
        assert_eq!((store.authorities().len(), store.authority().record().sequence()), (1, 2));
        assert!(!dir.path().join("authority.former.key").exists());
    }

    #[test]
    fn stolen_keys_end_at_once_also_while_a_rotation_is_under_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        let first = store.authority().record().clone();
        store.rotate(NOW, Duration::from_secs(60)).expect("nothing is under way");
        let second = store.authority().record().clone();
        store.rotate(NOW, Duration::ZERO).expect("it does not wait");
        assert_eq!((store.authorities().len(), store.authority().record().sequence()), (1, 3));
        let newest = store.authority().record();
        assert!([first, second].iter().all(|record| record.is_ended_by(newest, NOW)), "peers learn it from the record");
        assert!(!dir.path().join("authority.former.key").exists());
    }

    #[test]
    fn every_file_is_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        invite(&mut store, 1, NOW);
        store.rotate(NOW, Duration::from_secs(60)).expect("nothing is under way");
        for entry in fs::read_dir(dir.path()).expect("it is there") {
            let entry = entry.expect("it is there");
            let mode = entry.metadata().expect("it is there").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
    }

    #[test]
    fn a_used_invitations_secret_is_forgotten_on_disk_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        invite(&mut store, 1, NOW);
        invite(&mut store, 2, NOW.plus(Duration::from_secs(60)));
        store.change(|document| Ok::<_, StateError>(document.sweep(NOW))).expect("it writes");
        drop(store);
        let again = open(dir.path()).expect("the same state");
        assert_eq!(again.invites().keys().collect::<Vec<_>>(), [&TrustId([2; 16])]);
    }

    #[test]
    fn a_damaged_state_is_named_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).expect("a new state"));
        let path = dir.path().join(DOCUMENT);
        for bad in ["", "{", "[]", r#"{"version":"1"}"#, r#"{"version":1,"hostname":null}"#] {
            fs::write(&path, bad).expect("it is ours");
            let refused = open(dir.path()).expect_err("it is damaged");
            assert!(
                matches!(&refused, StateError::Damaged { path: named, .. } if *named == path),
                "{bad}: {refused:?}"
            );
            assert_eq!(fs::read_to_string(&path).expect("it is there"), bad);
            assert!(refused.hint().contains("backup"), "{}", refused.hint());
        }
    }

    #[test]
    fn damaged_secrets_of_tickets_cost_the_tickets_and_not_the_identity() {
        let dir = tempfile::tempdir().expect("a directory");
        let before = open(dir.path()).expect("a new state").authority().fingerprint();
        let path = dir.path().join(INVITES);
        write_atomic(&path, b"yy").expect("it writes");
        let refused = open(dir.path()).expect_err("it is damaged");
        assert!(refused.hint().starts_with("remove"), "{}", refused.hint());
        fs::remove_file(&path).expect("it was there");
        assert_eq!(open(dir.path()).expect("the same state").authority().fingerprint(), before);
    }

    #[test]
    fn a_state_of_a_later_version_is_not_called_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).expect("a new state"));
        fs::write(dir.path().join(DOCUMENT), r#"{"version":2,"new":true}"#).expect("it is ours");
        let refused = open(dir.path());
        assert!(matches!(refused, Err(StateError::Newer { found: 2, .. })), "{refused:?}");
    }

    #[test]
    fn a_lost_document_is_not_a_fresh_start() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).expect("a new state"));
        fs::remove_file(dir.path().join(DOCUMENT)).expect("it was there");
        let refused = open(dir.path());
        assert!(matches!(refused, Err(StateError::Missing { .. })), "{refused:?}");
    }

    #[test]
    fn a_revocation_counts_where_it_cannot_be_written_and_is_written_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        let peer = store.authority().agent("planner".parse().expect("a name"));
        let trust = document::Trust {
            id: TrustId([1; 16]),
            alias: peer.name.first_label(),
            peer,
            records: Vec::new(),
            inbound: document::Inbound::Everything,
            relays: Vec::new(),
            path: document::Path::default(),
            birthday: false,
            purpose: String::new(),
            since: NOW,
            expires: None,
        };
        let add = |document: &mut Document| {
            document.trusts.push(trust);
            Ok::<(), StateError>(())
        };
        store.change(add).expect("it writes");
        let planner: PeerRef = "planner".parse().expect("a name");
        // In the way of every write, for root as well.
        let obstacle = dir.path().join("state.new");
        fs::create_dir(&obstacle).expect("it is ours");
        let (_, kept) = store.take_back(|document| document.revoke(&planner, NOW)).expect("it is a peer");
        assert!(kept.is_err() && store.is_unwritten() && store.document().trusts.is_empty(), "{kept:?}");
        fs::remove_dir(&obstacle).expect("it is ours");
        store.change(|_| Ok::<(), StateError>(())).expect("it writes");
        assert!(!store.is_unwritten());
        drop(store);
        assert!(open(dir.path()).expect("the same state").document().trusts.is_empty());
    }

    #[test]
    fn a_withdrawal_is_made_also_where_the_secret_cannot_be_removed_yet() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        let id = TrustId([1; 16]);
        [1, 2].into_iter().for_each(|id| invite(&mut store, id, NOW));
        let close = |document: &mut Document| {
            document.invites.retain(|invite| invite.id != id);
            Ok::<(), StateError>(())
        };
        let obstacle = dir.path().join("invites.new");
        fs::create_dir(&obstacle).expect("it is ours");
        store.change(close).expect("the document is written");
        let document = read_document(&store.home).expect("it reads").expect("it is there");
        assert!(document.invites.iter().all(|invite| invite.id != id) && store.invites.contains_key(&id));
        fs::remove_dir(&obstacle).expect("it is ours");
        store.change(|_| Ok::<(), StateError>(())).expect("it writes");
        assert!(!store.invites.contains_key(&id) && !read_invites(&store.home).expect("it is there").contains_key(&id));
    }

    #[test]
    fn a_ticket_that_was_withdrawn_opens_nothing_after_a_restart_also_if_only_one_of_two_files_can_be_written() {
        for obstacle in ["state.new", "invites.new"] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut store = open(dir.path()).expect("a new state");
            let (first, later) = (TrustId([1; 16]), NOW.plus(Duration::from_secs(60)));
            [1, 2].into_iter().for_each(|id| invite(&mut store, id, later));
            let obstacle = dir.path().join(obstacle);
            fs::create_dir(&obstacle).expect("it is ours");
            let (_, kept) = store.take_back(|document| document.withdraw(&first.to_string())).expect("it is open");
            assert_eq!(kept.is_err(), obstacle.ends_with("state.new"), "{kept:?}");
            drop(store);
            let again = open(dir.path()).expect("the same state");
            let is_listed = again.document().invites.iter().any(|invite| invite.id == first);
            assert!(!is_listed || !again.invites().contains_key(&first), "{}", obstacle.display());
        }
    }

    #[test]
    fn a_state_that_cannot_be_written_is_found_out_without_touching_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path()).expect("a new state");
        let listing = || fs::read_dir(dir.path()).expect("it is there").count();
        let before = listing();
        store.try_writing().expect("there is room");
        assert_eq!(listing(), before, "nothing is left of it");
        // In the way also for root.
        fs::remove_dir_all(dir.path()).expect("it is ours");
        store.try_writing().expect_err("there is nowhere to write");
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = open(dir.path()).expect("a new state");
        let before = store.document().clone();
        let failed = store.change(|document| {
            document.expose(&"80".parse().expect("a service"))?;
            document.revoke(&"nobody".parse().expect("a name"), NOW)?;
            Ok::<_, UpdateError>(())
        });
        assert!(failed.is_err());
        assert_eq!(*store.document(), before);
    }
}
