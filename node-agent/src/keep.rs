//! `peerage-agent --keep`: the agent in a process of its own, started anew at once when it dies.
//!
//! In a pod the agent is everybody's nameserver. Were it the container's first process, its death would end the container,
//! and names would be gone until the kubelet notices and, from the second time on, for as long as it backs off. So
//! the first process does nothing but this: it starts the agent, hands on the signal to stop, and starts it again when a
//! signal or a panic ended it. What the agent needs for going on is in its memory volume, as after any restart, and the questions
//! that programs have asked meanwhile are with this process ([`HandedOn`]). An agent that says itself why it cannot run is
//! believed: its exit status becomes the container's.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::dns::HandedOn;
use crate::process::PANICKED;

/// What the flag is called.
pub const FLAG: &str = "--keep";
/// What this process calls itself, so that who looks for `peerage-agent` finds the one that works.
const NAME: &std::ffi::CStr = c"peerage-keep";
/// How long the first restart waits, and the longest: names are not answered for so long at most, and an agent that dies at
/// once every time costs a start in so many seconds.
const WAIT: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(2)];
/// Who lived so long has earned a restart without waiting.
const LIVED: Duration = Duration::from_secs(10);

/// Calls this process what it is. The kernel names a program after the path it was started by, which was a link called `exe`.
pub fn name_agent() {
    // A name is for people: an agent without one works.
    let _ = rustix::thread::set_name(c"peerage-agent");
}

/// Keeps the agent of these arguments running until told to stop, or until it ends for a reason of its own.
///
/// # Errors
/// The agent's process cannot be started, or signals cannot be heard.
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Result<ExitCode> {
    let arguments: Vec<_> = arguments.filter(|argument| argument != FLAG).collect();
    rustix::thread::set_name(NAME)?;
    let handed_on = HandedOn::new().inspect_err(nothing_to_hand_on).ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut wait = WAIT[0];
        loop {
            // The link leads to this very program, also where it was replaced on disk.
            let mut agent = Command::new("/proc/self/exe");
            if let Some(Err(error)) = handed_on.as_ref().map(|handed_on| handed_on.hand_to(&mut agent)) {
                nothing_to_hand_on(&error);
            }
            let child = agent.args(&arguments).spawn()?;
            let (pid, begun) = (Pid::from_child(&child), Instant::now());
            let mut ended = wait_for(child);
            let (status, told) = tokio::select! {
                status = &mut ended => (status, false),
                _ = terminate.recv() => (stopped(pid, ended).await, true),
                _ = interrupt.recv() => (stopped(pid, ended).await, true),
            };
            let status = status.map_err(io::Error::other)??;
            match ending(status) {
                Ending::Final(code) => return Ok(ExitCode::from(code)),
                // Of the signal, which it did not yet wait for, or of something on the way down.
                Ending::Died if told => return Ok(ExitCode::SUCCESS),
                Ending::Died => {}
            }
            wait = if begun.elapsed() >= LIVED { WAIT[0] } else { (wait * 2).min(WAIT[1]) };
            tracing::error!(%status, "the agent died and is started anew");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
                _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            }
        }
    })
}

/// Some sandboxes have no memory files. Names are answered without one as well.
fn nothing_to_hand_on(error: &io::Error) {
    tracing::warn!(%error, "should the agent die, whoever waits for a name then has to ask again");
}

/// What an exit status means.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// It meant to end.
    Final(u8),
    /// It died.
    Died,
}

fn ending(status: ExitStatus) -> Ending {
    match (status.signal(), status.code()) {
        (Some(_), _) | (None, Some(PANICKED) | None) => Ending::Died,
        (None, Some(code)) => Ending::Final(u8::try_from(code).unwrap_or(1)),
    }
}

type Ended = oneshot::Receiver<io::Result<ExitStatus>>;

fn wait_for(mut child: Child) -> Ended {
    let (tell, ended) = oneshot::channel();
    // Who does not listen any more has ended.
    std::thread::spawn(move || drop(tell.send(child.wait())));
    ended
}

/// Hands the signal on, and waits; the kubelet loses patience sooner than we do.
async fn stopped(pid: Pid, ended: Ended) -> Result<io::Result<ExitStatus>, oneshot::error::RecvError> {
    if let Err(error) = kill_process(pid, Signal::TERM) {
        tracing::debug!(%error, "the agent has ended already");
    }
    ended.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_died_is_started_anew_and_who_ended_is_believed() {
        let exited = |code: i32| ending(ExitStatus::from_raw(code << 8));
        assert_eq!((exited(0), exited(1), exited(2)), (Ending::Final(0), Ending::Final(1), Ending::Final(2)));
        assert_eq!(exited(PANICKED), Ending::Died);
        assert_eq!(ending(ExitStatus::from_raw(9)), Ending::Died, "by SIGKILL");
    }
}
