//! Tells the API server which CA to believe the webhooks by, where it believes another one.
//!
//! That is the leader's to do. Where it believes none, any replica does it, before it is ready: the configurations have just been
//! made, and a pod that is made before somebody leads would be missed. A replica that the API server would not believe yet, because
//! the leader has not heard of its CA, is not ready either.

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
/// The same while we wait for being believed.
const SOON: Duration = Duration::from_secs(1);

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

/// Keeps the configurations called `name` believing what is current; for ever. `first` lasts until they do.
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
        let stored = current.borrow_and_update().clone();
        if let Some(stored) = stored {
            let told = [tell(&mutating, &name, &stored, leads).await, tell(&validating, &name, &stored, leads).await];
            // A failure is no reason to wait: agents must not go without an operator because pods go without agents.
            if told.iter().all(|told| told.as_ref().map_or(true, |believed| *believed)) {
                drop(first.take());
            }
            for error in told.into_iter().filter_map(Result::err) {
                tracing::warn!(%error, "a webhook configuration could not be told our CA");
            }
        }
        let wait = if first.is_some() { SOON } else { EVERY };
        tokio::select! {
            // Ended senders mean that the process ends.
            changed = leadership.changed() => if changed.is_err() { return },
            changed = current.changed() => if changed.is_err() { return },
            () = sleep(wait) => {}
        }
    }
}

/// Tells one configuration; whether the API server believes us by it, as far as it asks us at all.
async fn tell<K: Configuration>(api: &Api<K>, name: &str, stored: &Stored, leads: bool) -> kube::Result<bool> {
    let Some(found) = api.get_opt(name).await? else {
        tracing::debug!(kind = %K::kind(&()), name, "there is no such webhook configuration");
        return Ok(true);
    };
    let stale = outdated(&found.webhooks(), &stored.bundle(), leads);
    if stale.is_empty() {
        return Ok(found.webhooks().iter().all(|(_, config)| is_believed(stored, config)));
    }
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Strategic(json!({"webhooks": stale}))).await?;
    tracing::info!(target: "events::webhook_ca_told", kind = %K::kind(&()));
    // Of webhooks that believe somebody else the leader's next look is to tell; ours sees it.
    Ok(stale.len() == found.webhooks().len())
}

fn is_believed(stored: &Stored, config: &WebhookClientConfig) -> bool {
    config.ca_bundle.as_ref().is_some_and(|bundle| stored.is_believed_by(&bundle.0))
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
