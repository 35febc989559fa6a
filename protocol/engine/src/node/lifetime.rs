//! Keepalives as rare as our NAT allows and as frequent as it needs.
//!
//! Once for each network, when its beginning is over, the lifetime of an unused mapping is measured with two extra sockets
//! (`nat/lifetime.rs`). Until then, and where it cannot be told, keepalives assume what nearly all NATs keep, 30 s.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::debug;

use super::Node;
use super::config::PATH_KEEPALIVE;
use super::event::Now;
use super::session::Session;
use super::sockets::Purpose;
use crate::nat::{LIFETIME_SOCKETS, LifetimeProbe, MappingLifetime, Progress};
use crate::path::{CheckTransmit, DirectPath, ExtraSocket};
use crate::relay::KEEPALIVE as RELAY_KEEPALIVE;
use crate::stun::TransactionId;

/// From being seen by a relay to measuring: an agent that lives for seconds need not know, and what all do first is more urgent.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// After a measurement that could not tell.
const AGAIN_AFTER: Duration = Duration::from_secs(1800);
/// No NAT is worth more packets than this, and none lives on fewer.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST_OF_PATH: Duration = Duration::from_secs(60);

/// What is known of our NAT's mappings, or how it is found out.
#[derive(Debug, Default)]
pub(super) enum Measuring {
    /// Nothing is known of this network.
    #[default]
    New,
    Pause {
        until: Instant,
    },
    /// The driver opens sockets.
    Opening,
    Running(Box<LifetimeProbe>),
    Known(MappingLifetime),
}

impl Measuring {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::New | Self::Opening | Self::Known(_) => None,
            Self::Pause { until } => Some(*until),
            Self::Running(probe) => Some(probe.poll_timeout()),
        }
    }

    pub(super) fn needs_sockets(&self) -> bool {
        matches!(self, Self::Opening | Self::Running(_))
    }

    pub(super) fn known(&self) -> Option<MappingLifetime> {
        match self {
            Self::Known(lifetime) => Some(*lifetime),
            Self::New | Self::Pause { .. } | Self::Opening | Self::Running(_) => None,
        }
    }
}

impl Node {
    /// Relays see us from these addresses, which before were others: it may be another NAT.
    pub(super) fn seen_from(&mut self, before: &BTreeSet<IpAddr>, now: Now) {
        let addresses = self.outside_addresses();
        let is_new = matches!(self.extras.lifetime, Measuring::New);
        if addresses.is_empty() || addresses == *before && !is_new {
            return;
        }
        let translated = addresses.iter().any(|ip| ip.is_ipv4() && self.hosts.iter().all(|host| host.ip() != *ip));
        if addresses != *before && !before.is_empty() {
            self.outside_changed();
        }
        if is_new && !translated {
            return;
        }
        let was_known = self.extras.lifetime.known().is_some();
        self.extras.lifetime = match translated {
            true => Measuring::Pause { until: now.mono + SETTLED_AFTER },
            false => Measuring::New,
        };
        if was_known {
            self.set_keepalives(now);
        }
        self.sweep_sockets();
    }

    pub(super) fn outside_addresses(&self) -> BTreeSet<IpAddr> {
        self.relays.reflexive().iter().map(std::net::SocketAddr::ip).collect()
    }

    pub(super) fn drive_lifetime(&mut self, now: Now) {
        match &mut self.extras.lifetime {
            Measuring::New | Measuring::Opening | Measuring::Known(_) => {}
            Measuring::Pause { until } if now.mono < *until => {}
            Measuring::Pause { .. } => {
                self.extras.lifetime = Measuring::Opening;
                self.ask_for_sockets(LIFETIME_SOCKETS, Purpose::Lifetime);
            }
            Measuring::Running(probe) if now.mono < probe.poll_timeout() => {}
            Measuring::Running(probe) => {
                let random = &mut self.random;
                let (requests, progress) = probe.handle_timeout(now.mono, || TransactionId(random.bytes()));
                self.out.extend(requests.into_iter().map(|(path, bytes)| CheckTransmit {
                    link: path.link,
                    to: path.remote,
                    hop_limit: None,
                    bytes,
                }));
                self.measured(progress, now);
            }
        }
    }

    pub(super) fn lifetime_sockets_opened(&mut self, opened: &[(ExtraSocket, u16)], now: Now) {
        if let Measuring::Opening = self.extras.lifetime {
            let relay = self.relays.any_stun_address();
            self.extras.lifetime = match (opened, relay) {
                ([(quiet, _), (asker, _)], Some(relay)) => {
                    let id = TransactionId(self.random.bytes());
                    Measuring::Running(Box::new(LifetimeProbe::new(now.mono, relay, *quiet, *asker, id)))
                }
                (_, _) => Measuring::Pause { until: now.mono + AGAIN_AFTER },
            };
            self.drive_lifetime(now);
        }
        self.sweep_sockets();
    }

    /// A STUN message that came to an extra socket. `true` if it was for the measurement.
    pub(super) fn on_lifetime_answer(&mut self, from: DirectPath, datagram: &[u8], now: Now) -> bool {
        let Measuring::Running(probe) = &mut self.extras.lifetime else { return false };
        let fresh = TransactionId(self.random.bytes());
        let Some(progress) = probe.handle(from, datagram, now.mono, fresh) else { return false };
        self.measured(progress, now);
        true
    }

    fn measured(&mut self, progress: Progress, now: Now) {
        self.extras.lifetime = match progress {
            Progress::Running => return,
            Progress::Found(lifetime) => Measuring::Known(lifetime),
            Progress::Unknown => Measuring::Pause { until: now.mono + AGAIN_AFTER },
        };
        debug!(lifetime = ?self.extras.lifetime.known(), "mappings of the NAT");
        self.set_keepalives(now);
        self.sweep_sockets();
    }

    /// How often a direct path that is not used needs a packet: two in the time that a mapping lives, as one may be lost.
    pub(super) fn path_keepalive(&self) -> Duration {
        let known = self.extras.lifetime.known();
        known.map_or(PATH_KEEPALIVE, |lifetime| (lifetime.at_least / 2).clamp(SHORTEST, LONGEST_OF_PATH))
    }

    fn set_keepalives(&mut self, now: Now) {
        let of_path = self.path_keepalive();
        // A relay forgets us after 90 s whatever our NAT keeps, so there only a short lifetime counts.
        let known = self.extras.lifetime.known();
        let of_relay =
            known.map_or(RELAY_KEEPALIVE, |lifetime| (lifetime.at_least * 4 / 5).clamp(SHORTEST, RELAY_KEEPALIVE));
        self.relays.set_keepalive(of_relay);
        for key in self.up_sessions() {
            if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                up.path.set_keepalive(of_path);
            }
            self.settle(key, now);
        }
    }
}
