//! Answers what people ask over the control socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_model::control::{MAX_REASON, TrustRequest};
use peerage_model::id::InvalidId;
use peerage_model::linking::OPERATOR;
use peerage_model::ticket::{InviteSecret, MAX_RELAYS, TicketError};
use peerage_model::{AgentId, InstanceId, PairSecret, Ticket, TrustId, UnixTime};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

use super::agent::{Agent, Ending, milliseconds};
use super::edge::Edge;
use super::{doctor, mailbox, measure, report};
use crate::control::failure::chain;
use crate::control::server::{Handler, Handling, Reply};
use crate::control::view::{self, Event};
use crate::control::{Code, Failure, Request, Terms};
use crate::state::document::{Document, Inbound, Path, Service, Trust};
use crate::state::{ChangeError, Consent, PeerRef, StateError, UpdateError, random, time};

/// Longest consent with an end, as in what people type ([`time::parse_span`]). Times are written with a year of four digits.
const MAX_TERM_SECONDS: u64 = 36_525 * 24 * 3600;
/// How long `revoke --wait` waits. The promise is 1 s; past this something is wrong and is said.
const REVOCATION_PATIENCE: Duration = Duration::from_secs(5);
/// Longest time in which the keys before a rotation count.
const MAX_OVERLAP_SECONDS: u64 = 365 * 24 * 3600;
/// So much of a ticket is repeated to its owner: not what makes it a secret.
const SHOWN_OF_A_TICKET: usize = 16;
/// Longest life of a ticket. It is a secret on its way; a month is a forgotten one.
const MAX_INVITE_SECONDS: u64 = 30 * 24 * 3600;

impl Handler for Agent {
    fn handle(self: Arc<Self>, request: Request) -> Handling {
        Box::pin(async move {
            match request {
                Request::Status => value(&report::status(&self).await),
                Request::Peers => value(&report::status(&self).await.peers),
                Request::Requests => value(&report::requests(&self.document())),
                Request::Invite { expires_s } => value(&invite(&self, expires_s).await?),
                Request::Tickets => value(&report::tickets(&self.document().invites)),
                Request::Withdraw { ticket } => value(&withdraw(&self, &ticket).await?),
                Request::Handshake { ticket, to, reason, terms } => {
                    let asked = async move { handshake(&self, &ticket, to, reason, &terms).await };
                    value(&to_its_end(asked).await?)
                }
                Request::HandshakeByName { name, relays, reason, terms } => {
                    let asked = async move { mailbox::handshake(&self, &name, relays, reason, &terms).await };
                    value(&to_its_end(asked).await?)
                }
                Request::Approve { name, terms } => value(&approve(&self, &name, &terms).await?),
                Request::Reject { name } => value(&reject(&self, &name).await?),
                Request::Revoke { name, wait } => value(&revoke(&self, &name, wait).await?),
                Request::Deny { name, instance } => value(&deny(&self, &name, &instance).await?),
                Request::Rotate { overlap_s } => value(&rotate(&self, overlap_s).await?),
                Request::Expose { service } => value(&expose(&self, &service).await?),
                Request::Unexpose { service } => value(&unexpose(&self, service).await?),
                Request::Ping { name, count, interval_ms } => {
                    measure::ping(self, &name, count, Duration::from_millis(interval_ms))
                }
                Request::Bench { name, seconds } => measure::bench(self, &name, seconds),
                Request::Connect { name, port } => connect(&self, &name, port).await,
                Request::Outcome { connection } => match self.outcomes.take(connection) {
                    Some(failure) => Err(failure),
                    None => value(&Value::Null),
                },
                Request::Names => Ok(Reply::Stream(names(self, |agent| &agent.edge))),
                Request::Doctor => value(&doctor::examine(&self).await),
                Request::Events => Ok(Reply::Stream(events(self.events.subscribe()))),
                Request::Down => {
                    self.stop.send_replace(true);
                    value(&Value::Null)
                }
            }
        })
    }
}

/// Goes on when the caller hangs up, which drops everything else that is done for it. Who declares a consent and takes it back
/// when its peer cannot be told must not stop in between: the consent would stand, and nobody would know.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let broke_off = |error| Failure::new(Code::Internal, format!("it broke off: {error}"), "look at the agent's log");
    tokio::spawn(work).await.unwrap_or_else(|error| Err(broke_off(error)))
}

fn value<T: Serialize>(of: &T) -> Result<Reply, Failure> {
    Ok(Reply::Value(json(of)))
}

pub(crate) fn json<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).expect("views have text for keys")
}

/// Who is meant by what a person typed.
pub(super) fn resolve(agent: &Agent, name: &str) -> Result<(AgentId, String), Failure> {
    let name = peer_ref(name)?;
    let document = agent.document();
    let trust = document.peer(&name)?;
    Ok((trust.peer.clone(), trust.alias.to_string()))
}

fn peer_ref(name: &str) -> Result<PeerRef, Failure> {
    name.parse().map_err(|error: crate::state::lookup::InvalidPeerRef| Failure::bad_request(error.to_string()))
}

async fn invite(agent: &Arc<Agent>, expires_s: u64) -> Result<view::Invited, Failure> {
    if expires_s == 0 || expires_s > MAX_INVITE_SECONDS {
        return Err(Failure::bad_request("a ticket lasts from a second to 30 days"));
    }
    let relays = agent.document().relays;
    if relays.is_empty() {
        return Err(Failure::new(
            Code::NoRelay,
            "this agent uses no relay, so nobody could find it by a ticket",
            "start one with `peerage relay` on a public machine, then `peerage up --relay KEY@HOST:PORT`",
        ));
    }
    let up = agent.link.status().await.relays.iter().any(|relay| relay.up);
    let secret = InviteSecret::from_bytes(*random::<32>());
    let (id, us) = (TrustId(*random::<16>()), agent.us.clone());
    let expires = time::now().plus(Duration::from_secs(expires_s));
    let pair = PairSecret::of_invite(secret.expose(), &us);
    let record = agent
        .change(move |store, _| {
            store.invite(id, pair, expires)?;
            Ok(store.authority().record().clone())
        })
        .await?;
    let ticket =
        Ticket { record, name: us.name, relays: relays.into_iter().take(MAX_RELAYS).collect(), secret, expires };
    let warning = (!up).then(|| "no relay is connected at the moment; the ticket works once one is".to_owned());
    Ok(view::Invited { ticket: ticket.to_string(), id: id.to_string(), expires, warning })
}

/// Tickets stop to open anything, be they in whose hands they may.
async fn withdraw(agent: &Arc<Agent>, text: &str) -> Result<Vec<view::OpenTicket>, Failure> {
    let meant = match Ticket::is_meant(text) {
        true => {
            let ticket = Ticket::parse(text, time::now()).map_err(|error| ticket_failure(&error))?;
            let secret = PairSecret::of_invite(ticket.secret.expose(), &agent.us);
            let shown = text.trim().chars().take(SHOWN_OF_A_TICKET).chain(['…']).collect();
            agent.store().invited_by(&secret).ok_or(ChangeError::UnknownTicket { ticket: shown })?.to_string()
        }
        false => text.trim().to_owned(),
    };
    let (withdrawn, kept) = take_back(agent, move |document, _| document.withdraw(&meant)).await?;
    // Where their secrets are gone, they open nothing after a restart either.
    let store = agent.store();
    match kept {
        Err(error) if withdrawn.iter().any(|invite| store.invites().contains_key(&invite.id)) => {
            Err(not_written(&error))
        }
        Err(_) | Ok(()) => Ok(report::tickets(&withdrawn)),
    }
}

/// Makes a change that closes a door; the second value says why it is not on disk.
async fn take_back<T: Send + 'static>(
    agent: &Arc<Agent>,
    change: impl FnOnce(&mut Document, UnixTime) -> Result<T, ChangeError> + Send + 'static,
) -> Result<(T, Result<(), StateError>), Failure> {
    agent.change(move |store, now| Ok(store.take_back(|document| change(document, now))?)).await
}

async fn handshake(
    agent: &Arc<Agent>,
    text: &str,
    to: Option<String>,
    reason: String,
    terms: &Terms,
) -> Result<view::Asked, Failure> {
    if reason.len() > MAX_REASON {
        return Err(Failure::bad_request(format!("a reason has at most {MAX_REASON} bytes")));
    }
    let ticket = Ticket::parse(text, time::now()).map_err(|error| ticket_failure(&error))?;
    let met = whom(&ticket, to)?;
    let consent = consent(&agent.document(), terms)?;
    let (us, new) = (agent.us.clone(), consent.id);
    let (given, why) = (met, reason.clone());
    // Our consent first: an inviter that approves at once must find it.
    let trust = agent
        .change(move |store, now| {
            store.change(|document| Ok::<_, UpdateError>(document.handshake(&us, &given, &why, &consent, now)?))
        })
        .await?;
    let request = TrustRequest { reason, relays: agent.document().relays.into_iter().take(MAX_RELAYS).collect() };
    if let Err(failure) = agent.link.ask(&ticket, request).await {
        if trust.id == new {
            forget(agent, &trust).await?;
        }
        return Err(failure);
    }
    agent.note_answer_if_connected(&trust.peer).await;
    Ok(view::Asked {
        peer: trust.peer,
        name: trust.alias.to_string(),
        inbound: trust.inbound.to_string(),
        mailboxes: Vec::new(),
    })
}

/// The ticket, as one of whom we trust by it. An operator talks to operators only: its ticket is for an agent of its cluster.
fn whom(ticket: &Ticket, to: Option<String>) -> Result<Ticket, Failure> {
    match (to, ticket.name.as_str() == OPERATOR) {
        (Some(to), true) if to.contains('.') => {
            let name =
                to.parse().map_err(|error: peerage_model::InvalidName| Failure::bad_request(error.to_string()))?;
            Ok(Ticket { name, ..ticket.clone() })
        }
        (_, true) => Err(Failure::bad_request(
            "this ticket is a cluster's: say which of its agents this machine is to trust, with --to NAME.NAMESPACE",
        )),
        (Some(_), false) => {
            Err(Failure::bad_request("this ticket is of one agent, which is who is asked: --to goes with a cluster's"))
        }
        (None, false) => Ok(ticket.clone()),
    }
}

/// Undoes a consent that its peer has never heard of, as if it had not been given.
pub(super) async fn forget(agent: &Arc<Agent>, trust: &Trust) -> Result<(), Failure> {
    let (id, peer) = (trust.id, trust.peer.clone());
    let undone = agent.change(move |store, _| {
        store
            .change(|document| {
                document.trusts.retain(|trust| trust.id != id);
                document.sent.retain(|sent| sent.peer != peer);
                Ok::<(), StateError>(())
            })
            .map_err(Into::into)
    });
    undone.await
}

fn ticket_failure(error: &TicketError) -> Failure {
    let code = match error {
        TicketError::Expired => Code::TicketExpired,
        TicketError::Malformed | TicketError::Checksum | TicketError::Record(_) => Code::TicketInvalid,
    };
    Failure::new(code, chain(error), "a ticket is made by `peerage invite` and works once")
}

async fn approve(agent: &Arc<Agent>, name: &str, terms: &Terms) -> Result<view::Approved, Failure> {
    let name = peer_ref(name)?;
    let consent = consent(&agent.document(), terms)?;
    let change = move |document: &mut Document, now| document.approve(&name, &consent, now);
    let trust = agent
        .change(move |store, now| store.change(|document| Ok::<Trust, UpdateError>(change(document, now)?)))
        .await?;
    agent.say(Event::Approved { peer: trust.alias.to_string(), id: trust.peer.to_string() });
    let document = agent.document();
    let open = document.services.iter().filter(|service| opens(&trust, service));
    Ok(view::Approved {
        name: trust.alias.to_string(),
        inbound: trust.inbound.to_string(),
        ports: open.map(|s| view::port_text(s.name.as_str(), s.port, s.protocol)).collect(),
        expires: trust.expires,
        peer: trust.peer,
    })
}

fn opens(trust: &Trust, service: &Service) -> bool {
    match &trust.inbound {
        Inbound::Everything => true,
        Inbound::Only(names) => names.contains(&service.name),
    }
}

/// What a person said, as a consent with a fresh id.
pub(super) fn consent(document: &Document, terms: &Terms) -> Result<Consent, Failure> {
    if terms.path == Some(Path::RelayOnly) && terms.birthday == Some(true) {
        return Err(Failure::bad_request("ports are guessed for a direct path, and `relay-only` forbids one"));
    }
    let alias = terms.alias.as_deref().map(str::parse).transpose();
    let alias = alias.map_err(|error: peerage_model::InvalidName| Failure::bad_request(error.to_string()))?;
    let inbound = match terms.inbound.as_deref() {
        None => None,
        Some([all]) if all == "all" => Some(Inbound::Everything),
        Some([none]) if none == "none" => Some(Inbound::NOTHING),
        Some(names) => Some(Inbound::Only(document.service_names(names)?)),
    };
    let expires = terms.expires_s.map(|seconds| match seconds {
        1..=MAX_TERM_SECONDS => Ok(time::now().plus(Duration::from_secs(seconds))),
        _ => Err(Failure::bad_request("a consent lasts from a second to 100 years; without an end it lasts for ever")),
    });
    let expires = expires.transpose()?;
    Ok(Consent { id: TrustId(*random::<16>()), alias, inbound, expires, path: terms.path, birthday: terms.birthday })
}

async fn reject(agent: &Arc<Agent>, name: &str) -> Result<view::Rejected, Failure> {
    let name = peer_ref(name)?;
    let rejected =
        agent.change(move |store, _| store.change(|document| Ok::<_, UpdateError>(document.reject(&name)?))).await?;
    Ok(view::Rejected { peer: rejected.asker })
}

async fn revoke(agent: &Arc<Agent>, name: &str, wait: bool) -> Result<view::Revoked, Failure> {
    let name = peer_ref(name)?;
    let peer = agent.document().peer(&name)?.peer.clone();
    // In this order: a session that ends in between is either heard of or not counted.
    let endings = agent.ended.subscribe();
    let is_connected = agent.sessions_with(&peer) > 0;
    let begun = Instant::now();
    let (trust, kept) = take_back(agent, move |document, now| document.revoke(&name, now)).await?;
    let watcher = tokio::spawn(watch_reset(Arc::clone(agent), trust.clone(), endings, begun, is_connected));
    let mut answer = view::Revoked { peer: trust.peer, streams_reset: None, reset_ms: None };
    if wait && is_connected {
        let Ok(Some((took, streams))) = watcher.await else {
            return Err(Failure::new(
                Code::TimedOut,
                "the trust is gone, but its session has not ended yet",
                "`peerage status` shows the session; `peerage down` ends everything",
            ));
        };
        answer.streams_reset = Some(streams);
        answer.reset_ms = Some(milliseconds(took));
    }
    kept.map_err(|error| not_written(&error))?;
    Ok(answer)
}

/// What was taken back, and would be there again after a restart.
fn not_written(error: &StateError) -> Failure {
    Failure::new(
        Code::StateUnusable,
        format!("it is taken back and counts no more, but that could not be written down: {}", chain(error)),
        "see to the disk: until it can be written, which is tried every second, a restart brings it back",
    )
}

async fn deny(agent: &Arc<Agent>, name: &str, instance: &str) -> Result<(), Failure> {
    let (peer, _) = resolve(agent, name)?;
    let instance: InstanceId =
        instance.parse().map_err(|error: InvalidId| Failure::bad_request(format!("`{instance}`: {error}")))?;
    let deny = move |document: &mut Document, now| {
        document.deny(peer.authority, instance, now);
        Ok(())
    };
    let ((), kept) = take_back(agent, deny).await?;
    kept.map_err(|error| not_written(&error))
}

/// Waits for the engine to reset a revoked peer's streams, and tells, measures and counts that.
async fn watch_reset(
    agent: Arc<Agent>,
    trust: Trust,
    mut endings: broadcast::Receiver<Ending>,
    begun: Instant,
    is_connected: bool,
) -> Option<(Duration, u64)> {
    let reset = async {
        // Two that dial at once have two sessions for a while, and only one of them may have streams.
        let mut reset = 0;
        loop {
            match endings.recv().await {
                Ok(ending) if ending.peer == trust.peer => {
                    reset += ending.streams;
                    if ending.left == 0 {
                        break;
                    }
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
        Some((begun.elapsed(), reset))
    };
    let seen = match is_connected {
        false => None,
        true => timeout(REVOCATION_PATIENCE, reset).await.ok().flatten(),
    };
    if let Some((took, _)) = seen {
        agent.metrics.revocation.observe(took.as_secs_f64());
    }
    agent.say(Event::Revoked {
        peer: trust.alias.to_string(),
        id: trust.peer.to_string(),
        reset_ms: seen.map(|(took, _)| milliseconds(took)),
        streams: seen.map_or(0, |(_, streams)| streams),
    });
    seen
}

/// New daily keys for our authority. Who is connected learns them at once, the others in their next session.
async fn rotate(agent: &Arc<Agent>, overlap_s: u64) -> Result<view::Rotated, Failure> {
    if overlap_s > MAX_OVERLAP_SECONDS {
        return Err(Failure::bad_request("the former keys count for a year at most"));
    }
    let overlap = Duration::from_secs(overlap_s);
    let (sequence, until) = agent
        .change(move |store, now| {
            store.rotate(now, overlap)?;
            Ok((store.authority().record().sequence(), store.former().map(|former| former.until)))
        })
        .await?;
    agent.renew_passport(time::now());
    tracing::info!(target: "events::keys_rotated", sequence);
    let sessions = agent.link.status().await.sessions;
    let (document, mut rotated) = (agent.document(), view::Rotated { sequence, until, told: vec![], waiting: vec![] });
    for trust in &document.trusts {
        let is_connected = sessions.iter().any(|session| session.peer == trust.peer);
        let names = if is_connected { &mut rotated.told } else { &mut rotated.waiting };
        names.push(trust.alias.to_string());
    }
    Ok(rotated)
}

async fn expose(agent: &Arc<Agent>, text: &str) -> Result<view::Exposed, Failure> {
    let service: Service =
        text.parse().map_err(|error: crate::state::InvalidService| Failure::bad_request(error.to_string()))?;
    let added = service.clone();
    agent.change(move |store, _| store.change(|document| Ok::<(), UpdateError>(document.expose(&added)?))).await?;
    let document = agent.document();
    let open_to = document.trusts.iter().filter(|trust| opens(trust, &service));
    Ok(view::Exposed { open_to: open_to.map(|trust| trust.alias.to_string()).collect(), services: document.services })
}

async fn unexpose(agent: &Arc<Agent>, name: String) -> Result<view::Exposed, Failure> {
    let (_, kept) = take_back(agent, move |document, _| document.unexpose(&name)).await?;
    kept.map_err(|error| not_written(&error))?;
    Ok(view::Exposed { services: agent.document().services, open_to: Vec::new() })
}

async fn connect(agent: &Arc<Agent>, name: &str, port: u16) -> Result<Reply, Failure> {
    let (peer, _) = resolve(agent, name)?;
    let stream = agent.edge.outbound.open_stream(&peer, port).await?;
    let (connection, outcomes) = (agent.outcomes.begin(), agent.outcomes.clone());
    let outbound = agent.edge.outbound.clone();
    let ended = Box::new(move |result: std::io::Result<()>| {
        outbound.ended(&peer, port, &result);
        outcomes.end(connection, &result);
    });
    Ok(Reply::Raw(connection.into(), stream, ended))
}

/// Names as they are and as they become, from the edge that `owner` holds.
pub(crate) fn names<T: Send + Sync + 'static>(
    owner: Arc<T>,
    edge: fn(&T) -> &Edge,
) -> mpsc::Receiver<Result<Value, Failure>> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut watch = edge(&owner).watch_names();
        loop {
            let names = json(&edge(&owner).names());
            if sender.send(Ok(names)).await.is_err() {
                return;
            }
            let more = tokio::select! {
                more = watch.changed() => more,
                () = sender.closed() => false,
            };
            if !more {
                return;
            }
        }
    });
    receiver
}

/// What happens from now on, until the daemon stops.
pub(crate) fn events(mut events: broadcast::Receiver<Event>) -> mpsc::Receiver<Result<Value, Failure>> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
            };
            let event = match event {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(count)) => Event::Missed { count },
                Err(broadcast::error::RecvError::Closed) => return,
            };
            let last = event == Event::Stopping;
            if sender.send(Ok(json(&event))).await.is_err() || last {
                return;
            }
        }
    });
    receiver
}
