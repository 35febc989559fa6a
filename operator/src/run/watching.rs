//! What is watched, and what becomes of each object that a watch delivers.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::Ground;
use crate::cluster::Cluster;
use crate::facts::peer::RUNNING;
use crate::facts::{LinkFacts, PeerFacts, PodFacts, RelayFacts, TrustFacts, Unreadable};
use crate::index::{Dirty, Index, Labels};
use crate::key::{Object, ObjectKey};
use crate::roll::Denial;
use crate::watch::{Delivery, Found, Health, Metadata, Source, Watch, Whole};
use crate::{denials, links};

/// Deliveries that may wait while the index is busy.
const QUEUE: usize = 256;
/// What is watched, in the order of `watches`. Agents compare what replicas have seen place by place: another kind goes to
/// the end. The last one is read again and again instead ([`links`]).
pub(super) const KINDS: [&str; 8] =
    ["agentpeers", "agenttrusts", "agentlinks", "agentrelays", "pods", "namespaces", "configmaps", "tickets"];

/// Starts all watches.
pub(super) fn start(Ground { cluster, client, namespace, .. }: &Ground) {
    let [peers, trusts, links, relays, pods, namespaces, maps, tickets] = &cluster.watches[..] else {
        unreachable!("there is one for each of KINDS");
    };
    let c = client;
    let apply = Apply { object: Object::Peer, hide: Index::hide_peer, set: Index::set_peer };
    follow_ours(cluster, peers, Api::all(c.clone()), PeerFacts::read, apply);
    let apply = Apply { object: Object::Trust, hide: Index::hide_trust, set: Index::set_trust };
    follow_ours(cluster, trusts, Api::all(c.clone()), TrustFacts::read, apply);
    let apply = Apply {
        object: |key| Object::Link(key.name.to_string()),
        hide: |index, key| index.hide_link(&key.name),
        set: |index, key, facts| index.set_link(&key.name, facts),
    };
    follow_ours(cluster, links, Api::all(c.clone()), LinkFacts::read, apply);
    let apply = Apply {
        object: |key| Object::Relay(key.name.to_string()),
        // What was read last stands: agents lose no relay because somebody changed a schema.
        hide: |_, _| Dirty::default(),
        set: |index, key, facts| index.set_relay(&key.name, facts),
    };
    follow_ours(cluster, relays, Api::all(c.clone()), RelayFacts::read, apply);
    follow_pods(cluster, pods, Api::all(c.clone()));
    follow_namespaces(cluster, namespaces, Api::all(c.clone()));
    follow_denials(cluster, maps, Api::namespaced(c.clone(), namespace));
    tokio::spawn(links::run(Arc::clone(cluster), c.clone(), namespace.clone(), Arc::clone(tickets)));
}

/// What becomes of the objects of one kind.
struct Apply<T> {
    /// What one is called among all.
    object: fn(ObjectKey) -> Object,
    /// It is there and cannot be read.
    hide: fn(&mut Index, &ObjectKey) -> Dirty,
    /// It came, changed, or went.
    set: fn(&mut Index, &ObjectKey, Option<T>) -> Dirty,
}

/// Watches a kind of ours, of which some objects may be unreadable.
fn follow_ours<K, T: Send + 'static>(
    cluster: &Arc<Cluster>,
    health: &Arc<Health>,
    api: Api<DeserializeGuard<K>>,
    read: fn(&K) -> Result<T, Unreadable>,
    apply: Apply<T>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let read = move |object: DeserializeGuard<K>| {
        let object = object.0.map_err(|error| Unreadable::whole(error.error).to_string())?;
        read(&object).map_err(|error| error.to_string())
    };
    follow(cluster, health, Whole(api), (None, None), read, move |cluster, key, found, told| {
        cluster.change_told(told, |index| {
            let object = (apply.object)(key.clone());
            let (why, facts) = match found {
                Found::Unreadable(why) => (Some(why), None),
                Found::Here(facts) => (None, Some(facts)),
                Found::Gone => (None, None),
            };
            let is_hidden = why.is_some();
            index.set_unreadable(object, why);
            if is_hidden { (apply.hide)(index, &key) } else { (apply.set)(index, &key, facts) }
        });
    });
}

fn follow_pods(cluster: &Arc<Cluster>, health: &Arc<Health>, api: Api<Pod>) {
    let running = Some(RUNNING.to_owned());
    let read = |pod: PartialObjectMeta<Pod>| Ok::<_, String>(PodFacts::read(&pod));
    follow(cluster, health, Metadata(api), (running, None), read, |cluster, key, facts, told| {
        cluster.change_told(told, |index| index.set_pod(&key, facts.readable()));
    });
}

fn follow_namespaces(cluster: &Arc<Cluster>, health: &Arc<Health>, api: Api<Namespace>) {
    let read = |object: PartialObjectMeta<Namespace>| Ok::<Labels, String>(object.labels().into());
    follow(cluster, health, Metadata(api), (None, None), read, |cluster, key, labels, told| {
        cluster.change_told(told, |index| index.set_namespace(&key.name, labels.readable()));
    });
}

fn follow_denials(cluster: &Arc<Cluster>, health: &Arc<Health>, api: Api<DeserializeGuard<ConfigMap>>) {
    let read = |map: DeserializeGuard<ConfigMap>| -> Result<Vec<Denial>, String> {
        let map = map.0.map_err(|error| error.error)?;
        Ok(map.data.as_ref().map(denials::read).unwrap_or_default())
    };
    let label = Some(denials::LABEL.to_owned());
    follow(cluster, health, Whole(api), (None, label), read, |cluster, _, found, _| {
        denials::apply(cluster, found.readable());
    });
}

/// Starts one watch and applies what it delivers.
fn follow<S: Source, T: Send + 'static>(
    cluster: &Arc<Cluster>,
    health: &Arc<Health>,
    source: S,
    (fields, labels): (Option<String>, Option<String>),
    read: impl Fn(S::Object) -> Result<T, String> + Send + Sync + 'static,
    apply: impl Fn(&Arc<Cluster>, ObjectKey, Found<T>, Instant) + Send + 'static,
) {
    let (out, mut deliveries) = mpsc::channel(QUEUE);
    let watch = Watch { source, fields, labels, read, health: Arc::clone(health) };
    tokio::spawn(watch.run(out));
    let (cluster, health) = (Arc::clone(cluster), Arc::clone(health));
    tokio::spawn(async move {
        while let Some(delivery) = deliveries.recv().await {
            match delivery {
                Delivery::Object(key, facts, told, version) => {
                    health.applying(version);
                    apply(&cluster, key, facts, told);
                }
                Delivery::Version(version) => health.applied(version),
            }
        }
    });
}
