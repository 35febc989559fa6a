//! Just enough rtnetlink (RFC 3549) to make a link between two namespaces and give it an address and a route.
//!
//! Each function speaks about the network namespace of the thread that calls it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// One end of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
    pub(crate) mac: Mac,
}

/// Makes a veth pair: `near` in this namespace, `far` in the namespace `there`.
pub(crate) fn create_link(near: LinkEnd<'_>, far: LinkEnd<'_>, there: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    message.link_header(near.index, 0, 0);
    message.link_end(near);
    message.nested(libc::IFLA_LINKINFO, |info| {
        info.attribute(libc::IFLA_INFO_KIND, b"veth");
        info.nested(libc::IFLA_INFO_DATA, |data| {
            data.nested(VETH_INFO_PEER, |peer| {
                peer.link_header(far.index, 0, 0);
                peer.link_end(far);
                peer.attribute(libc::IFLA_NET_NS_FD, &there.as_raw_fd().to_ne_bytes());
            });
        });
    });
    message.ask()
}

/// Brings a link up, without ARP: both ends know each other.
pub(crate) fn set_up(index: u32) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, 0);
    let flags = (libc::IFF_UP | libc::IFF_NOARP) as u32;
    // The loopback answers with EINVAL to a changed IFF_NOARP in no kernel, but it needs none either.
    let flags = if index == LOOPBACK { libc::IFF_UP as u32 } else { flags };
    message.link_header(index, flags, flags);
    message.ask()
}

/// Waits until a link that is up at both ends carries packets.
///
/// The kernel notes a new carrier in the background, at most once a second; until then it drops what is sent. Kernels
/// from 6.8 on catch up when they are asked, so that the first answer is mostly the last.
pub(crate) fn wait_for_carrier(index: u32) -> io::Result<()> {
    for _ in 0..CARRIER_TRIES {
        let mut message = Message::new(libc::RTM_GETLINK, 0);
        message.link_header(index, 0, 0);
        let answer = message.exchange()?;
        let is_link = answer.get(4..6) == Some(&libc::RTM_NEWLINK.to_ne_bytes());
        if is_link && word(&answer, HEADER_BYTES + 8)? & libc::IFF_RUNNING as u32 != 0 {
            return Ok(());
        }
        std::thread::sleep(CARRIER_INTERVAL);
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Five seconds in all: the kernel's background pace is one.
const CARRIER_TRIES: u32 = 1_000;
const CARRIER_INTERVAL: Duration = Duration::from_millis(5);

/// The loopback's index in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Gives a link an address within a /24.
pub(crate) fn add_address(index: u32, address: Ipv4Addr) -> io::Result<()> {
    add_address_of(index, address, 24)
}

/// Gives a link an address within a network of that prefix length.
pub(crate) fn add_address_of(index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    change_address(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, index, address, prefix)
}

/// Takes an address away from a link.
pub(crate) fn remove_address(index: u32, address: Ipv4Addr) -> io::Result<()> {
    remove_address_of(index, address, 24)
}

/// Takes an address within a network of that prefix length away from a link.
pub(crate) fn remove_address_of(index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    change_address(libc::RTM_DELADDR, 0, index, address, prefix)
}

/// Sends everything that has no better route to a link.
pub(crate) fn add_default_route(index: u32) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    // struct rtmsg: family, two prefix lengths, tos, table, protocol, scope, type, flags.
    message.bytes(&[libc::AF_INET as u8, 0, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_LINK]);
    message.bytes(&[libc::RTN_UNICAST, 0, 0, 0, 0]);
    message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
    message.ask()
}

fn change_address(kind: u16, flags: i32, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mut message = Message::new(kind, flags);
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    message.bytes(&[libc::AF_INET as u8, prefix, 0, 0]);
    message.bytes(&index.to_ne_bytes());
    message.attribute(libc::IFA_LOCAL, &address.octets());
    message.attribute(libc::IFA_ADDRESS, &address.octets());
    message.ask()
}

/// Makes connection tracking forget everything (ctnetlink: `IPCTNL_MSG_CT_DELETE` that names no entry).
pub(crate) fn flush_conntrack() -> io::Result<()> {
    let mut message = Message::new(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, 0);
    // struct nfgenmsg: family, version, resource.
    message.bytes(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
    message.ask_of(Some(rustix::net::netlink::NETFILTER))
}

/// From linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

const VETH_INFO_PEER: u16 = 1;
const HEADER_BYTES: usize = 16;

/// A request under construction. Lengths are filled in when a part is complete.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut message = Self(vec![0; HEADER_BYTES]);
        message.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        message
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// struct ifinfomsg.
    fn link_header(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        for word in [index, flags, change] {
            self.bytes(&word.to_ne_bytes());
        }
    }

    fn link_end(&mut self, end: LinkEnd<'_>) {
        self.attribute(libc::IFLA_IFNAME, &[end.name.as_bytes(), b"\0"].concat());
        self.attribute(libc::IFLA_ADDRESS, &end.mac);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.bytes(value));
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(&[0, 0]);
        self.bytes(&kind.to_ne_bytes());
        fill(self);
        // The length excludes the padding to four bytes that follows.
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Sends the request and waits for the kernel's verdict.
    fn ask(self) -> io::Result<()> {
        // NETLINK_ROUTE is protocol 0, which is what `None` stands for.
        self.ask_of(None)
    }

    fn ask_of(self, protocol: Option<Protocol>) -> io::Result<()> {
        let answer = self.exchange_with(protocol)?;
        // struct nlmsgerr begins with the negative error number, 0 for success.
        match word(&answer, HEADER_BYTES)? {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code.cast_signed().wrapping_neg())),
        }
    }

    fn exchange(self) -> io::Result<Vec<u8>> {
        self.exchange_with(None)
    }

    fn exchange_with(mut self, protocol: Option<Protocol>) -> io::Result<Vec<u8>> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        send(&socket, &self.0, SendFlags::empty())?;
        let mut answer = vec![0; 8192];
        let (received, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        answer.truncate(received);
        Ok(answer)
    }
}

fn word(answer: &[u8], at: usize) -> io::Result<u32> {
    let bytes: Option<[u8; 4]> = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
