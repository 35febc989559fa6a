//! One system call for what goes to many: `sendmmsg`, which quinn-udp does not offer, and an option of sockets that it sets.
//!
//! The kernel stops at the first message that it does not take, and says how many it took before; asked again from there, it says why.
#![expect(unsafe_code, reason = "sendmmsg and setsockopt have no safe face; every block says why it is sound")]

use std::io::{self, IoSlice};
use std::mem;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockAddr;

use crate::socket::Envelope;

/// The most that one call sends. The kernel takes 1,024; entering it costs less than a tenth of a message at 64 already.
pub(crate) const MESSAGES: usize = 64;
/// Room for three control messages: where from (20 bytes with IPv6), the congestion mark, the size of segments; each with its header.
const CONTROL: usize = 96;

/// A datagram, or some for one GSO batch.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// With an address of the socket's family.
    pub(crate) envelope: Envelope,
    /// One behind the other.
    pub(crate) parts: &'a [IoSlice<'a>],
}

impl Message<'_> {
    /// Whether it is more than one datagram.
    pub(crate) fn is_batch(&self) -> bool {
        self.len() > self.envelope.segment
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }
}

/// Sends the first [`MESSAGES`] of these; says how many the kernel took.
///
/// # Errors
/// It did not take the first.
pub(crate) fn send(socket: impl AsFd, messages: &[Message<'_>]) -> io::Result<usize> {
    let messages = &messages[..messages.len().min(MESSAGES)];
    let mut envelopes: Vec<_> = messages.iter().map(|message| Sealed::new(message)).collect();
    let each = messages.iter().zip(&mut envelopes);
    let mut headers: Vec<_> = each.map(|(message, sealed)| header(message, sealed)).collect();
    // SAFETY: `headers` has as many headers as are said. What they point to (addresses and control messages in `envelopes`, which
    // does not grow any more; the parts and their bytes) outlives the call and is of the lengths beside the pointers. The kernel
    // writes nothing but `msg_len`.
    let sent = unsafe {
        let count = libc::c_uint::try_from(headers.len()).expect("at most MESSAGES");
        libc::sendmmsg(socket.as_fd().as_raw_fd(), headers.as_mut_ptr(), count, 0)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Has the kernel not tell when each datagram came, which quinn-udp asks it to: 32 bytes to write and to read for each.
pub(crate) fn without_timestamps(socket: impl AsFd) -> io::Result<()> {
    let (fd, off) = (socket.as_fd().as_raw_fd(), 0 as libc::c_int);
    let len = libc::socklen_t::try_from(size_of_val(&off)).expect("four bytes");
    // SAFETY: the option's value is a number that outlives the call, of the length that is said.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, (&raw const off).cast(), len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a header points to beside the bytes.
struct Sealed {
    to: SockAddr,
    control: Control,
}

impl Sealed {
    fn new(message: &Message<'_>) -> Self {
        let Envelope { to, local, ecn, segment } = message.envelope;
        let mut control = Control { bytes: [0; CONTROL], used: 0 };
        match local {
            Some(IpAddr::V4(ip)) => {
                let from = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
                let any = libc::in_addr { s_addr: 0 };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: any };
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(ip)) => {
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            None => {}
        }
        // No mark is what a socket sends by itself; each control message costs some ten nanoseconds.
        if let Some(ecn) = ecn {
            let mark = ecn as libc::c_int;
            match to.ip().to_canonical() {
                IpAddr::V4(_) => control.push(libc::IPPROTO_IP, libc::IP_TOS, mark),
                IpAddr::V6(_) => control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, mark),
            }
        }
        if message.is_batch() {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, u16::try_from(segment).unwrap_or(u16::MAX));
        }
        Self { to: to.into(), control }
    }
}

/// Control messages, one behind the other.
#[repr(C, align(8))]
struct Control {
    bytes: [u8; CONTROL],
    used: usize,
}

impl Control {
    /// Adds one, of a type as the kernel wants it.
    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        let size = libc::c_uint::try_from(size_of::<T>()).expect("some bytes");
        // SAFETY: these only calculate.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size)) };
        let place = &mut self.bytes[self.used..][..space];
        // SAFETY: a header is numbers, for which zero is a value.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        (header.cmsg_len, header.cmsg_level, header.cmsg_type) = (len as _, level, kind);
        let at = place.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: `place` has room for a header and, behind it and its padding, for the value; neither write needs an alignment.
        unsafe {
            at.write_unaligned(header);
            libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
        }
        self.used += space;
    }
}

/// The kernel's view of a message. Points to all that it is given.
fn header(message: &Message<'_>, sealed: &mut Sealed) -> libc::mmsghdr {
    // SAFETY: a header is numbers and pointers, for which zero is a value.
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_name = sealed.to.as_ptr().cast_mut().cast();
    header.msg_hdr.msg_namelen = sealed.to.len();
    // An `IoSlice` is what the kernel calls an iovec; it reads them only.
    header.msg_hdr.msg_iov = message.parts.as_ptr().cast_mut().cast();
    header.msg_hdr.msg_iovlen = message.parts.len() as _;
    if sealed.control.used > 0 {
        header.msg_hdr.msg_control = sealed.control.bytes.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = sealed.control.used as _;
    }
    header
}
