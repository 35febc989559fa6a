//! Shows the ticket that this cluster was given: to an operator, so that it makes its link to us; or to a machine on its own, so
//! that its owner hears which of our agents wants to talk to it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use peerage_agent::driver::DriverHandle;
use peerage_crds::link::TICKETS;
use peerage_model::control::{MAX_REASON, TrustRequest};
use peerage_model::linking::{OPERATOR, Wish};
use peerage_model::relay::RelayInfo;
use peerage_model::ticket::{MAX_RELAYS, TicketError};
use peerage_model::{AgentName, Fingerprint, Ticket, UnixTime};
use tokio::sync::watch;

use super::agent;
use super::outgoing::Outgoing;
use crate::authority::Keyring;

/// How long a ticket that was not answered waits.
const AGAIN: Duration = Duration::from_secs(15);

/// What showing a ticket takes.
pub(super) struct Meeting {
    pub(super) tunnel: DriverHandle,
    pub(super) keyring: watch::Receiver<Arc<Keyring>>,
    pub(super) secrets: Api<Secret>,
    /// Its key in the Secret with tickets.
    pub(super) ticket: String,
    /// Whom the link leads to. What has come into the Secret since that was read may be somebody else's.
    pub(super) authority: Fingerprint,
    /// What there is to tell over the link: where our agents are found; of a machine, in whose name its owner is asked.
    pub(super) outgoing: watch::Receiver<Arc<Outgoing>>,
}

/// What came of showing it once.
enum Shown {
    Taken,
    /// It is not taken yet, and why.
    NotYet(String),
    /// Nobody here has asked for the ticket's agent for as long as it was good.
    NotAsked,
}

impl Meeting {
    /// Shows the ticket until it is taken (`Ok`) or good for nothing (`Err`, why). `waits` hears why it is not taken yet.
    pub(super) async fn run(mut self, waits: impl Fn(String) + Send) -> Result<(), String> {
        loop {
            if let Some(text) = read(&self.secrets, &self.ticket).await {
                let ticket = usable(&text, self.authority, crate::clock::now())?;
                match self.show(&ticket).await {
                    Shown::Taken => return Ok(()),
                    Shown::NotYet(why) => waits(why),
                    Shown::NotAsked => {}
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn show(&mut self, ticket: &Ticket) -> Shown {
        if ticket.name.as_str() != OPERATOR {
            return self.ask(ticket).await;
        }
        let request = TrustRequest { reason: String::new(), relays: self.relays() };
        match self.tunnel.request_trust(ticket, request).await {
            Ok(()) => Shown::Taken,
            Err(error) => Shown::NotYet(format!(
                "nobody answers to the ticket yet ({error}); it is shown again. If it was used before, ask for a new one"
            )),
        }
    }

    /// Asks a machine's owner in the name of the agent whose owner here consented first to the ticket's agent.
    async fn ask(&mut self, ticket: &Ticket) -> Shown {
        let left = Duration::from_secs(ticket.expires.0.saturating_sub(crate::clock::now().0));
        let Some(wish) = wished(&mut self.outgoing, &ticket.name, left).await else { return Shown::NotAsked };
        let mut reason = wish.purpose.unwrap_or_default();
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
        let keys = Arc::clone(&self.keyring.borrow());
        let request = TrustRequest { reason, relays: self.relays() };
        match agent::ask_for(&keys, &wish.from, ticket, request).await {
            Ok(()) => Shown::Taken,
            Err(error) => Shown::NotYet(format!(
                "a machine on its own, which does not answer to its ticket ({error}): it is not there, or was asked before; \
                 a new ticket is a new link"
            )),
        }
    }

    /// Where our agents are found at this moment: between the link and the question there may be hours.
    fn relays(&self) -> Vec<RelayInfo> {
        self.outgoing.borrow().hello.relays.iter().take(MAX_RELAYS).cloned().collect()
    }
}

/// What the first who consented to the machine's agent wishes; none, if nobody does in the time that is left.
async fn wished(outgoing: &mut watch::Receiver<Arc<Outgoing>>, name: &AgentName, left: Duration) -> Option<Wish> {
    let of_agent = |outgoing: &Outgoing| outgoing.first.get(name).and_then(|id| outgoing.wishes.get(id)).cloned();
    let is_there = outgoing.wait_for(|outgoing| of_agent(outgoing).is_some());
    let there = tokio::time::timeout(left, is_there).await.ok()?.ok()?;
    of_agent(&there)
}

/// The ticket's text, if it can be read now.
async fn read(secrets: &Api<Secret>, key: &str) -> Option<String> {
    let secret = match secrets.get_opt(TICKETS).await {
        Ok(secret) => secret?,
        Err(error) => {
            tracing::warn!(%error, "a ticket could not be read");
            return None;
        }
    };
    let bytes = secret.data?.remove(key)?;
    String::from_utf8(bytes.0).ok()
}

/// The ticket, if it is good for something on a link to `authority`.
fn usable(text: &str, authority: Fingerprint, now: UnixTime) -> Result<Ticket, String> {
    match Ticket::parse(text, now) {
        Ok(ticket) if ticket.record.fingerprint() == authority => Ok(ticket),
        Ok(ticket) => Err(format!(
            "the ticket is of authority {}, and the link pins {authority}; make another link to trust another authority",
            ticket.record.fingerprint()
        )),
        Err(TicketError::Expired) => Err(
            "the ticket has ended before it was used; ask for a new one, for a new link (`kubectl peerage invite` in the other \
             cluster, `peerage invite` on a machine)"
                .into(),
        ),
        Err(error) => Err(format!("the ticket cannot be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use peerage_model::ticket::InviteSecret;
    use peerage_model::{Authority, TrustId};
    use zeroize::Zeroizing;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn name(text: &str) -> AgentName {
        text.parse().expect("a name")
    }

    fn wish(id: u8, from: &str) -> Wish {
        Wish { id: TrustId([id; 16]), from: name(from), to: name("laptop"), purpose: None }
    }

    #[test]
    fn a_ticket_of_somebody_else_is_not_shown_whatever_it_is_called() {
        let (theirs, others) =
            (Authority::new(&Zeroizing::new([2; 96]), NOW), Authority::new(&Zeroizing::new([3; 96]), NOW));
        let ticket = Ticket {
            record: others.record().clone(),
            name: name("laptop"),
            relays: Vec::new(),
            secret: InviteSecret::from_bytes([1; 32]),
            expires: UnixTime(NOW.0 + 60),
        };
        let text = ticket.to_string();
        let why = usable(&text, theirs.fingerprint(), NOW).expect_err("it is of another authority");
        assert!(why.contains(&others.fingerprint().to_string()), "{why}");
        assert_eq!(usable(&text, others.fingerprint(), NOW), Ok(ticket));
    }

    #[tokio::test]
    async fn who_consented_first_is_who_asks() {
        let wishes = BTreeMap::from([wish(1, "late.web"), wish(2, "early.web")].map(|wish| (wish.id, wish)));
        let first = BTreeMap::from([(name("laptop"), TrustId([2; 16]))]);
        let (_sender, mut outgoing) = watch::channel(Arc::new(Outgoing { wishes, first, ..Outgoing::default() }));
        let asks = wished(&mut outgoing, &name("laptop"), Duration::from_secs(600)).await;
        assert_eq!(asks.map(|wish| wish.from), Some(name("early.web")));
    }

    #[tokio::test]
    async fn nobody_is_waited_for_longer_than_the_ticket_is_good() {
        let (_sender, mut outgoing) = watch::channel(Arc::new(Outgoing::default()));
        assert_eq!(wished(&mut outgoing, &name("laptop"), Duration::from_millis(1)).await, None);
    }
}
