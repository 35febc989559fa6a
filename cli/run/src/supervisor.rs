//! Answers the calls that the filter stops.
//!
//! One thread receives. Almost every answer is "go on", given after one read of the caller's
//! memory. Only three things are done in the caller's place: opening a resolver's file, connecting
//! to an address that stands for another, and sending to one. What may block goes to the pool.
//!
//! This is a convenience for the program, not a fence around it: a program that changes the address
//! between our reading and the kernel's gets what it then asked for, with its own rights.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{SendFlags, SocketType};
use rustix::process::Pid;

use crate::address::{self, Target};
use crate::files::{self, DNS_ADDRESS, ResolverFile};
use crate::filter::NOT_A_RESOLVER;
use crate::pool::Pool;
use crate::sys::{self, Listener, Notification, Reply};
use crate::{Directory, Redirect, Transport, process};

/// What the program shall find.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) names: Arc<dyn Directory>,
    pub(crate) redirect: Arc<dyn Redirect>,
}

pub(crate) struct Supervisor {
    listener: Arc<Listener>,
    world: World,
    pool: Pool,
}

/// A blocking connect looks this often whether a signal or death shall end it.
const SLICE: Duration = Duration::from_millis(100);

impl Supervisor {
    pub(crate) fn new(listener: Listener, world: World) -> Self {
        Self { listener: Arc::new(listener), world, pool: Pool::default() }
    }

    /// Answers until the last process under the filter has ended, or `stop` becomes readable.
    pub(crate) fn serve(&self, stop: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let mut ready =
                [PollFd::new(self.listener.fd(), PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let [calls, stopped] = ready.map(|fd| fd.revents());
            if calls.contains(PollFlags::IN) {
                match self.listener.receive() {
                    Ok(call) => self.handle(&call),
                    // The caller was killed, or a signal met us.
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
                    Err(error) => return Err(error),
                }
            } else if !calls.is_empty() || !stopped.is_empty() {
                return Ok(());
            }
        }
    }

    fn handle(&self, call: &Notification) {
        let [first, second, third, ..] = call.arguments;
        let reply = match call.number {
            libc::SYS_openat => self.open(call, second, third as u32),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.open(call, first, second as u32),
            libc::SYS_openat2 => self.openat2(call),
            libc::SYS_connect => self.connect(call, first as RawFd),
            libc::SYS_sendto => self.send_to(call, first as RawFd),
            _ => Some(Reply::Continue),
        };
        if let Some(reply) = reply {
            self.listener.answer(call.id, reply);
        }
    }

    /// `None`: answered already.
    fn open(&self, call: &Notification, path: u64, flags: u32) -> Option<Reply> {
        let mut bytes = [0; files::LONGEST_PATH];
        let Ok(read) = sys::read_memory(call.thread, path, &mut bytes) else {
            return Some(Reply::Continue);
        };
        let Some(wanted) = ResolverFile::from_memory(&bytes[..read]) else {
            return Some(Reply::Continue);
        };
        match self.resolver_file(call, wanted) {
            Ok(Some(file)) => {
                let close_on_exec = flags & libc::O_CLOEXEC as u32 != 0;
                let given = self.listener.answer_with_file(call.id, &file, close_on_exec);
                given.err().map(|error| Reply::Error(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
            }
            Ok(None) => Some(Reply::Continue),
            Err(error) => {
                tracing::debug!(%error, file = wanted.path(), "the program reads the original");
                Some(Reply::Continue)
            }
        }
    }

    fn openat2(&self, call: &Notification) -> Option<Reply> {
        // struct open_how: flags, mode, resolve. A resolver asks for no special resolution.
        let mut how = [0; 24];
        let read = sys::read_memory(call.thread, call.arguments[2], &mut how).unwrap_or(0);
        let flags = u64::from_ne_bytes(*how.first_chunk().expect("24 bytes hold 8"));
        let resolve = u64::from_ne_bytes(*how.last_chunk().expect("24 bytes hold 8"));
        match u32::try_from(flags) {
            Ok(flags) if read == how.len() && resolve == 0 && flags & NOT_A_RESOLVER == 0 => {
                self.open(call, call.arguments[1], flags)
            }
            _ => Some(Reply::Continue),
        }
    }

    /// The file as the program shall see it; `None` where it needs no change.
    fn resolver_file(&self, call: &Notification, wanted: ResolverFile) -> io::Result<Option<OwnedFd>> {
        if wanted == ResolverFile::Resolv && self.world.redirect.dns().is_none() {
            return Ok(None);
        }
        let mut original = Vec::new();
        match process::open_in_root(call.thread, wanted.path()) {
            Ok(file) => drop(File::from(file).read_to_end(&mut original)?),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let text = match wanted {
            ResolverFile::Hosts => files::hosts(&original, &self.world.names.names()),
            ResolverFile::Resolv => files::resolv(&original),
            ResolverFile::Nsswitch => files::nsswitch(&original),
        };
        sealed_file(wanted.path(), &text).map(Some)
    }

    fn connect(&self, call: &Notification, fd: RawFd) -> Option<Reply> {
        let [_, at, len, ..] = call.arguments;
        let asked = match self.target(call, at, len) {
            Target::Ip(asked) => asked,
            Target::NameCache => return Some(Reply::Error(Errno::NOENT)),
            Target::Other => return Some(Reply::Continue),
        };
        let Some((socket, to, transport)) = self.redirected(call, fd, asked) else {
            return Some(Reply::Continue);
        };
        if transport == Transport::Udp || is_nonblocking(&socket) {
            return Some(result(rustix::net::connect(&socket, &to).map(|()| 0)));
        }
        let call = *call;
        self.in_pool(call, move |listener| connect_blocking(listener, &call, &socket, to))
    }

    fn send_to(&self, call: &Notification, fd: RawFd) -> Option<Reply> {
        let [_, data, data_len, flags, at, len] = call.arguments;
        let Target::Ip(asked) = self.target(call, at, len) else {
            return Some(Reply::Continue);
        };
        let Some((socket, to, transport)) = self.redirected(call, fd, asked) else {
            return Some(Reply::Continue);
        };
        let flags = SendFlags::from_bits_retain(flags as u32) | SendFlags::NOSIGNAL;
        let data_len = usize::try_from(data_len).unwrap_or(usize::MAX);
        // A stream's address only counts when this call also connects (TCP fast open). A datagram
        // longer than any protocol's gets its error from the kernel.
        let fast_open = flags.contains(SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32));
        let as_is = match transport {
            Transport::Tcp => !fast_open,
            Transport::Udp => data_len > sys::MOST_MEMORY,
        };
        if as_is {
            return Some(Reply::Continue);
        }
        let mut bytes = vec![0; data_len.min(sys::MOST_MEMORY)];
        match sys::read_memory(call.thread, data, &mut bytes) {
            Ok(read) if read == bytes.len() && self.listener.is_waiting(call.id) => {}
            _ if bytes.is_empty() => {}
            _ => return Some(Reply::Error(Errno::FAULT)),
        }
        if transport == Transport::Udp || is_nonblocking(&socket) {
            match rustix::net::sendto(&socket, &bytes, flags | SendFlags::DONTWAIT, &to) {
                Err(Errno::AGAIN) if !is_nonblocking(&socket) && !flags.contains(SendFlags::DONTWAIT) => {}
                sent => return Some(result(sent.map(|sent| sent as i64))),
            }
        }
        self.in_pool(*call, move |_| {
            Some(result(rustix::net::sendto(&socket, &bytes, flags, &to).map(|sent| sent as i64)))
        })
    }

    /// Answers `call` with what `work` returns, from another thread.
    fn in_pool(
        &self,
        call: Notification,
        work: impl FnOnce(&Listener) -> Option<Reply> + Send + 'static,
    ) -> Option<Reply> {
        let listener = Arc::clone(&self.listener);
        let job = move || {
            if let Some(reply) = work(&listener) {
                listener.answer(call.id, reply);
            }
        };
        // As the kernel says when it has no memory for a connection.
        self.pool.run(Box::new(job)).err().map(|_| Reply::Error(Errno::NOBUFS))
    }

    fn target(&self, call: &Notification, at: u64, len: u64) -> Target {
        let mut bytes = [0; address::LONGEST];
        // The kernel takes the length as an int and refuses one it does not like: leave that to it.
        let Some(bytes) = usize::try_from(len as u32).ok().and_then(|len| bytes.get_mut(..len)) else {
            return Target::Other;
        };
        match sys::read_memory(call.thread, at, bytes) {
            Ok(read) if read == bytes.len() => Target::from_memory(bytes),
            Ok(_) | Err(_) => Target::Other,
        }
    }

    /// The caller's socket and where it shall really go; `None`: leave the call alone.
    fn redirected(
        &self,
        call: &Notification,
        fd: RawFd,
        asked: SocketAddr,
    ) -> Option<(OwnedFd, SocketAddr, Transport)> {
        let to = address::canonical(asked);
        if !to.ip().is_loopback() {
            return None;
        }
        let socket = sys::take_descriptor(call.thread, fd)
            .inspect_err(|error| tracing::debug!(%error, "cannot take a socket"))
            .ok()?;
        let transport = match rustix::net::sockopt::socket_type(&socket).ok()? {
            SocketType::STREAM => Transport::Tcp,
            SocketType::DGRAM => Transport::Udp,
            _ => return None,
        };
        let real = self.world.real_address(to, transport)?;
        let real = address::in_family_of(asked, real)?;
        self.listener.is_waiting(call.id).then_some((socket, real, transport))
    }
}

impl World {
    fn real_address(&self, to: SocketAddr, transport: Transport) -> Option<SocketAddr> {
        let is_dns = to.ip() == IpAddr::V4(DNS_ADDRESS) && to.port() == 53;
        let dns = is_dns.then(|| self.redirect.dns()).flatten();
        dns.or_else(|| self.redirect.redirect(to, transport))
    }
}

/// `connect()` on a blocking socket, with the caller's own time-out. `None`: the caller is gone.
///
/// The wait is cut into slices by the socket's send time-out, because a thread that waits for us
/// handles no signals: when one comes, its connect ends with `EINTR` and goes on in the
/// background, as connect(2) says.
fn connect_blocking(listener: &Listener, call: &Notification, socket: &OwnedFd, to: SocketAddr) -> Option<Reply> {
    let own = rustix::net::sockopt::socket_timeout(socket, Timeout::Send).unwrap_or(None);
    let deadline = own.map(|own| Instant::now() + own);
    // What the kernel says when the caller's time is up: in progress, or already so before this call.
    let mut timed_out = None;
    let reply = loop {
        let slice = deadline.map_or(SLICE, |end| end.saturating_duration_since(Instant::now()).min(SLICE));
        if slice.is_zero() {
            break Some(Reply::Error(timed_out.unwrap_or(Errno::INPROGRESS)));
        }
        if let Err(error) = rustix::net::sockopt::set_socket_timeout(socket, Timeout::Send, Some(slice)) {
            break Some(Reply::Error(error));
        }
        match rustix::net::connect(socket, &to) {
            Err(error @ (Errno::INPROGRESS | Errno::ALREADY)) => drop(timed_out.get_or_insert(error)),
            done => break Some(result(done.map(|()| 0))),
        }
        if !listener.is_waiting(call.id) {
            break None;
        }
        if process::has_caught_signal(call.thread) {
            break Some(Reply::Error(Errno::INTR));
        }
    };
    // The number was valid when the kernel gave it to us.
    let _ = rustix::net::sockopt::set_socket_timeout(socket, Timeout::Send, own);
    reply
}

fn result(outcome: Result<i64, Errno>) -> Reply {
    outcome.map_or_else(Reply::Error, Reply::Value)
}

fn is_nonblocking(socket: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(socket).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
}

/// A file in memory that nobody can change, positioned at its start.
fn sealed_file(name: &str, text: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(text)?;
    file.rewind()?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// The listener of a process that has just installed the filter, after proof that we may read it.
pub(crate) fn adopt(process: Pid, listener: RawFd, sample: u64) -> io::Result<Listener> {
    let listener = sys::take_descriptor(process, listener)?;
    let mut bytes = [0; sys::SAMPLE.len()];
    let read = sys::read_memory(process, sample, &mut bytes)?;
    if read != bytes.len() || bytes != sys::SAMPLE {
        return Err(Errno::PERM.into());
    }
    // Duplicates of a descriptor do not inherit close-on-exec.
    rustix::io::fcntl_setfd(listener.as_fd(), rustix::io::FdFlags::CLOEXEC)?;
    Listener::new(listener)
}
