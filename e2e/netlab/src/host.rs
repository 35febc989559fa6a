//! One host: a network namespace, and the thread that lives in it.
//!
//! A namespace belongs to a thread. Whatever must happen in a host's network (opening a socket, starting a program,
//! changing an address) is therefore sent to that host's thread as a job. A child is started by that thread too, so it
//! dies with the thread, and the thread ends with the lab.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::netlink::{self, LOOPBACK};
use crate::sys::{self, HookData};
use crate::world::HostId;

/// The index of a host's link inside its namespace, below which the kernel puts its own devices.
pub(crate) const LINK_INDEX: u32 = 100;

/// Something to do in a namespace; nothing to end its thread.
type Job = Option<Box<dyn FnOnce() + Send>>;

/// A thread with a network namespace of its own.
#[derive(Debug)]
pub(crate) struct Namespace {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

/// A handle to a thread's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Jobs(Sender<Job>);

impl Namespace {
    /// Starts a thread called `name` in a new network namespace.
    pub(crate) fn start(name: String) -> io::Result<Self> {
        Self::start_in(name, UnshareFlags::NEWNET)
    }

    /// Starts a thread called `name` in the network that the process is in.
    pub(crate) fn here(name: String) -> io::Result<Self> {
        Self::start_in(name, UnshareFlags::empty())
    }

    /// Starts a thread called `name` in the network of another process.
    pub(crate) fn of_process(name: String, process: u32) -> io::Result<Self> {
        let network = File::open(format!("/proc/{process}/ns/net"))?;
        let kind = Some(LinkNameSpaceType::Network);
        Self::start_by(name, move || Ok(move_into_link_name_space(network.as_fd(), kind)?))
    }

    fn start_in(name: String, flags: UnshareFlags) -> io::Result<Self> {
        Self::start_by(name, move || sys::unshare(flags))
    }

    fn start_by(name: String, enter: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let (ready, entered) = channel();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let there = enter();
            let failed = there.is_err();
            if ready.send(there).is_ok() && !failed {
                work(&queue);
            }
        })?;
        entered.recv().map_err(|_| ended())??;
        Ok(Self { jobs, thread })
    }

    pub(crate) fn jobs(&self) -> Jobs {
        Jobs(self.jobs.clone())
    }

    /// Ends the thread, and with it what it started.
    pub(crate) fn end(self) {
        // Sending fails only where the thread has ended already.
        let _ = self.jobs.send(None);
        if self.thread.join().is_err() {
            tracing::error!("a job panicked in a host's namespace");
        }
    }
}

fn work(queue: &Receiver<Job>) {
    while let Ok(Some(job)) = queue.recv() {
        job();
    }
}

impl Jobs {
    /// Runs `job` in the namespace and waits for its result.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (answer, result) = channel();
        let job = move || {
            // The asker waits below, unless it panicked.
            let _ = answer.send(job());
        };
        self.0.send(Some(Box::new(job))).map_err(|_| ended())?;
        result.recv().map_err(|_| ended())
    }

    /// A descriptor that names the namespace to the kernel.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.run(|| File::open("/proc/thread-self/ns/net").map(OwnedFd::from))?
    }

    /// Gives the namespace its loopback, its address and its default route.
    pub(crate) fn configure(&self, address: Ipv4Addr) -> io::Result<()> {
        self.run(move || {
            netlink::set_up(LOOPBACK)?;
            netlink::set_up(LINK_INDEX)?;
            netlink::add_address(LINK_INDEX, address)?;
            netlink::add_default_route(LINK_INDEX)?;
            netlink::wait_for_carrier(LINK_INDEX)
        })?
    }

    /// Replaces the address. The link stays up, so sockets bound to no address live on.
    pub(crate) fn change_address(&self, old: Ipv4Addr, new: Ipv4Addr) -> io::Result<()> {
        self.run(move || {
            // In this order: a second address of the same prefix would be removed along with the first. The route
            // goes with the last address.
            netlink::remove_address(LINK_INDEX, old)?;
            netlink::add_address(LINK_INDEX, new)?;
            netlink::add_default_route(LINK_INDEX)
        })?
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the host's lab has ended")
}

/// One host of a [`crate::Lab`]. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) jobs: Jobs,
}

impl Host {
    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts a program in the host's network. It is killed when the lab is dropped; what it has started in turn is
    /// its own affair.
    ///
    /// # Errors
    /// The program cannot be started, or the lab has ended.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        sys::before_exec(&mut command, die_with_parent, HookData::default());
        self.jobs.run(move || command.spawn())?
    }

    /// Runs `job` in the host's network, on the one thread that lives there: a socket it opens stays in that network
    /// wherever it is used later. A job that waits holds up the next.
    ///
    /// # Errors
    /// The lab has ended, or `job` panicked.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.jobs.run(job)
    }
}

/// Makes system calls only: it runs between fork and exec.
fn die_with_parent(_: &HookData) -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}
