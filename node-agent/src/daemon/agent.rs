//! The daemon's heart: the state, the tunnel and the edge, kept in step.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use peerage_model::stream::StreamStatus;
use peerage_model::{AgentId, AgreementSecret, AuthorityRecord, Credential, InstanceId, UnixTime, passport};
use tokio::sync::{broadcast, watch};

use super::edge::{Edge, Problem};
use super::link::{Link, LinkEvent};
use super::mailbox::Posted;
use super::outcomes::Outcomes;
use crate::control::Failure;
use crate::control::view::{self, Event};
use crate::health::Metrics;
use crate::state::change::{Ended, Reception};
use crate::state::document::{Document, Received};
use crate::state::{StateError, Store, UpdateError, time};
use crate::trust::{self, Compiled};

/// Keys of one peer's authority are written down at most this often.
const LEARN_AGAIN: Duration = Duration::from_secs(10);
/// Events kept for a slow listener.
const EVENTS: usize = 256;

/// Everything a request or an event may need.
pub(super) struct Agent {
    pub(super) us: AgentId,
    pub(super) instance: InstanceId,
    pub(super) since: UnixTime,
    pub(super) link: Arc<dyn Link>,
    pub(super) edge: Edge,
    pub(super) metrics: Metrics,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) ended: broadcast::Sender<Ending>,
    pub(super) stop: watch::Sender<bool>,
    /// How the latest `connect`s ended.
    pub(super) outcomes: Outcomes,
    /// Requests of ours that lie in mailboxes.
    pub(super) posted: Posted,
    /// Peers as their sessions show them.
    contacts: Mutex<BTreeMap<AgentId, Contact>>,
    instance_key: AgreementSecret,
    passport_until: Mutex<UnixTime>,
    problems: Mutex<Vec<String>>,
    /// Why what has ended could not be written down, the last time. It is tried every second and said once.
    unswept: Mutex<Option<Failure>>,
    /// The state as it is on disk. Replaced whole, so that nobody who reads it waits for the disk: those who do also carry
    /// programs' bytes.
    store: RwLock<Arc<Store>>,
    /// Held by the one change that is being made.
    changing: Mutex<()>,
}

/// Something with a peer ended.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) peer: AgentId,
    /// Streams that were reset.
    pub(super) streams: u64,
    /// Sessions that are left.
    pub(super) left: usize,
}

/// What was seen of a peer. Both sides may dial at once, and a name may have replicas, so sessions are counted: people are
/// told of the first and the last.
#[derive(Debug, Default)]
struct Contact {
    sessions: usize,
    last_end: Option<String>,
    /// When keys of its authority were last written down.
    learned: Option<Instant>,
}

/// What an agent is made from.
pub(super) struct Parts {
    pub(super) us: AgentId,
    pub(super) instance_key: AgreementSecret,
    pub(super) passport_until: UnixTime,
    pub(super) store: Store,
    pub(super) link: Arc<dyn Link>,
    pub(super) edge: Edge,
    pub(super) metrics: Metrics,
}

impl Agent {
    pub(super) fn new(parts: Parts, now: UnixTime) -> Arc<Self> {
        let agent = Self {
            us: parts.us,
            instance: InstanceId::of_key(&parts.instance_key.public()),
            since: now,
            link: parts.link,
            edge: parts.edge,
            metrics: parts.metrics,
            events: broadcast::Sender::new(EVENTS),
            ended: broadcast::Sender::new(EVENTS),
            stop: watch::Sender::new(false),
            outcomes: Outcomes::default(),
            posted: Posted::default(),
            contacts: Mutex::default(),
            instance_key: parts.instance_key,
            passport_until: Mutex::new(parts.passport_until),
            problems: Mutex::default(),
            unswept: Mutex::default(),
            store: RwLock::new(Arc::new(parts.store)),
            changing: Mutex::default(),
        };
        agent.apply(&agent.store(), now);
        Arc::new(agent)
    }

    /// The state of this moment.
    pub(super) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of everything that is not secret.
    pub(super) fn document(&self) -> Document {
        self.store().document().clone()
    }

    /// Makes a change, writes it, and acts on it. The disk is waited for on a thread of its own.
    pub(super) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Store, UnixTime) -> Result<T, UpdateError> + Send + 'static,
    ) -> Result<T, Failure> {
        let agent = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let now = time::now();
            // To the end, so that two changes reach the engine in the order in which they were written.
            let _changing = agent.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut store = Store::clone(&agent.store());
            let result = change(&mut store, now);
            let store = Arc::new(store);
            // Also after a failure: a change of several files may have made its first.
            *agent.store.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&store);
            let result = result?;
            agent.apply(&store, now);
            Ok::<T, UpdateError>(result)
        });
        match done.await {
            Ok(result) => result.map_err(Failure::from),
            Err(error) => Err(Failure::new(
                crate::control::Code::Internal,
                format!("the change broke off: {error}"),
                "look at the agent's log",
            )),
        }
    }

    fn apply(&self, store: &Store, now: UnixTime) {
        let Compiled { snapshot, problems } =
            trust::compile(&store.authorities(), &self.us, store.document(), store.invites(), now);
        let document = store.document();
        self.edge.apply(&snapshot.peers, &document.services, &document.avoid);
        self.metrics.peers.set(i64::try_from(snapshot.peers.len()).unwrap_or(i64::MAX));
        self.contacts().retain(|peer, contact| contact.sessions > 0 || snapshot.peers.iter().any(|p| p.id == *peer));
        self.link.apply(snapshot);
        let texts =
            problems.iter().map(|problem| format!("trust in {:?} is not acted on: {}", problem.peer, problem.why));
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = texts.collect();
    }

    /// What stands in the way of something that was asked for.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let texts = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let trusts = texts.into_iter().map(|text| Problem { text, expected: false });
        trusts.chain(self.edge.problems()).collect()
    }

    pub(super) fn passport_until(&self) -> UnixTime {
        *self.passport_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Issues a fresh passport for this run where it is time to, and shows it from now on. Asked every second, so that a
    /// machine that slept, or whose clock was wrong, does not wait for an hour to pass.
    pub(super) fn renew_passport_if_due(&self, now: UnixTime) {
        if !is_renewal_due(self.passport_until(), now) {
            return;
        }
        self.renew_passport(now);
    }

    /// Issues a fresh passport for this run, from the keys of this moment, and shows it in every session.
    pub(super) fn renew_passport(&self, now: UnixTime) {
        let (credential, until) = issue(&self.store(), &self.us, &self.instance_key, now);
        *self.passport_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        self.link.renew(credential);
        tracing::debug!("renewed the passport");
    }

    /// A session showed which keys a peer's authority uses; those that are new are kept beside the former ones.
    async fn learn_record(self: &Arc<Self>, peer: AgentId, record: AuthorityRecord) {
        let news = self.document().learn(&peer, &record);
        if !news || !self.may_learn(&peer) {
            return;
        }
        tracing::info!(target: "events::peer_rotated", peer = %peer.routing_id(), sequence = record.sequence());
        let learned = self.change(move |store, _| {
            store.change(|document| Ok::<bool, StateError>(document.learn(&peer, &record))).map_err(Into::into)
        });
        if let Err(failure) = learned.await {
            tracing::error!(%failure, "cannot write down which keys a peer uses");
        }
    }

    /// A trusted peer that rotates all the time may not keep our disk busy. What is not learned is shown again with its next
    /// passport.
    fn may_learn(&self, peer: &AgentId) -> bool {
        let (mut contacts, now) = (self.contacts(), Instant::now());
        let learned = &mut contacts.entry(peer.clone()).or_default().learned;
        let may = learned.is_none_or(|at| now.duration_since(at) >= LEARN_AGAIN);
        if may {
            *learned = Some(now);
        }
        may
    }

    /// Removes what has ended, where anything has, and writes down what could not be written before.
    pub(super) async fn sweep(self: &Arc<Self>) {
        let store = self.store();
        let has_ended = store.next_end().is_some_and(|end| end <= time::now());
        if !has_ended && !store.is_unwritten() {
            return;
        }
        drop(store);
        let swept = self.change(|store, now| {
            store.retire_former(now)?;
            store.change(|document| Ok::<Ended, StateError>(document.sweep(now))).map_err(Into::into)
        });
        let swept = swept.await;
        let is_news = self.is_news(swept.as_ref().err());
        match swept {
            Ok(ended) => {
                if is_news {
                    tracing::info!("what had ended is written down after all");
                }
                for trust in ended.trusts {
                    tracing::info!(peer = %trust.peer.routing_id(), "a trust came to its end");
                    self.say(Event::Expired { peer: trust.alias.to_string(), id: trust.peer.to_string() });
                }
            }
            Err(failure) if is_news => tracing::error!(%failure, "cannot write down what has ended; trying again"),
            Err(failure) => tracing::debug!(%failure, "cannot write down what has ended"),
        }
    }

    /// Whether sweeping up fails in another way than the last time, or works again.
    fn is_news(&self, failure: Option<&Failure>) -> bool {
        let mut last = self.unswept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = last.as_ref() != failure;
        *last = failure.cloned();
        is_news
    }

    /// Tells whoever listens.
    pub(super) fn say(&self, event: Event) {
        // Nobody listening is the usual case.
        let _ = self.events.send(event);
    }

    /// What a peer is called here; its id where it is not (any more) called anything.
    pub(super) fn alias(&self, peer: &AgentId) -> String {
        let store = self.store();
        let trust = store.document().trusts.iter().find(|trust| trust.peer == *peer);
        trust.map_or_else(|| crate::state::lookup::short(peer), |trust| trust.alias.to_string())
    }

    /// Acts on what happened in the tunnel, and passes it on.
    pub(super) async fn hear(self: &Arc<Self>, event: LinkEvent) {
        match event {
            LinkEvent::Relay { relay, up, observed } => {
                self.metrics.relay_changed(&relay.to_string(), up);
                self.say(Event::Relay { relay: relay.to_string(), up, observed });
                if up {
                    // It may have restarted, and keeps mail in memory only.
                    self.post_again();
                }
            }
            LinkEvent::RelayRefused { relay, reason } => {
                self.metrics.relay_changed(&relay.to_string(), false);
                self.say(Event::RelayRefused { relay: relay.to_string(), reason });
            }
            LinkEvent::Nat(nat) => self.say(Event::Nat { nat }),
            LinkEvent::SessionUp { peer, path, instance: _ } => self.session_up(peer, path).await,
            LinkEvent::SessionDown { peer, reason } => self.session_down(peer, reason),
            LinkEvent::PathChanged { peer, from, to, why, rtt } => {
                tracing::info!(target: "events::path_changed", peer = %peer.routing_id(), from, to, ?rtt);
                let peer = self.alias(&peer);
                self.say(Event::PathChanged { peer, from, to, why, rtt_ms: rtt.map(milliseconds) });
            }
            LinkEvent::PeerRecord { peer, record } => self.learn_record(peer, *record).await,
            LinkEvent::PeerPorts { peer, ports } => {
                let texts = ports.iter().map(|port| view::port_text(port.name.as_str(), port.number, port.protocol));
                let event = Event::Ports { peer: self.alias(&peer), ports: texts.collect() };
                self.edge.learn_ports(&peer, ports);
                self.say(event);
            }
            LinkEvent::StreamsReset { peer, count, why } => {
                self.metrics.streams_reset.inc_by(count);
                let left = self.sessions_with(&peer);
                let _ = self.ended.send(Ending { peer: peer.clone(), streams: count, left });
                self.say(Event::StreamsReset { peer: self.alias(&peer), count, why });
            }
            LinkEvent::Mail { relay, id, sealed } => self.mail(&relay, id, &sealed).await,
            LinkEvent::TrustRequested { invite, asker, request } => self.asked(invite, &asker, request).await,
        }
    }

    async fn session_up(self: &Arc<Self>, peer: AgentId, path: String) {
        self.metrics.sessions_opened.inc();
        let first = {
            let mut contacts = self.contacts();
            let contact = contacts.entry(peer.clone()).or_default();
            contact.sessions += 1;
            contact.last_end = None;
            contact.sessions == 1
        };
        let approved = self.note_answer(&peer).await;
        if first || approved {
            self.say(Event::Connected { peer: self.alias(&peer), id: peer.to_string(), path, approved });
        }
    }

    /// A session is a peer's yes to what we asked it, if we did and it has not answered yet.
    async fn note_answer(self: &Arc<Self>, peer: &AgentId) -> bool {
        if !self.store().document().sent.iter().any(|sent| sent.peer == *peer) {
            return false;
        }
        let whose = peer.clone();
        let noted = self.change(move |store, _| {
            store.change(|document| Ok::<bool, StateError>(document.answered(&whose))).map_err(Into::into)
        });
        noted.await.unwrap_or_else(|failure| {
            tracing::error!(%failure, "cannot write down that a peer approved");
            true
        })
    }

    /// Who asks a peer again that it has a session with has its answer.
    pub(super) async fn note_answer_if_connected(self: &Arc<Self>, peer: &AgentId) {
        if self.sessions_with(peer) > 0 {
            self.note_answer(peer).await;
        }
    }

    fn session_down(&self, peer: AgentId, reason: String) {
        let left = {
            let mut contacts = self.contacts();
            let contact = contacts.entry(peer.clone()).or_default();
            contact.sessions = contact.sessions.saturating_sub(1);
            contact.last_end = Some(reason.clone());
            contact.sessions
        };
        // Nobody waiting for a revocation is the usual case.
        let _ = self.ended.send(Ending { peer: peer.clone(), streams: 0, left });
        if left == 0 {
            self.say(Event::Disconnected { peer: self.alias(&peer), id: peer.to_string(), reason });
        }
    }

    /// Sessions with a peer, as far as events have told.
    pub(super) fn sessions_with(&self, peer: &AgentId) -> usize {
        self.contacts().get(peer).map_or(0, |contact| contact.sessions)
    }

    /// Why the last session with a peer ended, where there is none.
    pub(super) fn last_end(&self, peer: &AgentId) -> Option<String> {
        self.contacts().get(peer).and_then(|contact| contact.last_end.clone())
    }

    fn contacts(&self) -> MutexGuard<'_, BTreeMap<AgentId, Contact>> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn asked(
        self: &Arc<Self>,
        invite: peerage_model::TrustId,
        asker: &Credential,
        request: peerage_model::control::TrustRequest,
    ) {
        let id = asker.agent().clone();
        if id == self.us {
            self.link.answer_request(invite, StreamStatus::Denied);
            return;
        }
        let received = Received {
            asker: id.clone(),
            records: vec![asker.record().clone()],
            relays: request.relays,
            reason: request.reason,
            invite: Some(invite),
            asked: None,
            received: time::now(),
        };
        let kept = self.change(move |store, _| {
            store
                .change(|document| {
                    let reception = document.receive(received);
                    let reason = document.requests.last().map(|request| request.reason.clone());
                    Ok::<_, StateError>((reception, reason.unwrap_or_default()))
                })
                .map_err(Into::into)
        });
        let kept = kept.await;
        let status = match &kept {
            // The asker's receipt says that the request is on disk, so a crash from here on loses nothing.
            Ok((Reception::Waiting | Reception::AlreadyTrusted, _)) => StreamStatus::Open,
            // Its ticket is used up, or was withdrawn.
            Ok((Reception::Dropped | Reception::Repeated | Reception::Withdrawn, _)) => StreamStatus::Denied,
            Err(_) => StreamStatus::Busy,
        };
        self.link.answer_request(invite, status);
        match kept {
            Ok((Reception::Waiting, reason)) => {
                let name = id.name.to_string();
                self.say(Event::Request { name, id: id.to_string(), reason });
            }
            Ok((Reception::AlreadyTrusted, _)) => {
                tracing::info!(peer = %id.routing_id(), "a peer we trust already asked for trust");
            }
            Ok((Reception::Repeated, _)) => tracing::debug!(%id, "a trust request came again"),
            Ok((Reception::Dropped, _)) => {
                tracing::warn!(peer = %id.routing_id(), "a trust request was dropped: too many are waiting");
            }
            Ok((Reception::Withdrawn, _)) => {
                tracing::info!(peer = %id.routing_id(), "a trust request came by a ticket that was withdrawn meanwhile");
            }
            Err(failure) => tracing::error!(%failure, "cannot write a trust request down"),
        }
    }
}

/// Whether a passport that ends at `until` has been used for as long as one may, or was made by a clock so far ahead that
/// peers do not accept it yet.
pub(crate) fn is_renewal_due(until: UnixTime, now: UnixTime) -> bool {
    let used_up = until <= now.plus(passport::LIFETIME - passport::RENEWAL);
    used_up || until > now.plus(passport::LIFETIME + passport::BACKDATED)
}

/// A passport for one run of `us`, as it is shown, and when it ends.
pub(super) fn issue(store: &Store, us: &AgentId, key: &AgreementSecret, now: UnixTime) -> (Vec<u8>, UnixTime) {
    let authority = store.authority();
    let until = now.plus(passport::LIFETIME);
    let signed = authority.issue(us, key.public(), now.minus(passport::BACKDATED), until);
    (Credential::join(authority.record(), signed), until)
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as exact as a round trip is; more digits would only look exact.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passport_is_renewed_after_an_hour_after_a_sleep_and_when_the_clock_was_wrong() {
        let issued = UnixTime(1_800_000_000);
        let until = issued.plus(passport::LIFETIME);
        assert!(!is_renewal_due(until, issued));
        assert!(!is_renewal_due(until, issued.plus(passport::RENEWAL - Duration::from_secs(1))));
        assert!(is_renewal_due(until, issued.plus(passport::RENEWAL)));
        assert!(is_renewal_due(until, until.plus(passport::RENEWAL)), "it slept through the end");
        assert!(
            !is_renewal_due(until, issued.minus(Duration::from_secs(60))),
            "clocks are set by a little all the time"
        );
        assert!(is_renewal_due(until, issued.minus(2 * passport::BACKDATED)), "it was issued in the future");
    }
}
