//! Decides whether somebody is an agent, and gives passports.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, PostParams};
use kube::core::DeserializeGuard;
use peerage_crds::AgentPeer;
use peerage_model::operator::{
    ChannelBinding, Enrol, Enrolment, GoAway, GoAwayCode, Passport, Resume, Revision, audience,
};
use peerage_model::passport::{BACKDATED, LIFETIME};
use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgreementKey, AgreementSecret, Credential, InstanceId, UnixTime};

use super::Server;
use crate::authority::Keyring;
use crate::cluster::Refused;
use crate::facts::peer::RUNNING;
use crate::facts::{PeerFacts, PodFacts};
use crate::index::{Index, PodAgent};
use crate::key::{ObjectKey, uid_bytes};
use crate::roll::{Denial, Holder, PodUid};

/// How long a watch may lag behind a token before a pod counts as gone: a token is there a moment after its pod, and the
/// watch of a busy cluster takes longer.
const PATIENCE: Duration = Duration::from_secs(3);

const WITHDRAWN: &str = "this instance was withdrawn; a new key is needed";

/// An instance that was let in.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The pod's UID.
    pub uid: PodUid,
    /// Who it is.
    pub holder: Holder,
    /// Its key.
    pub key: AgreementKey,
}

/// What the API server says of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    pod: ObjectKey,
    uid: String,
    service_account: String,
}

fn refuse(code: GoAwayCode, text: &str) -> GoAway {
    GoAway::new(code, text, None)
}

/// What a pod is told that may be the agent of an AgentPeer that this replica cannot read.
fn unread(peer: &ObjectKey) -> GoAway {
    let text = format!("AgentPeer `{}` is not what this operator understands; are its CRDs of its version?", peer.name);
    GoAway::new(GoAwayCode::NotReady, &text, Some(10))
}

impl Server {
    /// Lets in by a token.
    ///
    /// # Errors
    /// What the agent is told.
    pub(super) async fn enrol(
        &self,
        enrol: &Enrol,
        binding: &ChannelBinding,
        e: &AgreementSecret,
    ) -> Result<Admitted, GoAway> {
        enrol.check(binding, e).map_err(|bad| refuse(GoAwayCode::BadProof, &bad.to_string()))?;
        let shown = self.review(&enrol.token).await?;
        let now = crate::clock::now();
        let peer = match self.agent_of(&shown).await {
            Ok(peer) => peer,
            Err(goodbye) => return Err(self.behind(enrol.have.as_ref()).unwrap_or(goodbye)),
        };
        let agent =
            peer.agent(self.authority).ok_or_else(|| refuse(GoAwayCode::NoAgent, "the AgentPeer's name is no name"))?;
        let holder = Holder {
            agent,
            peer,
            instance: InstanceId::of_key(&enrol.key),
            pod: shown.pod,
            service_account: shown.service_account,
            issued: now,
            until: now.plus(LIFETIME),
        };
        self.admit(Admitted { uid: uid_bytes(&shown.uid).0, holder, key: enrol.key })
    }

    /// Lets in by a passport. The API server is not asked.
    ///
    /// # Errors
    /// What the agent is told.
    pub(super) async fn resume(
        &self,
        resume: &Resume,
        binding: &ChannelBinding,
        e: &AgreementSecret,
    ) -> Result<Admitted, GoAway> {
        let now = crate::clock::now();
        let anew = |text: &str| refuse(GoAwayCode::EnrolAnew, text);
        let credential = Credential::verify(&resume.credential, now).map_err(|error| anew(&error.to_string()))?;
        let keys = self.keys();
        let known = |record: &peerage_model::AuthorityRecord| keys.records().any(|ours| ours == record);
        if !known(credential.record()) {
            return Err(anew("the passport is of an authority record that is not in use"));
        }
        let key = *credential.instance_key();
        resume.check(binding, e, &key).map_err(|bad| refuse(GoAwayCode::BadProof, &bad.to_string()))?;
        let enrolment = keys.records().find_map(|record| Enrolment::verify(&resume.enrolment, record).ok());
        let enrolment = enrolment.ok_or_else(|| anew("the enrolment is not of an authority record in use"))?;
        if enrolment.agent != *credential.agent() || enrolment.instance != key {
            return Err(refuse(GoAwayCode::Malformed, "the enrolment is of another passport"));
        }
        let peer = ObjectKey::of_agent(&enrolment.agent.name).ok_or_else(|| anew("no AgentPeer can have this name"))?;
        let holder = Holder {
            agent: enrolment.agent,
            peer,
            instance: InstanceId::of_key(&key),
            pod: ObjectKey::new(enrolment.namespace, enrolment.pod),
            service_account: enrolment.service_account,
            issued: enrolment.issued,
            until: now.plus(LIFETIME),
        };
        let admitted = Admitted { uid: enrolment.pod_uid, holder, key };
        self.wait_for(|state| state.index.is_still(&admitted.uid, &admitted.holder)).await;
        match self.still(&admitted) {
            Ok(()) => self.admit(admitted),
            Err(goodbye) => Err(self.turn_away(admitted, credential.not_after(), resume.have.as_ref(), goodbye).await),
        }
    }

    /// What is said to an agent whose passport counts, and whose pod is not it by what this replica has seen. That is believed
    /// only if this replica has seen at least what the agent has from others: one that lags must not end who is well. An
    /// agent that was never told anything cannot say what that is; then the API server is asked. Then the passport is
    /// withdrawn: the pod may have changed while no replica ran that would have noticed.
    async fn turn_away(&self, admitted: Admitted, until: UnixTime, have: Option<&Revision>, goodbye: GoAway) -> GoAway {
        let holder = &admitted.holder;
        if self.cluster.is_denied(&holder.agent, &holder.instance) {
            return goodbye;
        }
        if let Some(behind) = self.behind(have) {
            return behind;
        }
        if self.cluster.read().index.is_unread(&holder.peer) {
            return unread(&holder.peer);
        }
        if have.is_none() {
            match self.is_void(&admitted).await {
                Ok(true) => {}
                Ok(false) => {
                    return GoAway::new(GoAwayCode::NotReady, "this replica has not heard of this pod yet", Some(1));
                }
                Err(error) => {
                    tracing::warn!(%error, "the API server was asked for a pod");
                    return GoAway::new(GoAwayCode::NotReady, "the API server did not answer", Some(1));
                }
            }
        }
        let denied = DeniedInstance { authority: self.authority, instance: holder.instance, until };
        self.cluster.withdraw(Denial { agent: holder.agent.clone(), denied });
        goodbye
    }

    /// Whether the API server itself knows no such pod, or one that is not that agent. A list is as new as can be, unlike a
    /// watch; and who may watch may list, so this needs no right of its own.
    async fn is_void(&self, admitted: &Admitted) -> kube::Result<bool> {
        let _turn = self.reviews.acquire().await.expect("we never close it");
        let Holder { pod, peer, .. } = &admitted.holder;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let running = ListParams::default().fields(&format!("metadata.name={},{RUNNING}", pod.name));
        let found = pods.list_metadata(&running).await?.items.pop();
        let peers: Api<DeserializeGuard<AgentPeer>> = Api::namespaced(self.client.clone(), &peer.namespace);
        let named = ListParams::default().fields(&format!("metadata.name={}", peer.name));
        let mut now = Index::new(self.authority, crate::clock::now());
        now.set_pod(pod, found.map(|found| PodFacts::read(&found)));
        match peers.list(&named).await?.items.pop().map(|found| found.0.ok().map(|found| PeerFacts::read(&found))) {
            None => {}
            Some(Some(Ok(facts))) => drop(now.set_peer(peer, Some(facts))),
            Some(None | Some(Err(_))) => return Ok(false), // it is there, and what it selects is not known
        }
        Ok(!now.is_still(&admitted.uid, &admitted.holder))
    }

    /// What is said to an agent that has been told more than this replica has seen.
    fn behind(&self, have: Option<&Revision>) -> Option<GoAway> {
        let is_behind = have.is_some_and(|have| !self.cluster.revision().covers(have));
        is_behind.then(|| refuse(GoAwayCode::Behind, "this replica has not seen yet what this agent was told"))
    }

    fn admit(&self, admitted: Admitted) -> Result<Admitted, GoAway> {
        match self.cluster.admit(admitted.uid, admitted.holder.clone(), true) {
            Ok(()) => Ok(admitted),
            Err(Refused::Denied) => Err(refuse(GoAwayCode::Denied, WITHDRAWN)),
            Err(Refused::Changed) => {
                Err(GoAway::new(GoAwayCode::NotReady, "this pod or its AgentPeer has just changed", Some(1)))
            }
            Err(Refused::TooSoon { wait }) => {
                let wait = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX);
                Err(GoAway::new(GoAwayCode::Busy, "this pod has enrolled too many keys; it must wait", Some(wait)))
            }
        }
    }

    /// Whether an instance may go on as it is.
    ///
    /// # Errors
    /// What the agent is told.
    pub(super) fn still(&self, admitted: &Admitted) -> Result<(), GoAway> {
        let holder = &admitted.holder;
        if self.cluster.is_denied(&holder.agent, &holder.instance) {
            return Err(refuse(GoAwayCode::Denied, WITHDRAWN));
        }
        let state = self.cluster.read();
        if state.index.is_still(&admitted.uid, holder) {
            return Ok(());
        }
        let pod = state.index.pod(&holder.pod);
        match pod.is_some_and(|facts| uid_bytes(&facts.uid).0 == admitted.uid) {
            true => Err(refuse(
                GoAwayCode::Denied,
                "this pod is not that agent any more: its labels or the AgentPeer changed",
            )),
            false => Err(refuse(GoAwayCode::PodGone, "this pod was deleted")),
        }
    }

    /// A fresh passport for who was let in.
    pub(super) fn issue(&self, admitted: &Admitted) -> Passport {
        let now = crate::clock::now();
        let keys = self.keys();
        let holder = &admitted.holder;
        let authority = keys.active();
        let passport = authority.issue(&holder.agent, admitted.key, now.minus(BACKDATED), now.plus(LIFETIME));
        let enrolment = Enrolment {
            agent: holder.agent.clone(),
            instance: admitted.key,
            pod_uid: admitted.uid,
            namespace: holder.pod.namespace.to_string(),
            pod: holder.pod.name.to_string(),
            service_account: holder.service_account.clone(),
            issued: holder.issued,
        };
        self.cluster.metrics.passports.inc();
        Passport { credential: Credential::join(authority.record(), passport), enrolment: enrolment.sign(authority) }
    }

    /// The same, and the roll knows that the instance lives a day longer.
    pub(super) fn renew(&self, admitted: &mut Admitted) -> Result<Passport, GoAway> {
        self.still(admitted)?;
        admitted.holder.until = crate::clock::now().plus(LIFETIME);
        self.admit(admitted.clone())?;
        Ok(self.issue(admitted))
    }

    /// Asks the API server whose token it is.
    async fn review(&self, token: &str) -> Result<Shown, GoAway> {
        let _turn = self.reviews.acquire().await.expect("we never close it");
        let audience = audience(&self.authority);
        let spec = TokenReviewSpec { audiences: Some(vec![audience.clone()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|error| {
            tracing::warn!(%error, "TokenReview failed");
            refuse(GoAwayCode::NotReady, "the API server did not answer")
        })?;
        shown(answer.status.unwrap_or_default(), &audience).map_err(|why| refuse(GoAwayCode::BadToken, why))
    }

    async fn agent_of(&self, shown: &Shown) -> Result<ObjectKey, GoAway> {
        let found =
            |state: &crate::cluster::State| state.index.agent_of(&shown.pod, &shown.uid, &shown.service_account);
        self.wait_for(|state| !matches!(found(state), PodAgent::Gone | PodAgent::None)).await;
        let found = found(&self.cluster.read());
        match found {
            PodAgent::One(agent) => Ok(agent),
            PodAgent::Gone => Err(refuse(GoAwayCode::PodGone, "this pod is deleted, or about to be")),
            PodAgent::Unknown(peer) => Err(unread(&peer)),
            PodAgent::None => Err(refuse(GoAwayCode::NoAgent, "no AgentPeer of this namespace selects this pod")),
            PodAgent::OtherServiceAccount { agent, wanted } => {
                let text = format!("AgentPeer `{}` takes only pods that run as ServiceAccount `{wanted}`", agent.name);
                Err(refuse(GoAwayCode::NoAgent, &text))
            }
            PodAgent::Ambiguous(agents) => {
                let names: Vec<_> = agents.into_iter().map(|agent| agent.name).collect();
                Err(refuse(GoAwayCode::Ambiguous, &format!("several AgentPeers select this pod: {}", names.join(", "))))
            }
        }
    }

    /// Waits for a moment until something is so.
    async fn wait_for(&self, so: impl Fn(&crate::cluster::State) -> bool) {
        let mut changes = self.cluster.changes();
        let until_so = async {
            loop {
                // The lock must be given back before anything is waited for.
                let done = so(&self.cluster.read());
                if done || changes.changed().await.is_err() {
                    break;
                }
            }
        };
        // Whoever waited decides on what is there.
        let _ = tokio::time::timeout(PATIENCE, until_so).await;
    }

    pub(super) fn keys(&self) -> std::sync::Arc<Keyring> {
        std::sync::Arc::clone(&self.keyring.borrow())
    }
}

/// Reads a TokenReview's answer.
fn shown(status: TokenReviewStatus, audience: &str) -> Result<Shown, &'static str> {
    if status.authenticated != Some(true) {
        return Err(
            "the API server does not know this token: it has ended, its pod was deleted, or it has another audience",
        );
    }
    // A server that does not know audiences answers for its own: such a token is not for us.
    if !status.audiences.iter().flatten().any(|given| given == audience) {
        return Err("the token is not for this audience");
    }
    let user = status.user.unwrap_or_default();
    let account =
        user.username.as_deref().and_then(|name| name.strip_prefix("system:serviceaccount:")?.split_once(':'));
    let (namespace, service_account) = account.ok_or("the token is not a ServiceAccount's")?;
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?;
        values.first().cloned()
    };
    let bound = extra("pod-name").zip(extra("pod-uid")).ok_or("the token is not bound to a pod")?;
    Ok(Shown { pod: ObjectKey::new(namespace, bound.0), uid: bound.1, service_account: service_account.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const OURS: &str = "peerage.dev/ours";

    fn read(change: impl FnOnce(&mut Value)) -> Result<Shown, &'static str> {
        let mut status = json!({
            "authenticated": true, "audiences": [OURS],
            "user": {
                "username": "system:serviceaccount:tools:db",
                "extra": {"authentication.kubernetes.io/pod-name": ["db-1"], "authentication.kubernetes.io/pod-uid": ["u"]},
            },
        });
        change(&mut status);
        shown(serde_json::from_value(status).expect("a status"), OURS)
    }

    #[test]
    fn who_a_pod_is_comes_from_the_api_servers_answer() {
        let pod = read(|_| {}).expect("it is good");
        assert_eq!((pod.pod.to_string(), pod.uid, pod.service_account), ("db-1.tools".into(), "u".into(), "db".into()));
    }

    #[test]
    fn a_token_that_is_unknown_for_another_audience_of_a_person_or_of_no_pod_is_refused() {
        assert!(read(|status| status["authenticated"] = json!(false)).is_err());
        assert!(read(|status| status["audiences"] = json!(["https://kubernetes.default.svc"])).is_err());
        assert!(read(|status| status["audiences"] = json!([])).is_err());
        assert!(read(|status| status["user"]["username"] = json!("alice")).is_err());
        assert!(read(|status| status["user"]["extra"] = json!({})).is_err());
    }
}
