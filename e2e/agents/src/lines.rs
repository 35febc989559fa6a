//! Downloads by hostname over lines that take time, lose packets or have a rate, and the same downloads by raw TCP over the same
//! lines. What is in between is the kernel, and a wire that does as `peerage_sim`'s links do.

use std::process::Command;
use std::time::Duration;

use peerage_netlab::kernel::{Network, SiteConfig};
use peerage_netlab::{Access, Bottleneck, Chance, LinkConfig};
use peerage_suite::failed::{Failed, Trying};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::kernel::{KernelWorld, Place, acquaint, fetch, path_to};
use crate::programs::Programs;
use crate::wait::until;
use crate::world::first_line;

const SERVER: &str = "server";
/// Where raw TCP finds the same server.
const RAW: &str = "0.0.0.0:9000";
/// What is downloaded where the time of it all counts.
const SOME: u64 = 5_000_000;
/// Where a rate counts, it is that of what arrives between these.
const RATE_FROM: Duration = Duration::from_secs(5);
const RATE_UNTIL: Duration = Duration::from_secs(10);

/// A line, as the client has it.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// How tables and JSON name it.
    pub name: &'static str,
    rtt_ms: u64,
    mbit: u64,
    loss_percent: u32,
    /// Whether the rate of a long download is measured, or the time of a short one.
    rate: bool,
}

/// The lines that are tried. Each has a queue as long as it is itself.
pub const LINES: [Line; 4] = [
    Line { name: "5 MB, 100 Mb/s, 30 ms", rtt_ms: 30, mbit: 100, loss_percent: 0, rate: false },
    Line { name: "5 MB, 100 Mb/s, 30 ms, 2 % lost", rtt_ms: 30, mbit: 100, loss_percent: 2, rate: false },
    Line { name: "long, 100 Mb/s, 30 ms", rtt_ms: 30, mbit: 100, loss_percent: 0, rate: true },
    Line { name: "long, 500 Mb/s, 100 ms", rtt_ms: 100, mbit: 500, loss_percent: 0, rate: true },
];

/// What was measured on a line: seconds, or Mb/s.
#[derive(Clone, Debug)]
pub struct Row {
    /// The line.
    pub line: Line,
    /// Through both agents.
    pub agents: Vec<f64>,
    /// Raw TCP, with the kernel's congestion control.
    pub raw: Vec<f64>,
}

impl Line {
    fn access(&self) -> Access {
        let delay = Duration::from_millis(self.rtt_ms / 2);
        let holds = self.mbit * 125 * self.rtt_ms;
        let queue_bytes = usize::try_from(holds).unwrap_or(usize::MAX);
        let bottleneck = Some(Bottleneck { bits_per_second: self.mbit * 1_000_000, queue_bytes });
        LinkConfig { loss: Chance::percent(self.loss_percent), bottleneck, ..LinkConfig::with_delay(delay) }.into()
    }

    const fn unit(&self) -> &'static str {
        if self.rate { "Mb/s" } else { "s" }
    }
}

impl Row {
    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "test": "lines", "line": self.line.name, "unit": self.line.unit(), "agents": self.agents, "raw_tcp": self.raw,
        })
    }

    /// As one line of the table: medians, and all.
    #[must_use]
    pub fn text(&self) -> String {
        let median = |values: &[f64]| {
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let all = |values: &[f64]| values.iter().map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(" ");
        let (unit, agents, raw) = (self.line.unit(), median(&self.agents), median(&self.raw));
        format!(
            "{:<32} agents {agents:>7.2} {unit:<4} raw TCP {raw:>7.2} {unit}\n    agents:  {}\n    raw TCP: {}",
            self.line.name,
            all(&self.agents),
            all(&self.raw)
        )
    }
}

/// Measures a line in this many rounds, agents and raw TCP in turns.
///
/// # Errors
/// The lab cannot be made, nobody is connected, or a download is not whole.
pub fn run(programs: &Programs, line: Line, rounds: usize) -> Result<Row, Failed> {
    let mut world = KernelWorld::new(programs, 1, &Access::default())?;
    let server = world.server(SERVER, &SiteConfig::new(Network::None))?;
    let mut command = Command::new(&programs.origin);
    command.args(["serve", RAW]);
    let mut listening = server.machine.start(command, "raw origin")?;
    first_line(&mut listening)?;
    let client = world.client("client", &SiteConfig::new(Network::None).with_access(line.access()))?;
    let [server_agent, client_agent] = [world.start_bound(&server)?, world.start_bound(&client)?];
    acquaint(&client_agent, &server_agent, client.name())?;
    fetch(&client_agent, SERVER)?;
    until("a direct path", || Ok((path_to(&client_agent, SERVER)? != "relayed").then_some(())))?;
    let raw = format!("{}:9000", world.lab.public(&server.site));
    let mut row = Row { line, agents: Vec::new(), raw: Vec::new() };
    for _ in 0..rounds {
        row.agents.push(measure(&line, &client, Some(&client_agent), &format!("{SERVER}:80"))?);
        row.raw.push(measure(&line, &client, None, &raw)?);
    }
    Ok(row)
}

/// One download, by a program that knows nothing of Peerage: with an agent's names, or without.
fn measure(line: &Line, client: &Place, agent: Option<&Agent>, address: &str) -> Result<f64, Failed> {
    let bytes = if line.rate { line.mbit * 125_000 * RATE_UNTIL.as_secs() * 2 } else { SOME };
    let seconds = [RATE_FROM, RATE_UNTIL].map(|time| time.as_secs().to_string());
    let mut words = vec!["pull".to_owned(), address.to_owned(), bytes.to_string()];
    if line.rate {
        words.extend(seconds);
    }
    let origin = &client.machine.programs().origin;
    let mut command = match agent {
        Some(_) => client.machine.peerage(&["run", "--"]),
        None => Command::new("env"),
    };
    command.arg(origin).args(&words);
    let finished = client.machine.finish(command, "pull")?;
    if !finished.status.success() {
        return Err(Failed::new(format!("{}: {}", line.name, finished.said())));
    }
    finished.stdout.trim().parse().trying("understand what a download took")
}
