//! From what people decided to what the engine acts on.
//!
//! [`compile`] is a function of the state and the time: no disk, no clock, no daemon. Whatever it leaves out does not
//! exist for the engine, and leaving out resets streams, so every omission has a reason in [`Compiled::problems`].

use std::collections::BTreeSet;

use peerage_model::snapshot::{BirthdayMode, DeniedInstance, Invite, Peer};
use peerage_model::{AgentId, Authority, AuthorityRecord, Label, PairSecret, Snapshot, TrustId, UnixTime};

use crate::state::document::{Document, Inbound, Service, Trust};
use crate::state::{InviteSecrets, change};

/// A snapshot, and what is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// For the engine.
    pub snapshot: Snapshot,
    /// Trusts that are declared and yet not in the snapshot.
    pub problems: Vec<Problem>,
}

/// A trust that cannot be acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub trust: TrustId,
    /// With whom.
    pub peer: AgentId,
    /// Why not.
    pub why: Unusable,
}

/// Why a trust is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Taken back before; ids never come back.
    #[error("it was revoked; ask for trust anew")]
    Revoked,
    /// Its end has come.
    #[error("it has expired; approve it again, or ask for trust anew")]
    Expired,
    /// No record of the peer's authority is good any more.
    #[error("the peer's authority record has ended or is another authority's; ask its owner for a new ticket")]
    NoRecord,
    /// Every record's key contributes nothing to a secret.
    #[error("the peer's authority uses a key that gives no secret; ask its owner to make new keys")]
    WeakKey,
}

/// What `us` does at `now`. `own` are its authority's keys, more than one set while they rotate; the first dials.
#[must_use]
pub fn compile(
    own: &[&Authority],
    us: &AgentId,
    document: &Document,
    invites: &InviteSecrets,
    now: UnixTime,
) -> Compiled {
    let revoked: BTreeSet<TrustId> = document.revoked.iter().map(|revoked| revoked.id).collect();
    let (mut peers, mut problems) = (Vec::new(), Vec::new());
    for trust in &document.trusts {
        match usable(own, us, trust, &revoked, now) {
            Ok(secrets) => peers.push(peer(trust, secrets, &document.services)),
            Err(why) => problems.push(Problem { trust: trust.id, peer: trust.peer.clone(), why }),
        }
    }
    let snapshot = Snapshot {
        peers,
        ports: document.services.iter().map(Service::as_port).collect(),
        relays: document.relays.clone(),
        denied: document
            .denied
            .iter()
            .filter(|denied| denied.until > now)
            .map(|denied| DeniedInstance {
                authority: denied.authority,
                instance: denied.instance,
                until: denied.until,
            })
            .collect(),
        invites: open_invites(document, invites, now),
    };
    Compiled { snapshot, problems }
}

fn usable(
    own: &[&Authority],
    us: &AgentId,
    trust: &Trust,
    revoked: &BTreeSet<TrustId>,
    now: UnixTime,
) -> Result<Vec<PairSecret>, Unusable> {
    if revoked.contains(&trust.id) {
        return Err(Unusable::Revoked);
    }
    if trust.expires.is_some_and(|expires| expires <= now) {
        return Err(Unusable::Expired);
    }
    if trust.peer.authority == us.authority {
        return Ok(own.iter().map(|own| PairSecret::within(own.agreement(), us, &trust.peer)).collect());
    }
    // Stored records were verified when they came; their end and their owner are checked at each use.
    let good = |record: &&AuthorityRecord| {
        record.fingerprint() == trust.peer.authority && AuthorityRecord::verify(record.as_bytes(), now).is_ok()
    };
    let ended = |record: &AuthorityRecord| trust.records.iter().any(|newer| record.is_ended_by(newer, now));
    let mut records: Vec<&AuthorityRecord> =
        trust.records.iter().filter(good).filter(|record| !ended(record)).collect();
    if records.is_empty() {
        return Err(Unusable::NoRecord);
    }
    // Newest first: the first secret is the one that dials.
    records.sort_by_key(|record| std::cmp::Reverse(record.sequence()));
    let with = |own: &Authority, record: &AuthorityRecord| {
        PairSecret::between(own.agreement(), record.agreement_key(), us, &trust.peer).ok()
    };
    let secrets: Vec<PairSecret> =
        own.iter().flat_map(|own| records.iter().filter_map(move |record| with(own, record))).collect();
    if secrets.is_empty() { Err(Unusable::WeakKey) } else { Ok(secrets) }
}

fn peer(trust: &Trust, secrets: Vec<PairSecret>, services: &[Service]) -> Peer {
    Peer {
        trust: trust.id,
        id: trust.peer.clone(),
        secrets,
        alias: trust.alias.clone(),
        inbound: inbound(&trust.inbound, services),
        ports: Vec::new(),
        relays: trust.relays.clone(),
        expires: trust.expires,
        path: trust.path.into(),
        birthday: if trust.birthday { BirthdayMode::Enabled } else { BirthdayMode::Disabled },
    }
}

/// Only names of services that exist.
fn inbound(inbound: &Inbound, services: &[Service]) -> Vec<Label> {
    let meant = |service: &&Service| match inbound {
        Inbound::Everything => true,
        Inbound::Only(names) => names.contains(&service.name),
    };
    services.iter().filter(meant).map(|service| service.name.clone()).collect()
}

fn open_invites(document: &Document, secrets: &InviteSecrets, now: UnixTime) -> Vec<Invite> {
    let open = document.invites.iter().filter(|invite| invite.expires > now).take(change::MAX_INVITES);
    open.filter_map(|invite| {
        let secret = secrets.get(&invite.id)?.clone();
        Some(Invite { id: invite.id, secret, expires: invite.expires })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use peerage_model::snapshot::Protocol;
    use zeroize::Zeroizing;

    use super::*;
    use crate::state::document::{Denied, Invitation, Path, Revoked};

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn authority(seed: u8) -> Authority {
        let mut random = [seed; 96];
        random[0] ^= 0x55; // root, signing and agreement keys differ
        Authority::new(&Zeroizing::new(random), NOW)
    }

    fn agent(authority: &Authority, name: &str) -> AgentId {
        authority.agent(name.parse().expect("a name"))
    }

    fn trust(peer: &AgentId, records: &[&Authority]) -> Trust {
        Trust {
            id: TrustId([1; 16]),
            peer: peer.clone(),
            records: records.iter().map(|authority| authority.record().clone()).collect(),
            alias: peer.name.first_label(),
            inbound: Inbound::Everything,
            relays: Vec::new(),
            path: Path::Auto,
            birthday: false,
            purpose: String::new(),
            since: NOW,
            expires: None,
        }
    }

    fn compiled(own: &Authority, us: &AgentId, document: &Document) -> Compiled {
        compile(&[own], us, document, &InviteSecrets::new(), NOW)
    }

    fn only_problem(own: &Authority, us: &AgentId, document: &Document) -> Unusable {
        let compiled = compiled(own, us, document);
        assert!(compiled.snapshot.peers.is_empty(), "it is left out");
        assert_eq!(compiled.problems.len(), 1);
        compiled.problems[0].why
    }

    #[test]
    fn an_empty_state_talks_to_nobody() {
        let own = authority(1);
        let compiled = compiled(&own, &agent(&own, "a"), &Document::default());
        assert_eq!(compiled, Compiled { snapshot: Snapshot::default(), problems: Vec::new() });
    }

    #[test]
    fn two_agents_that_trust_each_other_get_the_same_secret() {
        let (ours, theirs) = (authority(1), authority(2));
        let (us, them) = (agent(&ours, "a"), agent(&theirs, "b"));
        let here = Document { trusts: vec![trust(&them, &[&theirs])], ..Document::default() };
        let there = Document { trusts: vec![trust(&us, &[&ours])], ..Document::default() };
        let here = compiled(&ours, &us, &here).snapshot;
        let there = compiled(&theirs, &them, &there).snapshot;
        assert_eq!(here.peers[0].secrets, there.peers[0].secrets);
        assert_eq!(here.peers[0].secrets.len(), 1);
    }

    #[test]
    fn two_agents_of_one_authority_need_no_record() {
        let own = authority(1);
        let (a, b) = (agent(&own, "a"), agent(&own, "b"));
        let here = Document { trusts: vec![trust(&b, &[])], ..Document::default() };
        let there = Document { trusts: vec![trust(&a, &[])], ..Document::default() };
        assert_eq!(
            compiled(&own, &a, &here).snapshot.peers[0].secrets,
            compiled(&own, &b, &there).snapshot.peers[0].secrets
        );
    }

    #[test]
    fn during_a_rotation_both_records_count_and_the_newest_dials() {
        let (ours, old) = (authority(1), authority(2));
        let new = old.rotate(&Zeroizing::new([9; 64]), NOW);
        let (us, them) = (agent(&ours, "a"), agent(&old, "b"));
        let document = Document { trusts: vec![trust(&them, &[&old, &new])], ..Document::default() };
        let secrets = &compiled(&ours, &us, &document).snapshot.peers[0].secrets;
        let with = |other: &Authority| {
            PairSecret::between(ours.agreement(), other.record().agreement_key(), &us, &them).expect("good keys")
        };
        assert_eq!(*secrets, [with(&new), with(&old)]);
    }

    #[test]
    fn while_our_own_keys_rotate_whoever_knows_the_former_or_the_new_ones_reaches_us() {
        let (former, theirs) = (authority(1), authority(2));
        let new = former.rotate(&Zeroizing::new([9; 64]), NOW);
        let (us, them) = (agent(&former, "a"), agent(&theirs, "b"));
        let here = Document { trusts: vec![trust(&them, &[&theirs])], ..Document::default() };
        let ours = compile(&[&former, &new], &us, &here, &InviteSecrets::new(), NOW).snapshot.peers[0].secrets.clone();
        for (knows, dials_with) in [(&[&former][..], 0), (&[&new, &former][..], 1)] {
            let there = Document { trusts: vec![trust(&us, knows)], ..Document::default() };
            let secrets = &compiled(&theirs, &them, &there).snapshot.peers[0].secrets;
            assert_eq!(secrets[0], ours[dials_with], "what they dial with is among ours");
            assert!(secrets.contains(&ours[0]), "what we dial with is among theirs");
        }
    }

    #[test]
    fn a_former_record_whose_time_is_over_gives_no_secret() {
        let (ours, old) = (authority(1), authority(2));
        let end = NOW.plus(Duration::from_secs(60));
        let new = old.rotate_ending(&Zeroizing::new([9; 64]), end, NOW);
        let (us, them) = (agent(&ours, "a"), agent(&old, "b"));
        let document = Document { trusts: vec![trust(&them, &[&new, &old])], ..Document::default() };
        let secrets =
            |now| compile(&[&ours], &us, &document, &InviteSecrets::new(), now).snapshot.peers[0].secrets.len();
        assert_eq!((secrets(NOW), secrets(end)), (2, 1));
        assert_eq!(document.next_end(), Some(end), "so that it is looked at then");
        let mut swept = document.clone();
        swept.sweep(end);
        assert_eq!(swept.trusts[0].records, [new.record().clone()]);
    }

    #[test]
    fn a_record_of_another_authority_or_past_its_end_gives_no_secret() {
        let (ours, theirs) = (authority(1), authority(2));
        let (us, them) = (agent(&ours, "a"), agent(&theirs, "b"));
        let foreign = Document { trusts: vec![trust(&them, &[&authority(3)])], ..Document::default() };
        assert_eq!(only_problem(&ours, &us, &foreign), Unusable::NoRecord);
        let good = Document { trusts: vec![trust(&them, &[&theirs])], ..Document::default() };
        let late = NOW.plus(peerage_model::authority::RECORD_LIFETIME).plus(Duration::from_secs(1));
        let late = compile(&[&ours], &us, &good, &InviteSecrets::new(), late);
        assert_eq!(late.problems[0].why, Unusable::NoRecord);
    }

    #[test]
    fn a_revoked_or_expired_trust_is_left_out_even_where_it_is_still_listed() {
        let (ours, theirs) = (authority(1), authority(2));
        let (us, them) = (agent(&ours, "a"), agent(&theirs, "b"));
        let listed = trust(&them, &[&theirs]);
        let revoked = vec![Revoked { id: listed.id, peer: them.clone(), at: NOW }];
        let document = Document { trusts: vec![listed.clone()], revoked, ..Document::default() };
        assert_eq!(only_problem(&ours, &us, &document), Unusable::Revoked);
        let ended = Trust { expires: Some(NOW), ..listed };
        let document = Document { trusts: vec![ended], ..Document::default() };
        assert_eq!(only_problem(&ours, &us, &document), Unusable::Expired);
    }

    #[test]
    fn inbound_names_only_what_is_exposed() {
        let (ours, theirs) = (authority(1), authority(2));
        let (us, them) = (agent(&ours, "a"), agent(&theirs, "b"));
        let services = vec!["mcp=80:8080".parse().expect("it is"), "dns=53/udp".parse().expect("it is")];
        let label = |text: &str| text.parse::<Label>().expect("a label");
        for (inbound, expected) in [
            (Inbound::Everything, vec![label("mcp"), label("dns")]),
            (Inbound::Only(vec![label("dns"), label("gone")]), vec![label("dns")]),
            (Inbound::NOTHING, vec![]),
        ] {
            let trusts = vec![Trust { inbound, ..trust(&them, &[&theirs]) }];
            let document = Document { trusts, services: services.clone(), ..Document::default() };
            let snapshot = compiled(&ours, &us, &document).snapshot;
            assert_eq!(snapshot.peers[0].inbound, expected);
            assert_eq!(snapshot.ports[1].protocol, Protocol::Udp);
        }
    }

    #[test]
    fn only_open_invitations_with_a_secret_are_answered() {
        let own = authority(1);
        let invite = |id: u8, expires: UnixTime| Invitation { id: TrustId([id; 16]), expires };
        let later = NOW.plus(Duration::from_secs(1));
        let document =
            Document { invites: vec![invite(1, later), invite(2, NOW), invite(3, later)], ..Document::default() };
        let secrets = [1, 2].map(|id| (TrustId([id; 16]), PairSecret::from_bytes([id; 32])));
        let compiled = compile(&[&own], &agent(&own, "a"), &document, &InviteSecrets::from(secrets), NOW);
        let answered: Vec<TrustId> = compiled.snapshot.invites.iter().map(|invite| invite.id).collect();
        assert_eq!(answered, [TrustId([1; 16])]);
    }

    #[test]
    fn a_denied_instance_stays_denied_until_its_passport_has_ended() {
        let own = authority(1);
        let instance = peerage_model::InstanceId([3; 8]);
        let denied = |until| Denied { authority: own.fingerprint(), instance, until };
        let document =
            Document { denied: vec![denied(NOW), denied(NOW.plus(Duration::from_secs(1)))], ..Document::default() };
        assert_eq!(compiled(&own, &agent(&own, "a"), &document).snapshot.denied.len(), 1);
    }
}
