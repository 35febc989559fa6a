//! The steps, in order. Each reads as a sentence, does what a person would do, and returns only when it has seen that
//! it worked.

mod path;
mod traffic;
mod trust;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::figures::Figures;
use crate::interrupt;
use crate::machine::{Machine, Output, Running, both};
use crate::options::{NatPreset, Options};
use crate::problem::Problem;
use crate::report::Report;
use crate::stage::{RELAYS, Stage, Teardown, picture};
use crate::timeline::Timeline;

/// The name that everything is about.
const NAME: &str = "db-tool-server";
/// Where the MCP server listens: on its machine's loopback, as `--expose` says.
const SERVER_ADDRESS: &str = "127.0.0.1:8080";
/// A process that has not come up by then will not.
const START: Duration = Duration::from_secs(10);
/// Between two looks at whether something has come up.
const LOOK: Duration = Duration::from_millis(20);

type Step = fn(&mut Demo) -> Result<(), Problem>;

const STEPS: [(&str, Step); 9] = [
    ("Relays start at public addresses", Demo::start_relays),
    ("An MCP server starts, on the loopback of its machine", Demo::start_server),
    ("Two agents start, each behind a NAT, and find out which kind", Demo::start_agents),
    ("The laptop asks for trust, and the server's owner gives it", Demo::make_trust),
    ("A plain curl reaches the server by its name, at once", Demo::first_byte),
    ("The path becomes direct underneath, if the NATs leave a way", Demo::upgrade),
    ("An MCP client works as if the server were next to it", Demo::use_mcp),
    ("A download shows what the tunnel carries", Demo::throughput),
    ("Taking trust back resets a stream that is open", Demo::revoke),
];

/// Everything that the steps leave to each other.
#[derive(Debug)]
pub(super) struct Demo {
    report: Arc<Report>,
    figures: Figures,
    /// What agents are told about the relays: `KEY@HOST:PORT`.
    relays: Vec<String>,
    /// The laptop's events.
    timeline: Arc<Timeline>,
    /// The presets of the laptop's and the server's NAT.
    nats: [NatPreset; 2],
    /// A ping that has run since the first connection.
    pings: Option<path::Pings>,
    running: Vec<Running>,
    /// Last: what runs ends before the world it runs in.
    stage: Stage,
}

/// Plays the whole story.
pub(crate) fn play(options: &Options, report: &Arc<Report>) -> ExitCode {
    let begun = Instant::now();
    let prepared = require_curl().and_then(|version| {
        report
            .lines("Two agents behind NATs find each other by name: real sockets and processes, an emulated internet.");
        report.lines(&picture(options));
        report.object(json!({"event": "started", "curl": version, "rtt_ms": options.rtt}));
        let teardown = Arc::new(Teardown::new(options.keep)?);
        interrupt::watch(Arc::clone(&teardown), Arc::clone(report))?;
        Stage::build(options, &teardown).inspect_err(|_| teardown.now())
    });
    let mut demo = match prepared {
        Ok(stage) => Demo::new(stage, [options.nat_a, options.nat_b], Arc::clone(report)),
        Err(problem) => return report.failed("The demo finds what it needs", &problem),
    };
    for (number, (title, step)) in (1..).zip(STEPS) {
        report.step(number, STEPS.len(), title);
        if let Err(problem) = step(&mut demo) {
            while report.is_closed() {
                // Interrupted: the thread that was told so ends the process.
                std::thread::park();
            }
            let code = report.failed(title, &problem);
            demo.say_where_logs_are(options.keep);
            return code;
        }
    }
    report.lines(&format!("\nEverything was seen to work.\n{}", demo.figures.table()));
    report.object(demo.figures.event(begun.elapsed().as_secs_f64()));
    demo.say_where_logs_are(options.keep);
    ExitCode::SUCCESS
}

impl Demo {
    fn new(stage: Stage, nats: [NatPreset; 2], report: Arc<Report>) -> Self {
        Self {
            report,
            figures: Figures::default(),
            relays: Vec::new(),
            timeline: Arc::default(),
            nats,
            pings: None,
            running: Vec::new(),
            stage,
        }
    }

    fn start_relays(&mut self) -> Result<(), Problem> {
        for (machine, address) in self.stage.relays.iter().zip(RELAYS) {
            let listen = format!("{address}:3478");
            // In the machine's own folder: all machines of the demo have one disk.
            let words = ["relay", "--open", "--listen", &listen, "--key-file", "relay.key"];
            self.running.push(machine.start(&self.report, &words, "relay")?);
            let info = wait_for(&mut self.running, "the relay to say where it is", &machine.log("relay"), || {
                let said = std::fs::read_to_string(machine.log("relay")).unwrap_or_default();
                said.lines().map(str::trim).find(|line| line.ends_with(&format!("@{listen}"))).map(str::to_owned)
            })?;
            self.report.output(&info);
            self.relays.push(info);
        }
        self.report.saw(
            "both relays run; agents are told their keys and addresses",
            json!({"event": "relays", "relays": self.relays}),
        );
        Ok(())
    }

    fn start_server(&mut self) -> Result<(), Problem> {
        let server = &self.stage.server;
        self.running.push(server.start(&self.report, &["demo", "--serve-mcp", SERVER_ADDRESS], "mcp-server")?);
        wait_for(&mut self.running, "the MCP server to listen", &server.log("mcp-server"), || {
            std::fs::read_to_string(server.log("mcp-server")).ok().filter(|said| said.contains("listening"))
        })?;
        self.report.saw(
            &format!("it listens on {SERVER_ADDRESS} and knows nothing of Peerage"),
            json!({"event": "server", "address": SERVER_ADDRESS}),
        );
        Ok(())
    }

    fn start_agents(&mut self) -> Result<(), Problem> {
        let mut relays = Vec::new();
        for relay in &self.relays {
            relays.extend(["--relay", relay]);
        }
        let server: Vec<&str> = [&["up", "--hostname", NAME, "--expose", "mcp=80:8080"], &*relays].concat();
        let laptop: Vec<&str> = [&["up", "--hostname", "laptop"], &*relays].concat();
        for (machine, words) in [(&self.stage.server, server), (&self.stage.laptop, laptop)] {
            self.running.push(machine.start(&self.report, &words, "agent")?);
        }
        for (machine, nat) in [&self.stage.laptop, &self.stage.server].into_iter().zip(self.nats) {
            let expected = "the agent to be bound at its relays and to know its NAT";
            let status = wait_for(&mut self.running, expected, &machine.log("agent"), || {
                let status = machine.ask_quietly(&["status"]).ok()?.pop()?;
                let bound = |relay: &Value| relay["up"] == true && relay["observed"].is_string();
                let known = status["nat"]["kind"] != "unknown";
                (known && status["relays"].as_array()?.iter().all(bound)).then_some(status)
            })?;
            let found = status["nat"]["kind"].as_str().unwrap_or_default();
            if !nat.is_found_as(found) {
                let expected = format!("{} to be recognised", nat.words());
                return Err(Problem::new(expected, found, "see the agents' logs").see(self.logs()));
            }
            say_nat(&self.report, &mut self.figures, machine.name(), &status);
        }
        self.stage.close_direct_way(true);
        self.report
            .note("for now, packets that would go straight between the two are dropped: you shall see the relay first");
        self.report.object(json!({"event": "direct_way", "open": false}));
        self.timeline = Timeline::listen(self.stage.laptop.place(), &self.report)?;
        Ok(())
    }

    fn say_where_logs_are(&self, keep: bool) {
        if keep {
            let home = self.stage.teardown.home().display();
            self.report.note(&format!("\n   logs and state: {home}"));
            self.report.object(json!({"event": "kept", "directory": home.to_string()}));
        }
    }

    /// Runs curl on the laptop and wants its answer whole.
    fn curl(&self, words: &[&str]) -> Result<Output, Problem> {
        let output = self.stage.laptop.run(&self.report, &[&["curl"], words].concat())?;
        if output.status.success() {
            return Ok(output);
        }
        let hint = "look at both agents' logs; PEERAGE_LOG=debug and --keep give longer ones";
        Err(Problem::new("curl to get its answer", both(&output), hint).see(self.logs()))
    }

    /// What both agents said.
    fn logs(&self) -> [std::path::PathBuf; 2] {
        [&self.stage.laptop, &self.stage.server].map(|machine: &Machine| machine.log("agent"))
    }
}

/// What an agent found out about its NAT.
fn say_nat(report: &Report, figures: &mut Figures, machine: &str, status: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, detail) = (text(&status["nat"]["kind"]), text(&status["nat"]["detail"]));
    let observed = text(&status["relays"][0]["observed"]);
    let said = if detail.is_empty() { &kind } else { &detail };
    report.saw(
        &format!("{machine} is bound at its relays, which see it at {observed}; NAT: {said}"),
        json!({"event": "nat", "machine": machine, "kind": kind, "detail": detail, "observed": observed}),
    );
    figures.add(format!("NAT of {machine}"), kind);
}

/// Looks until `found`; a process that ends meanwhile, or patience that does, is the problem.
fn wait_for<T>(
    running: &mut [Running],
    expected: &str,
    log: &std::path::Path,
    mut found: impl FnMut() -> Option<T>,
) -> Result<T, Problem> {
    let until = Instant::now() + START;
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        let ended = running.iter_mut().find_map(|process| Some((process.log(), process.ended()?)));
        let got = match ended {
            Some((whose, status)) if whose == log => format!("it ended ({status})"),
            _ if Instant::now() >= until => format!("nothing of that within {} s", START.as_secs()),
            _ => {
                std::thread::sleep(LOOK);
                continue;
            }
        };
        return Err(Problem::new(expected, got, "its log says why").see([log.to_owned()]));
    }
}

/// The version of the machine's curl.
fn require_curl() -> Result<String, Problem> {
    let hint = "install it: as root, `apt-get install -y curl` (Debian, Ubuntu), `dnf install -y curl` (Fedora)";
    let missing =
        |got: String| Problem::new("the program `curl`, an unmodified one, to show the names with", got, hint);
    let output = Command::new("curl").arg("--version").output().map_err(|error| missing(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().next() {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(missing(format!("`curl --version` failed ({})", output.status))),
    }
}
