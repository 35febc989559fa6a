//! Tells the API server which CA to believe the webhooks by, where it believes another one.
//!
//! That is the leader's to do. Where it believes none, any replica does it, before it is ready: the configurations have just been
//! made, and a pod that is made before somebody leads would be missed.

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
use tokio::time::sleep;

use peerage_agent::health::Pending;

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

/// Keeps the configurations called `name` believing what is current; for ever. `first` lasts until they were looked at once.
pub async fn run(
    client: Client,
    name: String,
    mut current: watch::Receiver<Option<Arc<Stored>>>,
    mut leadership: watch::Receiver<Leadership>,
    first: Pending,
) {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let mut first = Some(first);
    loop {
        let leads = *leadership.borrow_and_update() == Leadership::Ours;
        let bundle = current.borrow_and_update().as_ref().map(|stored| stored.bundle());
        if let Some(bundle) = bundle {
            for told in [tell(&mutating, &name, &bundle, leads).await, tell(&validating, &name, &bundle, leads).await] {
                if let Err(error) = told {
                    tracing::warn!(%error, "a webhook configuration could not be told our CA");
                }
            }
            // Also after a failure: agents must not go without an operator because pods go without agents.
            drop(first.take());
        }
        tokio::select! {
            // Ended senders mean that the process ends.
            changed = leadership.changed() => if changed.is_err() { return },
            changed = current.changed() => if changed.is_err() { return },
            () = sleep(EVERY) => {}
        }
    }
}

async fn tell<K: Configuration>(api: &Api<K>, name: &str, bundle: &str, leads: bool) -> kube::Result<()> {
    let Some(found) = api.get_opt(name).await? else {
        tracing::debug!(kind = %K::kind(&()), name, "there is no such webhook configuration");
        return Ok(());
    };
    let stale = outdated(&found.webhooks(), bundle, leads);
    if stale.is_empty() {
        return Ok(());
    }
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Strategic(json!({"webhooks": stale}))).await?;
    tracing::info!(target: "events::webhook_ca_told", kind = %K::kind(&()));
    Ok(())
}

/// What to merge into webhooks, which are merged by name, that believe nothing or, for the leader, something else.
fn outdated(webhooks: &[(&str, &WebhookClientConfig)], bundle: &str, leads: bool) -> Vec<Value> {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let stale = webhooks.iter().filter(|(_, config)| match &config.ca_bundle {
        None => true,
        Some(believed) => leads && *believed != bundle,
    });
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
        let told = outdated(&[("a", &ours), ("b", &theirs), ("c", &none)], "ours", true);
        let names: Vec<_> = told.iter().map(|entry| entry["name"].as_str()).collect();
        assert_eq!(names, [Some("b"), Some("c")]);
        assert_eq!(told[0]["clientConfig"], json!({"caBundle": "b3Vycw=="}), "and nothing else is said");
    }

    #[test]
    fn without_leading_only_webhooks_that_believe_nobody_are_told() {
        let theirs =
            WebhookClientConfig { ca_bundle: Some(ByteString(b"theirs".to_vec())), ..WebhookClientConfig::default() };
        let told = outdated(&[("b", &theirs), ("c", &WebhookClientConfig::default())], "ours", false);
        assert_eq!(told.iter().map(|entry| entry["name"].as_str()).collect::<Vec<_>>(), [Some("c")]);
    }
}
