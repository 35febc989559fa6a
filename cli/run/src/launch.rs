//! Starts the program, passes signals on, and waits for all it leaves behind.
//!
//! The order of a start, with us on the left and the new process on the right:
//!
//! ```text
//!                        fork ──► dies with us; no_new_privs; filter
//!   takes the listener ◄── report (a pipe)
//!   reads its memory, as proof
//!   answers from now on ── go ──► exec
//! ```
//!
//! We are the parent (and the adopting parent of orphans) of everything under the filter: Yama's
//! ptrace scope 1, the default of Ubuntu and others, lets only ancestors look into a process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use crate::supervisor::{self, Supervisor, World};
use crate::sys::{self, Caught, Report, SignalHandlers};
use crate::{Leftovers, Program, RunError, filter, process};

/// Runs a program to its end and returns its status.
///
/// Standard streams, terminal and job control, signals and status are as if it had been started
/// directly; it is killed if the calling thread ends. While this runs, it waits for every child of
/// this process and adopts orphans, so a process that has children of its own should not call it.
///
/// # Errors
/// See [`RunError`]; [`RunError::hint`] says what to do.
pub fn run(mut program: Program) -> Result<ExitStatus, RunError> {
    let _only = OnlyRun::begin()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(system("adopt orphans"))?;
    let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(system("make an eventfd"))?;
    let stop = Arc::new(stop);
    // Before the fork: a signal that comes while the program starts must not end us and leave it.
    let signals = Signals::begin()?;
    let main = start(&mut program, &stop)?;
    signals.forward_to(main);
    let outcome = wait(main, &mut program, &signals);
    rustix::io::write(&stop, &1u64.to_ne_bytes()).map_err(system("stop the supervisor"))?;
    outcome.map_err(system("wait for the program"))
}

fn system<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> RunError + Copy {
    move |cause| RunError::System { doing, cause: cause.into() }
}

/// Held while a program runs.
struct OnlyRun;

static RUNNING: AtomicBool = AtomicBool::new(false);

impl OnlyRun {
    fn begin() -> Result<Self, RunError> {
        if RUNNING.swap(true, Ordering::AcqRel) { Err(RunError::Busy) } else { Ok(Self) }
    }
}

impl Drop for OnlyRun {
    fn drop(&mut self) {
        RUNNING.store(false, Ordering::Release);
    }
}

/// Forks, supervises, and returns when the program has replaced the fork.
fn start(program: &mut Program, stop: &Arc<OwnedFd>) -> Result<Pid, RunError> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"));
    let ((report, report_end), (go_end, go)) = (pipe()?, pipe()?);
    let own_report_end = report_end.try_clone().map_err(system("make a pipe"))?;
    sys::install_in_child(&mut program.command, filter::program(), report_end, go_end);
    let world = World { names: program.names.clone(), redirect: program.redirect.clone() };
    let supervisor = supervise(report, go, world, Arc::clone(stop))?;

    match program.command.spawn() {
        Ok(child) => Pid::from_raw(child.id() as i32).ok_or_else(|| system("start a process")(Errno::SRCH)),
        Err(cause) => {
            let _ = rustix::io::write(&own_report_end, &Report::NotStarted.to_bytes());
            let refused = supervisor.join().unwrap_or(Ok(()));
            refused?;
            Err(RunError::Start { program: program.command.get_program().to_owned(), cause })
        }
    }
}

/// A thread that meets the new process and then answers its calls.
fn supervise(
    report: OwnedFd,
    go: OwnedFd,
    world: World,
    stop: Arc<OwnedFd>,
) -> Result<JoinHandle<Result<(), RunError>>, RunError> {
    let meet_and_serve = move || {
        let listener = match meet(File::from(report)) {
            Ok(Some(listener)) => listener,
            Ok(None) => return Ok(()),
            Err(error) => {
                // Anything but 1 makes the new process give up.
                let _ = rustix::io::write(&go, &[0]);
                return Err(error);
            }
        };
        let supervisor = Supervisor::new(listener, world);
        File::from(go).write_all(&[1]).map_err(system("tell the program to start"))?;
        supervisor.serve(stop.as_fd()).map_err(system("receive the program's calls")).inspect_err(|error| {
            tracing::error!(%error, "the program runs on without its supervisor");
        })
    };
    thread::Builder::new().name("run-supervise".to_owned()).spawn(meet_and_serve).map_err(system("start a thread"))
}

/// `None`: there is no new process, for reasons that its parent knows.
fn meet(mut report: File) -> Result<Option<sys::Listener>, RunError> {
    let mut bytes = sys::RawReport::default();
    report.read_exact(&mut bytes).map_err(system("hear from the new process"))?;
    match Report::from_bytes(bytes) {
        Report::Ready { process, listener, sample } => {
            supervisor::adopt(process, listener, sample).map(Some).map_err(|cause| RunError::Inspect { cause })
        }
        Report::FilterRefused(libc::EBUSY) => Err(RunError::Supervised),
        Report::FilterRefused(errno) => Err(RunError::Filter { cause: io::Error::from_raw_os_error(errno) }),
        Report::NotStarted => Ok(None),
    }
}

/// Reaps everything; returns the program's own status.
fn wait(main: Pid, program: &mut Program, signals: &Signals) -> io::Result<ExitStatus> {
    let mut ended: Option<ExitStatus> = None;
    loop {
        let (child, status) = match rustix::process::wait(WaitOptions::UNTRACED) {
            Ok(Some(found)) => found,
            Ok(None) | Err(Errno::INTR) => continue,
            Err(Errno::CHILD) => return ended.ok_or_else(|| Errno::CHILD.into()),
            Err(error) => return Err(error.into()),
        };
        if child != main {
            continue;
        }
        if let Some(signal) = status.stopping_signal() {
            stop_with(main, signal);
            continue;
        }
        let status = ExitStatus::from_raw(status.as_raw());
        ended = Some(status);
        signals.main_has_ended();
        match program.leftovers {
            Leftovers::End => {
                end_leftovers();
                return Ok(status);
            }
            Leftovers::Wait => {
                let waiting = process::descendants(rustix::process::getpid())?;
                if let (false, Some(tell)) = (waiting.is_empty(), program.on_waiting.take()) {
                    tell(status);
                }
            }
        }
    }
}

/// The terminal stopped the program (Ctrl-Z): stop too, so that our shell sees it, and go on together.
///
/// A plain SIGSTOP is not the terminal's; whoever sent it will continue the program, not us.
fn stop_with(main: Pid, signal: i32) {
    if matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
        sys::kill(rustix::process::getpid(), libc::SIGSTOP);
        sys::kill(main, libc::SIGCONT);
    }
}

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

fn end_leftovers() {
    let begin = Instant::now();
    let mut asked = false;
    loop {
        let signal = match (asked, begin.elapsed() < GRACE) {
            (false, _) => Some(libc::SIGTERM),
            (true, true) => None,
            (true, false) => Some(libc::SIGKILL),
        };
        if let Some(signal) = signal {
            signal_all(signal);
            asked = true;
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn signal_all(signal: i32) {
    for process in process::descendants(rustix::process::getpid()).unwrap_or_default() {
        sys::kill(process, signal);
    }
}

/// Passes on the signals that this process gets. The terminal's reach the program without us.
struct Signals {
    _handlers: SignalHandlers,
    receiver: Arc<Receiver>,
}

/// Whom signals are meant for.
#[derive(Default)]
struct Receiver(Mutex<Stage>);

enum Stage {
    /// The program does not run yet; it gets the latest signal when it does, also a terminal's, which has not reached it.
    Starting {
        missed: Option<i32>,
    },
    Running(Pid),
    /// Nobody but the leftovers is there to mean: also for the terminal's Ctrl-C, since they may be in other process groups.
    Ended,
}

impl Default for Stage {
    fn default() -> Self {
        Self::Starting { missed: None }
    }
}

impl Receiver {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begins(&self, main: Pid) {
        if let Stage::Starting { missed: Some(signal) } = std::mem::replace(&mut *self.stage(), Stage::Running(main)) {
            sys::kill(main, signal);
        }
    }

    fn ended(&self) {
        *self.stage() = Stage::Ended;
    }

    fn take(&self, Caught { signal, from_process }: Caught) {
        match &mut *self.stage() {
            Stage::Starting { missed } => *missed = Some(signal),
            Stage::Running(main) if from_process => sys::kill(*main, signal),
            Stage::Running(_) => {}
            Stage::Ended => signal_all(signal),
        }
    }
}

impl Signals {
    fn begin() -> Result<Self, RunError> {
        let (caught, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"))?;
        let receiver = Arc::<Receiver>::default();
        let forward = {
            let receiver = Arc::clone(&receiver);
            // Ends when the handlers are gone, which closes the pipe.
            move || forward(File::from(caught), &receiver)
        };
        thread::Builder::new().name("run-signals".to_owned()).spawn(forward).map_err(system("start a thread"))?;
        Ok(Self { _handlers: SignalHandlers::install(pipe), receiver })
    }

    fn forward_to(&self, main: Pid) {
        self.receiver.begins(main);
    }

    fn main_has_ended(&self) {
        self.receiver.ended();
    }
}

fn forward(mut caught: File, receiver: &Receiver) {
    let mut bytes = [0; 2];
    while caught.read_exact(&mut bytes).is_ok() {
        receiver.take(Caught::from_bytes(bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_that_comes_while_the_program_starts_reaches_it_when_it_runs() {
        let receiver = Receiver::default();
        receiver.take(Caught { signal: libc::SIGTERM, from_process: true });
        let mut program = Command::new("sleep").arg("600").spawn().expect("it starts");
        receiver.begins(Pid::from_child(&program));
        assert_eq!(program.wait().expect("it is ours").signal(), Some(libc::SIGTERM));
    }
}
