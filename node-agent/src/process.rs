//! What a process that runs an agent owes those outside of it: it ends where it must, stays where it can, and has files enough.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// What a Rust program exits with when its main thread panics.
pub const PANICKED: i32 = 101;

/// Most files that are asked for: above what all the limits here add up to, and far from what makes tables large.
const FILES: u64 = 16_384;

/// Ends the process when any of its threads panics. A tunnel, a listener or a resolver that has died alone would leave behind
/// what looks like an agent and is none, and nobody would start another.
///
/// It exits and does not abort: an abort may leave a core file behind, with every key in it.
pub fn end_at_panic() {
    let says = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        says(panic);
        std::process::exit(PANICKED);
    }));
}

/// Raises this process's limit of open files as far as its user may: a connection takes one, and many shells and services
/// give 1024.
pub fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= FILES) {
        return;
    }
    let current = Some(limit.maximum.map_or(FILES, |most| most.min(FILES)));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays");
    }
}

/// How many files this process may have open.
pub(crate) fn files() -> usize {
    let current = getrlimit(Resource::Nofile).current.unwrap_or(FILES);
    usize::try_from(current.min(FILES)).unwrap_or(usize::MAX)
}

/// Resolves at SIGTERM, at SIGINT, and at SIGHUP, which a terminal sends when it is closed: peers shall hear that we leave.
/// Not at a SIGHUP that this process was started to ignore (`nohup`).
///
/// # Errors
/// When signals cannot be heard.
pub fn stop_signal() -> io::Result<impl Future<Output = ()> + Send> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hang_up = SignalKind::hangup();
    let mut hang_up = if is_ignored(hang_up) { None } else { Some(signal(hang_up)?) };
    Ok(async move {
        let hung_up = async {
            match &mut hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
    })
}

/// Whether this process ignores a signal, by proc(5); not, where that cannot be known.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Says to this very test that it is the process that panics.
    const VICTIM: &str = "PEERAGE_TEST_VICTIM";

    #[test]
    fn a_panic_in_any_thread_ends_the_process_and_says_so_in_its_status() {
        if std::env::var_os(VICTIM).is_some() {
            end_at_panic();
            // Joined, or the end of the test would be the end of the process.
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
            return;
        }
        let this = std::env::current_exe().expect("a test runs");
        let name = "process::tests::a_panic_in_any_thread_ends_the_process_and_says_so_in_its_status";
        let victim = Command::new(this).args(["--exact", name]).env(VICTIM, "1").output().expect("it runs");
        assert_eq!(victim.status.code(), Some(PANICKED), "{victim:?}");
    }
}
