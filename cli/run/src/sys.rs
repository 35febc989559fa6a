//! The only `unsafe` of this crate: seccomp's interface, another process's memory, fork and signals.
//!
//! Everything here is a thin, checked face of one system call; decisions live elsewhere.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

/// A system call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notification {
    pub(crate) id: u64,
    /// The calling thread, as numbered in our pid namespace.
    pub(crate) thread: Pid,
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
}

/// What the caller shall see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The kernel runs the call as if nobody had asked.
    Continue,
    Value(i64),
    Error(Errno),
}

/// The supervisor's end of the filter.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

/// Room for the kernel's `struct seccomp_notif`, which may grow; 80 bytes since Linux 5.0.
#[repr(C, align(8))]
struct NotificationBuffer {
    known: libc::seccomp_notif,
    later: [u8; 176],
}

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): the caller and we take turns on one processor.
const SYNC_WAKE_UP: u64 = 1;

impl Listener {
    /// Takes over a descriptor that the filter's installation returned.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut sizes = libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
        // SAFETY: `sizes` is the struct this operation writes, and outlives the call.
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) })?;
        if usize::from(sizes.seccomp_notif) > size_of::<NotificationBuffer>() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        // Only makes it faster; older kernels answer EINVAL.
        // SAFETY: this ioctl takes its flags by value and touches no memory of ours.
        let _ = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
        Ok(Self(fd))
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// The next call that waits. `ENOENT`: its thread ended before we got to it, or is none of ours.
    pub(crate) fn receive(&self) -> io::Result<Notification> {
        // SAFETY: integers only, for which all zeroes is a value; the kernel demands zeroes.
        let mut buffer: NotificationBuffer = unsafe { std::mem::zeroed() };
        // SAFETY: the buffer is at least as large as the kernel's struct (checked in `new`).
        check(i64::from(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut buffer) }))?;
        let NotificationBuffer { known, later: _ } = buffer;
        let Some(thread) = i32::try_from(known.pid).ok().and_then(Pid::from_raw) else {
            // Zero: a thread that our pid namespace cannot see, so nothing of it can be read.
            self.answer(known.id, Reply::Continue);
            return Err(Errno::NOENT.into());
        };
        Ok(Notification { id: known.id, thread, number: i64::from(known.data.nr), arguments: known.data.args })
    }

    /// Whether the call still waits. Whatever was learned of the thread before this said yes, was its own.
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: the ioctl reads one u64, which outlives the call.
        let answer = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
        answer == 0
    }

    /// Ends the wait. A caller that is gone needs no answer.
    pub(crate) fn answer(&self, id: u64, reply: Reply) {
        let (val, error, flags) = match reply {
            Reply::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Reply::Value(value) => (value, 0, 0),
            Reply::Error(errno) => (0, -errno.raw_os_error(), 0),
        };
        let response = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: the ioctl reads one response, which outlives the call.
        let _ = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    }

    /// Ends the wait by installing `file` as a new descriptor of the caller, which is its return value.
    pub(crate) fn answer_with_file(&self, id: u64, file: &OwnedFd, close_on_exec: bool) -> io::Result<()> {
        let request = libc::seccomp_notif_addfd {
            id,
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            srcfd: file.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the ioctl reads one request, which outlives the call; `file` is open while it runs.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request) };
        check(i64::from(result)).map(drop)
    }
}

/// A page of any kernel is a multiple of this.
const PAGE: u64 = 4096;
/// One span of memory is read in pieces that end at page borders, at most so many of them.
const PIECES: usize = 17;
/// What one [`read_memory`] returns at most: a UDP datagram fits.
pub(crate) const MOST_MEMORY: usize = (PIECES - 1) * PAGE as usize;

/// Copies from `address` in the memory of `thread`; returns how many bytes could be read.
pub(crate) fn read_memory(thread: Pid, address: u64, into: &mut [u8]) -> io::Result<usize> {
    // The kernel copies whole pieces or nothing of them, so no piece may reach into a page
    // that perhaps does not exist.
    let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES];
    let (mut count, mut at, mut left) = (0, address, into.len().min(MOST_MEMORY));
    while left > 0 && count < PIECES {
        let len = left.min((PAGE - at % PAGE) as usize);
        pieces[count] = libc::iovec { iov_base: at as usize as *mut libc::c_void, iov_len: len };
        (count, at, left) = (count + 1, at.wrapping_add(len as u64), left - len);
    }
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: `local` spans exactly `into`; the remote pointers are only meaningful in the other
    // process, whose memory the kernel checks.
    let read = unsafe {
        libc::process_vm_readv(
            thread.as_raw_nonzero().get(),
            &raw const local,
            1,
            pieces.as_ptr(),
            count as libc::c_ulong,
            0,
        )
    };
    check(read as i64).map(|read| read as usize)
}

/// What the new process tells us before it becomes the program; three words through a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The filter stands; `listener` is a descriptor of `process`, and `sample` the address of [`SAMPLE`].
    Ready {
        process: Pid,
        listener: RawFd,
        sample: u64,
    },
    FilterRefused(i32),
    /// Written by ourselves when there is no process to hear from.
    NotStarted,
}

/// Bytes that stand at the same place in the new process: reading them proves that we may read it.
pub(crate) static SAMPLE: [u8; 8] = *b"peerage\n";

pub(crate) type RawReport = [u8; 24];

impl Report {
    pub(crate) fn to_bytes(self) -> RawReport {
        let words = match self {
            Self::Ready { process, listener, sample } => {
                [1, (process.as_raw_nonzero().get() as u64) << 32 | listener as u64, sample]
            }
            Self::FilterRefused(errno) => [2, errno as u64, 0],
            Self::NotStarted => [3, 0, 0],
        };
        let mut bytes = [0; 24];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: RawReport) -> Self {
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        match (word(0), Pid::from_raw((word(8) >> 32) as i32)) {
            (1, Some(process)) => Self::Ready { process, listener: word(8) as u32 as RawFd, sample: word(16) },
            (2, _) => Self::FilterRefused(word(8) as i32),
            _ => Self::NotStarted,
        }
    }
}

/// Makes `command`'s process install `filter`, report on `report`, and wait for a byte on `go`.
///
/// The process dies with the thread that spawned it.
pub(crate) fn install_in_child(command: &mut Command, filter: Vec<libc::sock_filter>, report: OwnedFd, go: OwnedFd) {
    let parent = rustix::process::getpid();
    let enter = move || {
        reset_handlers();
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(Errno::SRCH.into());
        }
        let message = match install(&filter) {
            Ok(listener) => {
                Report::Ready { process: rustix::process::getpid(), listener, sample: SAMPLE.as_ptr() as u64 }
            }
            Err(errno) => Report::FilterRefused(errno.raw_os_error()),
        };
        rustix::io::write(&report, &message.to_bytes())?;
        let mut byte = [0];
        match rustix::io::read(&go, &mut byte)? {
            1 if byte == [1] => Ok(()),
            _ => Err(Errno::PERM.into()),
        }
    };
    // SAFETY: between fork and exec the closure only makes system calls; it allocates nothing and
    // takes no lock (`io::Error` from an `Errno` holds a plain number).
    unsafe { command.pre_exec(enter) };
}

/// No new privileges (which makes a filter permissible without root), then the filter itself.
fn install(filter: &[libc::sock_filter]) -> Result<RawFd, Errno> {
    rustix::thread::set_no_new_privs(true)?;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // Wait-killable (Linux 5.19): once we have a call, only death interrupts it, so that nothing is
    // done twice and no `open` ends with EINTR.
    let flags = [libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, 0];
    for also in flags {
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | also;
        // SAFETY: `program` and the instructions it points to outlive the call; the kernel only reads them.
        let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
        match Errno::from_io_error(&io::Error::last_os_error()) {
            _ if fd >= 0 => return Ok(fd as RawFd),
            Some(Errno::INVAL) if also != 0 => {}
            errno => return Err(errno.unwrap_or(Errno::PERM)),
        }
    }
    Err(Errno::INVAL)
}

/// A copy of a descriptor number that another process sent us by other means.
pub(crate) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a descriptor that a system call just made for them, and nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Signals that a person or a service manager sends to the process they started.
const FORWARDED: [libc::c_int; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGTSTP,
];

/// Where the handler writes; -1 while no handler of ours is installed.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// A signal as [`SignalHandlers`] writes it to its pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) signal: i32,
    /// A process sent it to us alone; the terminal would have sent it to the program as well.
    pub(crate) from_process: bool,
}

impl Caught {
    pub(crate) fn from_bytes(bytes: [u8; 2]) -> Self {
        Self { signal: i32::from(bytes[0]), from_process: bytes[1] == 1 }
    }
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t.
    let code = unsafe { (*info).si_code };
    let message = [signal as u8, u8::from(code <= 0)];
    // SAFETY: errno belongs to the interrupted code and must survive; `write` is async-signal-safe,
    // `message` outlives it, and a closed pipe only makes it fail.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(SIGNAL_PIPE.load(Ordering::Relaxed), message.as_ptr().cast(), message.len());
        *errno = before;
    }
}

/// While this lives, the forwarded signals go into a pipe; dropping it restores what was before.
pub(crate) struct SignalHandlers {
    before: Vec<(libc::c_int, libc::sigaction)>,
    _pipe: OwnedFd,
}

impl SignalHandlers {
    /// A signal that is ignored stays so (`nohup`), here and in the program.
    pub(crate) fn install(pipe: OwnedFd) -> Self {
        SIGNAL_PIPE.store(pipe.as_raw_fd(), Ordering::Relaxed);
        let mut before = Vec::new();
        for signal in FORWARDED {
            // SAFETY: plain integers and pointers, for which all zeroes is a value.
            let (mut old, mut new): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
            new.sa_sigaction = on_signal as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            // SAFETY: both structs outlive the calls, and the handler is async-signal-safe.
            unsafe {
                libc::sigaction(signal, std::ptr::null(), &raw mut old);
                if old.sa_sigaction != libc::SIG_IGN {
                    libc::sigaction(signal, &raw const new, std::ptr::null_mut());
                    before.push((signal, old));
                }
            }
        }
        Self { before, _pipe: pipe }
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for (signal, old) in &self.before {
            // SAFETY: `old` is what this very call returned at installation.
            unsafe { libc::sigaction(*signal, old, std::ptr::null_mut()) };
        }
        SIGNAL_PIPE.store(-1, Ordering::Relaxed);
    }
}

/// In the new process: what we catch, it takes as it comes.
fn reset_handlers() {
    for signal in FORWARDED {
        // SAFETY: see `SignalHandlers::install`; only dispositions of this process change.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut now);
            if now.sa_sigaction != libc::SIG_IGN {
                now.sa_sigaction = libc::SIG_DFL;
                now.sa_flags = 0;
                libc::sigaction(signal, &raw const now, std::ptr::null_mut());
            }
        }
    }
}

/// Sends any signal by number; one that has gone already needs none.
pub(crate) fn kill(process: Pid, signal: i32) {
    // SAFETY: `kill` touches no memory.
    unsafe { libc::kill(process.as_raw_nonzero().get(), signal) };
}

/// A duplicate of a descriptor of `thread`'s process.
pub(crate) fn take_descriptor(thread: Pid, number: RawFd) -> io::Result<OwnedFd> {
    let number_of = |pid: Pid| pid.as_raw_nonzero().get();
    let open = |pid: Pid, flags: libc::c_uint| {
        // SAFETY: `pidfd_open` takes two integers.
        check(unsafe { libc::syscall(libc::SYS_pidfd_open, number_of(pid), flags) }).map(|fd| owned(fd as RawFd))
    };
    // A leader needs no flag; for another thread the flag (Linux 6.9) or the leader's number does.
    let pidfd = open(thread, 0)
        .or_else(|_| open(thread, libc::PIDFD_THREAD))
        .or_else(|error| crate::process::leader_of(thread).map_or(Err(error), |leader| open(leader, 0)))?;
    let flags = rustix::process::PidfdGetfdFlags::empty();
    Ok(rustix::process::pidfd_getfd(borrowed(&pidfd), number, flags)?)
}

fn borrowed(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_reads_as_what_it_is() {
        let mut bytes = [0; 8];
        let read = read_memory(rustix::process::getpid(), SAMPLE.as_ptr() as u64, &mut bytes).expect("our own");
        assert_eq!((read, bytes), (8, SAMPLE));
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        assert!(read_memory(rustix::process::getpid(), 8, &mut [0; 8]).is_err());
    }

    #[test]
    fn a_report_survives_its_pipe() {
        let process = rustix::process::getpid();
        for report in [
            Report::Ready { process, listener: 7, sample: 0x7fff_1234_5678 },
            Report::FilterRefused(22),
            Report::NotStarted,
        ] {
            assert_eq!(Report::from_bytes(report.to_bytes()), report);
        }
    }
}
