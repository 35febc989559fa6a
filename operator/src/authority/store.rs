//! Reads and writes the authority's Secret and ConfigMap.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use peerage_crds::AgentPeer;
use peerage_model::{Fingerprint, UnixTime};
use zeroize::Zeroizing;

use super::{Decision, NAME, ROTATE, Stored, Unusable, decide};

/// Where in the ConfigMap the fingerprint is.
const FINGERPRINT: &str = "fingerprint";
/// Which line of revisions this cluster is in (docs/spec/control-plane.md section 6).
const EPOCH: &str = "epoch";
/// How often two replicas may get into each other's way before that is an error.
const ATTEMPTS: usize = 8;

/// Why the keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// They are not as they were left.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The API server did not do what we asked.
    #[error("could not {doing}")]
    Api {
        /// What we were doing.
        doing: &'static str,
        /// What it said.
        #[source]
        cause: Box<kube::Error>,
    },
    /// The ConfigMap says something else than a fingerprint.
    #[error(
        "ConfigMap {NAME} does not name an authority in `{FINGERPRINT}` or has no number in `{EPOCH}`: restore it, or delete it"
    )]
    Memory,
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system")]
    Randomness(#[source] std::io::Error),
    /// Somebody writes all the time.
    #[error("Secret {NAME} changed each of the {ATTEMPTS} times that it was read")]
    Contended,
}

/// Where the keys are kept.
#[derive(Clone)]
pub struct Store {
    secrets: Api<Secret>,
    memory: Api<ConfigMap>,
    peers: Api<AgentPeer>,
    recorder: Recorder,
    namespace: String,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store(..)")
    }
}

fn failed(doing: &'static str) -> impl FnOnce(kube::Error) -> AuthorityError {
    move |cause| AuthorityError::Api { doing, cause: Box::new(cause) }
}

/// The API server's "somebody was faster": the object exists, or is another version.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

impl Store {
    /// In the operator's namespace.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            memory: Api::namespaced(client.clone(), namespace),
            peers: Api::all(client.clone()),
            // One for the life of the process: it counts repetitions instead of writing each as an Event of its own.
            recorder: Recorder::new(client.clone(), Reporter { controller: "peerage-operator".into(), instance: None }),
            namespace: namespace.to_owned(),
        }
    }

    /// The keys; made if there never were any. Replicas that start at once end with the same ones, because only one of
    /// them can create the Secret.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn load(&self, now: UnixTime) -> Result<Stored, AuthorityError> {
        for _ in 0..ATTEMPTS {
            let secret = self.secrets.get_opt(NAME).await.map_err(failed("read the authority's Secret"))?;
            let remembered = self.remembered().await?;
            let data = secret.as_ref().map(data_of);
            // Statuses are asked only where new keys might be made: it is a list of all AgentPeers.
            let in_status = match (&data, remembered) {
                (None, None) => self.in_status().await?,
                (Some(_), _) | (None, Some(_)) => BTreeSet::new(),
            };
            match decide(data.as_ref(), remembered, &in_status, now)? {
                Decision::Use(stored) => return Ok(stored),
                Decision::Remember(stored) => {
                    self.remember(stored.fingerprint()).await?;
                    return Ok(stored);
                }
                Decision::Mint => self.mint(now).await?,
            }
        }
        Err(AuthorityError::Contended)
    }

    /// Creates the Secret, or finds that somebody else has.
    async fn mint(&self, now: UnixTime) -> Result<(), AuthorityError> {
        let mut random = Zeroizing::new([0; 96]);
        crate::random::fill(&mut random[..]).map_err(AuthorityError::Randomness)?;
        let stored = Stored::mint(&random, now);
        let secret = Secret {
            metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
            type_: Some("peerage.dev/authority".into()),
            data: Some(bytes_of(&stored)),
            ..Secret::default()
        };
        match self.secrets.create(&PostParams::default(), &secret).await {
            Ok(_) => {
                tracing::info!(target: "events::authority_made", authority = %stored.fingerprint());
                Ok(())
            }
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(failed("create the authority's Secret")(error)),
        }
    }

    async fn remembered(&self) -> Result<Option<Fingerprint>, AuthorityError> {
        let Some(map) = self.memory.get_opt(NAME).await.map_err(failed("read the authority's ConfigMap"))? else {
            return Ok(None);
        };
        let text = map.data.as_ref().and_then(|data| data.get(FINGERPRINT)).ok_or(AuthorityError::Memory)?;
        text.parse().map(Some).map_err(|_| AuthorityError::Memory)
    }

    async fn remember(&self, fingerprint: Fingerprint) -> Result<(), AuthorityError> {
        let data =
            BTreeMap::from([(FINGERPRINT.to_owned(), fingerprint.to_string()), (EPOCH.to_owned(), "1".to_owned())]);
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
            data: Some(data),
            ..ConfigMap::default()
        };
        match self.memory.create(&PostParams::default(), &map).await {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) => Ok(()), // another replica; the next reading compares
            Err(error) => Err(failed("create the authority's ConfigMap")(error)),
        }
    }

    async fn in_status(&self) -> Result<BTreeSet<Fingerprint>, AuthorityError> {
        let peers = self.peers.list(&ListParams::default()).await.map_err(failed("list AgentPeers"))?;
        let named = peers.items.iter().filter_map(|peer| peer.status.as_ref()?.authority.as_ref()?.parse().ok());
        Ok(named.collect())
    }

    /// Does what is due: new keys where the annotation asks for them, and old ones dropped where nobody needs them.
    /// For the leader; a conflict means that somebody else was faster and is no error.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn maintain(&self, now: UnixTime) -> Result<(), AuthorityError> {
        let Some(mut secret) = self.secrets.get_opt(NAME).await.map_err(failed("read the authority's Secret"))? else {
            return Ok(()); // `load` says what that means
        };
        let stored = Stored::read(&data_of(&secret), now)?;
        let asked = secret.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(ROTATE));
        let new = if asked {
            let mut random = Zeroizing::new([0; 64]);
            crate::random::fill(&mut random[..]).map_err(AuthorityError::Randomness)?;
            stored.rotated(&random, now)
        } else {
            stored.settled(now)
        };
        let Some(new) = new else { return Ok(()) };
        if let Some(annotations) = secret.metadata.annotations.as_mut() {
            annotations.remove(ROTATE);
        }
        secret.data = Some(bytes_of(&new));
        // The resourceVersion that was read goes along: what changed since then is not overwritten.
        match self.secrets.replace(NAME, &PostParams::default(), &secret).await {
            Ok(_) => {
                tracing::info!(target: "events::authority_rotated", keys = ?new.keyring(now).sequences());
                Ok(())
            }
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(failed("write the authority's Secret")(error)),
        }
    }

    /// The epoch of revisions. Who restores the cluster's etcd from a backup, so that resourceVersions count from an
    /// earlier one again, raises it by hand: everything that could remember is in that backup itself.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn epoch(&self) -> Result<u64, AuthorityError> {
        let map = self.memory.get_opt(NAME).await.map_err(failed("read the authority's ConfigMap"))?;
        let text = map.as_ref().and_then(|map| map.data.as_ref()?.get(EPOCH));
        text.map_or(Ok(1), |text| text.parse().map_err(|_| AuthorityError::Memory))
    }
}

impl Store {
    /// Says what stands in the way, in the log and as an Event on the ConfigMap or, where that is gone, on the Secret's
    /// name: whoever looks there must find how to go on.
    pub async fn complain(&self, error: &AuthorityError) {
        tracing::error!(error = %chain(error), "the authority's keys cannot be used");
        let AuthorityError::Unusable(unusable) = error else { return };
        if let Err(error) = self.publish(unusable).await {
            tracing::warn!(%error, "and no Event could be written about it");
        }
    }

    async fn publish(&self, unusable: &Unusable) -> kube::Result<()> {
        let regarding = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Secret".into()),
            name: Some(NAME.into()),
            namespace: Some(self.namespace.clone()),
            ..ObjectReference::default()
        };
        let reason = match unusable {
            Unusable::Lost { .. } => "AuthorityLost",
            Unusable::Damaged { .. } => "AuthorityDamaged",
            Unusable::Foreign { .. } => "AuthorityForeign",
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(unusable.to_string()),
            action: "ReadingKeys".into(),
            secondary: None,
        };
        self.recorder.publish(&event, &regarding).await
    }
}

fn chain(error: &AuthorityError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn data_of(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

fn bytes_of(stored: &Stored) -> BTreeMap<String, ByteString> {
    stored.write().into_iter().map(|(key, value)| (key, ByteString(value))).collect()
}
