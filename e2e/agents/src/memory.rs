//! What idle programs keep in memory.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::programs::Programs;
use crate::world::{Nats, SERVER, World};
use peerage_suite::failed::{Failed, Trying};

/// Memory of one process, in KiB, as the kernel counts it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Pages of its own and its part of shared ones.
    pub proportional: u64,
    /// All pages that it has in memory, shared or not.
    pub resident: u64,
    /// The most that were ever resident.
    pub peak: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// An agent with a direct session and no stream, after one request.
    pub agent: Memory,
    /// A relay with two agents.
    pub relay: Memory,
}

impl Idle {
    /// Whether the agent is as small as it has to be.
    #[must_use]
    pub fn is_as_expected(&self) -> bool {
        self.agent.resident <= LIMIT
    }

    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        let memory = |of: &Memory| json!({"pss_kib": of.proportional, "rss_kib": of.resident, "peak_kib": of.peak});
        json!({"test": "memory", "agent": memory(&self.agent), "relay": memory(&self.relay)})
    }
}

/// The most that an idle agent may have resident: 8 MB, in KiB.
pub const LIMIT: u64 = 8_000_000 / 1024;
/// How long after its last request an agent may take to become idle; it gives memory back after ten quiet seconds.
const SETTLE: Duration = Duration::from_secs(60);

/// Measures agents behind home routers that have met and served a request, once they are idle.
///
/// # Errors
/// They do not meet, or the kernel does not say.
pub fn measure(programs: &Programs) -> Result<Idle, Failed> {
    let world = World::new(programs, Nats::home_routers(), 1)?;
    let (mut client, _server) = world.acquainted()?;
    client.wait_for(Agent::beginning(), "path_changed", |event| event["to"] != "relayed")?;
    let answer = client.curl(&[&format!("http://{SERVER}/")])?;
    if answer.stdout != "hello\n" {
        return Err(Failed::new(format!("curl: {}", answer.said())));
    }
    client.until_status("no stream is open", |status| status["peers"][0]["streams"] == 0)?;
    let begun = Instant::now();
    let mut agent = memory_of(client.process().id())?;
    while agent.resident > LIMIT && begun.elapsed() < SETTLE {
        sleep(Duration::from_millis(500));
        agent = memory_of(client.process().id())?;
    }
    Ok(Idle { agent, relay: memory_of(world.relay_process())? })
}

fn memory_of(process: u32) -> Result<Memory, Failed> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).trying("read a process's memory");
    let (rollup, status) = (read("smaps_rollup")?, read("status")?);
    Ok(Memory {
        proportional: field(&rollup, "Pss:")?,
        resident: field(&rollup, "Rss:")?,
        peak: field(&status, "VmHWM:")?,
    })
}

fn field(text: &str, name: &str) -> Result<u64, Failed> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| Failed::new(format!("the kernel does not say {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "VmPeak:\t  9 kB\nPss_Dirty:   5 kB\nPss:    7 kB\n";
        assert_eq!(field(text, "Pss:").expect("it is there"), 7);
        assert!(field(text, "Rss:").is_err());
    }
}
