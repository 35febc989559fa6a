//! Where everything about links comes together while this replica leads: events of the tunnel, changes of the cluster, what
//! others tell. One task, so nothing is locked; whatever waits for somebody else is a task of its own and reports here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use peerage_agent::driver::DriverEvent;
use peerage_agent::tunnel::{Incoming, Opened};
use peerage_model::linking::{Hello, MAX_PURPOSE, MAX_RELAYS, MAX_WISHES, OPERATOR, RecordBytes, Tell, Wish};
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::Refusal;
use peerage_model::snapshot::Snapshot;
use peerage_model::stream::StreamStatus;
use peerage_model::{Credential, Label, TrustId, UnixTime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Linking;
use super::agent::{self, Agent, Link, Side, operator_of};
use super::board::Board;
use super::hear::{self, News};
use super::invitations::{self, Open, Taken};
use super::line::{Line, MAX_DENIED};
use super::looks::Looks;
use super::meet;
use super::requests::{self, Asking, Memory, There};
use super::tell::{self, Going, Outgoing};
use super::throttle::{self, Throttle};
use crate::authority::Keyring;
use crate::cluster::Cluster;
use crate::facts::{Target, TrustFacts};
use crate::index::Index;
use crate::key::ObjectKey;
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

/// How far a look at requests has got.
enum Step {
    /// These are there.
    Found(kube::Result<Vec<There>>),
    /// What was planned is done, or not; and whether to look again soon.
    Done(kube::Result<()>, bool),
}

/// Links as they are declared, with the key of each one's ticket.
type Declared = BTreeMap<String, (Link, Option<String>)>;

/// See the module.
pub(super) struct Desk {
    cluster: Arc<Cluster>,
    keyring: watch::Receiver<Arc<Keyring>>,
    board: Arc<Board>,
    secrets: Api<Secret>,
    invitations: invitations::Store,
    store: Arc<requests::Store>,
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
    memory: Memory,
    looks: Looks,
    /// What the API server is asked about requests, one thing at a time. Nobody waits for it: how long it takes would tell
    /// other operators what their words came to.
    asks: JoinSet<Step>,
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
            store: Arc::new(requests::Store::new(linking.client.clone())),
            refusals: BTreeMap::new(),
            warnings: Throttle::every(throttle::LINES),
            agent,
            applied: Snapshot::default(),
            open: Open::new(),
            lines: BTreeMap::new(),
            guests: BTreeMap::new(),
            memory: Memory::default(),
            looks: Looks::default(),
            asks: JoinSet::new(),
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
                Some(step) = self.asks.join_next() => match step {
                    Ok(step) => self.go_on(step),
                    Err(error) => {
                        tracing::error!(%error, "a look at requests ended before its time");
                        self.looks.asked = true;
                    }
                },
                _ = tick.tick() => {
                    self.read_invitations().await;
                    self.publish().await;
                    rounds += 1;
                    self.looks.asked |= rounds.is_multiple_of(REQUESTS_EVERY);
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
        self.look_at_requests();
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
            let outgoing = Arc::new(self.outgoing(&keys, &link, &relays));
            match self.lines.get_mut(&name) {
                Some(line) => line.link = link,
                None => {
                    let line = self.open_line(link, ticket, Arc::clone(&outgoing));
                    self.lines.insert(name.clone(), line);
                }
            }
            let Some(line) = self.lines.get_mut(&name) else { continue };
            line.outgoing.send_if_modified(|old| {
                let changed = *old != outgoing;
                *old = outgoing;
                changed
            });
            line.settle(now);
        }
        refuse(&self.cluster, self.denials(now));
    }

    fn denials(&self, now: UnixTime) -> impl Iterator<Item = Denial> {
        self.lines.values().flat_map(move |line| line.denials(now))
    }

    fn outgoing(&self, keys: &Keyring, link: &Link, relays: &[RelayInfo]) -> Outgoing {
        let state = self.cluster.read();
        let wish = |(_, facts): (&ObjectKey, &TrustFacts)| {
            let Target::Away { name: to, .. } = &facts.target else { return None };
            let from = facts.agent.agent(state.index.authority())?.name;
            let purpose = facts.purpose.as_ref().map(|text| clipped(text));
            Some((facts.uid, Wish { id: facts.uid, from, to: to.clone(), purpose }))
        };
        let records = keys.records().map(|record| RecordBytes(record.as_bytes().to_vec())).collect();
        let hello = Hello {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            records,
            relays: relays.iter().take(MAX_RELAYS).cloned().collect(),
        };
        let wishes: BTreeMap<_, _> =
            state.index.trusts_over(link.name.as_str()).filter_map(wish).take(MAX_WISHES).collect();
        let mut wishers: Vec<_> = state.index.trusts_over(link.name.as_str()).map(|(_, facts)| facts).collect();
        // Of one agent's several the eldest is put in last, and stays.
        wishers.sort_by_key(|facts| std::cmp::Reverse((facts.created, facts.uid)));
        let first = wishers.iter().filter_map(|facts| Some((wishes.get(&facts.uid)?.to.clone(), facts.uid))).collect();
        let agents: BTreeSet<_> = state.index.trusts_over(link.name.as_str()).map(|(_, facts)| &facts.agent).collect();
        let agents = agents.into_iter().filter_map(|agent| agent.agent(state.index.authority()));
        let denied = agents.flat_map(|agent| {
            let of_agent = state.roll.denied_of(&agent).into_iter();
            of_agent.map(move |denied| ((agent.name.clone(), denied.instance), denied.until)).collect::<Vec<_>>()
        });
        Outgoing { hello, wishes, first, denied: denied.take(MAX_DENIED).collect() }
    }

    fn open_line(&self, link: Link, ticket: Option<String>, outgoing: Arc<Outgoing>) -> Line {
        let uid = link.uid;
        let (sender, receiver) = watch::channel(outgoing);
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

    /// Begins to make objects of wishes, and to take back those that are not wished for, where that is due.
    fn look_at_requests(&mut self) {
        if !self.asks.is_empty() {
            return;
        }
        let wanted = requests::all_wanted(&self.cluster.read().index, &self.asking());
        if !self.looks.is_due(wanted, Instant::now()) {
            return;
        }
        let store = Arc::clone(&self.store);
        self.asks.spawn(async move { Step::Found(store.there().await) });
    }

    fn go_on(&mut self, step: Step) {
        match step {
            Step::Found(Ok(there)) => self.make_requests(&there),
            Step::Found(Err(error)) => {
                tracing::warn!(%error, "requests for trust could not be read");
                self.looks.asked = true;
            }
            Step::Done(applied, again) => {
                if let Err(error) = &applied {
                    tracing::warn!(%error, "requests for trust could not be written");
                }
                // Those that were made want their condition; what failed is tried again.
                self.looks.asked |= again || applied.is_err();
            }
        }
    }

    fn make_requests(&mut self, there: &[There]) {
        let now = crate::clock::now();
        let mut memory = std::mem::take(&mut self.memory);
        let plan = requests::plan(&self.cluster.read().index, &self.asking(), there, &mut memory, now);
        self.memory = memory;
        for line in self.lines.values_mut() {
            line.row.pending = plan.pending.get(&line.link.uid).copied().unwrap_or(0);
        }
        let store = Arc::clone(&self.store);
        self.asks.spawn(async move { Step::Done(store.apply(&plan, now).await, !plan.create.is_empty()) });
    }

    fn asking(&self) -> Vec<Asking<'_>> {
        self.lines
            .iter()
            .map(|(name, line)| Asking {
                name,
                uid: line.link.uid,
                authority: line.link.authority,
                wishes: line.known.wishes().collect(),
                is_whole: line.known.is_whole(),
            })
            .collect()
    }
}

/// The links that lead to others. Of several to one cluster the first by name has the channel; a ticket is each link's own.
fn declared(index: &Index, guests: &BTreeMap<String, Vec<RelayInfo>>) -> Declared {
    let mut links = Declared::new();
    let mut channels: BTreeMap<_, Label> = BTreeMap::new();
    for (name, facts) in index.links() {
        let (Ok(leads), Ok(label)) = (index.leads(name, facts), name.parse::<Label>()) else { continue };
        if leads.authority == index.authority() {
            continue;
        }
        let side = match (leads.is_machine, channels.get(&leads.authority)) {
            (true, _) => Side::Machine,
            (false, Some(channel)) => Side::Beside(channel.clone()),
            (false, None) => Side::Operator,
        };
        if side == Side::Operator {
            channels.insert(leads.authority, label.clone());
        }
        let relays = match leads.relays {
            [] => guests.get(name).cloned().unwrap_or_default(),
            relays => relays.to_vec(),
        };
        let link = Link {
            name: label,
            uid: facts.uid,
            authority: leads.authority,
            records: leads.records.into_iter().cloned().collect(),
            relays,
            side,
            is_taken: facts.status.ticket_taken == Some(true),
        };
        links.insert(name.clone(), (link, facts.ticket.clone()));
    }
    links
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

/// As much of a text as a message takes, cut between two characters.
fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_PURPOSE)].to_owned()
}

#[cfg(test)]
mod tests {
    use peerage_model::linking::Denied;
    use peerage_model::{Fingerprint, InstanceId, passport};
    use serde_json::json;

    use super::*;
    use crate::facts::{LinkFacts, LinkRecord};

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const THEIRS: Fingerprint = Fingerprint([2; 32]);

    /// Two links, by two tickets of one authority's agent of this name.
    fn two_links_to(agent: &str) -> Vec<(Link, Option<String>)> {
        let theirs = peerage_model::Authority::new(&zeroize::Zeroizing::new([3; 96]), NOW);
        let mut index = Index::new(Fingerprint([1; 32]), NOW);
        for name in ["one", "two"] {
            let link = json!({
                "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": {"name": name},
                "spec": {"allowedNamespaces": {"from": "All"}, "bootstrap": {"tokenSecretRef": {"key": name}}},
            });
            let link = serde_json::from_value(link).expect("an AgentLink");
            index.set_link(name, Some(LinkFacts::read(&link).expect("it is read")));
            let (record, name_there) = (theirs.record().clone(), agent.parse().expect("a name"));
            index.set_record(name, Some(LinkRecord::Known { record, name: name_there, relays: Vec::new() }));
        }
        declared(&index, &BTreeMap::new()).into_values().collect()
    }

    #[test]
    fn two_tickets_of_one_machine_are_two_links_and_no_channel() {
        let links = two_links_to("laptop");
        let tickets: Vec<_> = links.iter().map(|(_, ticket)| ticket.as_deref()).collect();
        assert_eq!(tickets, [Some("one"), Some("two")]);
        let links: Vec<_> = links.into_iter().map(|(link, _)| link).collect();
        assert!(links.iter().all(|link| link.side == Side::Machine), "{links:?}");
        let ours = crate::authority::Stored::mint(&zeroize::Zeroizing::new([4; 96]), NOW);
        let snapshot = agent::snapshot(&ours.keyring(NOW), &links, Vec::new(), Vec::new());
        assert_eq!(snapshot.peers, [], "nobody of a machine's authority passes for an operator");
    }

    #[test]
    fn of_two_links_to_one_cluster_one_has_the_channel_and_each_its_ticket() {
        let links = two_links_to(OPERATOR);
        let sides: Vec<_> = links.iter().map(|(link, ticket)| (link.side.clone(), ticket.as_deref())).collect();
        let one = "one".parse().expect("a label");
        assert_eq!(sides, [(Side::Operator, Some("one")), (Side::Beside(one), Some("two"))]);
    }

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
