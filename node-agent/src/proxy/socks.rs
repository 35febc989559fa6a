//! SOCKS5: RFC 1928, method "no authentication", command CONNECT.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use peerage_model::AgentId;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server::Clients;
use crate::tunnel::{DialError, TunnelStream};

/// First byte of every message of version 5.
pub(super) const VERSION: u8 = 5;

const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// Reply codes, RFC 1928 section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// The stream is open.
    Succeeded = 0,
    /// Not a trusted peer.
    NotAllowed = 2,
    /// The peer did not answer.
    HostUnreachable = 4,
    /// The peer refused.
    Refused = 5,
    /// Not CONNECT.
    CommandNotSupported = 7,
    /// Neither name nor address.
    AddressTypeNotSupported = 8,
}

/// Where a SOCKS client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// As an address.
    Address(IpAddr),
    /// By name; anything that is text.
    Name(String),
}

/// Finds out where the client wants to go, opens the stream and tells it. `None` when it was refused.
pub(super) async fn greet(
    clients: &Clients,
    stream: &mut TcpStream,
) -> io::Result<Option<(AgentId, u16, TunnelStream)>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let mut methods = vec![0; usize::from(head[1])];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_METHOD]).await?;
        return Ok(None);
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let request = read_request(stream).await?.and_then(|(host, port)| {
        let peer = match &host {
            Host::Address(address) => clients.by_address(*address),
            Host::Name(name) => clients.by_name(name),
        };
        peer.map(|peer| (peer, port)).ok_or(Reply::NotAllowed)
    });
    let outcome = match request {
        Ok((peer, port)) => match clients.outbound.open_stream(&peer, port).await {
            Ok(tunnel) => Ok((peer, port, tunnel)),
            Err(error) => Err(reply_of(&error)),
        },
        Err(reply) => Err(reply),
    };
    let code = outcome.as_ref().err().copied().unwrap_or(Reply::Succeeded);
    // The bound address means nothing to a client of CONNECT; zeros are the custom.
    stream.write_all(&[VERSION, code as u8, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(outcome.ok())
}

/// Reads a SOCKS5 request: version, command, reserved, address type, address, port.
///
/// # Errors
/// The stream's own, and `InvalidData` for another version; inside, what the client is told.
pub async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Result<(Host, u16), Reply>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [VERSION, command, _, kind] = head else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a SOCKS5 request"));
    };
    // The whole request is read before any refusal, or closing would reset the connection under the reply.
    let host = match kind {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address).await?;
            Some(Host::Address(Ipv4Addr::from(address).into()))
        }
        3 => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).ok().map(Host::Name)
        }
        4 => {
            let mut address = [0; 16];
            stream.read_exact(&mut address).await?;
            Some(Host::Address(Ipv6Addr::from(address).into()))
        }
        _ => return Ok(Err(Reply::AddressTypeNotSupported)),
    };
    let port = stream.read_u16().await?;
    if command != CONNECT {
        return Ok(Err(Reply::CommandNotSupported));
    }
    Ok(host.map(|host| (host, port)).ok_or(Reply::NotAllowed))
}

fn reply_of(error: &DialError) -> Reply {
    match error {
        DialError::NotTrusted { .. } => Reply::NotAllowed,
        DialError::Refused { .. } => Reply::Refused,
        DialError::Unreachable { .. } | DialError::Ended { .. } => Reply::HostUnreachable,
    }
}
