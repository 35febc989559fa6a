//! Getting the right to make networks, without root where the kernel allows it.
//!
//! A process with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW has it already. Any other becomes root of a user
//! namespace of its own, where it may make as many network namespaces as it likes and can harm nobody. The kernel lets
//! only a process without threads do that, hence the two doors: [`enter`] as the first thing in `main`, or
//! [`command_inside`] to run a program (such as this one again) inside.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::{getgid, getuid};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};

use crate::netlink;
use crate::sys::{self, HookData};

/// Why this process cannot make networks.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The process has threads already.
    #[error(
        "a process with threads cannot enter a user namespace: call `enter` first thing in main, or use `command_inside`"
    )]
    Threads,
    /// The kernel, or a policy on top of it, forbids user namespaces.
    #[error("user namespaces are not permitted here: {hint}")]
    NotPermitted {
        /// What the administrator can do about it.
        hint: String,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The namespace exists but its user could not be mapped.
    #[error("could not map this user into its namespace: {hint}")]
    Map {
        /// What the administrator can do about it.
        hint: String,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// True where this process may make network namespaces and packet sockets.
#[must_use]
pub fn is_privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Makes this process privileged in a user, mount and network namespace of its own, unless it is privileged already.
/// Call it before any thread starts.
///
/// # Errors
/// Says what forbids it and what to do.
pub fn enter() -> Result<(), EnterError> {
    if is_privileged() {
        return Ok(());
    }
    let data = maps();
    sys::unshare(own_namespaces()).map_err(refused)?;
    map_root(&data).map_err(|cause| EnterError::Map { hint: hint(), cause })
}

/// As [`enter`], and in a network of its own also where the process was privileged already: what it and its children
/// listen on and connect to is theirs alone. Loopback is up; there is nothing else.
///
/// # Errors
/// As [`enter`].
pub fn enter_own_network() -> Result<(), EnterError> {
    match is_privileged() {
        true => sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET).map_err(refused)?,
        false => enter()?,
    }
    netlink::set_up(netlink::LOOPBACK).map_err(refused)
}

/// Prepares `command` to run as root of a user, mount and network namespace of its own. If the kernel refuses,
/// spawning fails; [`explain`] turns that into advice.
#[must_use]
pub fn command_inside(mut command: Command) -> Command {
    sys::before_exec(&mut command, become_root_inside, maps());
    command
}

/// What to do about a failed spawn of a [`command_inside`].
#[must_use]
pub fn explain(cause: io::Error) -> EnterError {
    refused(cause)
}

fn become_root_inside(data: &HookData) -> io::Result<()> {
    sys::unshare(own_namespaces())?;
    map_root(data)
}

const fn own_namespaces() -> UnshareFlags {
    UnshareFlags::NEWUSER.union(UnshareFlags::NEWNS).union(UnshareFlags::NEWNET)
}

fn maps() -> HookData {
    HookData {
        uid_map: format!("0 {} 1", getuid().as_raw()).into_bytes(),
        gid_map: format!("0 {} 1", getgid().as_raw()).into_bytes(),
    }
}

/// Makes system calls only: it also runs between fork and exec.
fn map_root(data: &HookData) -> io::Result<()> {
    // An unprivileged process may map its group only after giving up setgroups.
    write_file(c"/proc/self/setgroups", b"deny")?;
    write_file(c"/proc/self/uid_map", &data.uid_map)?;
    write_file(c"/proc/self/gid_map", &data.gid_map)
}

fn write_file(path: &CStr, content: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, content)?;
    Ok(())
}

fn refused(cause: io::Error) -> EnterError {
    if cause.raw_os_error() == Some(libc::EINVAL) {
        return EnterError::Threads;
    }
    EnterError::NotPermitted { hint: hint(), cause }
}

/// The three switches that distributions use, with the value that stands in the way where it can be read.
fn hint() -> String {
    let remedies: Vec<String> = SWITCHES
        .iter()
        .filter(|switch| switch.is_blocking())
        .map(|Switch { name, good, .. }| format!("as root run `sysctl -w {name}={good}`"))
        .collect();
    if remedies.is_empty() {
        "run as root, or look at kernel.unprivileged_userns_clone, user.max_user_namespaces, \
         kernel.apparmor_restrict_unprivileged_userns and, in a container, its seccomp profile"
            .to_owned()
    } else {
        format!("{}; or run as root", remedies.join(", "))
    }
}

/// A kernel setting that can forbid user namespaces.
struct Switch {
    name: &'static str,
    good: u64,
    /// True where zero is the value that forbids.
    zero_forbids: bool,
}

const SWITCHES: [Switch; 3] = [
    Switch { name: "kernel.unprivileged_userns_clone", good: 1, zero_forbids: true },
    Switch { name: "user.max_user_namespaces", good: 15_000, zero_forbids: true },
    Switch { name: "kernel.apparmor_restrict_unprivileged_userns", good: 0, zero_forbids: false },
];

impl Switch {
    /// A switch that this kernel lacks blocks nothing.
    fn is_blocking(&self) -> bool {
        let path = format!("/proc/sys/{}", self.name.replace('.', "/"));
        let value = fs::read_to_string(path).ok().and_then(|value| value.trim().parse::<u64>().ok());
        value.is_some_and(|value| (value == 0) == self.zero_forbids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let error = refused(io::Error::from_raw_os_error(libc::EPERM));
        assert!(error.to_string().contains("run as root"), "{error}");
    }

    #[test]
    fn a_process_with_threads_is_told_so() {
        assert!(matches!(refused(io::Error::from_raw_os_error(libc::EINVAL)), EnterError::Threads));
    }
}
