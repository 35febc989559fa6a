//! Shows the ticket that this cluster was given: to an operator, so that it makes its link to us; or to a machine on its own, so
//! that its owner hears which of our agents wants to talk to it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use peerage_agent::driver::{DriverHandle, RequestError};
use peerage_crds::link::TICKETS;
use peerage_model::control::{MAX_REASON, TrustRequest};
use peerage_model::linking::{OPERATOR, Wish};
use peerage_model::relay::RelayInfo;
use peerage_model::ticket::TicketError;
use peerage_model::{Ticket, UnixTime};
use tokio::sync::watch;

use super::agent;
use super::tell::Outgoing;
use crate::authority::Keyring;

/// How long a ticket that was not answered waits.
const AGAIN: Duration = Duration::from_secs(15);

/// What is found out meanwhile.
pub(super) enum Note {
    /// It is not taken yet, and why.
    Waiting(String),
    /// The ticket is a machine's, which has no operator.
    Machine,
}

/// What showing a ticket takes.
pub(super) struct Meeting {
    pub(super) tunnel: DriverHandle,
    pub(super) keyring: watch::Receiver<Arc<Keyring>>,
    pub(super) secrets: Api<Secret>,
    /// Its key in the Secret with tickets.
    pub(super) ticket: String,
    /// Where our agents are found.
    pub(super) relays: Vec<RelayInfo>,
    /// What there is to tell over the link; of a machine, in whose name its owner is asked.
    pub(super) outgoing: watch::Receiver<Arc<Outgoing>>,
}

impl Meeting {
    /// Shows the ticket until it is taken (`Ok`) or good for nothing (`Err`, why).
    pub(super) async fn run(mut self, note: impl Fn(Note) + Send) -> Result<(), String> {
        loop {
            match read(&self.secrets, &self.ticket, crate::clock::now()).await {
                Ok(Some(ticket)) if ticket.name.as_str() == OPERATOR => {
                    let request = TrustRequest { reason: String::new(), relays: self.relays.clone() };
                    match self.tunnel.request_trust(&ticket, request).await {
                        Ok(()) => return Ok(()),
                        Err(RequestError::Stopped) => return Err("the operator is stopping".into()),
                        Err(error @ RequestError::Ask(_)) => note(Note::Waiting(format!(
                            "nobody answers to the ticket yet ({error}); it is shown again. If it was used before, ask for a new one"
                        ))),
                    }
                }
                Ok(Some(ticket)) => {
                    note(Note::Machine);
                    match self.ask(&ticket).await {
                        Ok(()) => return Ok(()),
                        Err(error) => note(Note::Waiting(format!(
                            "a machine on its own, which does not answer to its ticket ({error}): it is not there, or was asked before; a new ticket is a new link"
                        ))),
                    }
                }
                Ok(None) => {}
                Err(why) => return Err(why),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Asks a machine's owner in the name of the agent whose owner here consented first to the ticket's agent.
    async fn ask(&mut self, ticket: &Ticket) -> Result<(), String> {
        let of_ticket = |outgoing: &Outgoing| outgoing.wishes.values().find(|wish| wish.to == ticket.name).cloned();
        let wished = self.outgoing.wait_for(|outgoing| of_ticket(outgoing).is_some()).await;
        let wish: Wish = wished.ok().and_then(|outgoing| of_ticket(&outgoing)).ok_or("the link is gone")?;
        let mut reason = wish.purpose.unwrap_or_default();
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        let keys = Arc::clone(&self.keyring.borrow());
        agent::ask_for(&keys, &wish.from, ticket, TrustRequest { reason, relays: self.relays.clone() }).await
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
        Ok(ticket) => Ok(Some(ticket)),
        Err(TicketError::Expired) => Err(
            "the ticket has ended before it was used; ask for a new one (`kubectl peerage invite` in the other cluster)".into(),
        ),
        Err(error) => Err(format!("the ticket cannot be used: {error}")),
    }
}
