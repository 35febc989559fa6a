//! Which replica writes: the one that holds a Lease. Everything else every replica does.
//!
//! A candidate does not compare its clock with the holder's: it takes a Lease that it has watched unchanged for as long
//! as the Lease says it lasts. The holder stops writing well before that, by its own clock, when it cannot renew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

/// The Lease's name.
pub const NAME: &str = "peerage-operator";
/// Annotation of the Lease: where the other replicas reach the one that holds it.
pub const ADDRESS: &str = "peerage.dev/address";
/// How long others leave an unrenewed Lease alone.
const LASTS: Duration = Duration::from_secs(10);
/// When the holder stops writing if it could not renew.
const STOPS: Duration = Duration::from_secs(7);
/// How often the Lease is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// What this replica thinks of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// We hold it.
    Ours,
    /// Somebody else does, and is reached there.
    Theirs {
        /// `HOST:PORT`.
        address: String,
    },
    /// Nobody is known to.
    Nobody,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Take,
    Renew,
    Wait,
}

/// What was seen of the Lease, and since when it has not changed.
#[derive(Debug)]
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Seen {
    fn step(&mut self, lease: Option<&Lease>, me: &str, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        if self.version != lease.metadata.resource_version {
            *self = Self { version: lease.metadata.resource_version.clone(), since: now };
        }
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        let lasts = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        match holder {
            "" => Step::Take,
            holder if holder == me => Step::Renew,
            _ if now.duration_since(self.since) > lasts => Step::Take,
            _ => Step::Wait,
        }
    }
}

/// A replica that would lead.
pub struct Candidate {
    leases: Api<Lease>,
    me: String,
    address: String,
    state: watch::Sender<Leadership>,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Candidate({})", self.me)
    }
}

impl Candidate {
    /// In the operator's namespace, called `me`, reached at `address`.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, me: String, address: String) -> Self {
        Self { leases: Api::namespaced(client, namespace), me, address, state: watch::Sender::new(Leadership::Nobody) }
    }

    /// Who leads, as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.state.subscribe()
    }

    /// Runs until `stopping`, and then gives the Lease up, so that nobody has to wait.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) {
        let mut seen = Seen { version: None, since: Instant::now() };
        let mut renewed: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            match tokio::time::timeout(STOPS / 2, self.attempt(&mut seen)).await {
                Ok(Ok(leadership)) => {
                    renewed = (leadership == Leadership::Ours).then_some(asked);
                    self.set(leadership);
                }
                Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be looked at"),
                Err(_) => tracing::warn!("the Lease could not be looked at in time"),
            }
            if renewed.is_some_and(|at| at.elapsed() > STOPS) {
                renewed = None;
                self.set(Leadership::Nobody);
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = stopping.wait_for(|stopping| *stopping) => break,
            }
        }
        if *self.state.borrow() == Leadership::Ours {
            self.set(Leadership::Nobody);
            if let Err(error) = self.give_up().await {
                tracing::warn!(%error, "the Lease could not be given up; the others wait until it ends");
            }
        }
    }

    fn set(&self, leadership: Leadership) {
        self.state.send_if_modified(|state| {
            let changed = *state != leadership;
            if changed {
                tracing::info!(target: "events::leadership", ?leadership);
                *state = leadership;
            }
            changed
        });
    }

    async fn attempt(&self, seen: &mut Seen) -> kube::Result<Leadership> {
        let lease = self.leases.get_opt(NAME).await?;
        let step = seen.step(lease.as_ref(), &self.me, Instant::now());
        let written = match (step, lease) {
            (Step::Wait, Some(lease)) => return Ok(theirs(&lease)),
            (Step::Create, _) | (_, None) => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                self.leases.create(&PostParams::default(), &self.ours(metadata, None)).await
            }
            (Step::Take | Step::Renew, Some(lease)) => {
                let new = self.ours(lease.metadata, lease.spec);
                self.leases.replace(NAME, &PostParams::default(), &new).await
            }
        };
        match written {
            Ok(_) => Ok(Leadership::Ours),
            // Somebody was faster; the next look says who.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Leadership::Nobody),
            Err(error) => Err(error),
        }
    }

    fn ours(&self, mut metadata: ObjectMeta, old: Option<LeaseSpec>) -> Lease {
        metadata.annotations.get_or_insert_with(BTreeMap::new).insert(ADDRESS.into(), self.address.clone());
        metadata.managed_fields = None;
        let old = old.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let mine = old.holder_identity.as_deref() == Some(&self.me);
        let transitions = old.lease_transitions.unwrap_or(0);
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: if mine { old.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if mine { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    async fn give_up(&self) -> kube::Result<()> {
        let Some(mut lease) = self.leases.get_opt(NAME).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.me)) else {
            return Ok(());
        };
        spec.holder_identity = Some(String::new());
        self.leases.replace(NAME, &PostParams::default(), &lease).await.map(|_| ())
    }
}

fn theirs(lease: &Lease) -> Leadership {
    let annotations = lease.metadata.annotations.as_ref();
    match annotations.and_then(|all| all.get(ADDRESS)) {
        Some(address) => Leadership::Theirs { address: address.clone() },
        None => Leadership::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(10),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_lease_is_taken_only_after_it_was_seen_unchanged_for_as_long_as_it_lasts() {
        let start = Instant::now();
        let mut seen = Seen { version: None, since: start };
        let mut step =
            |lease: Option<Lease>, second| seen.step(lease.as_ref(), "me", start + Duration::from_secs(second));
        assert_eq!(step(None, 0), Step::Create);
        assert_eq!(step(Some(lease("other", "1")), 100), Step::Wait, "the first look says nothing about its age");
        assert_eq!(step(Some(lease("other", "1")), 110), Step::Wait);
        assert_eq!(step(Some(lease("other", "2")), 111), Step::Wait, "it was renewed");
        assert_eq!(step(Some(lease("other", "2")), 122), Step::Take);
        assert_eq!(step(Some(lease("me", "3")), 123), Step::Renew);
        assert_eq!(step(Some(lease("", "4")), 124), Step::Take, "it was given up");
    }

    #[test]
    fn a_holder_stops_before_others_may_take_over() {
        assert!(
            STOPS + STOPS / 2 + EVERY < LASTS + EVERY * 2,
            "a request that hangs at the worst moment is within the Lease"
        );
        assert!(STOPS < LASTS);
    }
}
