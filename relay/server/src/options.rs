//! What a relay can be told on the command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args};
use peerage_model::Fingerprint;
use peerage_model::relay::{DEFAULT_PORT, RelayHost};
use peerage_relay_proto::{Access, Limits, Rate};

/// Runs a relay: it forwards sealed packets between agents, and holds no key that opens one.
// One of the two, and the error for neither names both.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("who_may_bind").args(["allow_authority", "open"]).required(true))]
pub struct Options {
    /// Address and UDP port to listen on; the default is every IPv6 and IPv4 address
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:3478", env = "PEERAGE_RELAY_LISTEN")]
    pub listen: SocketAddr,

    /// Address and TCP port for TLS, for agents whose network blocks UDP; networks let 443 through; the default is the
    /// address and port number of --listen, which need no privilege
    #[arg(long, value_name = "ADDRESS:PORT", env = "PEERAGE_RELAY_TLS_LISTEN")]
    pub tls_listen: Option<SocketAddr>,

    /// Serve UDP only
    #[arg(long, conflicts_with_all = ["tls_listen", "tls_streams"], env = "PEERAGE_RELAY_NO_TLS")]
    pub no_tls: bool,

    /// TLS streams at one time; each takes a file descriptor and, while idle, 14 KiB
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tls_streams: u32,

    /// Host name or address, and ports (UDP/TCP) if they are others, by which agents reach this relay
    #[arg(long, value_name = "HOST[:PORT[/TCPPORT]]", env = "PEERAGE_RELAY_ADVERTISE")]
    pub advertise: Option<Advertise>,

    /// File with the relay's key, by which agents know it; made, readable by this user only, when it does not exist
    /// [default: relay.key in the state directory]
    #[arg(long, value_name = "FILE", env = "PEERAGE_RELAY_KEY_FILE")]
    pub key_file: Option<PathBuf>,

    /// Authority whose agents may bind here; repeat for more, or give --open
    #[arg(
        long = "allow-authority",
        value_name = "FINGERPRINT",
        value_delimiter = ',',
        env = "PEERAGE_RELAY_ALLOW_AUTHORITY"
    )]
    pub allow_authority: Vec<Fingerprint>,

    /// Let agents of every authority bind, within quotas
    #[arg(long, env = "PEERAGE_RELAY_OPEN")]
    pub open: bool,

    /// A second address of this machine, so that agents can measure what their NAT lets in (RFC 5780). It answers STUN only. Where
    /// --listen is every address, the one that agents know goes before it. Unless said, its port is 3479 where the first
    /// is 3478, else any
    #[arg(long, value_name = "[IP,]IP[:PORT]", env = "PEERAGE_RELAY_STUN_ADDRESS")]
    pub stun_address: Option<StunAddress>,

    /// Address for /metrics, /healthz and /readyz over HTTP; nothing is served unless given
    #[arg(long, value_name = "ADDRESS:PORT", env = "PEERAGE_RELAY_METRICS")]
    pub metrics: Option<SocketAddr>,

    /// Sockets that share the port, each with a thread of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,

    /// Seconds to go on forwarding after being told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=3600))]
    pub grace: u16,

    /// Mb/s that one authority may send [default: 1000 with --open, no limit otherwise]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub authority_mbit: Option<u64>,

    /// Mb/s that one source network, a /24 or /48, may send [default: as for an authority]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub network_mbit: Option<u64>,

    /// Packets per second that one authority may send [default: 200000 with --open, no limit otherwise]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub authority_packets: Option<u64>,

    /// Packets per second that one source network may send [default: as for an authority]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub network_packets: Option<u64>,

    /// MiB for bindings, visitors and flows; what does not fit is refused, visitors first
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub memory: u32,

    /// MiB for mailboxes of public agents and the sealed requests in them; the oldest request goes first
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub mailbox_memory: u32,
}

impl Options {
    pub(crate) fn access(&self) -> Access {
        if self.open { Access::Open } else { Access::Only(self.allow_authority.iter().copied().collect()) }
    }

    pub(crate) fn limits(&self) -> Limits {
        let mut limits = if self.open { Limits::open() } else { Limits::allowlisted() };
        // A quarter of a second at once, as in docs/spec/relay.md section 6.
        let rate = |mbit: u64| Some(Rate::new(mbit * 125_000, mbit * 31_250));
        if let Some(mbit) = self.authority_mbit {
            limits.authority.bytes = rate(mbit);
        }
        if let Some(mbit) = self.network_mbit {
            limits.network.bytes = rate(mbit);
        }
        let packets = |count: u64| Some(Rate::new(count, (count / 4).max(1)));
        if let Some(count) = self.authority_packets {
            limits.authority.packets = packets(count);
        }
        if let Some(count) = self.network_packets {
            limits.network.packets = packets(count);
        }
        limits.memory = usize::try_from(u64::from(self.memory) << 20).unwrap_or(usize::MAX);
        limits.mailbox_memory = usize::try_from(u64::from(self.mailbox_memory) << 20).unwrap_or(usize::MAX);
        limits
    }
}

/// The second address for STUN, and its port if that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StunAddress {
    /// The address that agents know; `None` is the one that is listened on.
    pub first: Option<IpAddr>,
    /// The address.
    pub ip: IpAddr,
    /// `None`: see [`Options::stun_address`].
    pub port: Option<u16>,
}

impl FromStr for StunAddress {
    type Err = InvalidAdvertise;

    fn from_str(text: &str) -> Result<Self, InvalidAdvertise> {
        let address = |text: &str| -> Result<IpAddr, InvalidAdvertise> {
            let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
            bare.parse().map_err(|_| InvalidAdvertise)
        };
        let (first, second) = match text.split_once(',') {
            Some((first, second)) => (Some(address(first)?), second),
            None => (None, text),
        };
        if let Ok(ip) = address(second) {
            return Ok(Self { first, ip, port: None });
        }
        let address: SocketAddr = second.parse().map_err(|_| InvalidAdvertise)?;
        Ok(Self { first, ip: address.ip(), port: Some(address.port()) })
    }
}

/// Where agents reach the relay: a host, and a port if it is not the one listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// Host name or address.
    pub host: RelayHost,
    /// `None`: the port listened on.
    pub port: Option<u16>,
    /// The same for TLS.
    pub tls: Option<u16>,
}

/// Text that is not HOST or HOST:PORT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a host name or address, with :PORT or :UDPPORT/TCPPORT behind it if agents use other ports, and [ ] around IPv6"
)]
pub struct InvalidAdvertise;

impl FromStr for Advertise {
    type Err = InvalidAdvertise;

    fn from_str(text: &str) -> Result<Self, InvalidAdvertise> {
        if let Some((place, tls)) = text.split_once('/') {
            let tls = Some(tls.parse().ok().filter(|port| *port != 0).ok_or(InvalidAdvertise)?);
            return Ok(Self { tls, ..place.parse::<Self>()? });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                host: host(&address.ip().to_string())?,
                port: Some(address.port()).filter(|port| *port != 0),
                tls: None,
            });
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self { host: host(&ip.to_string())?, port: None, tls: None });
        }
        match text.split_once(':') {
            Some((name, port)) => Ok(Self {
                host: host(name)?,
                port: Some(port.parse().ok().filter(|port| *port != 0).ok_or(InvalidAdvertise)?),
                tls: None,
            }),
            None => Ok(Self { host: host(text)?, port: None, tls: None }),
        }
    }
}

fn host(text: &str) -> Result<RelayHost, InvalidAdvertise> {
    text.parse().map_err(|_| InvalidAdvertise)
}

const _: () = assert!(DEFAULT_PORT == 3478, "the default of --listen spells it out");

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args = std::iter::once(&"relay").chain(args);
        Command::try_parse_from(args).map(|command| command.options).map_err(|e| e.to_string())
    }

    #[test]
    fn who_may_bind_must_be_said() {
        let error = parse(&[]).expect_err("neither --open nor an authority");
        assert!(error.contains("--allow-authority") && error.contains("--open"), "{error}");
        assert_eq!(parse(&["--open"]).expect("said").access(), Access::Open);
    }

    #[test]
    fn listed_authorities_and_open_exclude_each_other() {
        let fingerprint = "11".repeat(32);
        let listed = parse(&["--allow-authority", &fingerprint]).expect("said");
        assert_eq!(listed.access(), Access::Only([Fingerprint([0x11; 32])].into()));
        assert!(parse(&["--open", "--allow-authority", &fingerprint]).is_err());
    }

    #[test]
    fn an_advertised_place_may_be_a_name_or_an_address_with_or_without_port() {
        let parsed = |text: &str| {
            let advertise: Advertise = text.parse().expect("it is a place");
            (advertise.host.as_str().to_owned(), advertise.port)
        };
        assert_eq!(parsed("relay.example.com"), ("relay.example.com".into(), None));
        assert_eq!(parsed("relay.example.com:443"), ("relay.example.com".into(), Some(443)));
        assert_eq!(parsed("203.0.113.7:443"), ("203.0.113.7".into(), Some(443)));
        assert_eq!(parsed("2001:db8::1"), ("2001:db8::1".into(), None));
        assert_eq!(parsed("[2001:db8::1]:443"), ("2001:db8::1".into(), Some(443)));
        let tls = |text: &str| text.parse::<Advertise>().expect("it is a place").tls;
        assert_eq!((tls("host:3478/443"), tls("[2001:db8::1]/443"), tls("host")), (Some(443), Some(443), None));
        for wrong in ["", "a b", "host:port", "host:0", "host:70000", "host:1/0", "host:1/x", "host/1/2"] {
            assert_eq!(wrong.parse::<Advertise>(), Err(InvalidAdvertise), "{wrong}");
        }
    }

    #[test]
    fn a_second_address_of_ipv6_may_stand_in_brackets_as_it_does_before_a_port() {
        let parsed = |text: &str| text.parse::<StunAddress>().expect("it is an address");
        assert_eq!(parsed("[2001:db8::2]"), parsed("2001:db8::2"));
        assert_eq!(parsed("[2001:db8::1],[2001:db8::2]:3479").port, Some(3479));
        for torn in ["[2001:db8::2", "2001:db8::2]", "[[2001:db8::2]]"] {
            torn.parse::<StunAddress>().expect_err("half a bracket is a mistake");
        }
    }

    #[test]
    fn a_limit_on_the_command_line_replaces_the_default() {
        let limits = parse(&["--open", "--authority-mbit", "8", "--memory", "1"]).expect("said").limits();
        assert_eq!(limits.authority.bytes, Some(Rate::new(1_000_000, 250_000)));
        assert_eq!(limits.memory, 1 << 20);
        let limits = parse(&["--open", "--authority-packets", "100", "--network-packets", "1"]).expect("said").limits();
        assert_eq!(limits.authority.packets, Some(Rate::new(100, 25)));
        assert_eq!(limits.network.packets, Some(Rate::new(1, 1)), "a burst of none would let nothing through");
    }
}
