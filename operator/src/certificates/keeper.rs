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
use crate::causes::causes;
use crate::clock;
use crate::leader::Leadership;

/// How often the Secret and the clock on the wall are looked at. Certificates last for days; but a replica that starts may
/// have put another name into the leaf, or made another CA because somebody had deleted the Secret, and until all serve with the
/// same, reviews of whoever does not are lost. One small GET.
const EVERY: Duration = Duration::from_secs(5);
/// The same while there is none yet, or the last look failed.
const SOON: Duration = Duration::from_secs(1);

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

    /// Keeps `current` up to date, for ever. Whoever leads renews; every replica makes or mends what it cannot serve
    /// without.
    pub async fn run(self, current: watch::Sender<Option<Arc<Stored>>>, mut leadership: watch::Receiver<Leadership>) {
        loop {
            let leads = *leadership.borrow_and_update() == Leadership::Ours;
            let known = current.borrow().clone();
            let wait = match self.look(known.as_deref(), leads).await {
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
                    tracing::error!(error = %causes(&error), "the webhooks' certificate cannot be had");
                    SOON
                }
            };
            tokio::select! {
                // Where nobody can tell, time does.
                Ok(()) = leadership.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn look(&self, known: Option<&Stored>, leads: bool) -> Result<Stored, KeeperError> {
        let secret = self.secrets.get_opt(NAME).await.map_err(failed("read"))?;
        let found = secret.as_ref().and_then(|secret| Stored::read(&data_of(secret)));
        match (Stored::amended(known, found.as_ref(), &self.names, leads, clock::now())?, found) {
            (Some(new), _) => self.put(secret, new).await,
            (None, Some(found)) => Ok(found),
            (None, None) => unreachable!("what is not there is made"),
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
