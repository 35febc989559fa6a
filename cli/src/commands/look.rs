//! Status, peers and the doctor.

use std::process::ExitCode;

use peerage_agent::control::view::{Finding, Peer, PeerState, Severity, Status};
use peerage_agent::control::{Request, client};
use peerage_agent::portmap::Mapping;
use peerage_agent::state::Place;
use peerage_agent::state::lookup::short;
use peerage_agent::state::time::{now, rfc3339, span};
use peerage_output::{Output, Table};

use super::Done;

pub async fn status(place: &Place, output: Output) -> Done {
    let status: Status = client::call(place, &Request::Status).await?;
    output.answer(&status, render);
    Ok(ExitCode::SUCCESS)
}

fn render(status: &Status) -> String {
    let mut lines = vec![
        format!("agent      {}", short(&status.agent)),
        format!("authority  {}", status.agent.authority),
        keys(status),
        format!("running    {} (process {}, version {})", span(status.since.until(now())), status.pid, status.version),
        format!("state      {}", status.state),
    ];
    for relay in &status.relays {
        let place = relay.relay.split_once('@').map_or(relay.relay.as_str(), |(_, place)| place);
        lines.push(match (relay.up, relay.observed) {
            (true, _) if relay.tls => format!("relay      {place} up by TLS on TCP, since UDP is not answered"),
            (true, Some(observed)) => format!("relay      {place} up, sees us at {observed}"),
            (true, None) => format!("relay      {place} up"),
            (false, _) => match &relay.note {
                Some(note) => format!("relay      {place} down: {note}"),
                None => format!("relay      {place} down"),
            },
        });
        if relay.mailbox {
            lines.push(format!("mailbox    open at {place}: strangers may ask for `{}` by name", status.agent.name));
        }
    }
    if status.relays.is_empty() {
        lines.push("relay      none: peers cannot find this agent (peerage up --relay KEY@HOST:PORT)".into());
    }
    lines.push(format!("nat        {}", if status.nat.detail.is_empty() { "unknown" } else { &status.nat.detail }));
    match &status.mapping {
        Mapping::Mapped { external, by } => lines.push(format!("mapping    {external}, by {by} from the router")),
        Mapping::Asking => lines.push("mapping    asking the router for a port".into()),
        Mapping::None { why } => lines.push(format!("mapping    none: {why}")),
        Mapping::Off => {}
    }
    for service in &status.services {
        let (name, port, protocol) = (&service.name, service.port, service.protocol);
        lines.push(format!("exposes    {name} {port}/{protocol} -> {}", service.target));
    }
    if status.requests > 0 {
        lines.push(format!("requests   {} waiting (peerage requests)", status.requests));
    }
    for problem in &status.problems {
        lines.push(format!("problem    {problem}"));
    }
    if !status.peers.is_empty() {
        lines.push(String::new());
        lines.push(table(&status.peers));
    }
    lines.join("\n")
}

fn keys(status: &Status) -> String {
    match status.former_keys_until {
        Some(until) => format!("keys       number {}; the former ones count until {}", status.keys, rfc3339(until)),
        None => format!("keys       number {}", status.keys),
    }
}

pub async fn peers(place: &Place, output: Output) -> Done {
    let peers: Vec<Peer> = client::call(place, &Request::Peers).await?;
    output.list(&peers, |peers| match peers {
        [] => "This agent trusts nobody yet. Ask with a ticket: peerage handshake TICKET \"why\"".into(),
        peers => table(peers),
    });
    Ok(ExitCode::SUCCESS)
}

fn table(peers: &[Peer]) -> String {
    let mut table =
        Table::new(&["NAME", "AUTHORITY", "STATE", "PATH", "RTT", "ITS PORTS", "MAY OPEN HERE", "ENDS", "WHY"]);
    for peer in peers {
        table.row(vec![
            peer.name.clone(),
            peer.id.authority.to_string()[..8].to_owned(),
            match peer.instances.len() {
                0 | 1 => state(peer.state).to_owned(),
                replicas => format!("{} to {replicas}", state(peer.state)),
            },
            peer.path.clone().unwrap_or_else(|| "-".into()),
            peer.rtt_ms.map_or_else(|| "-".into(), |rtt| format!("{rtt:.1} ms")),
            if peer.ports.is_empty() { "-".into() } else { peer.ports.join(", ") },
            peer.inbound.clone(),
            peer.expires.map_or_else(|| "-".into(), rfc3339),
            peer.why.clone().unwrap_or_default(),
        ]);
    }
    table.render()
}

fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Connected => "connected",
        PeerState::WaitingForApproval => "waiting",
        PeerState::NotConnected => "not connected",
        PeerState::Unusable => "unusable",
    }
}

/// Ends with a failure status where something does not work, so that scripts can ask.
pub async fn doctor(place: &Place, output: Output) -> Done {
    let findings: Vec<Finding> = client::call(place, &Request::Doctor).await?;
    output.list(&findings, |findings| {
        let mut lines = Vec::new();
        for finding in findings {
            let mark = match finding.severity {
                Severity::Good => "ok     ",
                Severity::Note => "note   ",
                Severity::Problem => "PROBLEM",
            };
            lines.push(format!("{mark}  {}: {}", finding.check, finding.found));
            if !finding.remedy.is_empty() {
                lines.push(format!("         -> {}", finding.remedy));
            }
        }
        lines.join("\n")
    });
    let bad = findings.iter().any(|finding| finding.severity == Severity::Problem);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
