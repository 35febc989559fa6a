//! Threads for calls that may block, so that one slow connect holds up nobody else.
//!
//! A job never waits for another: if no thread is idle, it gets a new one. Idle threads stay for a
//! moment, because programs connect in bursts.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// How long an idle thread waits for the next burst.
const IDLE: Duration = Duration::from_secs(2);
/// A job makes a few system calls and holds at most one datagram on the heap.
const STACK: usize = 128 * 1024;

#[derive(Clone, Default)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
}

impl Pool {
    /// Runs `job` at once, on an idle thread or a new one. An error: no thread could be made.
    pub(crate) fn run(&self, job: Job) -> io::Result<()> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.jobs.len() < state.idle {
            state.jobs.push_back(job);
            drop(state);
            self.shared.wake.notify_one();
            return Ok(());
        }
        drop(state);
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("run-connect".to_owned()).stack_size(STACK).spawn(move || {
            job();
            while let Some(job) = shared.next() {
                job();
            }
        })?;
        Ok(())
    }
}

impl Shared {
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.idle += 1;
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, IDLE, |state| state.jobs.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        state.jobs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_job_that_blocks_does_not_hold_up_the_next() {
        let pool = Pool::default();
        let (release, blocked) = mpsc::channel::<()>();
        pool.run(Box::new(move || {
            // Ends with an error when the test lets go.
            let _ = blocked.recv();
        }))
        .expect("a thread");
        let (done, finished) = mpsc::channel();
        for number in 0..8 {
            let done = done.clone();
            pool.run(Box::new(move || done.send(number).expect("the test listens"))).expect("a thread");
        }
        drop(done);
        assert_eq!(finished.iter().count(), 8);
        drop(release);
    }
}
