//! What the demo can be told.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use peerage_netlab::NatKind;

/// Options of `peerage demo`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What stands between the laptop and the internet
    #[arg(long, value_enum, value_name = "KIND", default_value_t = NatPreset::PortRestricted)]
    pub nat_a: NatPreset,

    /// What stands between the machine of db-tool-server and the internet
    #[arg(long, value_enum, value_name = "KIND", default_value_t = NatPreset::PortRestricted)]
    pub nat_b: NatPreset,

    /// Round trip between the two when they send to each other directly; by relay it is half as much again
    #[arg(long, value_name = "MS", default_value_t = 40, value_parser = clap::value_parser!(u16).range(0..=500))]
    pub rtt: u16,

    /// Keep logs and state, and say where they are
    #[arg(long)]
    pub keep: bool,

    /// Be the demo's MCP server instead
    #[arg(long, value_name = "ADDRESS:PORT", hide = true)]
    pub serve_mcp: Option<SocketAddr>,
}

/// A kind of NAT, by the name that people know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NatPreset {
    /// No NAT: a public address
    None,
    /// Whoever knows the public address and port may send to it
    FullCone,
    /// Only addresses that were sent to may answer
    RestrictedCone,
    /// Only addresses and ports that were sent to may answer: most home routers
    PortRestricted,
    /// Another public port for each destination: most cloud gateways and mobile networks
    Symmetric,
}

impl NatPreset {
    /// How the lab does it.
    pub(crate) const fn kind(self) -> NatKind {
        match self {
            Self::None => NatKind::none(),
            Self::FullCone => NatKind::full_cone(),
            Self::RestrictedCone => NatKind::restricted_cone(),
            Self::PortRestricted => NatKind::home_router(),
            Self::Symmetric => NatKind::symmetric_random(),
        }
    }

    /// Whether this is what an agent behind it may find out. Relays with one address each cannot tell the cones apart.
    pub(crate) fn is_found_as(self, word: &str) -> bool {
        match self {
            Self::None => matches!(word, "open internet" | "no NAT" | "firewalled"),
            Self::FullCone | Self::RestrictedCone | Self::PortRestricted => word.contains("cone"),
            Self::Symmetric => word == "symmetric",
        }
    }

    /// For the picture.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::None => "no NAT",
            Self::FullCone => "full-cone NAT",
            Self::RestrictedCone => "restricted-cone NAT",
            Self::PortRestricted => "port-restricted NAT",
            Self::Symmetric => "symmetric NAT",
        }
    }
}
