//! System calls that Rust cannot check: with its receive ring the only `unsafe` of this crate.
//!
//! Namespaces are made with rustix and links are configured over netlink, both without `unsafe` of ours; what is left is
//! packet sockets (rustix does not know their address), leaving a namespace, and hooks between fork and
//! exec.
#![expect(unsafe_code, reason = "system calls that no safe wrapper covers; every block says why it is sound")]

mod ring;

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::UnshareFlags;

pub(crate) use ring::Ring;

/// Frames per system call: enough that the call's cost no longer shows, few enough that a host does not wait long for its
/// first.
pub(crate) const BATCH: usize = 32;

/// Moves the calling thread, or before threads exist the process, into new namespaces.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "threads share their descriptors");
    // SAFETY: the one hazard of unshare, a private descriptor table, is excluded above.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Runs `hook` in the child between fork and exec. It must only make system calls: no allocation, no locks.
pub(crate) fn before_exec(command: &mut Command, hook: fn(&HookData) -> io::Result<()>, data: HookData) {
    // SAFETY: both hooks of this crate (`enter::become_root_inside`, `host::die_with_parent`) make system calls on data
    // prepared before the fork, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || hook(&data)) };
}

/// What a hook may need, made before the fork.
#[derive(Debug, Default)]
pub(crate) struct HookData {
    /// The line for `/proc/self/uid_map`.
    pub uid_map: Vec<u8>,
    /// The line for `/proc/self/gid_map`.
    pub gid_map: Vec<u8>,
}

/// What a packet socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frames {
    /// IPv4 only.
    Ipv4,
    /// Everything.
    All,
}

/// A packet socket on one interface of the calling thread's network namespace. What it carries is behind a virtio-net
/// header, so that batches made by segmentation offload stay whole and checksums may stay partial.
pub(crate) fn packet_socket(interface: u32, frames: Frames) -> io::Result<(OwnedFd, Ring)> {
    let protocol = match frames {
        Frames::Ipv4 => (libc::ETH_P_IP as u16).to_be(),
        Frames::All => (libc::ETH_P_ALL as u16).to_be(),
    };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // Protocol 0: nothing arrives until the socket is bound to its interface.
    // SAFETY: socket takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed out this descriptor and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    ring::set_option(&socket, libc::PACKET_VNET_HDR, &1_i32)?;
    if frames == Frames::All {
        // A socket for everything also sees what is sent through its own interface, by itself too.
        ring::set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    }
    let ring = Ring::new(&socket)?;

    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = interface as i32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the length describe `address`, which outlives the call.
    let bound = unsafe { libc::bind(raw, (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok((socket, ring)) }
}

/// Sends up to [`BATCH`] frames. Returns how many went out, at least one; an error is about the first frame.
pub(crate) fn send_batch(socket: impl AsFd, frames: &[&[u8]]) -> io::Result<usize> {
    let mut parts = [EMPTY_PART; BATCH];
    let count = frames.len().min(BATCH);
    for (part, frame) in parts.iter_mut().zip(frames) {
        // The kernel only reads from a part that is sent; the type is shared with receiving.
        *part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    }
    let mut messages = messages(&mut parts);
    let raw = socket.as_fd().as_raw_fd();
    // SAFETY: each of the first `count` messages points at one part, and each part at one frame borrowed for this call,
    // which the kernel only reads.
    let sent = unsafe { libc::sendmmsg(raw, messages.as_mut_ptr(), count as u32, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

const EMPTY_PART: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn messages(parts: &mut [libc::iovec; BATCH]) -> [libc::mmsghdr; BATCH] {
    // SAFETY: mmsghdr is integers and pointers, for which zero is a value.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    for (message, part) in messages.iter_mut().zip(parts) {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    messages
}
