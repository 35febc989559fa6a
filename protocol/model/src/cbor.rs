//! How the few types that CBOR has no word for are written (RFC 8949, by minicbor).
//!
//! Every message is an integer-keyed map, so a newer writer may add keys that an older reader skips. Signed objects
//! sign the exact bytes that travel, so no canonical form is needed.

use minicbor::Encode;

/// Encodes a value that has no way to fail, since it goes to memory.
pub fn to_vec<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a Vec cannot fail, and our encoders have no errors of their own")
}

/// Implements a fixed-length CBOR byte string for a newtype over `[u8; N]`.
macro_rules! byte_string {
    ($name:ident, $len:expr) => {
        impl<C> ::minicbor::Encode<C> for $name {
            fn encode<W: ::minicbor::encode::Write>(
                &self,
                e: &mut ::minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), ::minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0[..])?.ok()
            }
        }

        impl<'b, C> ::minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut ::minicbor::Decoder<'b>, _: &mut C) -> Result<Self, ::minicbor::decode::Error> {
                let at = d.position();
                let bytes: [u8; $len] = d.bytes()?.try_into().map_err(|_| {
                    ::minicbor::decode::Error::message(concat!(stringify!($name), ": wrong length")).at(at)
                })?;
                Ok(Self(bytes.into()))
            }
        }
    };
}
pub(crate) use byte_string;

/// A socket address as a byte string: 4 or 16 address bytes, then the port, big-endian.
pub mod socket_addr {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    /// For `#[cbor(with)]`.
    ///
    /// # Errors
    /// Only those of the writer.
    pub fn encode<C, W: Write>(addr: &SocketAddr, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        let port = addr.port().to_be_bytes();
        match addr.ip() {
            IpAddr::V4(ip) => {
                let mut out = [0; 6];
                out[..4].copy_from_slice(&ip.octets());
                out[4..].copy_from_slice(&port);
                e.bytes(&out)?.ok()
            }
            IpAddr::V6(ip) => {
                let mut out = [0; 18];
                out[..16].copy_from_slice(&ip.octets());
                out[16..].copy_from_slice(&port);
                e.bytes(&out)?.ok()
            }
        }
    }

    /// For `#[cbor(with)]`.
    ///
    /// # Errors
    /// When it is not a byte string of 6 or 18 bytes.
    pub fn decode<'b, C>(d: &mut Decoder<'b>, _: &mut C) -> Result<SocketAddr, DecodeError> {
        let at = d.position();
        let bytes = d.bytes()?;
        let split = bytes.len().checked_sub(2).ok_or_else(|| wrong_length().at(at))?;
        let (ip, port) = bytes.split_at(split);
        let port = u16::from_be_bytes([port[0], port[1]]);
        if let Ok(v4) = <[u8; 4]>::try_from(ip) {
            return Ok(SocketAddr::new(Ipv4Addr::from(v4).into(), port));
        }
        let v6 = <[u8; 16]>::try_from(ip).map_err(|_| wrong_length().at(at))?;
        Ok(SocketAddr::new(Ipv6Addr::from(v6).into(), port))
    }

    fn wrong_length() -> DecodeError {
        DecodeError::message("a socket address is 6 or 18 bytes")
    }
}
