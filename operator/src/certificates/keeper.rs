//! Reads and writes the webhooks' certificates, and hands out what to serve with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use super::{CertificateError, NAME, Stored};
use crate::clock;
use crate::leader::Leadership;

/// How often the Secret and the clock on the wall are looked at. Certificates last for days; but where somebody deletes the
/// Secret, a replica that starts makes another CA, and the others must hear of that soon.
const EVERY: Duration = Duration::from_secs(60);
/// The same while there is none yet, or the last look failed.
const SOON: Duration = Duration::from_secs(2);

/// Why there is nothing to serve with.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The API server did not do what we asked.
    #[error("could not {doing} Secret {NAME}")]
    Api {
        /// What we were doing.
        doing: &'static str,
        /// What it said.
        #[source]
        cause: Box<kube::Error>,
    },
    /// Another replica wrote first; what it wrote counts.
    #[error("another replica was faster")]
    Overtaken,
    /// No certificate could be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Keeps the certificates for `names`.
pub struct Keeper {
    secrets: Api<Secret>,
    names: Vec<String>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("names", &self.names).finish_non_exhaustive()
    }
}

fn failed(doing: &'static str) -> impl FnOnce(kube::Error) -> KeeperError {
    move |cause| match cause {
        kube::Error::Api(status) if status.code == 409 => KeeperError::Overtaken,
        cause => KeeperError::Api { doing, cause: Box::new(cause) },
    }
}

impl Keeper {
    /// In the operator's namespace.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, names: Vec<String>) -> Self {
        Self { secrets: Api::namespaced(client, namespace), names }
    }

    /// Keeps `current` up to date, for ever. Whoever leads renews; every replica makes what is not there, because it
    /// cannot serve without.
    pub async fn run(self, current: watch::Sender<Option<Arc<Stored>>>, leadership: watch::Receiver<Leadership>) {
        loop {
            let leads = *leadership.borrow() == Leadership::Ours;
            let wait = match self.look(leads).await {
                Ok(stored) => {
                    current.send_if_modified(|old| {
                        let changed = old.as_deref() != Some(&stored);
                        if changed {
                            tracing::info!(target: "events::webhook_certificate", ?stored);
                            *old = Some(Arc::new(stored));
                        }
                        changed
                    });
                    EVERY
                }
                Err(KeeperError::Overtaken) => SOON,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "the webhooks' certificate cannot be had");
                    SOON
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn look(&self, leads: bool) -> Result<Stored, KeeperError> {
        let now = clock::now();
        let secret = self.secrets.get_opt(NAME).await.map_err(failed("read"))?;
        let known = secret.as_ref().and_then(|secret| Stored::read(&data_of(secret)));
        let new = match &known {
            Some(stored) if leads => stored.renewed(&self.names, now)?,
            Some(_) => None,
            None => Some(Stored::mint(&self.names, now)?),
        };
        match (new, known) {
            (None, Some(known)) => Ok(known),
            (Some(new), _) => self.put(secret, new).await,
            (None, None) => unreachable!("what is not known is made"),
        }
    }

    /// Writes it down, unless somebody else was faster: then theirs counts, at the next look.
    async fn put(&self, secret: Option<Secret>, new: Stored) -> Result<Stored, KeeperError> {
        let data = new.write().into_iter().map(|(key, value)| (key, ByteString(value))).collect();
        let params = PostParams::default();
        match secret {
            Some(mut secret) => {
                // The resourceVersion that was read goes along, so nothing newer is overwritten.
                secret.data = Some(data);
                self.secrets.replace(NAME, &params, &secret).await.map_err(failed("write"))?;
            }
            None => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                self.secrets.create(&params, &secret).await.map_err(failed("create"))?;
            }
        }
        Ok(new)
    }
}

fn data_of(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

fn chain(error: &KeeperError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
