//! Trust requests by name alone: ours in others' mailboxes, and others' in ours (`docs/spec/mailbox.md`).
//!
//! A relay says which authority a name belongs to, and it may lie, so what it said is shown, stored and pinned from then on.
//! It says something also where there is no such agent: then nobody ever answers, and that looks like an owner who thinks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerage_model::mailbox::{LIFETIME, MAX_REASON, MailError, MailRequest, SealError};
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::{MailId, SEALED};
use peerage_model::ticket::MAX_RELAYS;
use peerage_model::{AgentId, AgentName, AgreementSecret, Authority, AuthorityRecord, Fingerprint, TrustId, UnixTime};

use super::agent::Agent;
use super::handler::{consent, forget};
use super::link;
use crate::control::view::{self, Event};
use crate::control::{Code, Failure, Terms};
use crate::state::change::{Found, Reception};
use crate::state::document::{Received, Sent, Trust};
use crate::state::lookup::short;
use crate::state::{PeerRef, StateError, UpdateError, random, time};

/// How often a request that nobody has answered is posted again: relays keep mail in memory only.
pub(super) const AGAIN: Duration = Duration::from_secs(15 * 60);
/// Relays that are asked for a name.
const MAX_ASKED: usize = 16;

/// Sealed requests as they were posted. The same bytes again are the same mail to a relay.
#[derive(Debug, Default)]
pub(super) struct Posted(Mutex<BTreeMap<AgentId, Box<[u8; SEALED]>>>);

impl Posted {
    fn get(&self, peer: &AgentId) -> Option<Box<[u8; SEALED]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    fn keep(&self, peer: AgentId, sealed: Box<[u8; SEALED]>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, sealed);
    }

    fn retain(&self, waiting: &[Sent]) {
        let mut posted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        posted.retain(|peer, _| waiting.iter().any(|sent| sent.peer == *peer));
    }
}

/// Looks a name up, declares our trust in whom the relays name, and leaves a request in its mailbox.
pub(super) async fn handshake(
    agent: &Arc<Agent>,
    name: &str,
    relays: Vec<String>,
    reason: String,
    terms: &Terms,
) -> Result<view::Asked, Failure> {
    if reason.len() > MAX_REASON {
        return Err(Failure::bad_request(format!("a reason that goes by mail has at most {MAX_REASON} bytes")));
    }
    let wanted: PeerRef =
        name.parse().map_err(|error: crate::state::lookup::InvalidPeerRef| Failure::bad_request(error.to_string()))?;
    let relays = relays_to_ask(agent, &relays)?;
    let found = find(agent, &wanted, &relays).await?;
    let consent = consent(&agent.document(), terms)?;
    let (us, new, about, why) = (agent.us.clone(), consent.id, found.clone(), reason.clone());
    // Our consent first: an owner that approves at once must find it.
    let trust = agent
        .change(move |store, now| {
            let ask = |document: &mut crate::state::Document| {
                Ok::<Trust, UpdateError>(document.handshake_by_name(&us, &about, &why, &consent, now)?)
            };
            store.change(ask)
        })
        .await?;
    let sent = agent.document().sent.into_iter().find(|sent| sent.peer == found.peer);
    let asked = sent.map_or_else(time::now, |sent| sent.sent);
    match leave(agent, &found, &reason, asked).await {
        Ok(posted) => {
            agent.note_answer_if_connected(&trust.peer).await;
            Ok(view::Asked {
                peer: trust.peer,
                name: trust.alias.to_string(),
                inbound: trust.inbound.to_string(),
                mailboxes: posted.iter().map(ToString::to_string).collect(),
            })
        }
        Err(failure) => {
            if trust.id == new {
                forget(agent, &trust).await?;
            }
            Err(failure)
        }
    }
}

/// Leaves a sealed request in the mailbox of whom was found; gives the relays that say that they have it.
async fn leave(agent: &Agent, found: &Found, reason: &str, asked: UnixTime) -> Result<Vec<RelayInfo>, Failure> {
    let sealed = seal(agent, &found.peer, &found.record, reason, asked)
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let posted = agent.link.post(found.peer.routing_id(), &sealed, &found.relays).await;
    agent.posted.keep(found.peer.clone(), sealed);
    if posted.is_empty() { Err(no_answer()) } else { Ok(posted) }
}

fn relays_to_ask(agent: &Agent, given: &[String]) -> Result<Vec<RelayInfo>, Failure> {
    let parsed: Result<Vec<RelayInfo>, _> = given.iter().map(|relay| relay.parse()).collect();
    let given = parsed.map_err(|error| Failure::bad_request(format!("{error}")))?;
    let mut relays = if given.is_empty() { agent.document().relays } else { given };
    relays.truncate(MAX_ASKED);
    if relays.is_empty() {
        return Err(Failure::new(
            Code::NoRelay,
            "this agent uses no relay, so there is none to ask for a name",
            "say which relay the other agent uses: `peerage handshake NAME REASON --relay KEY@HOST:PORT`",
        ));
    }
    Ok(relays)
}

/// The one agent that is meant.
async fn find(agent: &Agent, wanted: &PeerRef, relays: &[RelayInfo]) -> Result<Found, Failure> {
    let name: AgentName =
        wanted.name().parse().map_err(|error: peerage_model::InvalidName| Failure::bad_request(error.to_string()))?;
    let answers = agent.link.look_up(&name, relays).await;
    if answers.is_empty() {
        return Err(no_answer());
    }
    let mut candidates = by_authority(&name, answers);
    candidates.retain(|found| wanted.fits(&found.peer.authority));
    match candidates.len() {
        1 => Ok(candidates.remove(0)),
        0 => Err(Failure::new(
            Code::UnknownPeer,
            format!("no relay names an authority for `{wanted}` that begins with these digits"),
            "ask the other owner for its fingerprint (`peerage status` shows it) and for its relay, or for a ticket",
        )),
        _ => {
            let choices: Vec<String> = candidates.iter().map(|found| short(&found.peer)).collect();
            Err(Failure::new(
                Code::AmbiguousName,
                format!("relays name several authorities for `{name}`: {}", choices.join(", ")),
                format!(
                    "ask the other owner for its fingerprint (`peerage status` shows it), then write one of: {}",
                    choices.join(", ")
                ),
            ))
        }
    }
}

/// What relays say, turned around: each authority with the relays that name it, its newest record, and most-named first.
fn by_authority(name: &AgentName, answers: Vec<link::Found>) -> Vec<Found> {
    let mut found: BTreeMap<Fingerprint, (AuthorityRecord, Vec<RelayInfo>)> = BTreeMap::new();
    for (relay, records) in answers {
        for record in records {
            let (newest, relays) = found.entry(record.fingerprint()).or_insert_with(|| (record.clone(), Vec::new()));
            if record.sequence() > newest.sequence() {
                *newest = record;
            }
            if !relays.contains(&relay) && relays.len() < MAX_RELAYS {
                relays.push(relay.clone());
            }
        }
    }
    let agent =
        |(authority, (record, relays))| Found { peer: AgentId { authority, name: name.clone() }, record, relays };
    found.into_iter().map(agent).collect()
}

fn seal(
    agent: &Agent,
    owner: &AgentId,
    record: &AuthorityRecord,
    reason: &str,
    asked: UnixTime,
) -> Result<Box<[u8; SEALED]>, SealError> {
    let store = agent.store();
    let authority = store.authority();
    let request = MailRequest {
        record: authority.record().clone(),
        name: agent.us.name.clone(),
        relays: store.document().relays.iter().take(MAX_RELAYS).cloned().collect(),
        reason: reason.to_owned(),
        asked,
    };
    request.seal(authority, owner, record, &AgreementSecret::from_bytes(*random::<32>()))
}

fn no_answer() -> Failure {
    Failure::new(
        Code::Unreachable,
        "no relay answered",
        "check that UDP gets out to the relays: `peerage doctor`; or ask the other owner for a ticket",
    )
}

impl Agent {
    /// Posts again what nobody has answered yet; in the background, since a relay may take seconds.
    pub(super) fn post_again(self: &Arc<Self>) {
        let waiting = self.document().sent;
        self.posted.retain(&waiting);
        for sent in waiting.into_iter().filter(|sent| !sent.mailboxes.is_empty()) {
            let agent = Arc::clone(self);
            tokio::spawn(async move { agent.post_one_again(&sent).await });
        }
    }

    async fn post_one_again(&self, sent: &Sent) {
        if sent.sent.plus(LIFETIME) <= time::now() {
            return;
        }
        let sealed = self.posted.get(&sent.peer).or_else(|| self.seal_again(sent));
        let Some(sealed) = sealed else { return };
        let posted = self.link.post(sent.peer.routing_id(), &sealed, &sent.mailboxes).await;
        tracing::debug!(relays = posted.len(), "posted a trust request again");
    }

    /// After a restart of ours: the same request (its owner knows it by the time at which it was asked) in a new seal.
    fn seal_again(&self, sent: &Sent) -> Option<Box<[u8; SEALED]>> {
        let record = self.document().trusts.iter().find(|trust| trust.peer == sent.peer)?.records.first()?.clone();
        let sealed = seal(self, &sent.peer, &record, &sent.reason, sent.sent).ok()?;
        self.posted.keep(sent.peer.clone(), sealed.clone());
        Some(sealed)
    }

    /// Reads what lay in our mailbox. The relay forgets it once it is on disk, or where it is worth nothing.
    pub(super) async fn mail(self: &Arc<Self>, relay: &RelayInfo, id: MailId, sealed: &[u8; SEALED]) {
        let opened = self.open_mail(sealed);
        let done = match opened {
            Ok(request) => self.asked_by_mail(request).await,
            Err(error) => {
                tracing::debug!(%error, "mail that is no request");
                true
            }
        };
        if done {
            self.link.mail_done(relay, id);
        }
    }

    /// While our keys rotate, mail may be sealed to the former ones or to the new.
    fn open_mail(&self, sealed: &[u8; SEALED]) -> Result<MailRequest, MailError> {
        let (store, now) = (self.store(), time::now());
        let open = |authority: &Authority| MailRequest::open(sealed, authority.agreement(), &self.us, now);
        store.former().and_then(|former| open(&former.authority).ok()).map_or_else(|| open(store.authority()), Ok)
    }

    /// Whether the request is dealt with.
    async fn asked_by_mail(self: &Arc<Self>, request: MailRequest) -> bool {
        let (id, asked) = (request.asker(), request.asked);
        if id == self.us {
            return true;
        }
        let received = Received {
            asker: id.clone(),
            records: vec![request.record],
            relays: request.relays,
            reason: request.reason,
            invite: None::<TrustId>,
            asked: Some(asked),
            received: time::now(),
        };
        let kept = self.change(move |store, _| {
            let receive = |document: &mut crate::state::Document| {
                let reception = document.receive_mail(received, asked);
                let reason = document.requests.last().map(|request| request.reason.clone());
                Ok::<_, StateError>((reception, reason.unwrap_or_default()))
            };
            store.change(receive).map_err(Into::into)
        });
        match kept.await {
            Ok((Reception::Waiting, reason)) => {
                self.say(Event::Request { name: id.name.to_string(), id: id.to_string(), reason });
                true
            }
            Ok((Reception::AlreadyTrusted | Reception::Repeated | Reception::Withdrawn, _)) => true,
            Ok((Reception::Dropped, _)) => {
                tracing::warn!(%id, "a trust request by mail was dropped: too many are waiting");
                true
            }
            Err(failure) => {
                tracing::error!(%failure, "cannot write a trust request down");
                false
            }
        }
    }
}
