//! Keys of managed relays, each minted once. All are in one Secret, whose name is known, so that the operator needs to read
//! no other; a relay's pod is given its own entry and no other.
//!
//! Agents know a relay by its key, so one that was lost is never made anew: its AgentRelay says so until it is restored.

use std::collections::BTreeMap;

use data_encoding::BASE32_NOPAD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use peerage_model::{AgreementKey, AgreementSecret};
use zeroize::Zeroizing;

/// The Secret.
pub const NAME: &str = "peerage-relays";
/// How often somebody else may write in between before that is an error.
const ATTEMPTS: usize = 4;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server did not do what was asked.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system")]
    Randomness(#[source] std::io::Error),
    /// Somebody writes all the time.
    #[error("Secret {NAME} changed each of the {ATTEMPTS} times that it was read")]
    Contended,
}

/// Where they are kept.
#[derive(Debug)]
pub struct Keys(Api<Secret>);

/// What has to be done with what is there.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// Public keys by entry.
    keys: BTreeMap<String, AgreementKey>,
    /// Entries that never had a key.
    new: Vec<String>,
    /// Entries of relays that are gone.
    old: Vec<String>,
}

/// `wanted`: entries, and whether each is remembered to have had a key.
fn plan(held: &BTreeMap<String, ByteString>, wanted: &BTreeMap<String, bool>, is_known: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    for (entry, remembered) in wanted {
        match held.get(entry) {
            Some(value) => plan.keys.extend(public(&value.0).map(|key| (entry.clone(), key))),
            None if *remembered => {}
            None => plan.new.push(entry.clone()),
        }
    }
    plan.old.extend(held.keys().filter(|entry| !wanted.contains_key(*entry) && !is_known(entry)).cloned());
    plan
}

/// As the relay's key file is written: base32 without padding.
fn written(secret: &[u8; 32]) -> ByteString {
    ByteString(format!("{}\n", BASE32_NOPAD.encode(secret)).into_bytes())
}

/// None for what is no key.
fn public(file: &[u8]) -> Option<AgreementKey> {
    let bytes = Zeroizing::new(BASE32_NOPAD.decode(file.trim_ascii()).ok()?);
    Some(AgreementSecret::from_bytes(bytes[..].try_into().ok()?).public())
}

impl Keys {
    /// In the operator's namespace.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        Self(Api::namespaced(client, namespace))
    }

    /// The public keys of the entries that have one, after those that never had one got theirs, and entries that are not
    /// wanted and of no relay that is known are gone.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn ensure(
        &self,
        wanted: &BTreeMap<String, bool>,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, AgreementKey>, KeysError> {
        for _ in 0..ATTEMPTS {
            let secret = self.0.get_opt(NAME).await?;
            let held = secret.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
            let plan = plan(&held, wanted, &is_known);
            if plan.new.is_empty() && plan.old.is_empty() {
                return Ok(plan.keys);
            }
            let mut data = held;
            data.retain(|entry, _| !plan.old.contains(entry));
            for entry in plan.new {
                let mut random = Zeroizing::new([0; 32]);
                crate::random::fill(&mut random[..]).map_err(KeysError::Randomness)?;
                tracing::info!(target: "events::relay_key_made", entry);
                data.insert(entry, written(&random));
            }
            // Read again: who wrote first, this replica or another one, wins.
            match self.write(secret, data).await {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(KeysError::Contended)
    }

    async fn write(&self, there: Option<Secret>, data: BTreeMap<String, ByteString>) -> kube::Result<()> {
        match there {
            // The resourceVersion that was read goes along: what changed since then is not overwritten.
            Some(secret) => {
                let secret = Secret { data: Some(data), ..secret };
                self.0.replace(NAME, &PostParams::default(), &secret).await.map(drop)
            }
            None => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                let type_ = Some("peerage.dev/relays".into());
                let secret = Secret { metadata, type_, data: Some(data), ..Secret::default() };
                self.0.create(&PostParams::default(), &secret).await.map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_gets_a_key_once_and_one_that_was_lost_gets_no_other() {
        let wanted = [("new.0".to_owned(), false), ("has.0".to_owned(), true), ("lost.0".to_owned(), true)].into();
        let held = [("has.0".to_owned(), written(&[7; 32]))].into();
        let plan = plan(&held, &wanted, |_| true);
        let key = AgreementSecret::from_bytes([7; 32]).public();
        assert_eq!(plan.keys, [("has.0".to_owned(), key)].into());
        assert_eq!((plan.new, plan.old), (vec!["new.0".to_owned()], vec![]));
    }

    #[test]
    fn a_key_goes_when_its_relay_does_and_not_when_that_cannot_be_read() {
        let held = ["gone.0", "unreadable.0"].map(|entry| (entry.to_owned(), written(&[7; 32]))).into();
        let plan = plan(&held, &BTreeMap::new(), |entry| entry.starts_with("unreadable"));
        assert_eq!(plan.old, ["gone.0"]);
    }

    #[test]
    fn what_is_no_key_is_left_as_it_is_and_is_nobody_s() {
        let held = [("damaged.0".to_owned(), ByteString(b"nonsense".to_vec()))].into();
        let plan = plan(&held, &[("damaged.0".to_owned(), true)].into(), |_| true);
        assert_eq!(plan, Plan::default());
    }
}
