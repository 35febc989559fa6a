//! Asks the router for a port of its own that leads to us, keeps it, and gives it back.
//!
//! Only the gateway of the default route is asked: by PCP (RFC 6887), by NAT-PMP (RFC 6886), then by UPnP-IGD. What it
//! says is a hint, as everything about addresses is: it becomes a candidate, and only a check that a peer answered makes it
//! a path. So a liar on the local network can waste some checks, and nothing else. A router that is itself behind a NAT
//! says a private external address; such a mapping leads nowhere, and is given back.

mod gateway;
mod protocol;
mod upnp;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use self::gateway::Network;
use self::protocol::Lease;

/// What we ask for: the recommendation of RFC 6886 section 3.3. A router may grant less.
const LIFETIME: Duration = Duration::from_secs(7200);
/// The longest wait after nobody granted a mapping: routers gain the ability when their owner allows it, which is rare.
const AGAIN: Duration = Duration::from_secs(600);
/// The first wait, doubled each time: after a power cut the router starts with us. Also the least between two renewals, so
/// that a router that grants seconds is not flooded.
const SOON: Duration = Duration::from_secs(30);
/// How long giving a mapping back may take; it ends by itself otherwise.
const FAREWELL: Duration = Duration::from_millis(750);

/// Whether to ask routers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The gateway of the default route, where there is a NAT.
    Auto,
    /// Nobody. What is not asked for is not done.
    #[default]
    Off,
}

impl FromStr for Mode {
    type Err = NotAMode;

    fn from_str(text: &str) -> Result<Self, NotAMode> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err(NotAMode),
        }
    }
}

/// See [`Mode`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("port mapping is `auto` or `off`")]
pub struct NotAMode;

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Mapping {
    /// Nobody is asked.
    #[default]
    Off,
    /// The router has not answered yet.
    Asking,
    /// The router forwards a port to us.
    Mapped {
        /// Its public address and the port there.
        external: SocketAddr,
        /// How it was asked.
        by: Protocol,
    },
    /// There is none.
    None {
        /// Why.
        why: String,
    },
}

/// How a router was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// `WANIPConnection` or `WANPPPConnection` of UPnP.
    UpnpIgd,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::UpnpIgd => "UPnP-IGD",
        })
    }
}

/// Keeps a mapping for one UDP port.
#[derive(Debug)]
pub(crate) struct PortMapper {
    /// How often renewing was demanded; each change of it, and each look that changes nothing, is heard.
    network: watch::Sender<u64>,
    task: JoinHandle<()>,
    mapping: watch::Receiver<Mapping>,
}

impl PortMapper {
    /// Asks for `port` from now on. `tell` hears each address that leads to us, and `None` when there is none.
    pub(crate) fn start(port: NonZeroU16, tell: impl Fn(Option<SocketAddr>) + Send + 'static) -> Self {
        let (network, changed) = watch::channel(0);
        let (state, mapping) = watch::channel(Mapping::Asking);
        let keeper = Keeper { port, changed, state, tell: Box::new(tell), lease: None, asked: None, failed: 0 };
        Self { network, task: tokio::spawn(keeper.run()), mapping }
    }

    /// The network may have changed: look. With `renew` it has for certain, or the machine slept: ask the router.
    pub(crate) fn network_changed(&self, renew: bool) {
        self.network.send_modify(|demands| *demands += u64::from(renew));
    }

    /// How it stands, to look at any time.
    pub(crate) fn mapping(&self) -> watch::Receiver<Mapping> {
        self.mapping.clone()
    }

    /// Gives the mapping back.
    pub(crate) async fn stop(self) {
        // The keeper ends when nobody can tell it of changes any more.
        drop(self.network);
        // A panic has been reported by its own hook.
        let _ = self.task.await;
    }
}

struct Keeper {
    port: NonZeroU16,
    changed: watch::Receiver<u64>,
    state: watch::Sender<Mapping>,
    tell: Box<dyn Fn(Option<SocketAddr>) + Send>,
    lease: Option<(Network, Lease)>,
    /// In which network and after how many demands the router was asked, and when it shall be asked again.
    asked: Option<(Network, u64, Instant)>,
    /// How often in a row there was no mapping.
    failed: u32,
}

impl Keeper {
    async fn run(mut self) {
        let stopped = self.changed.clone();
        loop {
            // What changes from here on is seen after the turn.
            let demands = *self.changed.borrow_and_update();
            let at = tokio::select! {
                at = self.turn(demands) => at,
                () = end(stopped.clone()) => break,
            };
            tokio::select! {
                () = sleep_until(at) => {}
                result = self.changed.changed() => if result.is_err() { break },
            }
        }
        if let Some((_, lease)) = self.lease.take()
            && timeout(FAREWELL, lease.give_back()).await.is_err()
        {
            debug!("a port mapping was left to end by itself");
        }
    }

    /// One attempt, where it is due; when to make the next.
    async fn turn(&mut self, demands: u64) -> Instant {
        let network = match Network::find() {
            Ok(network) => network,
            Err(why) => {
                (self.lease, self.asked) = (None, None);
                return self.none(why);
            }
        };
        if let Some((of, after, next)) = self.asked
            && (of, after) == (network, demands)
            && next > Instant::now()
        {
            return next;
        }
        let next = self.ask(network).await;
        self.asked = Some((network, demands, next));
        next
    }

    async fn ask(&mut self, network: Network) -> Instant {
        let result = match &mut self.lease {
            Some((of, lease)) if *of == network => lease.renew().await,
            // A mapping of another network cannot be given back from here.
            _ => {
                self.lease = None;
                match Lease::obtain(network, self.port).await {
                    Ok(lease) => {
                        self.lease = Some((network, lease));
                        Ok(())
                    }
                    Err(why) => Err(why),
                }
            }
        };
        match (result, &self.lease) {
            (Ok(()), Some((_, lease))) if is_public(lease.external.ip()) => {
                let next = Instant::now() + (lease.lifetime / 2).max(SOON);
                self.say(Mapping::Mapped { external: lease.external, by: lease.by });
                self.failed = 0;
                next
            }
            (Ok(()), Some((_, lease))) => {
                let why =
                    format!("the router says {} for its own address: it is behind a NAT itself", lease.external.ip());
                if let Some((_, lease)) = self.lease.take() {
                    lease.give_back().await;
                }
                self.none(why)
            }
            (Ok(()), None) => self.none("the router took its mapping back".into()),
            (Err(why), _) => {
                // It may have forgotten us: the next turn asks from the beginning.
                self.lease = None;
                self.none(why)
            }
        }
    }

    fn none(&mut self, why: String) -> Instant {
        self.say(Mapping::None { why });
        let wait = SOON.saturating_mul(1 << self.failed.min(8)).min(AGAIN);
        self.failed += 1;
        Instant::now() + wait
    }

    fn say(&self, mapping: Mapping) {
        let changed = self.state.send_if_modified(|old| {
            let changed = *old != mapping;
            old.clone_from(&mapping);
            changed
        });
        if changed {
            debug!(?mapping, "port mapping");
            (self.tell)(match mapping {
                Mapping::Mapped { external, .. } => Some(external),
                Mapping::Off | Mapping::Asking | Mapping::None { .. } => None,
            });
        }
    }
}

/// Resolves when nobody is left who tells of changes.
async fn end(mut changed: watch::Receiver<u64>) {
    while changed.changed().await.is_ok() {}
}

/// Whether packets from the internet can have this destination: none of the special blocks of RFC 6890 that a router in
/// another network could have.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            // 100.64.0.0/10 (RFC 6598) is what carrier-grade NAT gives to routers.
            let shared = a == 100 && b & 0xc0 == 64;
            !(ip.is_private()
                || shared
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || a == 0
                || a >= 240)
        }
        IpAddr::V6(ip) => {
            let local = ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback();
            !(local || ip.is_unspecified() || ip.is_multicast())
                && ip.to_ipv4_mapped().is_none_or(|ip: Ipv4Addr| is_public(ip.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_the_internet_cannot_reach_is_not_trusted() {
        for private in
            ["10.1.2.3", "100.64.0.1", "100.127.1.1", "127.0.0.1", "169.254.1.1", "172.16.0.1", "192.168.1.1"]
        {
            assert!(!is_public(private.parse().expect("an address")), "{private}");
        }
        for nobody in
            ["0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1"]
        {
            assert!(!is_public(nobody.parse().expect("an address")), "{nobody}");
        }
        for public in ["9.9.9.9", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2a00::1"] {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
    }

    #[test]
    fn a_mode_is_one_of_two_words() {
        assert_eq!("auto".parse::<Mode>().expect("a mode"), Mode::Auto);
        assert_eq!("off".parse::<Mode>().expect("a mode"), Mode::Off);
        assert!("on".parse::<Mode>().is_err());
    }
}
