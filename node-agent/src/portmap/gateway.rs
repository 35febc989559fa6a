//! Who our router is: the gateway of the default route, and our address towards it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use super::is_public;

/// Flags of a route (`RTF_UP` and `RTF_GATEWAY` of Linux's `route.h`).
const UP_BY_GATEWAY: u32 = 0x1 | 0x2;

/// Where we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// The router.
    pub(super) gateway: Ipv4Addr,
    /// We, as it sees us.
    pub(super) client: Ipv4Addr,
}

impl Network {
    /// Looks; or says why there is nobody to ask.
    pub(super) fn find() -> Result<Self, String> {
        let routes =
            fs::read_to_string("/proc/net/route").map_err(|error| format!("the routes cannot be read: {error}"))?;
        let gateway = default_gateway(&routes).ok_or("there is no default route by a gateway")?;
        let client = source_towards(gateway).ok_or("the gateway of the default route cannot be reached")?;
        if is_public(client.into()) {
            return Err("this machine has a public address".into());
        }
        Ok(Self { gateway, client })
    }
}

/// The gateway of the default route with the lowest metric, from `/proc/net/route` (proc(5)).
fn default_gateway(routes: &str) -> Option<Ipv4Addr> {
    let gateway = |line: &str| {
        // Interface, destination, gateway, flags, references, uses, metric, mask, …
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, destination, gateway, flags, _, _, metric, mask, ..] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let default = destination == "00000000" && mask == "00000000" && flags & UP_BY_GATEWAY == UP_BY_GATEWAY;
        // The kernel prints the four bytes as one number of the host's byte order.
        let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
        default.then_some((metric.parse::<u32>().ok()?, gateway))
    };
    routes.lines().filter_map(gateway).min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

/// Which of our addresses packets to `gateway` come from. Nothing is sent.
fn source_towards(gateway: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Any port does: connecting only makes the kernel choose a route.
    socket.connect((gateway, 9)).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(ip: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(ip))
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_counts() {
        let row = |destination, gateway, flags, metric, mask| {
            format!(
                "eth0\t{}\t{}\t{flags}\t0\t0\t{metric}\t{}\t0\t0\t0\n",
                number(destination),
                number(gateway),
                number(mask)
            )
        };
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let any = [0; 4];
        let routes = [
            head.to_owned(),
            row(any, [192, 168, 7, 1], "0003", 600, any),
            row(any, [192, 168, 1, 1], "0003", 100, any),
            // On the link, down, and not the default.
            row(any, any, "0001", 0, any),
            row(any, [10, 0, 0, 1], "0002", 0, any),
            row([10, 0, 0, 0], [10, 0, 0, 2], "0003", 0, [255, 0, 0, 0]),
        ];
        assert_eq!(default_gateway(&routes.concat()), Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(default_gateway(head), None);
    }
}
