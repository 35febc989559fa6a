//! What the operator tells of whom an agent may talk to (section 6).

use minicbor::{Decode, Encode};

use crate::cbor;
use crate::id::{AgentId, TrustId};
use crate::name::Label;
use crate::relay::RelayInfo;
use crate::snapshot::{DeniedInstance, Peer, Port, Protocol};

/// Most entries of one agent.
pub const MAX_ENTRIES: usize = 10_000;
/// Most denied instances that an agent keeps.
pub const MAX_DENIED: usize = 65_536;
/// Most pair secrets of a peer: two records on each side of a rotation.
const MAX_SECRETS: usize = 4;
/// Most ports, names of ports or local ports in one list.
const MAX_PORTS: usize = 64;
/// Most relays in one list.
const MAX_RELAYS: usize = 16;
/// Most AgentTrusts that one entry rests on.
const MAX_CONSENTS: usize = 4;
/// Most ports that an agent is told to keep away from.
const MAX_RESERVED: usize = 256;

/// Most numbers of a [`Revision`].
const MAX_VERSIONS: usize = 16;

/// What the lists of a part may take of a frame; the rest is for what is around them, two revisions above all.
const PART: usize = super::MAX_FRAME - 512;

/// How far somebody is, in each of the sources that a replica of the operator draws from. Each replica reads each source by
/// itself, so of two revisions neither need be the later one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Revision {
    /// Grows when versions begin anew.
    #[n(0)]
    pub epoch: u64,
    /// A version of each source. What is missing is 0.
    #[n(1)]
    pub versions: Vec<u64>,
}

impl Revision {
    /// Whether this is as far as `other`, or farther, in everything.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let far = |(place, version): (usize, &u64)| self.versions.get(place).copied().unwrap_or(0) >= *version;
        self.epoch > other.epoch || self.epoch == other.epoch && other.versions.iter().enumerate().all(far)
    }

    /// Becomes the least that covers both; of a later epoch, that one alone.
    pub fn raise(&mut self, other: &Self) {
        if other.epoch > self.epoch {
            self.clone_from(other);
        }
        if other.epoch < self.epoch {
            return;
        }
        self.versions.resize(self.versions.len().max(other.versions.len()), 0);
        for (ours, theirs) in self.versions.iter_mut().zip(&other.versions) {
            *ours = (*ours).max(*theirs);
        }
    }

    /// The highest of its versions, for people.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.versions.iter().copied().max().unwrap_or(0)
    }

    pub(super) fn is_within_limits(&self) -> bool {
        self.versions.len() <= MAX_VERSIONS
    }
}

/// A port of a peer that programs here find under another number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(map)]
pub struct LocalPort {
    /// The peer's number.
    #[n(0)]
    pub port: u16,
    /// Its transport.
    #[n(1)]
    pub protocol: Protocol,
    /// The number here.
    #[n(2)]
    pub here: u16,
}

/// A number of a port with its transport.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PortNumber {
    /// The transport.
    #[n(0)]
    pub protocol: Protocol,
    /// The number.
    #[n(1)]
    pub port: u16,
}

/// One trusted peer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Entry {
    /// As the engine needs it.
    #[n(0)]
    pub peer: Peer,
    /// The AgentTrusts that this rests on, our own first. When one of them is gone, so is this, for ever.
    #[n(1)]
    pub consents: Vec<TrustId>,
    /// What this cluster calls the peer's authority; `None`: it is of this cluster.
    #[n(2)]
    pub link: Option<Label>,
    /// Where its ports are for programs here, if not at their own numbers.
    #[cbor(n(3), default)]
    pub local_ports: Vec<LocalPort>,
}

/// A port that the agent offers, and where its program listens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// What the port is called.
    #[n(0)]
    pub name: Label,
    /// The number peers connect to.
    #[n(1)]
    pub port: u16,
    /// Its transport.
    #[n(2)]
    pub protocol: Protocol,
    /// The number that the program listens on in the pod.
    #[n(3)]
    pub target: u16,
}

impl Offer {
    /// As peers see it.
    #[must_use]
    pub fn as_port(&self) -> Port {
        Port { name: self.name.clone(), number: self.port, protocol: self.protocol }
    }
}

/// What concerns the agent itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Settings {
    /// What it offers.
    #[n(0)]
    pub ports: Vec<Offer>,
    /// The relays it may use.
    #[n(1)]
    pub relays: Vec<RelayInfo>,
    /// How old its knowledge may be before that is an alarm, in seconds.
    #[n(2)]
    pub max_staleness: Option<u64>,
    /// Whether it talks to nobody from then on.
    #[cbor(n(3), default)]
    pub fail_closed: bool,
    /// Ports that the pod's programs use, so that it does not listen there.
    #[cbor(n(4), default)]
    pub reserved: Vec<PortNumber>,
}

/// A part of everything, or of what changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Update {
    /// Counts the updates of a connection, from 1.
    #[n(0)]
    pub sequence: u64,
    /// Whether what was told before is void.
    #[n(1)]
    pub full: bool,
    /// Whether the next update belongs to this one.
    #[n(2)]
    pub more: bool,
    /// How far the replica has seen: every change up to there. It may state less, never more.
    #[n(3)]
    pub revision: Revision,
    /// New or changed peers.
    #[cbor(n(4), default)]
    pub entries: Vec<Entry>,
    /// Peers that are out for the time being.
    #[cbor(n(5), default)]
    pub withdrawn: Vec<AgentId>,
    /// AgentTrusts that were deleted.
    #[cbor(n(6), default)]
    pub gone: Vec<TrustId>,
    /// Instances that were denied.
    #[cbor(n(7), default)]
    pub denied: Vec<DeniedInstance>,
    /// The agent's own settings, where they changed.
    #[n(8)]
    pub settings: Option<Settings>,
    /// How new what it tells may be: it rests on no change after that. It may state more, never less.
    #[n(9)]
    pub shown: Revision,
}

impl Entry {
    fn is_within_limits(&self) -> bool {
        let peer = &self.peer;
        (1..=MAX_CONSENTS).contains(&self.consents.len())
            && self.consents[0] == peer.trust
            && (1..=MAX_SECRETS).contains(&peer.secrets.len())
            && peer.inbound.len() <= MAX_PORTS
            && peer.ports.len() <= MAX_PORTS
            && peer.relays.len() <= MAX_RELAYS
            && self.local_ports.len() <= MAX_PORTS
    }
}

impl Update {
    /// This as one or several updates that fit a frame each, numbered from [`Self::sequence`]; only the first is `full`,
    /// only the last has not `more`.
    #[must_use]
    pub fn into_parts(self) -> Vec<Self> {
        let (revision, shown) = (self.revision, self.shown);
        let next = |sequence| {
            let (revision, shown) = (revision.clone(), shown.clone());
            Self { sequence, full: false, more: true, revision, shown, ..Self::default() }
        };
        let mut parts = Parts { done: Vec::new(), room: 0, current: next(self.sequence), next };
        parts.current.full = self.full;
        parts.room = PART.saturating_sub(self.settings.as_ref().map_or(0, size));
        parts.current.settings = self.settings;
        for trust in self.gone {
            parts.part_with_room_for(&trust).gone.push(trust);
        }
        for denied in self.denied {
            parts.part_with_room_for(&denied).denied.push(denied);
        }
        for peer in self.withdrawn {
            parts.part_with_room_for(&peer).withdrawn.push(peer);
        }
        for entry in self.entries {
            parts.part_with_room_for(&entry).entries.push(entry);
        }
        let Parts { mut done, mut current, .. } = parts;
        current.more = self.more;
        done.push(current);
        done
    }

    pub(super) fn is_within_limits(&self) -> bool {
        let settings = self.settings.as_ref().is_none_or(|settings| {
            settings.ports.len() <= MAX_PORTS
                && settings.relays.len() <= MAX_RELAYS
                && settings.reserved.len() <= MAX_RESERVED
        });
        let revisions = self.revision.is_within_limits() && self.shown.is_within_limits();
        settings && revisions && self.entries.iter().all(Entry::is_within_limits)
    }
}

/// Updates in the making.
struct Parts<F> {
    done: Vec<Update>,
    current: Update,
    room: usize,
    next: F,
}

impl<F: Fn(u64) -> Update> Parts<F> {
    fn part_with_room_for<T: Encode<()>>(&mut self, item: &T) -> &mut Update {
        let size = size(item);
        if size > self.room {
            let next = (self.next)(self.current.sequence + 1);
            self.done.push(std::mem::replace(&mut self.current, next));
            self.room = PART;
        }
        self.room = self.room.saturating_sub(size);
        &mut self.current
    }
}

fn size<T: Encode<()>>(value: &T) -> usize {
    cbor::to_vec(value).len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Fingerprint, InstanceId};
    use crate::keys::AgreementKey;
    use crate::operator::{MAX_FRAME, ToAgent};
    use crate::pair::PairSecret;
    use crate::snapshot::{BirthdayMode, PathMode};
    use crate::time::UnixTime;

    fn label(length: usize, number: usize) -> Label {
        format!("{number:0length$}").parse().expect("digits are a label")
    }

    /// As large as one can be.
    fn largest(number: usize) -> Entry {
        let name = [label(63, number), label(63, 0)].map(|part| part.to_string()).join(".");
        let trust = TrustId([7; 16]);
        let host = "h".repeat(253).parse().expect("a host");
        let relay = RelayInfo { key: AgreementKey([1; 32]), host, port: u16::MAX, tls: Some(u16::MAX) };
        let port = |number: usize| Port { name: label(63, number), number: u16::MAX, protocol: Protocol::Udp };
        Entry {
            peer: Peer {
                trust,
                id: AgentId { authority: Fingerprint([1; 32]), name: name.parse().expect("a name") },
                secrets: vec![PairSecret::from_bytes([1; 32]); MAX_SECRETS],
                alias: label(63, 0),
                inbound: (0..MAX_PORTS).map(|number| label(63, number)).collect(),
                ports: (0..MAX_PORTS).map(port).collect(),
                relays: vec![relay; MAX_RELAYS],
                expires: Some(UnixTime(u64::MAX)),
                path: PathMode::DirectOnly,
                birthday: BirthdayMode::Enabled,
            },
            consents: vec![trust; MAX_CONSENTS],
            link: Some(label(63, 0)),
            local_ports: vec![LocalPort { port: 9999, protocol: Protocol::Udp, here: 9999 }; MAX_PORTS],
        }
    }

    #[test]
    fn however_large_it_is_an_update_travels_in_frames_and_says_the_same() {
        let denied = |number: u16| DeniedInstance {
            authority: Fingerprint([1; 32]),
            instance: InstanceId(u64::from(number).to_be_bytes()),
            until: UnixTime(u64::MAX),
        };
        let whole = Update {
            sequence: 5,
            full: true,
            more: false,
            revision: Revision { epoch: u64::MAX, versions: vec![u64::MAX; MAX_VERSIONS] },
            entries: (0..40).map(largest).collect(),
            withdrawn: (0..1000).map(|number| largest(number).peer.id).collect(),
            gone: (0..5000u64).map(|n| TrustId([n.to_be_bytes(), [0; 8]].concat().try_into().expect("16"))).collect(),
            denied: (0..5000).map(denied).collect(),
            settings: Some(Settings::default()),
            shown: Revision { epoch: u64::MAX, versions: vec![u64::MAX; MAX_VERSIONS] },
        };
        let parts = whole.clone().into_parts();
        assert!(parts.len() > 10, "{} parts", parts.len());
        let (revision, shown) = (whole.revision.clone(), whole.shown.clone());
        let mut again = Update { sequence: 5, full: true, revision, shown, ..Update::default() };
        for (number, part) in parts.iter().enumerate() {
            let frame = ToAgent::Update(Box::new(part.clone())).encode();
            assert!(frame.len() <= MAX_FRAME + 4);
            assert_eq!(ToAgent::decode(&frame[4..]), Ok(Some(ToAgent::Update(Box::new(part.clone())))));
            assert_eq!(part.sequence, 5 + number as u64);
            assert_eq!((part.full, part.more), (number == 0, number + 1 < parts.len()));
            again.entries.extend(part.entries.clone());
            again.withdrawn.extend(part.withdrawn.clone());
            again.gone.extend(part.gone.clone());
            again.denied.extend(part.denied.clone());
            again.settings = again.settings.or(part.settings.clone());
        }
        assert_eq!(again, whole);
    }

    #[test]
    fn nothing_to_say_is_one_update() {
        let parts = Update { sequence: 1, full: true, ..Update::default() }.into_parts();
        assert_eq!(parts, [Update { sequence: 1, full: true, ..Update::default() }]);
    }

    #[test]
    fn an_entry_must_rest_on_its_own_consent_and_keep_the_limits() {
        let within = |entry: Entry| Update { entries: vec![entry], ..Update::default() }.is_within_limits();
        assert!(within(largest(0)));
        assert!(!within(Entry { consents: vec![], ..largest(0) }));
        assert!(!within(Entry { consents: vec![TrustId([8; 16])], ..largest(0) }), "its own trust comes first");
        let mut poor = largest(0);
        poor.peer.secrets.clear();
        assert!(!within(poor));
        let mut rich = largest(0);
        rich.peer.ports.push(rich.peer.ports[0].clone());
        assert!(!within(rich));
    }

    fn revision(epoch: u64, versions: &[u64]) -> Revision {
        Revision { epoch, versions: versions.to_vec() }
    }

    #[test]
    fn a_revision_covers_another_if_it_is_as_far_in_every_source() {
        assert!(revision(1, &[2, 2]).covers(&revision(1, &[2, 1])));
        assert!(
            !revision(1, &[3, 1]).covers(&revision(1, &[2, 2])) && !revision(1, &[2, 2]).covers(&revision(1, &[3, 1]))
        );
        assert!(revision(1, &[2]).covers(&revision(1, &[2, 0])) && !revision(1, &[2]).covers(&revision(1, &[2, 1])));
    }

    #[test]
    fn a_new_epoch_is_later_than_every_version() {
        assert!(revision(2, &[]).covers(&revision(1, &[u64::MAX])));
        assert!(!revision(1, &[u64::MAX]).covers(&revision(2, &[])));
    }

    #[test]
    fn raised_by_another_a_revision_is_the_least_that_covers_both() {
        for (other, raised) in [
            (revision(1, &[1, 5, 7]), revision(1, &[3, 5, 7])),
            (revision(2, &[1]), revision(2, &[1])),
            (revision(0, &[9, 9]), revision(1, &[3, 4])),
        ] {
            let mut ours = revision(1, &[3, 4]);
            ours.raise(&other);
            assert_eq!(ours, raised);
        }
    }

    #[test]
    fn a_revision_has_few_numbers() {
        let update = |count| Update { shown: revision(1, &vec![1; count]), ..Update::default() };
        assert!(update(MAX_VERSIONS).is_within_limits() && !update(MAX_VERSIONS + 1).is_within_limits());
    }
}
