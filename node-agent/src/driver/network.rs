//! Tells when this host's networks may have changed, and when the machine has slept.
//!
//! The kernel announces interfaces, addresses and routes over netlink (rtnetlink(7)). What it announces is only a reason
//! to look, so nothing of it is parsed but whether an address was taken away: a laptop that wakes up in another network
//! may have the same address there. Where netlink is denied (some sandboxes), looking once a second takes its place.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::debug;

/// How often the clocks are compared; two system calls.
const TICK: Duration = Duration::from_secs(1);
/// How often addresses are looked at all the same, in case an announcement was lost.
const LOOK: Duration = Duration::from_secs(30);
/// From the first announcement to the look: an interface that comes up announces itself in a burst.
const SETTLE: Duration = Duration::from_millis(50);
/// Time that passed while we did not run and that means more than a busy machine: SIGSTOP, a frozen container, a virtual
/// machine that was paused.
const STOPPED: Duration = Duration::from_secs(3);
/// The same for a machine that was suspended, which the kernel tells exactly.
const SUSPENDED: Duration = Duration::from_secs(1);

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR and RTMGRP_IPV6_ROUTE of rtnetlink(7).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// RTM_DELADDR of rtnetlink(7).
const ADDRESS_REMOVED: u16 = 21;
/// `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32, in the host's byte order (netlink(7)).
const HEADER: usize = 16;

/// What there is a reason to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Look at the addresses.
    Perhaps,
    /// An address went away: what was learned of the network is worth nothing, even if the addresses are the same again.
    Moved,
    /// We did not run for a while.
    Resumed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct NetworkWatch {
    kernel: Option<AsyncFd<OwnedFd>>,
    /// When to tell what the kernel announced, and what it was.
    settling: Option<(Instant, Change)>,
    tick: Interval,
    looked: Instant,
    clocks: Clocks,
}

impl NetworkWatch {
    pub(super) fn new() -> Self {
        let kernel = subscribe().inspect_err(|error| debug!(%error, "network changes are polled for")).ok();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { kernel, settling: None, tick, looked: Instant::now(), clocks: Clocks::new() }
    }

    /// Resolves when there is something to do. Loses nothing when dropped.
    pub(super) async fn changed(&mut self) -> Change {
        loop {
            let settled = self.settling.map(|(at, _)| at);
            let wait = async {
                match settled {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                heard = hear(self.kernel.as_ref()) => match heard {
                    Ok(change) => {
                        let (_, told) = self.settling.get_or_insert((Instant::now() + SETTLE, change));
                        if change == Change::Moved {
                            *told = change;
                        }
                    }
                    Err(error) => {
                        debug!(%error, "network changes are polled for");
                        self.kernel = None;
                    }
                },
                () = wait => if let Some((_, change)) = self.settling.take() {
                    self.looked = Instant::now();
                    return change;
                },
                _ = self.tick.tick() => {
                    if self.clocks.resumed(Instant::now()) {
                        return Change::Resumed;
                    }
                    if self.kernel.is_none() || self.looked.elapsed() >= LOOK {
                        self.looked = Instant::now();
                        return Change::Perhaps;
                    }
                }
            }
        }
    }
}

fn subscribe() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // NETLINK_ROUTE is protocol 0, which rustix writes as none.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    // SAFETY: an `OwnedFd` is the same open file for as long as it lives, and `AsyncFd` keeps it until it has deregistered it.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

/// Takes everything that the kernel has announced.
async fn hear(kernel: Option<&AsyncFd<OwnedFd>>) -> io::Result<Change> {
    let Some(kernel) = kernel else { return std::future::pending().await };
    loop {
        let mut ready = kernel.readable().await?;
        if let Some(change) = drain(kernel.get_ref())? {
            return Ok(change);
        }
        ready.clear_ready();
    }
}

fn drain(socket: &OwnedFd) -> io::Result<Option<Change>> {
    let mut heard = None;
    // What the kernel sends at most at once (NLMSG_GOODSIZE of a 4 KiB page, twice); what is cut off was heard all the same.
    let mut buffer = [0; 8192];
    loop {
        match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((length, _)) => {
                let change = if takes_away(&buffer[..length]) { Change::Moved } else { Change::Perhaps };
                heard = heard.max(Some(change));
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(heard),
            Err(rustix::io::Errno::INTR) => {}
            // Announcements were lost: the worst is assumed.
            Err(rustix::io::Errno::NOBUFS) => heard = Some(Change::Moved),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether one of these messages removes an address.
fn takes_away(mut messages: &[u8]) -> bool {
    while let Some((header, _)) = messages.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        if u16::from_ne_bytes([t0, t1]) == ADDRESS_REMOVED {
            return true;
        }
        // Messages begin at multiples of 4 (NLMSG_ALIGN). A length below the header's would stand still.
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX).max(HEADER);
        messages = messages.get(length.saturating_add(3) & !3..).unwrap_or_default();
    }
    false
}

/// Notices that we did not run.
#[derive(Debug)]
struct Clocks {
    /// How long the machine has been suspended since it started.
    suspended: Duration,
    last: Instant,
}

impl Clocks {
    fn new() -> Self {
        Self { suspended: suspended(), last: Instant::now() }
    }

    /// Whether we did not run since the last call, which was a [`TICK`] ago.
    fn resumed(&mut self, now: Instant) -> bool {
        let suspended = suspended();
        let slept = suspended.saturating_sub(self.suspended) >= SUSPENDED;
        let stopped = now.duration_since(self.last) >= TICK + STOPPED;
        *self = Self { suspended, last: now };
        slept || stopped
    }
}

/// CLOCK_MONOTONIC stands still while the machine is suspended, CLOCK_BOOTTIME does not (clock_gettime(2)).
fn suspended() -> Duration {
    let of = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    of(ClockId::Boottime).saturating_sub(of(ClockId::Monotonic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: usize) -> Vec<u8> {
        let length = u32::try_from(HEADER + body).expect("it is short");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        bytes.resize((HEADER + body).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn an_address_that_goes_is_told_from_one_that_comes() {
        assert!(!takes_away(&message(20, 25)));
        assert!(takes_away(&[message(20, 25), message(ADDRESS_REMOVED, 24)].concat()));
    }

    #[test]
    fn nonsense_neither_panics_nor_stands_still() {
        for length in 0..40 {
            assert!(!takes_away(&vec![0; length]));
            assert!(!takes_away(&vec![0xff; length]));
        }
    }

    #[test]
    fn time_that_passes_without_us_is_noticed_once() {
        let mut clocks = Clocks::new();
        let mut now = clocks.last + TICK;
        assert!(!clocks.resumed(now), "an ordinary tick");
        now += TICK + STOPPED;
        assert!(clocks.resumed(now), "as after SIGSTOP");
        now += TICK;
        assert!(!clocks.resumed(now), "only once");
    }

    #[tokio::test]
    async fn without_netlink_a_look_a_second_takes_its_place() {
        let mut watch = NetworkWatch::new();
        watch.kernel = None;
        for _ in 0..2 {
            assert_eq!(watch.changed().await, Change::Perhaps);
        }
    }
}
