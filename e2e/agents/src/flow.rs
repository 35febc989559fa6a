//! A download by hostname whose reader sets the pace: a valve lets curl's output through in pieces, so that something can
//! be done in the middle of it, on fast machines as on slow ones. What arrives must be what was sent.

use std::io::Read;
use std::process::ChildStdout;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

use crate::agent::Agent;
use crate::machine::Running;
use crate::origin::Pattern;
use crate::wait::{LOOK, PATIENCE};
use peerage_suite::failed::{Failed, Trying};

/// Let through a look: up to 100 MB/s, so that a machine that can do more is not all that is measured.
const FLOW: u64 = 1024 * 1024;

/// A download under way.
#[derive(Debug)]
pub struct Download {
    curl: Running,
    valve: Arc<Valve>,
    reader: JoinHandle<std::io::Result<(u64, String)>>,
    size: u64,
    begun: Instant,
}

impl Download {
    /// Starts it; nothing is read yet.
    ///
    /// # Errors
    /// curl cannot be started.
    pub fn start(client: &Agent, server: &str, size: u64) -> Result<Self, Failed> {
        let url = format!("http://{server}/bytes/{size}");
        let mut curl = client.start(client.peerage(&["run", "--", "curl", "-sS", "--no-buffer", &url]), "curl")?;
        let valve = Arc::new(Valve::default());
        let (tap, stdout) = (Arc::clone(&valve), curl.stdout());
        let reader = std::thread::spawn(move || read(stdout, &tap));
        Ok(Self { curl, valve, reader, size, begun: Instant::now() })
    }

    /// Reads until so many bytes have come; returns the longest time in which none came.
    ///
    /// # Errors
    /// It ended before, or nothing came for long.
    pub fn read_to(&self, bytes: u64) -> Result<Duration, Failed> {
        let (mut last, mut passed, mut pause) = (Instant::now(), self.valve.passed(), Duration::ZERO);
        while passed < bytes {
            self.valve.let_through(FLOW.min(bytes - passed));
            std::thread::sleep(LOOK);
            let more = self.valve.passed();
            pause = pause.max(last.elapsed());
            if more > passed {
                (last, passed) = (Instant::now(), more);
            } else if self.valve.is_closed() {
                return Err(Failed::new(format!("the download ended after {passed} bytes of {}", self.size)));
            } else if last.elapsed() > PATIENCE {
                return Err(Failed::new(format!("nothing has come for {PATIENCE:?}, after {passed} bytes")));
            }
        }
        Ok(pause)
    }

    /// Its size.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Reads the rest; returns how long all of it took.
    ///
    /// # Errors
    /// It broke, or what came is not what was sent.
    pub fn finish(mut self) -> Result<Duration, Failed> {
        let read = self.read_to(self.size);
        // Also after a failure: the reader ends with curl, and curl with its output.
        self.valve.let_through(u64::MAX);
        if let Err(failed) = read {
            drop(self.curl);
            // What it read is not wanted any more.
            let _ = self.reader.join();
            return Err(failed);
        }
        let (got, sum) =
            self.reader.join().map_err(|_| Failed::new("the reader panicked"))?.trying("read from curl")?;
        let status = self.curl.wait()?;
        if !status.success() || (got, &sum) != (self.size, &Pattern::sum(self.size)) {
            let size = self.size;
            return Err(Failed::new(format!("curl: {status}; {got} bytes of {size} arrived, and their sum is {sum}")));
        }
        Ok(self.begun.elapsed())
    }
}

/// How much may be read.
#[derive(Debug, Default)]
pub(crate) struct Valve {
    state: Mutex<Allowance>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct Allowance {
    allowed: u64,
    passed: u64,
    closed: bool,
}

impl Valve {
    /// Lets so much through from here on.
    pub(crate) fn let_through(&self, more: u64) {
        let mut state = self.lock();
        state.allowed = state.passed.saturating_add(more);
        self.opened.notify_all();
    }

    pub(crate) fn passed(&self) -> u64 {
        self.lock().passed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until something may be read, and says how much.
    fn wait(&self) -> u64 {
        let shut = |state: &mut Allowance| state.allowed <= state.passed;
        let state = self.opened.wait_while(self.lock(), shut).unwrap_or_else(PoisonError::into_inner);
        state.allowed - state.passed
    }

    fn lock(&self) -> MutexGuard<'_, Allowance> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads to the end; returns how much it was, and its SHA-256.
pub(crate) fn read(mut from: ChildStdout, valve: &Valve) -> std::io::Result<(u64, String)> {
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let most = usize::try_from(valve.wait()).unwrap_or(usize::MAX).min(buffer.len());
        let got = from.read(&mut buffer[..most]);
        let mut state = valve.lock();
        match got {
            Ok(0) | Err(_) => state.closed = true,
            Ok(got) => state.passed += got as u64,
        }
        let passed = state.passed;
        drop(state);
        match got? {
            0 => return Ok((passed, HEXLOWER.encode(sum.finish().as_ref()))),
            got => sum.update(&buffer[..got]),
        }
    }
}
