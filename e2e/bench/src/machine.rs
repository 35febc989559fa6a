//! What is measured on, for the record.

use std::fs;

/// The kernel's one-minute average of programs that want to run.
#[must_use]
pub fn load() -> String {
    first_word("/proc/loadavg")
}

/// Its cores and kernel.
#[must_use]
pub fn name() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, name)| name);
    format!("{cores} × {model}, Linux {}", first_word("/proc/sys/kernel/osrelease"))
}

/// How its TCP controls congestion: not all kernels do as most do, and over links that lose it decides.
#[must_use]
pub fn tcp() -> String {
    first_word("/proc/sys/net/ipv4/tcp_congestion_control")
}

fn first_word(file: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}
