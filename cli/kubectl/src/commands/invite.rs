//! Linking clusters: a ticket here, a link over there; or keys written down on both sides.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use data_encoding::HEXLOWER;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams};
use peerage_crds::invitation::{Invitation, MAX_OPEN, SECRET, SECRET_TYPE};
use peerage_crds::link::{Bootstrap, SecretKeyRef, TICKETS};
use peerage_crds::{AgentLink, AgentLinkSpec, AllowedNamespaces, NamespacesFrom};
use peerage_model::linking::OPERATOR;
use peerage_model::ticket::{InviteSecret, MAX_RELAYS, TicketError};
use peerage_model::{Label, PairSecret, Ticket, TrustId};
use peerage_output::Output;
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::{Allowed, Invite, Link};
use crate::cluster::{Cluster, condition, create, get, now, until};
use crate::failure::{Code, Failure};

/// Prints a ticket, and leaves for the operator by what it knows who holds it.
pub async fn invite(cluster: &Cluster, how: &Invite, output: Output) -> Result<(), Failure> {
    is_free(cluster, &how.link).await?;
    let record = cluster.record().await?;
    let relays: Vec<_> = cluster.relays().await?.into_iter().take(MAX_RELAYS).collect();
    if relays.is_empty() {
        let hint = "make an AgentRelay: the other cluster finds this one there";
        return Err(Failure::new(Code::NoRelay, "this cluster uses no relay", hint));
    }
    let (id, secret) = (random::<16>()?, random::<32>()?);
    let secret = InviteSecret::from_bytes(*secret);
    let name = OPERATOR.parse().expect("it is an agent's name");
    let ticket = Ticket { record, name, relays, secret, expires: now().plus(how.expires) };
    let key = PairSecret::of_invite(ticket.secret.expose(), &ticket.inviter());
    let invitation = Invitation {
        link: how.link.clone(),
        allowed_namespaces: allowed(&how.allowed),
        expires: ticket.expires.0,
        key: HEXLOWER.encode(key.expose()),
    };
    keep(cluster, TrustId(*id), &invitation).await?;
    let said = json!({"ticket": ticket.to_string(), "link": how.link, "expires": ticket.expires.0});
    output.answer(&said, |_| ticket.to_string());
    output.note(&format!(
        "\nOne cluster can use this ticket, once, within {} minutes. It will be called {} here.\nIn the other cluster:\n\n    kubectl peerage link \
         NAME --ticket FILE --namespaces NAMESPACES --wait\n",
        how.expires.as_secs() / 60,
        how.link
    ));
    Ok(())
}

/// A name for a link that is a label and no other link's.
async fn is_free(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    if name.parse::<Label>().is_err() {
        let message = format!("`{name}` cannot be a link's name");
        let hint = "it becomes part of host names: lower-case letters, digits and hyphens";
        return Err(Failure::new(Code::Invalid, message, hint));
    }
    let there = cluster.all::<AgentLink>().get_opt(name).await;
    match there.map_err(|error| Failure::of_kube("look for an AgentLink of that name", &error))? {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            Code::AlreadyExists,
            format!("there is an AgentLink `{name}` already"),
            "choose another name; clusters are called by nicknames that mean something here only",
        )),
    }
}

/// Writes an invitation beside those that are open.
async fn keep(cluster: &Cluster, id: TrustId, invitation: &Invitation) -> Result<(), Failure> {
    let secrets = cluster.operators::<Secret>();
    let value = serde_json::to_vec(invitation).expect("it has text for keys");
    let there = secrets.get_opt(SECRET).await;
    let Some(there) = there.map_err(|error| Failure::of_kube("read the Secret with invitations", &error))? else {
        let secret = Secret {
            metadata: ObjectMeta { name: Some(SECRET.into()), ..ObjectMeta::default() },
            type_: Some(SECRET_TYPE.into()),
            data: Some(BTreeMap::from([(id.to_string(), ByteString(value))])),
            ..Secret::default()
        };
        let made = create(&secrets, &secret, "keep the invitation").await.map(drop);
        return made.map_err(|failure| match failure.code {
            // To delete it would be to delete their invitation.
            Code::AlreadyExists => Failure { hint: "somebody invites at the same time; try again".into(), ..failure },
            _ => failure,
        });
    };
    let open = there.data.iter().flatten().filter_map(|(_, value)| serde_json::from_slice::<Invitation>(&value.0).ok());
    let open: Vec<_> = open.filter(|one| one.expires > now().0).collect();
    if open.iter().any(|one| one.link == invitation.link) {
        let message = format!("an invitation for a link called `{}` is open already", invitation.link);
        let hint = "use that ticket, wait until it ends, or choose another name";
        return Err(Failure::new(Code::AlreadyExists, message, hint));
    }
    if open.len() >= MAX_OPEN {
        let hint = "they end by themselves; wait, or delete some from the Secret";
        return Err(Failure::new(Code::LimitReached, format!("{MAX_OPEN} invitations are open already"), hint));
    }
    let patch = json!({"data": {(id.to_string()): data_encoding::BASE64.encode(&value)}});
    let kept = secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await;
    kept.map(drop).map_err(|error| Failure::of_kube("keep the invitation", &error))
}

/// Makes the link that a ticket is for.
pub async fn link(cluster: &Cluster, how: &Link, output: Output) -> Result<(), Failure> {
    let text = read(&how.ticket)?;
    let ticket = Ticket::parse(&text, now()).map_err(|error| bad_ticket(&error))?;
    if ticket.record.fingerprint() == cluster.record().await?.fingerprint() {
        let hint = "apply it in the other cluster: kubectl peerage --context THE-OTHER link …";
        return Err(Failure::new(Code::OwnTicket, "this ticket is from this very cluster", hint));
    }
    is_free(cluster, &how.link).await?;
    keep_ticket(cluster, &how.link, &ticket).await?;
    let spec = AgentLinkSpec {
        authority: Some(ticket.record.fingerprint().to_string()),
        authority_record: Some(ticket.record.to_text()),
        relays: None,
        allowed_namespaces: allowed(&how.allowed),
        bootstrap: Some(Bootstrap {
            token_secret_ref: SecretKeyRef { name: TICKETS.to_owned(), key: how.link.clone() },
        }),
    };
    let link = AgentLink::new(&how.link, spec);
    create(&cluster.all(), &link, "make the AgentLink").await?;
    if let Some(patience) = how.wait {
        connected(cluster, &how.link, patience).await?;
    }
    let said = json!({"link": how.link, "authority": ticket.record.fingerprint().to_string(), "connected": how.wait.is_some()});
    output.answer(&said, |_| match how.wait {
        Some(_) => format!("agentlink/{} connected", how.link),
        None => format!("agentlink/{} created", how.link),
    });
    Ok(())
}

/// Writes a ticket beside those of other links.
async fn keep_ticket(cluster: &Cluster, link: &str, ticket: &Ticket) -> Result<(), Failure> {
    // Of a manager of its own, or this ticket would take the place of the others. One that an earlier attempt left is
    // overwritten: it was used or has ended.
    let parameters = PatchParams::apply(&format!("kubectl-peerage-{link}")).force();
    let value = ByteString(ticket.to_string().into_bytes());
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": TICKETS}, "data": {link: value}});
    let kept = cluster.operators::<Secret>().patch(TICKETS, &parameters, &Patch::Apply(object)).await;
    kept.map(drop).map_err(|error| Failure::of_kube("keep the ticket", &error))
}

async fn connected(cluster: &Cluster, name: &str, patience: Duration) -> Result<(), Failure> {
    let links = cluster.all::<AgentLink>();
    until(patience, || async {
        let link = get(&links, name, "look at the AgentLink").await?;
        let conditions = link.status.map(|status| status.conditions).unwrap_or_default();
        let connected = condition(&conditions, "Connected");
        Ok(match connected {
            Some(one) if one.status == peerage_crds::ConditionStatus::True => Ok(()),
            Some(one) => Err(format!("agentlink/{name} is not connected: {}: {}", one.reason, one.message)),
            None => Err(format!("agentlink/{name} is not connected; no operator has looked at it")),
        })
    })
    .await
}

fn bad_ticket(error: &TicketError) -> Failure {
    let code = match error {
        TicketError::Expired => Code::TicketExpired,
        TicketError::Malformed | TicketError::Checksum | TicketError::Record(_) => Code::TicketInvalid,
    };
    Failure::new(code, error.to_string(), "in the other cluster: kubectl peerage invite")
}

fn read(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let read = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let failed = |error| {
        let hint = "name a file that holds the ticket, or - to paste it into standard input";
        Failure::new(Code::Usage, format!("cannot read {}: {error}", file.display()), hint)
    };
    read.map(Zeroizing::new).map_err(failed)
}

/// Prints what the other side of a link without a ticket must declare.
pub async fn keys(cluster: &Cluster, output: Output) -> Result<(), Failure> {
    let record = cluster.record().await?;
    let relays: Vec<String> = cluster.relays().await?.iter().map(ToString::to_string).collect();
    let (authority, text) = (record.fingerprint().to_string(), record.to_text());
    let said = json!({"authority": authority, "authorityRecord": text, "relays": relays});
    output.answer(&said, |_| {
        let relays: Vec<_> = relays.iter().map(|relay| format!("\n    - {relay}")).collect();
        format!(
            "# In the other cluster; all of it is public.\napiVersion: peerage.dev/v1alpha1\nkind: AgentLink\nmetadata: {{name: CALL-THIS-CLUSTER-SO}}\n\
             spec:\n  authority: {authority}\n  authorityRecord: {text}\n  relays:{}\n  allowedNamespaces: {{from: Selected, names: [NAMESPACE]}}",
            if relays.is_empty() { " []".to_owned() } else { relays.concat() }
        )
    });
    Ok(())
}

fn allowed(allowed: &Allowed) -> AllowedNamespaces {
    match allowed.all_namespaces {
        true => AllowedNamespaces { from: NamespacesFrom::All, names: None, selector: None },
        false => AllowedNamespaces {
            from: NamespacesFrom::Selected,
            names: Some(allowed.namespaces.clone()),
            selector: None,
        },
    }
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Failure> {
    let mut bytes = Zeroizing::new([0; N]);
    let mut filled = 0;
    while filled < N {
        let more = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += more.map_err(|error| Failure::new(Code::Internal, format!("no randomness: {error}"), ""))?;
    }
    Ok(bytes)
}
