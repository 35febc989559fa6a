//! TLS sessions that do not lean on certificates: what both kinds of them, to relays and to operators, have in common.

use std::net::IpAddr;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

/// 32 bytes that both ends of the session know and nobody else (RFC 8446 section 7.5), for `label` and an empty context.
pub(crate) fn exported(tls: &TlsStream<TcpStream>, label: &[u8]) -> Result<Zeroizing<[u8; 32]>, rustls::Error> {
    let mut out = Zeroizing::new([0; 32]);
    tls.get_ref().1.export_keying_material(&mut out[..], label, Some(&[]))?;
    Ok(out)
}

/// SNI carries names only (RFC 6066 section 3), so an address is not said.
pub(crate) fn server_name(host: &str) -> Option<ServerName<'static>> {
    match host.parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::IpAddress(ip.into())),
        Err(_) => ServerName::try_from(host.to_owned()).ok(),
    }
}
