//! A packet's way. It leaves its agent, is translated by the NAT of its site, takes its access line to the *core*, where an
//! observer may record it and a liar may change it, and from there the line and NAT of its destination.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::BytesMut;
use peerage_engine::node::Transmit;
use peerage_engine::path::Link;
use peerage_model::id::sha256;
use peerage_relay_proto::stun::Corner;
use peerage_relay_proto::{Decision, Ingress, Place};

use super::net::SITE_DELAY;
use super::packet::{Origin, Packet};
use super::{Agent, Arrival, Sim};
use crate::nat::NatKind;

/// Packets that a stopped process finds in its socket; later ones were dropped by its kernel. Some 200 kB of full ones.
const SOCKET_BUFFER: usize = 150;

impl Sim {
    /// A packet leaves an agent.
    pub(super) fn send(&mut self, agent: usize, transmit: &Transmit, bytes: Vec<u8>) {
        let (link, to) = (transmit.link, transmit.destination);
        let now = self.clock.now();
        let host = &self.agents[agent];
        let site = host.site;
        let bound = match link {
            Link::Main => host.addresses.towards(to),
            Link::Extra(socket) => host.extras.get(&socket).copied().filter(|bound| bound.is_ipv4() == to.is_ipv4()),
            Link::RelayStream(stream) => {
                self.send_frame(agent, stream, bytes);
                return;
            }
        };
        let Some(address) = bound else { return };
        let mut packet = Packet { at: self.clock.elapsed(), from: address, to, bytes, origin: Origin::Agent(agent) };
        if self.sites[site].contains(to.ip()) {
            self.guard.check(&packet, now);
            self.send_inside(packet, site);
            return;
        }
        if self.sites[site].blocks_udp {
            return;
        }
        let Some(public) = self.leave(site, address, to) else { return };
        self.guard.uses(agent, public);
        packet.from = public;
        if transmit.hop_limit.is_some() {
            // It dies between the gateways. Where one of them is missing it may get as far as the other.
            if self.sites[site].nat.kind() == NatKind::None {
                self.admitted(now, &packet);
            }
            return;
        }
        for at in self.agents[agent].line.up.send(now, packet.bytes.len()) {
            self.queue.push(at, Arrival::Core(packet.clone()));
        }
    }

    /// What a packet that leaves a site comes from, seen from outside.
    fn leave(&mut self, site: usize, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let now = self.clock.now();
        let site = &mut self.sites[site];
        if to.is_ipv6() {
            site.firewall.outbound(now, from, to);
            return Some(from);
        }
        let outside = site.nat.outbound(now, from, to)?;
        match site.carrier {
            None => Some(outside),
            Some(carrier) => self.carriers[carrier].outbound(now, outside, to),
        }
    }

    fn send_inside(&mut self, packet: Packet, site: usize) {
        let to = packet.to;
        if let Some(agent) = self.agent_at(site, to) {
            let at = self.clock.now() + SITE_DELAY;
            self.queue.push(at, Arrival::AtAgent(agent, to, packet));
        }
    }

    fn agent_at(&self, site: usize, address: SocketAddr) -> Option<usize> {
        let here = |a: &Agent| a.site == site && a.link_of(address).is_some() && a.node.is_some();
        self.agents.iter().position(here)
    }

    /// A packet is in public: observers see it, liars change it.
    pub(super) fn cross_core(&mut self, mut packet: Packet) {
        packet.at = self.clock.elapsed();
        self.packets += 1;
        let about = format!("{packet:?}");
        self.digest = sha256(&[&self.digest, about.as_bytes(), &packet.bytes]);
        self.guard.check(&packet, self.clock.now());
        if let Some(tape) = &self.tape {
            tape.record(&packet);
        }
        match self.tamper.as_mut() {
            None => self.route(packet),
            Some(tamper) => {
                for (later, packet) in tamper(packet) {
                    self.queue.push(self.clock.now() + later, Arrival::Late(packet));
                }
            }
        }
    }

    /// From the core to where it is addressed.
    pub(super) fn route(&mut self, packet: Packet) {
        let now = self.clock.now();
        if let Some(relay) = self.relays.iter().position(|r| r.is_at(packet.to.ip())) {
            for at in self.relays[relay].line.down.send(now, packet.bytes.len()) {
                self.queue.push(at, Arrival::AtRelay(relay, packet.clone()));
            }
            return;
        }
        let from_relay = self.relays.iter().any(|r| r.is_at(packet.from.ip()));
        if self.direct_blocked && !from_relay {
            return;
        }
        if let Some(inbox) = self.strangers.get_mut(&packet.to) {
            inbox.push(packet);
            return;
        }
        let Some((site, inside)) = self.admitted(now, &packet) else { return };
        let Some(agent) = self.agent_at(site, inside) else {
            return;
        };
        for at in self.agents[agent].line.down.send(now, packet.bytes.len()) {
            self.queue.push(at, Arrival::AtAgent(agent, inside, packet.clone()));
        }
    }

    /// The site and the endpoint in it that a packet is let through to.
    fn admitted(&mut self, now: Instant, packet: &Packet) -> Option<(usize, SocketAddr)> {
        if packet.to.is_ipv6() {
            let site = self.sites.iter().position(|site| site.owns(packet.to.ip()))?;
            return self.sites[site].firewall.admits(now, packet.from, packet.to).then_some((site, packet.to));
        }
        let carrier = self.carriers.iter().position(|nat| nat.public_address() == packet.to.ip());
        let to = match carrier {
            None => packet.to,
            Some(carrier) => self.carriers[carrier].inbound(now, packet.from, packet.to)?,
        };
        let site = self.sites.iter().position(|site| site.carrier == carrier && site.owns(to.ip()))?;
        Some((site, self.sites[site].nat.inbound(now, packet.from, to)?))
    }

    pub(super) fn deliver(&mut self, agent: usize, inside: SocketAddr, packet: Packet) {
        let moment = self.time_of(agent);
        let link = self.agents[agent].link_of(inside);
        let Agent { node, cut_off, stopped, .. } = &mut self.agents[agent];
        let Some(node) = node.as_mut() else { return };
        if let Some(waiting) = stopped {
            if waiting.len() < SOCKET_BUFFER {
                waiting.push((inside, packet));
            }
            return;
        }
        let (Some(link), false) = (link, *cut_off) else { return };
        let length = packet.bytes.len();
        node.handle_datagrams(moment, link, packet.from, None, [BytesMut::from(&packet.bytes[..])], length);
        self.drain(agent);
    }

    pub(super) fn deliver_to_relay(&mut self, number: usize, mut packet: Packet) {
        let (now, wall) = (self.clock.now(), self.clock.wall(0));
        let host = &mut self.relays[number];
        let at = host.corner(packet.to);
        let Some(relay) = host.relay.as_mut() else { return };
        let ingress = Ingress { now, wall, from: packet.from.into(), local: None };
        let length = packet.bytes.len();
        let decision = match at == Corner::default() {
            true => relay.handle(&ingress, &mut packet.bytes, length).decision,
            false => relay.handle_stun_at(now, packet.from, &packet.bytes, at).map_or(Decision::Drop, Decision::Reply),
        };
        let mut from = Corner::default();
        let (to, bytes, origin) = match decision {
            Decision::Drop => return,
            Decision::Reply(reply) => {
                from = reply.from;
                (reply.destination(packet.from), reply.as_bytes().to_vec(), Origin::Relay)
            }
            Decision::Forward(forward) => {
                let origin = match packet.origin {
                    Origin::Agent(agent) => Origin::Forwarded(agent),
                    other => other,
                };
                self.bytes_relayed += forward.range.len() as u64;
                if let Place::Stream(stream, _) = forward.to {
                    let frame = packet.bytes[forward.range].to_vec();
                    return self.frame_to_agent(stream, frame);
                }
                (forward.to.address(), packet.bytes[forward.range].to_vec(), origin)
            }
        };
        let answer = Packet { at: self.clock.elapsed(), from: host.place(from, to), to, bytes, origin };
        for at in host.line.up.send(now, answer.bytes.len()) {
            self.queue.push(at, Arrival::Core(answer.clone()));
        }
    }
}
