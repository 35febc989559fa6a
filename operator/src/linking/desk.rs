//! Where everything about links comes together while this replica leads: events of the tunnel, changes of the cluster, what
//! others tell. One task, so nothing is locked; whatever waits for somebody else is a task of its own and reports here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use peerage_agent::driver::DriverEvent;
use peerage_agent::tunnel::{Incoming, Opened};
use peerage_model::linking::{OPERATOR, Tell};
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::Refusal;
use peerage_model::snapshot::Snapshot;
use peerage_model::stream::StreamStatus;
use peerage_model::{Credential, TrustId, UnixTime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};

use super::Linking;
use super::agent::{self, Agent, Link, Side, operator_of};
use super::asks::{Asks, Step};
use super::board::Board;
use super::declared::declared;
use super::hear::{self, News};
use super::invitations::{self, Open, Taken};
use super::line::Line;
use super::meet;
use super::outgoing::Outgoing;
use super::requests::Asking;
use super::tell::{self, Going};
use super::throttle::{self, Throttle};
use crate::authority::Keyring;
use crate::cluster::Cluster;
use crate::roll::Denial;

/// How soon after a change everything is looked at: a hundred changes are one look.
const SOON: Duration = Duration::from_millis(200);
/// How often invitations, passports and requests are looked at, whether or not something happened.
const EVERY: Duration = Duration::from_secs(2);
/// How many of those rounds lie between two looks at all requests.
const REQUESTS_EVERY: u32 = 5;
/// Between two streams of one link; an honest teller waits as long before it calls again.
const STREAM_EVERY: Duration = Duration::from_secs(1);
/// Messages of other operators that are not dealt with yet.
const QUEUE: usize = 16;

/// What tasks report.
enum Report {
    /// The other operator hears us, or not.
    Going(Going),
    /// What it says.
    Said(u64, Tell),
    /// The ticket is shown, and not taken yet: why.
    Waits(String),
    /// The ticket was taken, or is good for nothing.
    Met(Result<(), String>),
}

/// See the module.
pub(super) struct Desk {
    cluster: Arc<Cluster>,
    keyring: watch::Receiver<Arc<Keyring>>,
    board: Arc<Board>,
    secrets: Api<Secret>,
    invitations: invitations::Store,
    /// Of our relays, those that do not let the operator's own agent in, and so nobody of this cluster.
    refusals: BTreeMap<RelayInfo, Refusal>,
    /// What the log says of those who come with tickets.
    warnings: Throttle,
    agent: Agent,
    applied: Snapshot,
    open: Open,
    lines: BTreeMap<String, Line>,
    /// Relays of who came with a ticket, until its link is here and its operator has told them itself.
    guests: BTreeMap<String, Vec<RelayInfo>>,
    asks: Asks,
    /// Which of our records is published.
    published: Option<u64>,
    reports: mpsc::Sender<(TrustId, Report)>,
    reported: mpsc::Receiver<(TrustId, Report)>,
}

impl Desk {
    pub(super) fn new(linking: &Linking, agent: Agent) -> Self {
        let (reports, reported) = mpsc::channel(QUEUE);
        Self {
            cluster: Arc::clone(&linking.cluster),
            keyring: linking.keyring.clone(),
            board: Arc::clone(&linking.board),
            secrets: Api::namespaced(linking.client.clone(), &linking.namespace),
            invitations: invitations::Store::new(&linking.client, &linking.namespace),
            refusals: BTreeMap::new(),
            warnings: Throttle::every(throttle::LINES),
            agent,
            applied: Snapshot::default(),
            open: Open::new(),
            lines: BTreeMap::new(),
            guests: BTreeMap::new(),
            asks: Asks::new(linking.client.clone()),
            published: None,
            reports,
            reported,
        }
    }

    /// Runs until the tunnel ends.
    pub(super) async fn run(&mut self) {
        let mut changes = self.cluster.changes();
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut rounds, mut due) = (0_u32, None);
        loop {
            let soon = || Instant::now() + SOON;
            tokio::select! {
                event = self.agent.events.recv() => match event {
                    Some(event) => self.hear(event).await,
                    None => return,
                },
                incoming = self.agent.incoming.recv() => match incoming {
                    Some(incoming) => self.answer(incoming),
                    None => return,
                },
                Some((link, report)) = self.reported.recv() => {
                    self.take(link, report);
                    due = due.or_else(|| Some(soon()));
                }
                _ = changes.changed() => due = due.or_else(|| Some(soon())),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    self.look();
                }
                Some(step) = self.asks.next() => self.go_on(step),
                _ = tick.tick() => {
                    self.read_invitations().await;
                    self.publish().await;
                    rounds += 1;
                    if rounds.is_multiple_of(REQUESTS_EVERY) {
                        self.asks.ask_for_all();
                    }
                    self.look();
                }
            }
            let rows = self.lines.iter().map(|(name, line)| (name.clone(), line.row.clone())).collect();
            self.board.set(rows, self.refusals.clone());
        }
    }

    async fn publish(&mut self) {
        let keys = Arc::clone(&self.keyring.borrow());
        let record = keys.active().record();
        if self.published == Some(record.sequence()) {
            return;
        }
        match self.invitations.publish(record).await {
            Ok(()) => self.published = Some(record.sequence()),
            Err(error) => tracing::warn!(%error, "the authority's record could not be published"),
        }
    }

    async fn read_invitations(&mut self) {
        match self.invitations.open(crate::clock::now()).await {
            Ok(open) => self.open = open,
            Err(error) => tracing::warn!(%error, "invitations could not be read"),
        }
    }

    /// Brings everything in step with what the cluster declares.
    fn look(&mut self) {
        if self.cluster.stale().is_some() {
            return; // what was not seen yet is not gone
        }
        self.connect();
        self.asks.look(&self.cluster.read().index, &asking(&self.lines));
    }

    fn connect(&mut self) {
        let (keys, now) = (Arc::clone(&self.keyring.borrow()), crate::clock::now());
        self.agent.renew(&keys, now);
        let (links, relays) = {
            let index = &self.cluster.read().index;
            (declared(index, &self.guests), index.all_relays())
        };
        self.refusals.retain(|relay, _| relays.contains(relay));
        // Where somebody else is there than it seemed, all begins anew.
        let is_same = |line: &Line, link: &Link| link.uid == line.link.uid && link.side == line.link.side;
        self.lines.retain(|name, line| links.get(name).is_some_and(|(link, _)| is_same(line, link)));
        let invites = invitations::invites(&self.open);
        let all: Vec<Link> = links.values().map(|(link, _)| link.clone()).collect();
        let snapshot = agent::snapshot(&keys, &all, relays.clone(), invites);
        if snapshot != self.applied {
            self.agent.tunnel.apply_snapshot(snapshot.clone());
            self.applied = snapshot;
        }
        for (name, (link, ticket)) in links {
            let outgoing = Outgoing::over(link.name.as_str(), &keys, &relays, &self.cluster.read());
            let mut line = match self.lines.remove(&name) {
                Some(mut line) => {
                    line.link = link;
                    line.tell(outgoing);
                    line
                }
                None => self.open_line(link, ticket, outgoing),
            };
            line.settle(now);
            self.lines.insert(name, line);
        }
        refuse(&self.cluster, self.denials(now));
    }

    fn denials(&self, now: UnixTime) -> impl Iterator<Item = Denial> {
        self.lines.values().flat_map(move |line| line.denials(now))
    }

    fn open_line(&self, link: Link, ticket: Option<String>, outgoing: Outgoing) -> Line {
        let uid = link.uid;
        let (sender, receiver) = watch::channel(Arc::new(outgoing));
        let report = self.reporter(uid);
        let mut tasks = Vec::new();
        // An operator that talks was met; of others the status alone tells that their ticket is spent.
        let ticket = ticket.filter(|_| link.side == Side::Operator || !link.is_taken);
        if let Some(ticket) = ticket {
            let meeting = meet::Meeting {
                tunnel: self.agent.tunnel.clone(),
                keyring: self.keyring.clone(),
                secrets: self.secrets.clone(),
                ticket,
                authority: link.authority,
                outgoing: receiver.clone(),
            };
            let (waits, reports) = (report.clone(), self.reports.clone());
            let meeting = meeting.run(move |why| waits(Report::Waits(why)));
            let meeting = async move { reports.send((uid, Report::Met(meeting.await))).await };
            tasks.push(tokio::spawn(meeting).abort_handle());
        }
        if link.side == Side::Operator {
            let (tunnel, operator) = (self.agent.tunnel.clone(), operator_of(link.authority));
            let calling = tell::run(tunnel, operator, receiver, move |going| report(Report::Going(going)));
            tasks.push(tokio::spawn(calling).abort_handle());
        }
        Line::new(link, sender, tasks)
    }

    /// Says how a link goes. What does not fit in the queue is said again soon.
    fn reporter(&self, link: TrustId) -> impl Fn(Report) + Clone + Send + Sync + use<> {
        let reports = self.reports.clone();
        move |report| drop(reports.try_send((link, report)))
    }

    /// Something happened in the tunnel.
    async fn hear(&mut self, event: DriverEvent) {
        match event {
            DriverEvent::TrustRequested { invite, asker, request } => {
                let status = self.welcome(invite, &asker, request.relays).await;
                self.agent.tunnel.answer_request(invite, status);
            }
            DriverEvent::Mail { relay, id, .. } => self.agent.tunnel.mail_done(&relay, id),
            DriverEvent::Relay { relay, observed } => {
                tracing::debug!(%relay, ?observed, "the operator's relay");
                if observed.is_some() {
                    self.refusals.remove(&relay);
                }
            }
            DriverEvent::RelayRefused { relay, reason } => {
                // Others' relays may let in whom they like, and as often as they like.
                if self.applied.relays.contains(&relay) {
                    tracing::warn!(%relay, %reason, "a relay does not take the operator's own agent");
                    self.refusals.insert(relay, reason);
                }
            }
            DriverEvent::Nat(_)
            | DriverEvent::SessionUp { .. }
            | DriverEvent::SessionDown { .. }
            | DriverEvent::PathChanged { .. }
            | DriverEvent::PeerRecord { .. }
            | DriverEvent::PeerPorts { .. } => {}
        }
    }

    /// Somebody came with a ticket.
    async fn welcome(&mut self, invite: TrustId, guest: &Credential, relays: Vec<RelayInfo>) -> StreamStatus {
        let Some(invitation) = self.open.get(&invite) else { return StreamStatus::Denied };
        let ours = self.keyring.borrow().active().fingerprint();
        // An agent of a cluster has no business here: its operator comes for all of them.
        let is_machine = agent::is_of_machine(&guest.agent().name);
        if guest.agent().name.as_str() != OPERATOR && !is_machine || guest.agent().authority == ours {
            return StreamStatus::Denied;
        }
        // Nobody will tell where a machine has moved to, so what it says is what its link declares.
        let declared = is_machine.then_some(&relays[..]);
        let there = {
            let state = self.cluster.read();
            let facts = state.index.link(&invitation.link);
            facts.and_then(|facts| {
                let leads = state.index.leads(&invitation.link, facts).ok();
                leads.map(|leads| leads.authority).or(facts.authority)
            })
        };
        match self.invitations.take(invite, invitation, guest.record(), declared, there).await {
            Ok(Taken::Linked) => {
                tracing::info!(target: "events::linked", link = invitation.link, authority = %guest.agent().authority);
                self.guests.insert(invitation.link.clone(), relays);
                self.open.remove(&invite);
                StreamStatus::Open
            }
            // The ticket stays good, so they may come again at once.
            Ok(Taken::NameTaken) => {
                if self.warnings.may(Instant::now()) {
                    let link = &invitation.link;
                    tracing::warn!(link, "somebody used a ticket whose link is already another cluster's");
                }
                StreamStatus::Busy
            }
            Err(error) => {
                if self.warnings.may(Instant::now()) {
                    tracing::warn!(%error, "a link could not be made for who came with a ticket");
                }
                StreamStatus::Busy
            }
        }
    }

    /// Another operator opens a stream, to tell us things. It takes the place of an earlier one.
    fn answer(&mut self, incoming: Incoming) {
        let peer = incoming.peer.clone();
        let line = self
            .lines
            .values_mut()
            .find(|line| line.link.side == Side::Operator && operator_of(line.link.authority) == peer);
        let Some(line) = line else { return incoming.refuse(StreamStatus::Denied) };
        if line.streamed.is_some_and(|begun| begun.elapsed() < STREAM_EVERY) {
            return incoming.refuse(StreamStatus::Busy);
        }
        let Opened::Stream(stream) = incoming.accept() else { return };
        line.streamed = Some(Instant::now());
        if let Some(earlier) = line.listening.take() {
            earlier.abort();
        }
        line.streams += 1;
        line.known.begin();
        let (out, mut said) = mpsc::channel(1);
        let (uid, number, reports, pace) = (line.link.uid, line.streams, self.reports.clone(), line.pace.clone());
        let listening = tokio::spawn(async move {
            let pass_on = async {
                while let Some(tell) = said.recv().await {
                    if reports.send((uid, Report::Said(number, tell))).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(hear::run(stream, pace, out), pass_on);
        });
        line.listening = Some(listening.abort_handle());
    }

    fn take(&mut self, link: TrustId, report: Report) {
        let now = crate::clock::now();
        let Some(line) = self.lines.values_mut().find(|line| line.link.uid == link) else { return };
        match report {
            Report::Going(going) => line.goes(going, now),
            Report::Waits(why) => line.waits(why),
            Report::Met(met) => {
                if met.is_ok() {
                    tracing::info!(target: "events::linked", link = line.link.name.as_str());
                }
                line.met(met);
            }
            Report::Said(number, tell) if number == line.streams => match line.known.take(tell) {
                News::Hello(hello) => line.greet(hello, now),
                News::Denied(denied) => {
                    if line.note_denied(denied, now) {
                        refuse(&self.cluster, self.denials(now));
                    }
                }
                News::Wishes | News::Nothing => {}
            },
            Report::Said(..) => {}
        }
    }

    fn go_on(&mut self, step: Result<Step, JoinError>) {
        let pending = self.asks.go_on(step, &self.cluster.read().index, &asking(&self.lines));
        let Some(pending) = pending else { return };
        for line in self.lines.values_mut() {
            line.row.pending = pending.get(&line.link.uid).copied().unwrap_or(0);
        }
    }
}

/// What each link's other side wishes for.
fn asking(lines: &BTreeMap<String, Line>) -> Vec<Asking<'_>> {
    let asking = lines.iter().map(|(name, line)| Asking {
        name,
        uid: line.link.uid,
        authority: line.link.authority,
        wishes: line.known.wishes().collect(),
        is_whole: line.known.is_whole(),
    });
    asking.collect()
}

/// Refuses what other operators said is denied, of agents that anybody here has to do with. An owner may name an agent long
/// after that was said of it.
fn refuse(cluster: &Cluster, told: impl Iterator<Item = Denial>) {
    let new: Vec<_> = told.filter(|one| !cluster.is_denied(&one.agent, &one.denied.instance)).collect();
    if new.is_empty() {
        return;
    }
    let named = cluster.read().index.named_away();
    new.into_iter().filter(|one| named.contains(&one.agent)).for_each(|one| cluster.withdraw(one));
}

#[cfg(test)]
mod tests {
    use peerage_model::linking::Denied;
    use peerage_model::{Fingerprint, InstanceId, passport};
    use serde_json::json;

    use super::*;
    use crate::facts::TrustFacts;
    use crate::index::Index;
    use crate::key::ObjectKey;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const THEIRS: Fingerprint = Fingerprint([2; 32]);

    #[test]
    fn a_denial_that_was_told_before_anybody_named_the_agent_holds_once_somebody_does() {
        let (news, _) = mpsc::unbounded_channel();
        let index = Index::new(Fingerprint([1; 32]), NOW);
        let cluster = Cluster::new(index, 1, Vec::new(), Arc::default(), news);
        let name = "far".parse().expect("a label");
        let (records, relays, side) = (Vec::new(), Vec::new(), Side::Operator);
        let link = Link { name, uid: TrustId([9; 16]), authority: THEIRS, records, relays, side, is_taken: false };
        let mut line = Line::new(link, watch::Sender::default(), Vec::new());
        let (agent, instance) = ("db.tools".parse().expect("a name"), InstanceId([7; 8]));
        assert!(line.note_denied(Denied { agent, instance, until: NOW.plus(passport::LIFETIME) }, NOW));
        let denial = line.denials(NOW).next().expect("it was noted");
        refuse(&cluster, line.denials(NOW));
        assert!(!cluster.is_denied(&denial.agent, &denial.denied.instance), "whom nobody names nobody refuses");
        let trust = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrust", "metadata": {"name": "yes", "namespace": "web"},
            "spec": {"agentRef": {"name": "shop"}, "peer": {
                "name": "db", "namespace": "tools", "linkRef": {"name": "far"}, "authority": THEIRS.to_string(),
            }},
        });
        let trust = serde_json::from_value(trust).expect("an AgentTrust");
        let trust = TrustFacts::read(&trust).expect("it is read");
        cluster.change(|index| index.set_trust(&ObjectKey::new("web", "yes"), Some(trust)));
        refuse(&cluster, line.denials(NOW));
        assert!(cluster.is_denied(&denial.agent, &denial.denied.instance));
    }
}
