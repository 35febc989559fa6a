//! Tickets, requests, consent and its end; and what is offered.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use peerage_agent::control::view::{
    Approved, Asked, Exposed, Invited, OpenTicket, Pending, Rejected, Revoked, Rotated,
};
use peerage_agent::control::{Failure, Request, Terms, client};
use peerage_agent::state::lookup::short;
use peerage_agent::state::time::{now, rfc3339, span};
use peerage_agent::state::{PeerRef, Place};
use peerage_model::UnixTime;
use peerage_model::relay::RelayInfo;
use peerage_model::ticket::Ticket;
use peerage_output::{Output, Table};
use serde_json::{Value, json};

use super::{Done, system};
use crate::args::TermsArgs;

/// Most bytes read as a ticket; whole ones have at most 4096, white space apart.
const MAX_TICKET: u64 = 8192;

pub async fn invite(place: &Place, expires: Duration, output: Output) -> Done {
    let invited: Invited = client::call(place, &Request::Invite { expires_s: expires.as_secs() }).await?;
    if let Some(warning) = &invited.warning {
        output.note(&format!("note: {warning}"));
    }
    // Only the ticket on stdout, so that it can be piped; the rest is for whoever watches.
    output.answer(&invited, |invited| invited.ticket.clone());
    output.note(&format!(
        "Good once, until {} (in {}). On the other machine: peerage handshake TICKET \"why\"\nTo take it back: peerage invite --withdraw {}",
        rfc3339(invited.expires),
        span(now().until(invited.expires)),
        digits(&invited.id),
    ));
    Ok(ExitCode::SUCCESS)
}

pub async fn tickets(place: &Place, output: Output) -> Done {
    let open: Vec<OpenTicket> = client::call(place, &Request::Tickets).await?;
    output.list(&open, |open| {
        if open.is_empty() {
            return "No ticket is open: none was made, or they are used, withdrawn or past their end.".into();
        }
        let mut table = Table::new(&["ID", "GOOD UNTIL", "ENDS IN"]);
        for ticket in open {
            let ends = span(now().until(ticket.expires));
            table.row(vec![digits(&ticket.id).to_owned(), rfc3339(ticket.expires), ends]);
        }
        table.render()
    });
    Ok(ExitCode::SUCCESS)
}

pub async fn withdraw(place: &Place, ticket: String, output: Output) -> Done {
    let ticket = if ticket == "-" { from_stdin()? } else { ticket };
    let gone: Vec<OpenTicket> = client::call(place, &Request::Withdraw { ticket }).await?;
    output.list(&gone, |gone| match gone {
        [] => "No ticket was open.".into(),
        gone => {
            let ids: Vec<&str> = gone.iter().map(|ticket| digits(&ticket.id)).collect();
            format!("Withdrawn: {}. Nobody can ask with it any more.", ids.join(", "))
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// As much of a ticket's id as tells it from others.
fn digits(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

pub async fn handshake(
    place: &Place,
    ticket: String,
    reason: String,
    relays: &[RelayInfo],
    to: Option<String>,
    terms: &TermsArgs,
    output: Output,
) -> Done {
    let ticket = if ticket == "-" { from_stdin()? } else { ticket };
    let terms = terms_of(terms);
    let relays: Vec<String> = relays.iter().map(ToString::to_string).collect();
    // What is left of a damaged ticket may read as a name; asking for that name would hide the damage.
    let is_name = !Ticket::is_meant(&ticket) && ticket.parse::<PeerRef>().is_ok();
    let request = match (is_name, &relays[..]) {
        (true, _) if to.is_some() => {
            return Err(Failure::bad_request("a name says whom to trust itself; --to goes with a cluster's ticket"));
        }
        (true, _) => Request::HandshakeByName { name: ticket, relays, reason, terms },
        (false, []) => Request::Handshake { ticket, to, reason, terms },
        (false, _) => {
            return Err(Failure::bad_request("a ticket names its relays itself; --relay goes with a name"));
        }
    };
    let call = client::call::<Asked>(place, &request);
    let asked = output.waiting("asking the other agent", call).await?;
    if !asked.mailboxes.is_empty() {
        output.note(&format!(
            "note: its relay says that `{}` belongs to authority\n  {}\nThat is what this agent trusts from now on. Compare it with what `peerage status` shows on the other \
             machine;\nif they differ, take it back: peerage revoke {}",
            asked.peer.name, asked.peer.authority, asked.name
        ));
    }
    output.answer(&asked, |asked| {
        format!(
            "Asked {}. Its owner now runs: peerage approve NAME\nHere it is `{}`, and may open: {}.",
            short(&asked.peer),
            asked.name,
            asked.inbound
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// A ticket is a secret, and other users of the machine see command lines.
fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_TICKET).read_to_string(&mut text);
    read.map(|_| text).map_err(|error| system("read the ticket from stdin", &error))
}

pub async fn requests(place: &Place, output: Output) -> Done {
    let requests: Vec<Pending> = client::call(place, &Request::Requests).await?;
    output.list(&requests, |requests| {
        if requests.is_empty() {
            return "Nobody asks at the moment. To be asked: peerage invite".into();
        }
        let mut table = Table::new(&["NAME", "AUTHORITY", "SINCE", "ENDS IN", "REASON"]);
        for request in requests {
            table.row(vec![
                request.name.clone(),
                request.id.authority.to_string()[..8].to_owned(),
                rfc3339(request.received),
                span(now().until(request.expires)),
                request.reason.clone(),
            ]);
        }
        table.render()
    });
    Ok(ExitCode::SUCCESS)
}

pub async fn approve(place: &Place, name: String, terms: &TermsArgs, output: Output) -> Done {
    let request = Request::Approve { name, terms: terms_of(terms) };
    let approved: Approved = client::call(place, &request).await?;
    output.answer(&approved, |approved| {
        let ports = match &approved.ports[..] {
            [] => "nothing at the moment".to_owned(),
            ports => ports.join(", "),
        };
        format!(
            "Trusted: {}, called `{}` here{}.\nIt may open: {} (now: {ports}). Change that with: peerage approve {} --inbound PORT",
            short(&approved.peer),
            approved.name,
            until(approved.expires),
            approved.inbound,
            approved.name
        )
    });
    Ok(ExitCode::SUCCESS)
}

fn until(expires: Option<UnixTime>) -> String {
    expires.map_or_else(String::new, |expires| format!(" until {}", rfc3339(expires)))
}

pub async fn reject(place: &Place, name: String, output: Output) -> Done {
    let rejected: Rejected = client::call(place, &Request::Reject { name }).await?;
    output.answer(&rejected, |rejected| format!("Rejected: {}. It is not told.", short(&rejected.peer)));
    Ok(ExitCode::SUCCESS)
}

pub async fn revoke(place: &Place, name: String, wait: bool, output: Output) -> Done {
    let request = Request::Revoke { name, wait };
    let call = client::call::<Revoked>(place, &request);
    let revoked = output.waiting("waiting for the streams to be reset", call).await?;
    output.answer(&revoked, |revoked| {
        let reset = match (revoked.streams_reset, revoked.reset_ms) {
            (Some(streams), Some(took)) => format!(" {streams} open streams were reset after {took:.1} ms."),
            (_, _) if wait => " There was no session.".into(),
            (_, _) => String::new(),
        };
        format!("Revoked: {}.{reset}", short(&revoked.peer))
    });
    Ok(ExitCode::SUCCESS)
}

pub async fn rotate(place: &Place, overlap: Duration, output: Output) -> Done {
    let rotated: Rotated = client::call(place, &Request::Rotate { overlap_s: overlap.as_secs() }).await?;
    output.answer(&rotated, |rotated| {
        let mut lines = vec![format!("Rotated: keys number {} are in use.", rotated.sequence)];
        let names = |names: &[String]| names.join(", ");
        if !rotated.told.is_empty() {
            lines.push(format!("Connected, and told: {}", names(&rotated.told)));
        }
        match (rotated.until, &rotated.waiting[..]) {
            (Some(until), []) => lines.push(format!("The former keys count until {}.", rfc3339(until))),
            (Some(until), waiting) => lines.push(format!(
                "Not connected: {}. They learn the new keys when they connect before {}, until when the former ones count, too.",
                names(waiting),
                rfc3339(until)
            )),
            (None, []) => lines.push("The former keys do not count any more.".into()),
            (None, waiting) => lines.push(format!(
                "The former keys do not count any more, so these need a new ticket (peerage invite): {}",
                names(waiting)
            )),
        }
        lines.join("\n")
    });
    Ok(ExitCode::SUCCESS)
}

pub async fn deny(place: &Place, name: String, instance: String, output: Output) -> Done {
    let _: Value = client::call(place, &Request::Deny { name, instance: instance.clone() }).await?;
    let said = json!({ "event": "denied", "instance": instance });
    output.answer(&said, |_| {
        format!("Denied: instance {instance}. The trust stays; other instances of the peer may connect.")
    });
    Ok(ExitCode::SUCCESS)
}

pub async fn expose(place: &Place, service: Option<String>, remove: Option<String>, output: Output) -> Done {
    let added = service.is_some();
    let request = match (service, remove) {
        (Some(service), _) => Request::Expose { service },
        (None, remove) => Request::Unexpose { service: remove.unwrap_or_default() },
    };
    let exposed: Exposed = client::call(place, &request).await?;
    output.answer(&exposed, |exposed| {
        let mut table = Table::new(&["NAME", "PORT", "TARGET"]);
        for service in &exposed.services {
            let port = format!("{}/{}", service.port, service.protocol);
            table.row(vec![service.name.to_string(), port, service.target.to_string()]);
        }
        let who = match &exposed.open_to[..] {
            [] => "no peer may open it yet; approve one, or: peerage approve NAME --inbound PORT".into(),
            peers => format!("open to: {}", peers.join(", ")),
        };
        if added { format!("{}{who}", table.render()) } else { table.render() }
    });
    Ok(ExitCode::SUCCESS)
}

fn terms_of(args: &TermsArgs) -> Terms {
    Terms {
        alias: args.alias.clone(),
        inbound: (!args.inbound.is_empty()).then(|| args.inbound.clone()),
        expires_s: args.expires.map(|expires| expires.as_secs()),
        path: args.path.map(Into::into),
        birthday: args.birthday,
    }
}
