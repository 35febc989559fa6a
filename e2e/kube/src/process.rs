//! Processes, and what the kernel says of them.

use std::fs;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::failed::{Failed, Trying};

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// Resident memory in MB of 10^6 bytes, and processor time since its start.
///
/// # Errors
/// There is no such process.
pub fn usage(pid: u32) -> Result<(f64, Duration), Failed> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).trying("look at a process")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    let kibibytes: f64 = resident.ok_or_else(|| Failed::new("a process without memory"))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).trying("look at a process")?;
    // The name before the last parenthesis may hold spaces; fields 14 and 15 of proc(5) are 11 and 12 behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let seconds = (ticks(11) + ticks(12)) as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok((kibibytes * 1024.0 / 1e6, Duration::from_secs_f64(seconds)))
}

/// Lets this process and what it starts open as many files as they may at most: one for each simulated agent.
///
/// # Errors
/// The kernel refuses.
pub fn many_files() -> Result<(), Failed> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).trying("raise the limit of open files")
}
