//! What the kernel says of a process: memory and processor time.

use std::fs;
use std::time::Duration;

use crate::Result;

/// Resident memory of a process in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// All of it: what the targets are about.
    pub total: f64,
    /// What no file backs: heap, stacks and written data.
    pub own: f64,
}

/// What a process holds at the moment.
///
/// # Errors
/// There is no such process.
pub fn resident(process: u32) -> Result<Resident> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    Ok(Resident { total: field(&status, "VmRSS:")?, own: field(&status, "RssAnon:")? })
}

/// The most KiB that a process has held since it started, or since `5` was written to its `clear_refs`.
///
/// # Errors
/// There is no such process.
pub fn peak_resident(process: u32) -> Result<f64> {
    field(&fs::read_to_string(format!("/proc/{process}/status"))?, "VmHWM:")
}

fn field(status: &str, name: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("the kernel does not say")?.parse()?)
}

/// The processor time that a process has used, of its own and of the kernel for it.
///
/// # Errors
/// There is no such process.
pub fn processor_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the program's name in parentheses; user and system time are the twelfth and thirteenth after it.
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("the kernel does not say")?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..13).ok_or("the kernel does not say")?.iter().map(|f| f.parse().unwrap_or(0)).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}
