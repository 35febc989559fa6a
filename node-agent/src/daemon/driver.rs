//! The real tunnel as the daemon sees it: the driver's words put into the daemon's.

use std::sync::Arc;
use std::time::Duration;

use peerage_engine::node::{AskError, DownReason};
use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::{MailId, SEALED};
use peerage_model::stream::{StreamHeader, StreamStatus};
use peerage_model::{AgentId, AgentName, RoutingId, Snapshot, Ticket, TrustId, UnixTime};
use tokio::sync::mpsc;

use super::link::{Boxed, Found, Link, LinkConfig, LinkEvent, LinkSession, LinkStatus, Started, Starter};
use crate::control::view;
use crate::control::{Code, Failure};
use crate::driver::{self, DriverConfig, DriverEvent, DriverHandle, RequestError, SessionState};
use crate::state::random;
use crate::tunnel::{Dial, DialError, Opened};

/// Events between the driver and the daemon, in the daemon's words.
const EVENTS: usize = 16;

/// Starts the driver.
#[must_use]
pub fn starter() -> Starter {
    Box::new(start)
}

fn start(config: LinkConfig) -> std::io::Result<Started> {
    let (predecessors, public) = (config.predecessors, config.public);
    let config = DriverConfig {
        agent: config.agent,
        instance: config.instance,
        credential: config.credential,
        bind: config.bind,
        fixed_endpoints: config.fixed_endpoints,
        port_mapping: config.port_mapping,
        snapshot: config.snapshot,
        proxy: config.relay_proxy,
        memory: config.memory,
        seed: *random::<32>(),
    };
    let (handle, mut driver_events, incoming) = driver::start(config)?;
    handle.set_predecessors(predecessors);
    handle.set_public(public);
    let (events, heard) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        while let Some(event) = driver_events.recv().await {
            for event in translate(event) {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok((Arc::new(DriverLink(handle)), heard, incoming))
}

struct DriverLink(DriverHandle);

impl Dial for DriverLink {
    fn dial<'a>(&'a self, peer: &'a AgentId, header: StreamHeader) -> Boxed<'a, Result<Opened, DialError>> {
        self.0.dial(peer, header)
    }
}

impl Link for DriverLink {
    fn apply(&self, snapshot: Snapshot) {
        self.0.apply_snapshot(snapshot);
    }

    fn renew(&self, credential: Vec<u8>) {
        if let Err(error) = self.0.renew(credential) {
            tracing::error!(%error, "the fresh passport was not taken");
        }
    }

    fn ask<'a>(&'a self, ticket: &'a Ticket, request: TrustRequest) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move { self.0.request_trust(ticket, request).await.map_err(|error| not_asked(&error)) })
    }

    fn answer_request(&self, invite: TrustId, status: StreamStatus) {
        self.0.answer_request(invite, status);
    }

    fn look_up<'a>(&'a self, name: &'a AgentName, relays: &'a [RelayInfo]) -> Boxed<'a, Vec<Found>> {
        Box::pin(self.0.look_up(name, relays))
    }

    fn post<'a>(
        &'a self,
        to: RoutingId,
        sealed: &'a [u8; SEALED],
        relays: &'a [RelayInfo],
    ) -> Boxed<'a, Vec<RelayInfo>> {
        Box::pin(self.0.post(to, sealed, relays))
    }

    fn mail_done(&self, relay: &RelayInfo, id: MailId) {
        self.0.mail_done(relay, id);
    }

    fn status(&self) -> Boxed<'_, LinkStatus> {
        let status = self.0.status();
        let relay = |relay: driver::RelayState| view::Relay {
            relay: relay.relay,
            up: relay.up,
            observed: relay.observed.and_then(|address| address.parse().ok()),
            rtt_ms: relay.rtt_ms.map(|rtt| (rtt * 1e3).round() / 1e3),
            mailbox: relay.mailbox,
            tls: relay.tls,
            note: relay.note,
        };
        let status = LinkStatus {
            relays: status.relays.into_iter().filter(|relay| relay.own).map(relay).collect(),
            nat: view::Nat { kind: status.nat_type, detail: status.nat },
            mapping: status.mapping,
            sessions: status.sessions.into_iter().filter_map(session).collect(),
        };
        Box::pin(std::future::ready(status))
    }

    fn shutdown(&self) -> Boxed<'_, ()> {
        Box::pin(self.0.shutdown())
    }
}

fn session(state: SessionState) -> Option<LinkSession> {
    Some(LinkSession {
        peer: state.peer.parse().ok()?,
        instance: state.instance.parse().ok()?,
        path: state.path,
        rtt: state.rtt_ms.map(|rtt| Duration::from_secs_f64(rtt.max(0.0) / 1e3)),
        since: UnixTime(state.since),
        why_not_better: state.why_not_better,
        bytes_in: state.bytes_received,
        bytes_out: state.bytes_sent,
        streams: state.streams as u64,
        mtu: state.mtu,
        clock_ahead: state.clock_ahead,
    })
}

/// One event of the driver is one or two of ours: a session that ended may have taken streams with it.
fn translate(event: DriverEvent) -> Vec<LinkEvent> {
    match event {
        DriverEvent::Relay { relay, observed } => {
            vec![LinkEvent::Relay { relay, up: observed.is_some(), observed }]
        }
        DriverEvent::RelayRefused { relay, reason } => {
            tracing::warn!(?relay, %reason, "a relay does not take us");
            vec![LinkEvent::RelayRefused { relay, reason: reason.to_string() }]
        }
        DriverEvent::Nat(report) => {
            let nat = view::Nat { kind: report.nat_type.to_string(), detail: report.to_string() };
            vec![LinkEvent::Nat(nat)]
        }
        DriverEvent::SessionUp { peer, instance, path, session: _ } => {
            vec![LinkEvent::SessionUp { peer, instance, path: path.to_string() }]
        }
        DriverEvent::SessionDown { peer, reason, streams, session: _ } => session_down(peer, &reason, streams as u64),
        DriverEvent::PathChanged { peer, from, to, why, rtt } => {
            vec![LinkEvent::PathChanged { peer, from: from.to_string(), to: to.to_string(), why, rtt }]
        }
        DriverEvent::Mail { relay, id, sealed } => vec![LinkEvent::Mail { relay, id, sealed }],
        DriverEvent::PeerRecord { peer, record } => vec![LinkEvent::PeerRecord { peer, record }],
        DriverEvent::PeerPorts { peer, ports } => vec![LinkEvent::PeerPorts { peer, ports }],
        DriverEvent::TrustRequested { invite, asker, request } => {
            vec![LinkEvent::TrustRequested { invite, asker, request }]
        }
    }
}

fn session_down(peer: AgentId, reason: &DownReason, streams: u64) -> Vec<LinkEvent> {
    let why = reason.to_string();
    let down = LinkEvent::SessionDown { peer: peer.clone(), reason: why.clone() };
    match streams {
        0 => vec![down],
        count => vec![LinkEvent::StreamsReset { peer, count, why }, down],
    }
}

fn not_asked(error: &RequestError) -> Failure {
    let (code, hint) = match error {
        RequestError::Ask(AskError::NoAnswer) => (
            Code::Unreachable,
            "check that the other agent is up (`peerage status` there), then ask for a new ticket: one works once",
        ),
        RequestError::Ask(AskError::Refused(StreamStatus::Busy)) => {
            let message = "the other agent could not keep the request; its disk may be full";
            return Failure::new(
                Code::Refused,
                message,
                "try again when its owner has looked; this ticket is still good",
            );
        }
        RequestError::Ask(AskError::Refused(_)) => (Code::Refused, "ask for a new ticket, and try again later"),
        RequestError::Ask(AskError::NoRelay) => {
            (Code::Unreachable, "check that UDP gets out to the ticket's relays: `peerage doctor`")
        }
        RequestError::Stopped => (Code::NotRunning, "start the agent again with `peerage up`"),
    };
    Failure::new(code, error.to_string(), hint)
}
