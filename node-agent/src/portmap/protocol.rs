//! One mapping, by whichever protocol the router speaks.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    InternetProtocol, MappingFailure, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp,
};

use super::gateway::Network;
use super::{LIFETIME, Protocol, upnp};

/// Four tries within 4 s. The protocols ask for more patience (RFC 6887 section 8.1.1: without end), which nobody has
/// who waits for the next protocol's turn; RFC 6886 section 3.1 starts at the same 250 ms.
const TRIES: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 3, max_retry_timeout: None };

/// A mapping that was granted.
#[derive(Debug)]
pub(super) struct Lease {
    /// What leads to us.
    pub(super) external: SocketAddr,
    /// Who granted it.
    pub(super) by: Protocol,
    /// For how long.
    pub(super) lifetime: Duration,
    held: Held,
}

#[derive(Debug)]
enum Held {
    /// PCP or NAT-PMP.
    Mapping(PortMapping),
    Upnp(upnp::Lease),
}

impl Lease {
    /// Asks for `port` in each protocol until one grants it; or says why none did.
    pub(super) async fn obtain(network: Network, port: NonZeroU16) -> Result<Self, String> {
        let options = options(port);
        let gateway = network.gateway.into();
        let asked = PortMapping::new(gateway, network.client.into(), InternetProtocol::Udp, port, options).await;
        let pmp = match asked {
            // A router that answers PCP with a refusal may still be one whose NAT-PMP works.
            Err(MappingFailure::Pcp(refused)) if !matches!(refused, crab_nat::pcp::Failure::Timeout) => {
                natpmp::port_mapping(gateway, InternetProtocol::Udp, port, options)
                    .await
                    .map_err(|_| refused.to_string())
            }
            Err(failure) => Err(failure.to_string()),
            Ok(mapping) => Ok(mapping),
        };
        let granted = match pmp {
            Ok(mapping) => Self::of(mapping).await,
            Err(why) => Err(why),
        };
        match granted {
            Ok(lease) => Ok(lease),
            Err(why) => {
                let lease = upnp::obtain(network, port).await.map_err(|upnp| format!("{why}; UPnP-IGD: {upnp}"))?;
                Ok(Self::upnp(lease))
            }
        }
    }

    /// Asks for the same again. A router that restarted makes it anew (RFC 6886 section 3.6).
    pub(super) async fn renew(&mut self) -> Result<(), String> {
        *self = match &self.held {
            Held::Mapping(mapping) => {
                let mut mapping = mapping.clone();
                mapping.renew().await.map_err(|failure| failure.to_string())?;
                Self::of(mapping).await?
            }
            Held::Upnp(lease) => Self::upnp(lease.renew().await?),
        };
        Ok(())
    }

    /// Tells the router that we need it no more. It ends by itself where that does not arrive.
    pub(super) async fn give_back(self) {
        match self.held {
            Held::Mapping(mapping) => {
                let _ = mapping.try_drop().await;
            }
            Held::Upnp(lease) => lease.give_back().await,
        }
    }

    async fn of(mapping: PortMapping) -> Result<Self, String> {
        let (ip, by): (IpAddr, _) = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => (external_ip.to_canonical(), Protocol::Pcp),
            PortMappingType::NatPmp => {
                let asked = natpmp::external_address(mapping.gateway(), Some(TRIES)).await;
                (asked.map_err(|failure| failure.to_string())?.into(), Protocol::NatPmp)
            }
        };
        Ok(Self {
            external: SocketAddr::new(ip, mapping.external_port().get()),
            by,
            lifetime: Duration::from_secs(mapping.lifetime().into()),
            held: Held::Mapping(mapping),
        })
    }

    fn upnp(lease: upnp::Lease) -> Self {
        Self { external: lease.external, by: Protocol::UpnpIgd, lifetime: LIFETIME, held: Held::Upnp(lease) }
    }
}

fn options(port: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        // Our own number, where it is free: people who look at their router's list recognise it.
        external_port: Some(port),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(TRIES),
    }
}
