//! UPnP-IGD: found by SSDP, asked by SOAP over HTTP.
//!
//! The crate blocks, so each conversation has a thread of its own. It is not one of the runtime's: those hold up the end
//! of the process until a silent router has been waited for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::thread;
use std::time::Duration;

use igd_next::{AddPortError, Gateway, GatewayIpVersion, PortMappingProtocol, SearchOptions, search_gateway};
use tokio::sync::oneshot;

use super::LIFETIME;
use super::gateway::Network;

/// What people see in their router's list.
const DESCRIPTION: &str = "peerage";
/// UPnP's port for discovery, and its group (UPnP Device Architecture 2.0 section 1.3).
const SSDP: u16 = 1900;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// How long a router may take to answer: MX is 3 in the crate's searches.
const ANSWER: Duration = Duration::from_secs(4);

/// A mapping that was granted.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) external: SocketAddr,
    gateway: Gateway,
    client: SocketAddr,
    /// In seconds; 0 for routers that know no end.
    lifetime: u32,
}

/// Finds the router's service and asks for `port`; or says why there is no mapping.
pub(super) async fn obtain(network: Network, port: NonZeroU16) -> Result<Lease, String> {
    on_a_thread(move || {
        let gateway = find(network)?;
        let client = SocketAddr::new(network.client.into(), port.get());
        grant(gateway, client, port.get())
    })
    .await
}

impl Lease {
    /// The same again, with the router's address of this moment.
    pub(super) async fn renew(&self) -> Result<Self, String> {
        let Self { external, gateway, client, lifetime } = self.clone();
        on_a_thread(move || {
            let ip = gateway.get_external_ip().map_err(|error| error.to_string())?;
            let added = gateway.add_port(PortMappingProtocol::UDP, external.port(), client, lifetime, DESCRIPTION);
            added.map_err(|error| error.to_string())?;
            Ok(Self { external: SocketAddr::new(ip, external.port()), gateway, client, lifetime })
        })
        .await
    }

    pub(super) async fn give_back(self) {
        let removed = on_a_thread(move || {
            let removed = self.gateway.remove_port(PortMappingProtocol::UDP, self.external.port());
            removed.map_err(|error| error.to_string())
        });
        if let Err(error) = removed.await {
            tracing::debug!(error, "a port mapping was not given back");
        }
    }
}

/// The service of the default route's gateway, and of nobody else who answers: first the gateway alone is asked, then,
/// since not every router hears that, the group.
fn find(network: Network) -> Result<Gateway, String> {
    let mut why = String::new();
    for to in [network.gateway, GROUP] {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::new(network.client.into(), 0);
        options.broadcast_address = SocketAddr::new(to.into(), SSDP);
        options.timeout = Some(ANSWER);
        options.single_search_timeout = Some(ANSWER);
        options.gateway_ip_version = GatewayIpVersion::V4;
        match search_gateway(options) {
            Ok(gateway) if gateway.addr.ip() == IpAddr::V4(network.gateway) => return Ok(gateway),
            Ok(_) => "another device than the router answered".clone_into(&mut why),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

fn grant(gateway: Gateway, client: SocketAddr, port: u16) -> Result<Lease, String> {
    let ip = gateway.get_external_ip().map_err(|error| error.to_string())?;
    let seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
    let add = |lifetime| gateway.add_port(PortMappingProtocol::UDP, port, client, lifetime, DESCRIPTION);
    let (external, lifetime) = match add(seconds) {
        Ok(()) => (port, seconds),
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            add(0).map_err(|error| error.to_string())?;
            (port, 0)
        }
        Err(AddPortError::PortInUse) => {
            let any = gateway.add_any_port(PortMappingProtocol::UDP, client, seconds, DESCRIPTION);
            (any.map_err(|error| error.to_string())?, seconds)
        }
        Err(error) => return Err(error.to_string()),
    };
    Ok(Lease { external: SocketAddr::new(ip, external), gateway, client, lifetime })
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (done, result) = oneshot::channel();
    let started = thread::Builder::new().name("upnp".into()).spawn(move || {
        // Nobody waits any more while stopping.
        let _ = done.send(work());
    });
    started.map_err(|error| error.to_string())?;
    result.await.map_err(|_| "the conversation broke off".to_owned())?
}
