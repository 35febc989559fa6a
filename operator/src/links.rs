//! Reads the tickets that AgentLinks refer to. They are in one Secret, which is asked for by its name: the operator has no
//! right to read or list any other that is not its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use peerage_crds::link::TICKETS;
use peerage_model::{AuthorityRecord, Ticket, UnixTime};

use crate::cluster::Cluster;
use crate::facts::LinkRecord;
use crate::watch::{Health, number};

/// How often the Secret is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// How soon after a change.
const SOON: Duration = Duration::from_millis(200);

/// Links, with the keys of their tickets.
type Wanted = BTreeMap<String, Option<String>>;

/// Looks at the tickets of all links, for ever, and says in `health` how far that is: a link without its ticket leads
/// nowhere, so a replica that has not read them yet must not speak for all, and one that read them longer ago than another
/// must not bring back what that one took away.
pub async fn run(cluster: Arc<Cluster>, client: kube::Client, namespace: String, health: Arc<Health>) {
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let mut changes = cluster.changes();
    let mut known = BTreeMap::new();
    loop {
        // The links must be known, and what is read from here on is no older than this.
        let begun = cluster.watched().then(|| cluster.newest());
        let wanted = tickets(&cluster);
        let is_whole = match look(&secrets, &wanted).await {
            Ok(secret) => {
                for (link, key) in &wanted {
                    let record = key.as_ref().map(|key| read(secret.as_ref(), key, crate::clock::now()));
                    apply(&cluster, &health, link, version(secret.as_ref()), record, &mut known);
                }
                true
            }
            Err(error) => {
                // What is known already stays; an API server that is away takes no link away.
                tracing::warn!(%error, "the Secret with links' tickets could not be read");
                false
            }
        };
        known.retain(|link, _| wanted.contains_key(link));
        if let Some(begun) = begun.filter(|_| is_whole) {
            health.hear();
            health.applied(begun);
        }
        // Until it is time again, or until links refer to something else.
        let changed = async {
            while tickets(&cluster) == wanted && changes.changed().await.is_ok() {
                tokio::time::sleep(SOON).await;
            }
        };
        let _ = tokio::time::timeout(if begun.is_some() { EVERY } else { SOON }, changed).await;
    }
}

/// The Secret, if a link refers to it and it is there.
async fn look(secrets: &Api<Secret>, wanted: &Wanted) -> kube::Result<Option<Secret>> {
    match wanted.values().any(Option::is_some) {
        true => secrets.get_opt(TICKETS).await,
        false => Ok(None),
    }
}

fn version(secret: Option<&Secret>) -> u64 {
    secret.and_then(|secret| secret.metadata.resource_version.as_deref()).map_or(0, number)
}

/// `known`: what each link's ticket said before.
fn apply(
    cluster: &Cluster,
    health: &Health,
    link: &str,
    version: u64,
    record: Option<LinkRecord>,
    known: &mut BTreeMap<String, Option<LinkRecord>>,
) {
    if known.get(link) != Some(&record) {
        // What is not there has no version: it went at the newest one that we know of, as well as can be told.
        health.applying(if version == 0 { cluster.newest() } else { version });
        known.insert(link.to_owned(), record.clone());
    }
    cluster.change(|index| index.set_record(link, record));
}

fn tickets(cluster: &Cluster) -> Wanted {
    let state = cluster.read();
    state.index.links().map(|(name, facts)| (name.clone(), facts.ticket.clone())).collect()
}

fn read(secret: Option<&Secret>, key: &str, now: UnixTime) -> LinkRecord {
    let Some(bytes) = secret.and_then(|secret| secret.data.as_ref()?.get(key)) else { return LinkRecord::Missing };
    let invalid =
        |cause: String| LinkRecord::Invalid { cause: format!("`{key}` of the Secret {TICKETS} is no ticket: {cause}") };
    let Ok(text) = std::str::from_utf8(&bytes.0) else { return invalid("not text".into()) };
    // A ticket ends as an invitation. What it says of the other authority holds for as long as the record in it.
    let ticket = match Ticket::parse(text, UnixTime(0)) {
        Ok(ticket) => ticket,
        Err(error) => return invalid(error.to_string()),
    };
    match AuthorityRecord::verify(ticket.record.as_bytes(), now) {
        Ok(record) => LinkRecord::Known { record, name: ticket.name, relays: ticket.relays },
        Err(error) => invalid(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use peerage_model::Authority;
    use peerage_model::ticket::InviteSecret;
    use zeroize::Zeroizing;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn secret(text: &str) -> Secret {
        let data = [("ticket".to_owned(), ByteString(text.as_bytes().to_vec()))].into();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn a_ticket_names_the_authority_after_it_ended_as_an_invitation() {
        let authority = Authority::new(&Zeroizing::new([9; 96]), NOW);
        let ticket = Ticket {
            record: authority.record().clone(),
            name: "operator".parse().expect("a name"),
            relays: Vec::new(),
            secret: InviteSecret::from_bytes([1; 32]),
            expires: UnixTime(NOW.0 + 60),
        };
        let secret = secret(&ticket.to_string());
        let known = read(Some(&secret), "ticket", UnixTime(NOW.0 + 3600));
        let (record, name) = (authority.record().clone(), ticket.name);
        assert_eq!(known, LinkRecord::Known { record, name, relays: Vec::new() });
        assert_eq!(read(Some(&secret), "other", NOW), LinkRecord::Missing);
    }

    #[test]
    fn a_missing_secret_and_one_that_holds_something_else_are_told_apart() {
        assert_eq!(read(None, "ticket", NOW), LinkRecord::Missing);
        assert!(matches!(read(Some(&secret("hello")), "ticket", NOW), LinkRecord::Invalid { .. }));
    }
}
