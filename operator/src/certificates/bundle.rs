//! Tells the API server which CA to believe the webhooks by. The leader only, and only where it differs.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Stored;
use crate::leader::Leadership;
use crate::status::FIELD_MANAGER;

/// How often the configurations are looked at: somebody may make them anew, and until they are told, pods are not
/// injected.
const EVERY: Duration = Duration::from_secs(10);

/// A configuration of webhooks.
trait Configuration: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned {
    /// Each of its webhooks: name and how it is reached.
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|hook| (hook.name.as_str(), &hook.client_config)).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|hook| (hook.name.as_str(), &hook.client_config)).collect()
    }
}

/// Keeps the configurations called `name` believing what is current, while this replica leads; for ever.
pub async fn run(
    client: Client,
    name: String,
    mut current: watch::Receiver<Option<Arc<Stored>>>,
    mut leadership: watch::Receiver<Leadership>,
) {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client);
    loop {
        if leadership.wait_for(|leadership| *leadership == Leadership::Ours).await.is_err() {
            return;
        }
        let bundle = current.borrow_and_update().as_ref().map(|stored| stored.bundle());
        if let Some(bundle) = bundle {
            for told in [tell(&mutating, &name, &bundle).await, tell(&validating, &name, &bundle).await] {
                if let Err(error) = told {
                    tracing::warn!(%error, "a webhook configuration could not be told our CA");
                }
            }
        }
        let _ = timeout(EVERY, current.changed()).await;
    }
}

async fn tell<K: Configuration>(api: &Api<K>, name: &str, bundle: &str) -> kube::Result<()> {
    let Some(found) = api.get_opt(name).await? else {
        tracing::debug!(kind = %K::kind(&()), name, "there is no such webhook configuration");
        return Ok(());
    };
    let stale = outdated(&found.webhooks(), bundle);
    if stale.is_empty() {
        return Ok(());
    }
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Strategic(json!({"webhooks": stale}))).await?;
    tracing::info!(target: "events::webhook_ca_told", kind = %K::kind(&()));
    Ok(())
}

/// What to merge into webhooks, which are merged by name, that believe something else.
fn outdated(webhooks: &[(&str, &WebhookClientConfig)], bundle: &str) -> Vec<Value> {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let stale = webhooks.iter().filter(|(_, config)| config.ca_bundle.as_ref() != Some(&bundle));
    stale.map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webhooks_that_believe_something_else_are_told() {
        let believing = |text: &str| WebhookClientConfig {
            ca_bundle: Some(ByteString(text.as_bytes().to_vec())),
            ..WebhookClientConfig::default()
        };
        let (ours, theirs, none) = (believing("ours"), believing("theirs"), WebhookClientConfig::default());
        let told = outdated(&[("a", &ours), ("b", &theirs), ("c", &none)], "ours");
        let names: Vec<_> = told.iter().map(|entry| entry["name"].as_str()).collect();
        assert_eq!(names, [Some("b"), Some("c")]);
        assert_eq!(told[0]["clientConfig"], json!({"caBundle": "b3Vycw=="}), "and nothing else is said");
    }
}
