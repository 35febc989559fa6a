//! Calls on an operator whose ticket this cluster was given, so that it makes its link to us.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use peerage_agent::driver::{DriverHandle, RequestError};
use peerage_crds::link::TICKETS;
use peerage_model::control::TrustRequest;
use peerage_model::linking::OPERATOR;
use peerage_model::relay::RelayInfo;
use peerage_model::ticket::TicketError;
use peerage_model::{Ticket, UnixTime};

/// How long a ticket that was not answered waits.
const AGAIN: Duration = Duration::from_secs(15);

/// Shows the ticket at `key` of the Secret with tickets until it is taken (`Ok`) or good for nothing (`Err`, why). `note` hears why it is not taken yet.
pub(super) async fn run(
    tunnel: DriverHandle,
    secrets: Api<Secret>,
    key: String,
    relays: Vec<RelayInfo>,
    note: impl Fn(String) + Send,
) -> Result<(), String> {
    loop {
        match read(&secrets, &key, crate::clock::now()).await {
            Ok(Some(ticket)) => {
                let request = TrustRequest { reason: String::new(), relays: relays.clone() };
                match tunnel.request_trust(&ticket, request).await {
                    Ok(()) => return Ok(()),
                    Err(RequestError::Stopped) => return Err("the operator is stopping".into()),
                    Err(error @ RequestError::Ask(_)) => note(format!(
                        "nobody answers to the ticket yet ({error}); it is shown again. If it was used before, ask for a new one"
                    )),
                }
            }
            Ok(None) => {}
            Err(why) => return Err(why),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The ticket, if it can be read now.
async fn read(secrets: &Api<Secret>, key: &str, now: UnixTime) -> Result<Option<Ticket>, String> {
    let secret = match secrets.get_opt(TICKETS).await {
        Ok(secret) => secret,
        Err(error) => {
            tracing::warn!(%error, "a ticket could not be read");
            return Ok(None);
        }
    };
    let bytes = secret.as_ref().and_then(|secret| secret.data.as_ref()?.get(key));
    let Some(text) = bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()) else { return Ok(None) };
    match Ticket::parse(text, now) {
        Ok(ticket) if ticket.name.as_str() == OPERATOR => Ok(Some(ticket)),
        // A machine on its own has no operator: its owner approves, and nothing is to be asked here.
        Ok(_) => Err("the ticket is of an agent, not of a cluster: its owner declares the trust over there".into()),
        Err(TicketError::Expired) => Err(
            "the ticket has ended before it was used; ask for a new one (`kubectl peerage invite` in the other cluster)".into(),
        ),
        Err(error) => Err(format!("the ticket cannot be used: {error}")),
    }
}
