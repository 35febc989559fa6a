//! Open invitations: what `kubectl peerage invite` left in a Secret, and what becomes of each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use peerage_crds::invitation::{AUTHORITY_MAP, Invitation, MAX_OPEN, RECORD_KEY, SECRET};
use peerage_crds::{AgentLink, AgentLinkSpec};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::Invite;
use peerage_model::{AuthorityRecord, Fingerprint, PairSecret, TrustId, UnixTime};
use serde_json::json;

/// Invitations by their ids.
pub(super) type Open = BTreeMap<TrustId, Invitation>;

/// Reads a Secret's data: those that are open at `now`, and the keys of what is to be removed.
pub(super) fn read(secret: &Secret, now: UnixTime) -> (Open, Vec<String>) {
    let (mut open, mut over) = (Open::new(), Vec::new());
    for (id, value) in secret.data.iter().flatten() {
        let invitation = serde_json::from_slice::<Invitation>(&value.0).ok();
        match (id.parse(), invitation) {
            (Ok(id), Some(invitation)) if invitation.expires > now.0 && key(&invitation).is_some() => {
                open.insert(id, invitation);
            }
            (Ok(_) | Err(_), _) => over.push(id.clone()),
        }
    }
    (open, over)
}

fn key(invitation: &Invitation) -> Option<PairSecret> {
    let bytes = zeroize::Zeroizing::new(data_encoding::HEXLOWER.decode(invitation.key.as_bytes()).ok()?);
    Some(PairSecret::from_bytes(bytes.as_slice().try_into().ok()?))
}

/// What the operator's agent answers to.
pub(super) fn invites(open: &Open) -> Vec<Invite> {
    let invite = |(id, invitation): (&TrustId, &Invitation)| {
        Some(Invite { id: *id, secret: key(invitation)?, expires: UnixTime(invitation.expires) })
    };
    open.iter().filter_map(invite).take(MAX_OPEN).collect()
}

/// The Secret with invitations, the links that they become, and what an invitation says of us.
pub(super) struct Store {
    secrets: Api<Secret>,
    links: Api<AgentLink>,
    maps: Api<ConfigMap>,
}

/// What became of who came with a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// There is a link to its authority.
    Linked,
    /// The name is that of another link, or of one that was made this moment: the invitation stays open.
    NameTaken,
}

impl Store {
    pub(super) fn new(client: &kube::Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            links: Api::all(client.clone()),
            maps: Api::namespaced(client.clone(), namespace),
        }
    }

    /// Writes our authority's record where who invites finds it. It is public.
    pub(super) async fn publish(&self, record: &AuthorityRecord) -> kube::Result<()> {
        let patch = Patch::Merge(json!({"data": {RECORD_KEY: record.to_text()}}));
        self.maps.patch(AUTHORITY_MAP, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Open invitations; those that have ended are removed on the way.
    pub(super) async fn open(&self, now: UnixTime) -> kube::Result<Open> {
        let Some(secret) = self.secrets.get_opt(SECRET).await? else { return Ok(Open::new()) };
        let (open, over) = read(&secret, now);
        if !over.is_empty() {
            self.remove(&over).await?;
        }
        Ok(open)
    }

    async fn remove(&self, ids: &[String]) -> kube::Result<()> {
        let gone: BTreeMap<&String, Option<()>> = ids.iter().map(|id| (id, None)).collect();
        let patch = Patch::Merge(json!({"data": gone}));
        self.secrets.patch(SECRET, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Makes the link that an invitation promised, to who came with its ticket, and ends the invitation. The link goes
    /// first: should we end in between, its name is taken, and nobody else can use the ticket. `there`: where the link of
    /// that name leads, if there is one. `machine`: of a machine, where its agents are found, since nobody will tell.
    pub(super) async fn take(
        &self,
        id: TrustId,
        invitation: &Invitation,
        guest: &AuthorityRecord,
        machine: Option<&[RelayInfo]>,
        there: Option<Fingerprint>,
    ) -> kube::Result<Taken> {
        match there {
            // We had come so far before.
            Some(authority) if authority == guest.fingerprint() => {
                return self.finish(id, invitation, machine.is_some()).await;
            }
            Some(_) => return Ok(Taken::NameTaken),
            None => {}
        }
        let relays = machine.unwrap_or_default();
        let link = AgentLink {
            metadata: ObjectMeta { name: Some(invitation.link.clone()), ..ObjectMeta::default() },
            spec: AgentLinkSpec {
                authority: Some(guest.fingerprint().to_string()),
                authority_record: Some(guest.to_text()),
                relays: (!relays.is_empty()).then(|| relays.iter().map(ToString::to_string).collect()),
                allowed_namespaces: invitation.allowed_namespaces.clone(),
                bootstrap: None,
            },
            status: None,
        };
        match self.links.create(&PostParams::default(), &link).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Taken::NameTaken),
            Err(error) => return Err(error),
        }
        self.finish(id, invitation, machine.is_some()).await
    }

    /// Writes down what is there, while the invitation still brings it back should we end in between.
    async fn finish(&self, id: TrustId, invitation: &Invitation, is_machine: bool) -> kube::Result<Taken> {
        if is_machine {
            let patch = Patch::Merge(json!({"status": {"machine": true}}));
            self.links.patch_status(&invitation.link, &PatchParams::default(), &patch).await?;
        }
        self.remove(&[id.to_string()]).await?;
        Ok(Taken::Linked)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use peerage_model::Authority;
    use serde_json::Value;
    use zeroize::Zeroizing;

    use super::super::served;
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn secret(values: &[(&str, String)]) -> Secret {
        let data = values.iter().map(|(id, value)| ((*id).to_owned(), ByteString(value.clone().into_bytes())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    fn value(expires: u64, key: &str) -> String {
        json!({"link": "b", "allowedNamespaces": {"from": "All"}, "expires": expires, "key": key}).to_string()
    }

    #[test]
    fn what_has_ended_or_is_no_invitation_is_removed_and_answered_by_nobody() {
        let good = "ab".repeat(32);
        let (first, second, third) = ("01".repeat(16), "02".repeat(16), "03".repeat(16));
        let secret = secret(&[
            (&first, value(NOW.0 + 1, &good)),
            (&second, value(NOW.0, &good)),
            (&third, value(NOW.0 + 1, "short")),
            ("not-an-id", value(NOW.0 + 1, &good)),
        ]);
        let (open, over) = read(&secret, NOW);
        assert_eq!(invites(&open).iter().map(|invite| invite.id.to_string()).collect::<Vec<_>>(), [first]);
        assert_eq!(over, [second, third, "not-an-id".to_owned()]);
    }

    /// What an API server answers to a write.
    fn stored(what: &str) -> Value {
        if !what.contains("/agentlinks") {
            return json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}});
        }
        let spec = json!({"allowedNamespaces": {"from": "All"}});
        json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": {"name": "b"}, "spec": spec})
    }

    #[tokio::test]
    async fn that_a_machine_came_is_written_down_before_the_invitation_ends() {
        let guest = Authority::new(&Zeroizing::new([3; 96]), NOW);
        let invitation: Invitation = serde_json::from_str(&value(NOW.0 + 1, &"ab".repeat(32))).expect("an invitation");
        let link = "/apis/peerage.dev/v1alpha1/agentlinks";
        let (made, marked) = (format!("POST {link}"), format!("PATCH {link}/b/status"));
        let removed = format!("PATCH /api/v1/namespaces/ours/secrets/{SECRET}");
        let relays: &[RelayInfo] = &[];
        let there = Some(guest.fingerprint());
        for (machine, there, expected) in [
            (Some(relays), None, vec![&made, &marked, &removed]),
            // We ended after the link was made, and before it said who is there.
            (Some(relays), there, vec![&marked, &removed]),
            (None, None, vec![&made, &removed]),
        ] {
            let (client, mut given) = served::api(|what| (200, stored(what))).await;
            let store = Store::new(&client, "ours");
            let taken = store.take(TrustId([1; 16]), &invitation, guest.record(), machine, there).await;
            assert_eq!(taken.expect("the server takes all"), Taken::Linked);
            let mut all = Vec::new();
            while let Ok((what, body)) = given.try_recv() {
                assert!(what != marked || body == json!({"status": {"machine": true}}), "{body}");
                all.push(what);
            }
            assert_eq!(all.iter().collect::<Vec<_>>(), expected, "{machine:?} {there:?}");
        }
    }
}
