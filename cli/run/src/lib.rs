//! Runs an unmodified program so that it finds peers by hostname and reaches their low ports.
//!
//! No root, no namespace, no capability: the program runs in the network, file system and user
//! that it would have anyway, under a seccomp filter that stops a few system calls and asks us.
//!
//! | the program | we |
//! |---|---|
//! | opens `/etc/hosts` | give it a file with our names before the original's |
//! | opens `/etc/nsswitch.conf` | give it one where `files` answers first for hosts |
//! | opens `/etc/resolv.conf` | give it one that names 127.64.0.1 first (only if [`Redirect::dns`] knows one) |
//! | connects to nscd | say that there is none |
//! | connects, or sends with `sendto`, to a loopback address that [`Redirect`] maps | do it on the program's own socket, to the real address |
//! | anything else | let the kernel do it |
//!
//! What is different for the program:
//! * `getpeername` and the sender of a UDP reply show the real address and port. A client that sends
//!   unconnected UDP and checks where the answer came from rejects it.
//! * `no_new_privs` is set, so `sudo`, `ping` with file capabilities and other setuid programs run
//!   without their privilege.
//! * `io_uring` does not exist (a ring would act behind the filter's back).
//! * Untouched, and so without peers' low ports: 32-bit programs, `sendmsg` and `sendmmsg` with an
//!   address, and processes that forbid inspection (`PR_SET_DUMPABLE` 0, unless we are root).
//!
//! `docs/decisions/0010-run-without-root.md` has the measurements and what was rejected.

#![deny(unsafe_code)]

mod address;
pub mod files;
mod filter;
mod launch;
mod pool;
mod process;
mod supervisor;
#[expect(unsafe_code, reason = "seccomp, process_vm_readv, pre_exec and sigaction have no safe face")]
mod sys;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, PoisonError, RwLock};

pub use launch::run;

/// Hostnames and their addresses, as they shall stand in the program's `/etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// A name that is no hostname (letters, digits, `-`, `_`, `.`) is left out.
    pub hosts: Vec<(String, IpAddr)>,
}

/// Knows the names of this moment. It is asked at each look-up, so a change needs no announcement.
pub trait Directory: Send + Sync {
    /// Called on the supervisor's thread while the program waits: it must not block.
    fn names(&self) -> Names;
}

/// A [`Directory`] that whoever watches the agent writes to.
#[derive(Debug, Default)]
pub struct LiveNames(RwLock<Names>);

impl LiveNames {
    /// The program's next look-up sees `names` and nothing else of ours.
    pub fn set(&self, names: Names) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

impl Directory for LiveNames {
    fn names(&self) -> Names {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Directory for Names {
    fn names(&self) -> Names {
        self.clone()
    }
}

/// What kind of socket asks: a peer's TCP and UDP ports are redirected apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// `SOCK_STREAM`
    Tcp,
    /// `SOCK_DGRAM`
    Udp,
}

/// Knows where the agent really listens.
pub trait Redirect: Send + Sync {
    /// Where a connect or send to the loopback address `to` must really go; `None`: leave it alone.
    ///
    /// `to` is IPv4 also where the program wrote `::ffff:127.64.x.y`. Called on the supervisor's
    /// thread while the program waits: it must not block.
    fn redirect(&self, to: SocketAddr, transport: Transport) -> Option<SocketAddr>;

    /// The agent's DNS listener of this moment (UDP and TCP), which answers for peers and forwards everything else; none unless
    /// said. It must not block either.
    ///
    /// For programs that do not read `/etc/hosts`. It should be bound to 127.64.0.1: some resolvers compare the address of a
    /// reply with the one they asked, though not the port.
    fn dns(&self) -> Option<SocketAddr> {
        None
    }
}

/// What happens to processes that the program leaves running when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leftovers {
    /// [`run`] returns when the last of them has ended. A forwarded signal reaches all of them.
    ///
    /// Nobody can open a file under a filter whose supervisor is gone, so they cannot be left alone.
    #[default]
    Wait,
    /// SIGTERM, and SIGKILL for those that are still there two seconds later.
    End,
}

/// What to run, and the world it shall see.
pub struct Program {
    /// Arguments, environment, directory and standard streams are passed on as they are.
    pub command: Command,
    /// The names it shall find.
    pub names: Arc<dyn Directory>,
    /// Where its connections go.
    pub redirect: Arc<dyn Redirect>,
    /// Processes that outlive the command itself.
    pub leftovers: Leftovers,
    /// Called once, with the command's status, if the command has ended and others still run
    /// (only with [`Leftovers::Wait`]): the place to tell a person what the wait is for.
    pub on_waiting: Option<Box<dyn FnOnce(ExitStatus) + Send>>,
}

impl Program {
    /// A program that waits for its leftovers.
    pub fn new(command: Command, names: Arc<dyn Directory>, redirect: Arc<dyn Redirect>) -> Self {
        Self { command, names, redirect, leftovers: Leftovers::default(), on_waiting: None }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("command", &self.command)
            .field("leftovers", &self.leftovers)
            .finish_non_exhaustive()
    }
}

/// Why a program was not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// As `exec` says: no such file, not executable, …
    #[error("cannot start `{}`", .program.display())]
    Start {
        /// The first word of the command.
        program: OsString,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Another supervisor watches this process already; the kernel allows one.
    #[error("this process already runs under a supervisor, perhaps another `peerage run`")]
    Supervised,
    /// seccomp with a supervisor is missing or forbidden.
    #[error("the system does not permit a supervised seccomp filter")]
    Filter {
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The filter stands, but we may not look into the program.
    #[error("the system does not permit a process to look into its own child")]
    Inspect {
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// One program at a time: signals and waiting belong to the whole process.
    #[error("this process already runs a program")]
    Busy,
    /// Pipes, threads, wait.
    #[error("cannot {doing}")]
    System {
        /// What we were doing.
        doing: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

impl RunError {
    /// What a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Start { .. } => "check the command's name and PATH",
            Self::Supervised => "inside another `peerage run` the names are there already: start the command directly",
            Self::Filter { .. } => {
                "Linux 5.14 or newer with CONFIG_SECCOMP_FILTER is needed; in a container, its seccomp profile must \
                 allow seccomp(2). Otherwise run `peerage install` once as root, then no `run` is needed"
            }
            Self::Inspect { .. } => {
                "kernel.yama.ptrace_scope must be 0 or 1; in a container, its seccomp profile must allow \
                 process_vm_readv(2) and pidfd_getfd(2) (CAP_SYS_PTRACE allows both). Otherwise run `peerage install` \
                 once as root, then no `run` is needed"
            }
            Self::Busy => "wait until the first program has ended, or use another process",
            Self::System { .. } => "check the limits on processes and open files (ulimit -a)",
        }
    }

    /// The status a shell would give: 127 not found, 126 not executable, 125 our own trouble.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start { cause, .. } if cause.kind() == io::ErrorKind::NotFound => 127,
            Self::Start { .. } => 126,
            Self::Supervised | Self::Filter { .. } | Self::Inspect { .. } | Self::Busy | Self::System { .. } => 125,
        }
    }
}

/// The status to exit with so that the caller sees what the program's own caller would have:
/// its code, or 128 and the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    // wait(2) gives eight bits, and signals end at 64.
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_killed_by_a_signal_exits_as_in_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
    }

    #[test]
    fn live_names_show_the_latest() {
        let live = LiveNames::default();
        let names = Names { hosts: vec![("db".to_owned(), IpAddr::from([127, 64, 0, 9]))] };
        live.set(names.clone());
        assert_eq!(live.names(), names);
    }
}
