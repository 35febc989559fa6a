//! How people write a service: `[NAME=]PORT[:TARGET][/udp]`, the target a port or an address of this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use peerage_model::Label;

use super::document::{Service, Transport};

/// Text that is not a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidService {
    /// The port peers would connect to.
    #[error("`{0}` is not a port from 1 to 65535")]
    Port(String),
    /// Where it leads.
    #[error("`{0}` is not a target: write a port, or an IP address with a port like 127.0.0.1:8080")]
    Target(String),
    /// What it is called.
    #[error("`{0}` is not a name: use a-z, 0-9 and hyphens")]
    Name(String),
}

impl FromStr for Service {
    type Err = InvalidService;

    fn from_str(text: &str) -> Result<Self, InvalidService> {
        let (name, rest) = text.split_once('=').map_or((None, text), |(name, rest)| (Some(name), rest));
        let (rest, protocol) = match rest.strip_suffix("/udp") {
            Some(rest) => (rest, Transport::Udp),
            None => (rest.strip_suffix("/tcp").unwrap_or(rest), Transport::Tcp),
        };
        let (port, target) = rest.split_once(':').map_or((rest, None), |(port, target)| (port, Some(target)));
        let port = parse_port(port).ok_or_else(|| InvalidService::Port(port.into()))?;
        let target = match target {
            Some(target) => parse_target(target).ok_or_else(|| InvalidService::Target(target.into()))?,
            None => local(port),
        };
        let name = name.map_or_else(|| format!("{protocol}-{port}"), str::to_owned);
        let name: Label = name.parse().map_err(|_| InvalidService::Name(name))?;
        Ok(Self { name, port, protocol, target })
    }
}

fn parse_target(text: &str) -> Option<SocketAddr> {
    parse_port(text).map(local).or_else(|| text.parse().ok().filter(|address: &SocketAddr| address.port() != 0))
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_written_as_shortly_as_it_can_be() {
        for (text, name, port, protocol, target) in [
            ("8080", "tcp-8080", 8080, Transport::Tcp, "127.0.0.1:8080"),
            ("80:8080", "tcp-80", 80, Transport::Tcp, "127.0.0.1:8080"),
            ("mcp=80:10.0.0.7:8080", "mcp", 80, Transport::Tcp, "10.0.0.7:8080"),
            ("dns=53:5353/udp", "dns", 53, Transport::Udp, "127.0.0.1:5353"),
            ("80:[::1]:8080/tcp", "tcp-80", 80, Transport::Tcp, "[::1]:8080"),
        ] {
            let service: Service = text.parse().expect("it is a service");
            assert_eq!((service.name.as_str(), service.port, service.protocol), (name, port, protocol), "{text}");
            assert_eq!(service.target.to_string(), target, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_service_is_refused_by_the_part_that_is_wrong() {
        for text in ["", "0", "65536", "http", "=80x"] {
            assert!(matches!(text.parse::<Service>(), Err(InvalidService::Port(_))), "{text}");
        }
        for text in ["80:", "80:0", "80:host:80", "80:1.2.3.4"] {
            assert!(matches!(text.parse::<Service>(), Err(InvalidService::Target(_))), "{text}");
        }
        for text in ["=80", "A=80", "a_b=80"] {
            assert!(matches!(text.parse::<Service>(), Err(InvalidService::Name(_))), "{text}");
        }
    }
}
