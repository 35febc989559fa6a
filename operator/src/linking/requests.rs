//! What becomes of other clusters' wishes: AgentTrustRequests in the namespaces that are asked.
//!
//! A wish is worth an object only if the link permits the namespace, the agent exists, and its owner has neither consented
//! nor said no; and then only so many. Whoever wishes learns none of that. Deciding is pure ([`plan`]); writing is dull.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use peerage_crds::request::Asker;
use peerage_crds::{
    AgentRef, AgentTrustRequest, AgentTrustRequestSpec, Condition, ConditionStatus, ConditionType, LinkRef, Reason,
};
use peerage_model::id::sha256;
use peerage_model::linking::Wish;
use peerage_model::{AgentId, AgentName, Fingerprint, TrustId, UnixTime};
use serde_json::json;

use crate::clock::api_time;
use crate::index::Index;
use crate::key::ObjectKey;
use crate::status::FIELD_MANAGER;

/// How long a request waits for an answer.
pub(super) const LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most requests of one link in one namespace.
const MAX_IN_NAMESPACE: usize = 20;
/// Most requests of one link.
const MAX_OF_LINK: usize = 100;
/// Requests of one link that may be made in short order, and how soon there may be another one: a cluster that asks and takes
/// back all day long must not write to etcd all day long.
const AT_ONCE: u32 = 40;
/// See [`AT_ONCE`].
const EVERY: Duration = Duration::from_secs(10);

/// Labels of a request: the link it came over, and the wish behind it.
const LINK_UID: &str = "peerage.dev/link-uid";
/// See [`LINK_UID`].
const WISH: &str = "peerage.dev/wish";
/// Annotation of a request, with any value: its owner does not want it. It stays until its end, so that it is not made anew.
pub const REJECTED: &str = "peerage.dev/rejected";

/// One link, and what is wished for there.
pub(super) struct Asking<'a> {
    pub(super) name: &'a str,
    pub(super) uid: TrustId,
    pub(super) authority: Fingerprint,
    pub(super) wishes: Vec<&'a Wish>,
    /// Whether these are all; after another leader took over it takes a moment until they are told.
    pub(super) is_whole: bool,
}

/// A request that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct There {
    pub(super) key: ObjectKey,
    pub(super) link: TrustId,
    /// Our agent, and who asks.
    pub(super) agent: ObjectKey,
    pub(super) from: AgentName,
    pub(super) expires: UnixTime,
    pub(super) rejected: bool,
    /// What its condition says.
    pub(super) answered: Option<String>,
}

impl There {
    fn question(&self) -> Question {
        (self.link, self.agent.clone(), self.from.clone())
    }
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: Vec<AgentTrustRequest>,
    pub(super) delete: Vec<ObjectKey>,
    /// Requests whose condition should say this.
    pub(super) say: Vec<(ObjectKey, Reason)>,
    /// Requests of each link that wait.
    pub(super) pending: BTreeMap<TrustId, usize>,
}

impl Plan {
    /// A request stays, and says how it stands with it.
    fn keep(&mut self, request: &There) {
        let says = if request.rejected { Reason::Rejected } else { Reason::Pending };
        if !request.rejected {
            *self.pending.entry(request.link).or_default() += 1;
        }
        if request.answered.as_deref() != Some(says.as_str()) {
            self.say.push((request.key.clone(), says));
        }
    }

    fn make(&mut self, request: AgentTrustRequest, link: TrustId) {
        *self.pending.entry(link).or_default() += 1;
        self.create.push(request);
    }
}

/// What is asked: over which link, of whom, by whom. A wish that is taken back and told anew under another id asks nothing new.
type Question = (TrustId, ObjectKey, AgentName);

/// What the leader remembers between two looks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What requests that were there when it last looked ask.
    seen: BTreeSet<Question>,
    /// Wishes whose request was deleted or has ended: their owner has had it.
    done: BTreeSet<Question>,
    /// When each link will have waited for all requests it has made.
    paces: BTreeMap<TrustId, UnixTime>,
}

impl Memory {
    /// Notes what has become of requests since it last looked, and forgets what nobody wishes for any more.
    fn compare(&mut self, links: &[Asking<'_>], wished: &BTreeSet<Question>, there: &[There], now: UnixTime) {
        let present: BTreeSet<_> = there.iter().map(There::question).collect();
        // Somebody deleted it while it was wished for: that is a no.
        self.done.extend(self.seen.difference(&present).cloned());
        self.done.extend(there.iter().filter(|request| request.expires <= now).map(There::question));
        self.done.retain(|wish| wished.contains(wish));
        self.paces.retain(|link, paid| links.iter().any(|asking| asking.uid == *link) && *paid > now);
    }

    fn may_make(&mut self, link: TrustId, now: UnixTime) -> bool {
        let paid = self.paces.get(&link).copied().unwrap_or(now).max(now);
        if paid > now.plus(EVERY * (AT_ONCE - 1)) {
            return false;
        }
        self.paces.insert(link, paid.plus(EVERY));
        true
    }
}

/// How many requests there are of each link, by namespace.
#[derive(Default)]
struct Tally(BTreeMap<(TrustId, Arc<str>), usize>);

impl Tally {
    fn add(&mut self, link: TrustId, namespace: &Arc<str>) {
        *self.0.entry((link, Arc::clone(namespace))).or_default() += 1;
    }

    fn has_room(&self, link: TrustId, namespace: &Arc<str>) -> bool {
        let of_link: usize = self.0.iter().filter(|((uid, _), _)| *uid == link).map(|(_, count)| count).sum();
        let here = self.0.get(&(link, Arc::clone(namespace))).copied().unwrap_or_default();
        here < MAX_IN_NAMESPACE && of_link < MAX_OF_LINK
    }
}

/// Decides from what is wished for and what is there.
pub(super) fn plan(index: &Index, links: &[Asking<'_>], there: &[There], memory: &mut Memory, now: UnixTime) -> Plan {
    let wished = wished(links);
    memory.compare(links, &wished, there, now);
    let (kept, over): (Vec<&There>, Vec<&There>) =
        there.iter().partition(|request| request.expires > now && is_open(index, links, &wished, request));
    memory.seen = kept.iter().map(|request| request.question()).collect();
    let mut plan = Plan { delete: over.iter().map(|request| request.key.clone()).collect(), ..Plan::default() };
    let mut tally = Tally::default();
    for request in kept {
        tally.add(request.link, &request.key.namespace);
        plan.keep(request);
    }
    let mut present: BTreeSet<_> = there.iter().map(There::question).collect();
    for (link, wish) in links.iter().flat_map(|link| link.wishes.iter().map(move |wish| (link, wish))) {
        let Some(agent) = wanted(index, link, wish) else { continue };
        let question = (link.uid, agent.clone(), wish.from.clone());
        if present.contains(&question) || memory.done.contains(&question) {
            continue;
        }
        if tally.has_room(link.uid, &agent.namespace) && memory.may_make(link.uid, now) {
            tally.add(link.uid, &agent.namespace);
            present.insert(question);
            plan.make(request(link, wish, &agent, now), link.uid);
        }
    }
    plan
}

fn wished(links: &[Asking<'_>]) -> BTreeSet<Question> {
    let wishes = links.iter().flat_map(|link| link.wishes.iter().map(move |wish| (link.uid, wish)));
    wishes.filter_map(|(link, wish)| Some((link, ObjectKey::of_agent(&wish.to)?, wish.from.clone()))).collect()
}

/// Whether a request should be there while it lasts.
fn is_open(index: &Index, links: &[Asking<'_>], wished: &BTreeSet<Question>, request: &There) -> bool {
    let Some(link) = links.iter().find(|link| link.uid == request.link) else { return false };
    // What was rejected stays whatever the asker does, or it would take the wish back and ask again.
    let is_wished = request.rejected || !link.is_whole || wished.contains(&request.question());
    is_wished && is_wanted(index, link, &request.agent, &request.from)
}

/// The agent whose owner should be asked; none where there is nothing to ask.
fn wanted(index: &Index, link: &Asking<'_>, wish: &Wish) -> Option<ObjectKey> {
    ObjectKey::of_agent(&wish.to).filter(|agent| is_wanted(index, link, agent, &wish.from))
}

fn is_wanted(index: &Index, link: &Asking<'_>, agent: &ObjectKey, from: &AgentName) -> bool {
    // An owner must not read that `operator` asks, or somebody's `laptop`: an operator speaks for agents of its cluster.
    let is_of_cluster = ObjectKey::of_agent(from).is_some();
    let from = AgentId { authority: link.authority, name: from.clone() };
    let may = index.peer(agent).is_some() && index.may_use(link.name, &agent.namespace);
    is_of_cluster && may && !index.has_consented(agent, &from)
}

/// The wishes that are worth a request. While these stay the same nothing is to be done, but for what people do to requests.
pub(super) fn all_wanted(index: &Index, links: &[Asking<'_>]) -> BTreeSet<(TrustId, TrustId)> {
    let of = |link: &Asking<'_>| {
        let wanted = link.wishes.iter().filter(|wish| wanted(index, link, wish).is_some());
        wanted.map(|wish| (link.uid, wish.id)).collect::<Vec<_>>()
    };
    links.iter().flat_map(of).collect()
}

fn request(link: &Asking<'_>, wish: &Wish, agent: &ObjectKey, now: UnixTime) -> AgentTrustRequest {
    // Of link and wish, so that nobody over there can choose a name that is another request's.
    let tag = data_encoding::HEXLOWER.encode(&sha256(&[b"peerage request v1", &link.uid.0, &wish.id.0])[..5]);
    let name = format!("{}-{tag}", wish.from.as_str().replace('.', "-"));
    let labels = [(LINK_UID, link.uid.to_string()), (WISH, wish.id.to_string())];
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: Some(agent.namespace.to_string()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ObjectMeta::default()
    };
    let Time(expires) = api_time(now.plus(LASTS));
    let spec = AgentTrustRequestSpec {
        agent_ref: AgentRef { name: agent.name.to_string() },
        from: Asker {
            name: wish.from.to_string(),
            authority: link.authority.to_string(),
            link_ref: Some(LinkRef { name: link.name.to_owned() }),
        },
        reason: wish.purpose.clone(),
        expires_at: Time(expires),
    };
    AgentTrustRequest { metadata, spec, status: None }
}

/// Where requests are.
pub(super) struct Store {
    client: Client,
}

impl Store {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Every request that an operator made.
    pub(super) async fn there(&self) -> kube::Result<Vec<There>> {
        let all: Api<AgentTrustRequest> = Api::all(self.client.clone());
        let list = all.list(&ListParams::default().labels(LINK_UID)).await?;
        Ok(list.items.iter().filter_map(read).collect())
    }

    /// Does what was planned; what fails is planned again. What one namespace refuses, because it is full or on its way out,
    /// is not done there and holds up nothing else: the first such error is told.
    pub(super) async fn apply(&self, plan: &Plan, now: UnixTime) -> kube::Result<()> {
        let api = |namespace: &str| Api::<AgentTrustRequest>::namespaced(self.client.clone(), namespace);
        let mut all = Ok(());
        for key in &plan.delete {
            let deleted = api(&key.namespace).delete(&key.name, &Default::default()).await;
            all = all.and(ignoring(404, deleted.map(drop)));
        }
        for request in &plan.create {
            let namespace = request.namespace().unwrap_or_default();
            all = all.and(ignoring(409, api(&namespace).create(&PostParams::default(), request).await.map(drop)));
        }
        for (key, reason) in &plan.say {
            let answered = Condition::new(
                ConditionType::Answered,
                if *reason == Reason::Pending { ConditionStatus::False } else { ConditionStatus::True },
                *reason,
                String::new(),
                api_time(now),
            );
            let object = json!({
                "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrustRequest", "metadata": {"name": *key.name},
                "status": {"conditions": [answered]},
            });
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            let said = api(&key.namespace).patch_status(&key.name, &parameters, &Patch::Apply(object)).await;
            all = all.and(ignoring(404, said.map(drop)));
        }
        all
    }
}

fn ignoring(code: u16, result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == code => Ok(()),
        other => other,
    }
}

fn read(object: &AgentTrustRequest) -> Option<There> {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let answered = conditions.into_iter().find(|one| one.type_ == ConditionType::Answered.as_str());
    let key = crate::facts::key_of(object);
    Some(There {
        agent: ObjectKey::new(key.namespace.clone(), object.spec.agent_ref.name.clone()),
        from: object.spec.from.name.parse().ok()?,
        key,
        link: object.labels().get(LINK_UID)?.parse().ok()?,
        expires: UnixTime(u64::try_from(object.spec.expires_at.0.as_second()).unwrap_or(0)),
        rejected: object.annotations().contains_key(REJECTED),
        answered: answered.map(|one| one.reason.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::served;
    use super::*;
    use crate::facts::{LinkFacts, PeerFacts, TrustFacts};
    use peerage_model::Authority;
    use zeroize::Zeroizing;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const OURS: Fingerprint = Fingerprint([1; 32]);
    const LINK: TrustId = TrustId([9; 16]);

    fn theirs() -> Authority {
        Authority::new(&Zeroizing::new([3; 96]), NOW)
    }

    /// Agent `db` in namespace `tools`, which the link permits, and in `other`, which it does not.
    fn index() -> Index {
        let mut index = Index::new(OURS, NOW);
        for namespace in ["tools", "other"] {
            let peer = json!({
                "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer", "metadata": {"name": "db", "namespace": namespace},
                "spec": {"selector": {"matchLabels": {"app": "db"}}},
            });
            let peer = serde_json::from_value(peer).expect("an AgentPeer");
            index.set_peer(&ObjectKey::new(namespace, "db"), Some(PeerFacts::read(&peer).expect("it is read")));
        }
        let theirs = theirs();
        let spec = json!({
            "authority": theirs.fingerprint().to_string(), "authorityRecord": theirs.record().to_text(),
            "allowedNamespaces": {"from": "Selected", "names": ["tools"]},
        });
        let metadata = json!({"name": "far", "uid": LINK.to_string()});
        let link =
            json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": metadata, "spec": spec});
        let link = serde_json::from_value(link).expect("an AgentLink");
        index.set_link("far", Some(LinkFacts::read(&link).expect("it is read")));
        index
    }

    fn wish(id: u16, to: &str) -> Wish {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let from = format!("asker-{id}.there").parse().expect("a name");
        Wish { id: TrustId(bytes), from, to: to.parse().expect("a name"), purpose: Some("figures".into()) }
    }

    fn asking(wishes: &[Wish]) -> Vec<Asking<'_>> {
        vec![Asking {
            name: "far",
            uid: LINK,
            authority: theirs().fingerprint(),
            wishes: wishes.iter().collect(),
            is_whole: true,
        }]
    }

    /// What would be there once a plan was carried out.
    fn made(plan: &Plan) -> Vec<There> {
        plan.create.iter().filter_map(read).collect()
    }

    #[test]
    fn only_an_agent_that_is_there_and_may_be_asked_is_worth_a_request() {
        let wishes = [wish(1, "db.tools"), wish(2, "nobody.tools"), wish(3, "db.other"), wish(4, "laptop")];
        let plan = plan(&index(), &asking(&wishes), &[], &mut Memory::default(), NOW);
        let [request] = &plan.create[..] else { panic!("{:?}", plan.create) };
        assert_eq!((request.spec.agent_ref.name.as_str(), request.namespace().as_deref()), ("db", Some("tools")));
        assert_eq!(request.spec.from.name, "asker-1.there");
        assert_eq!(plan.pending[&LINK], 1);
    }

    #[test]
    fn who_has_no_name_of_an_agent_of_a_cluster_asks_nobody() {
        let named = |from: &str| Wish { from: from.parse().expect("a name"), ..wish(1, "db.tools") };
        for from in ["operator", "laptop", "a.b.c"] {
            let plan = plan(&index(), &asking(&[named(from)]), &[], &mut Memory::default(), NOW);
            assert_eq!(plan.create, [], "{from}");
        }
    }

    #[tokio::test]
    async fn a_namespace_that_takes_no_request_holds_up_no_other() {
        let wishes = [wish(1, "db.tools"), wish(2, "db.other")];
        let mut index = index();
        let mut link = index.link("far").expect("it is there").clone();
        link.allowed = crate::facts::Permitted::All;
        index.set_link("far", Some(link));
        let plan = plan(&index, &asking(&wishes), &[], &mut Memory::default(), NOW);
        assert_eq!(plan.create.len(), 2);
        for full in ["tools", "other"] {
            let (client, mut given) = served::api(move |what| match what.contains(&format!("/{full}/")) {
                true => (403, json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "full"})),
                false => (201, json!(made_object())),
            })
            .await;
            assert!(Store::new(client).apply(&plan, NOW).await.is_err(), "it is told");
            let mut asked = std::iter::from_fn(|| given.try_recv().ok()).map(|(what, _)| what);
            assert!(
                asked.any(|what| what.starts_with("POST") && !what.contains(&format!("/{full}/"))),
                "{full} is full"
            );
        }
    }

    fn made_object() -> AgentTrustRequest {
        request(&asking(&[])[0], &wish(1, "db.tools"), &ObjectKey::new("tools", "db"), NOW)
    }

    #[test]
    fn however_much_is_wished_for_a_namespace_gets_twenty_requests() {
        let wishes: Vec<_> = (0..500).map(|id| wish(id, "db.tools")).collect();
        let mut memory = Memory::default();
        let first = plan(&index(), &asking(&wishes), &[], &mut memory, NOW);
        assert_eq!(first.create.len(), MAX_IN_NAMESPACE);
        let later = plan(&index(), &asking(&wishes), &made(&first), &mut memory, NOW);
        assert_eq!((later.create.len(), later.delete.len()), (0, 0));
    }

    #[test]
    fn who_asks_and_takes_back_all_day_writes_only_so_much() {
        let (mut memory, mut there, mut written) = (Memory::default(), Vec::new(), 0);
        for round in 0..600 {
            let wishes = [wish(round, "db.tools")];
            let plan =
                plan(&index(), &asking(&wishes), &there, &mut memory, NOW.plus(Duration::from_secs(round.into())));
            written += plan.create.len();
            there = made(&plan);
        }
        let most = usize::try_from(AT_ONCE).expect("a small number") + 600 / 10 + 1;
        assert!(written <= most, "{written} requests in ten minutes; {most} are the most");
        assert!(written > 40, "and some are made");
    }

    #[test]
    fn a_request_that_its_owner_deleted_does_not_come_back_while_it_is_wished_for() {
        let wishes = [wish(1, "db.tools")];
        let mut memory = Memory::default();
        let first = plan(&index(), &asking(&wishes), &[], &mut memory, NOW);
        plan(&index(), &asking(&wishes), &made(&first), &mut memory, NOW);
        let after = plan(&index(), &asking(&wishes), &[], &mut memory, NOW);
        assert_eq!(after.create, []);
        plan(&index(), &asking(&[]), &[], &mut memory, NOW);
        let anew = plan(&index(), &asking(&wishes), &[], &mut memory, NOW);
        assert_eq!(anew.create.len(), 1, "who took it back may ask again");
    }

    #[test]
    fn a_request_ends_with_its_wish_with_its_link_with_consent_and_with_its_time() {
        let wishes = [wish(1, "db.tools")];
        let first = plan(&index(), &asking(&wishes), &[], &mut Memory::default(), NOW);
        let there = made(&first);
        let ended = |index: &Index, links: &[Asking<'_>], now| {
            let plan = plan(index, links, &there, &mut Memory::default(), now);
            (plan.delete.len(), plan.create.len())
        };
        assert_eq!(ended(&index(), &asking(&wishes), NOW), (0, 0));
        assert_eq!(ended(&index(), &asking(&[]), NOW), (1, 0), "the wish was taken back");
        assert_eq!(ended(&index(), &[], NOW), (1, 0), "there is no such link");
        assert_eq!(ended(&index(), &asking(&wishes), NOW.plus(LASTS)), (1, 0), "nobody answered in a week");
        let mut consented = index();
        let trust = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrust", "metadata": {"name": "yes", "namespace": "tools"},
            "spec": {"agentRef": {"name": "db"}, "peer": {
                "name": "asker-1", "namespace": "there", "linkRef": {"name": "far"}, "authority": theirs().fingerprint().to_string(),
            }},
        });
        let trust = serde_json::from_value(trust).expect("an AgentTrust");
        consented.set_trust(&ObjectKey::new("tools", "yes"), Some(TrustFacts::read(&trust).expect("it is read")));
        assert_eq!(ended(&consented, &asking(&wishes), NOW), (1, 0), "the owner has consented");
    }

    #[test]
    fn a_new_leader_removes_nothing_before_it_has_heard_what_is_wished_for() {
        let wishes = [wish(1, "db.tools")];
        let there = made(&plan(&index(), &asking(&wishes), &[], &mut Memory::default(), NOW));
        let unheard = [Asking { is_whole: false, ..asking(&[]).remove(0) }];
        let plan = plan(&index(), &unheard, &there, &mut Memory::default(), NOW);
        assert_eq!((plan.delete.len(), plan.pending[&LINK]), (0, 1));
    }

    #[test]
    fn a_rejected_request_stays_and_says_so_and_waits_for_nobody() {
        let wishes = [wish(1, "db.tools")];
        let mut there = made(&plan(&index(), &asking(&wishes), &[], &mut Memory::default(), NOW));
        there[0].rejected = true;
        let plan = plan(&index(), &asking(&wishes), &there, &mut Memory::default(), NOW);
        assert_eq!(plan.say, [(there[0].key.clone(), Reason::Rejected)]);
        assert_eq!((plan.pending.get(&LINK), plan.delete.len()), (None, 0));
    }

    #[test]
    fn who_was_rejected_does_not_ask_again_by_taking_the_wish_back() {
        let wishes = [wish(1, "db.tools")];
        let mut there = made(&plan(&index(), &asking(&wishes), &[], &mut Memory::default(), NOW));
        there[0].rejected = true;
        let mut memory = Memory::default();
        let taken_back = plan(&index(), &asking(&[]), &there, &mut memory, NOW);
        assert_eq!(taken_back.delete, []);
        let other_id = [Wish { id: TrustId([8; 16]), ..wishes[0].clone() }];
        let anew = plan(&index(), &asking(&other_id), &there, &mut memory, NOW);
        assert_eq!((anew.create.len(), anew.delete.len()), (0, 0));
        let ended = plan(&index(), &asking(&[]), &there, &mut memory, NOW.plus(LASTS));
        assert_eq!(ended.delete.len(), 1, "it does not stay for ever");
    }

    #[test]
    fn one_asker_with_two_wishes_for_one_agent_asks_once() {
        let first = wish(1, "db.tools");
        let wishes = [first.clone(), Wish { id: TrustId([8; 16]), ..first }];
        assert_eq!(plan(&index(), &asking(&wishes), &[], &mut Memory::default(), NOW).create.len(), 1);
    }
}
