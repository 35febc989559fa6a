//! The path: relayed at first, then whatever the NATs leave.
//!
//! Agents connect the moment they trust each other, and their path is direct a few round trips later, often before a
//! person has typed a first request. So that the relay is seen at work, the demo keeps the straight way between the two
//! closed (the emulated internet drops what takes it) until the first byte has come, and says so.

use std::time::{Duration, Instant};

use peerage_agent::control::view::Event;
use serde_json::{Value, json};

use super::trust::{last, text};
use super::{Demo, NAME};
use crate::figures::median;
use crate::machine::{Following, Machine};
use crate::problem::Problem;
use crate::report::Report;

/// More than anybody waits for; the ping is ended when enough has been seen.
const PINGS: &str = "1000";
const PING_INTERVAL: &str = "20";
/// Echoes over one path that its figure is the median of.
const ENOUGH: usize = 5;
/// Upgrading takes less than a second where nothing is lost; after this it does not come.
const UPGRADE: Duration = Duration::from_secs(15);
/// How long a path that should stay is watched: a round of checks takes 3.15 s (docs/spec/paths.md).
const STAYS: Duration = Duration::from_secs(4);

/// `peerage ping` while the path changes under it.
#[derive(Debug)]
pub(super) struct Pings {
    ping: Following,
    /// Path and milliseconds of each echo.
    seen: Vec<(String, f64)>,
}

impl Pings {
    fn start(laptop: &Machine, report: &Report) -> Result<Self, Problem> {
        let words = ["--json", "ping", NAME, "--count", PINGS, "--interval", PING_INTERVAL];
        Ok(Self { ping: laptop.follow(report, &words, "ping")?, seen: Vec::new() })
    }

    /// Waits until `count` echoes have come over `path`.
    fn wait_for(&mut self, path: &str, count: usize) -> Result<(), Problem> {
        let until = Instant::now() + UPGRADE;
        while self.over(path).len() < count {
            let Ok(Some((_, line))) = self.ping.line(until.saturating_duration_since(Instant::now())) else {
                let got = format!("{} of {} echoes", self.over(path).len(), self.seen.len());
                let expected = format!("the ping to be answered over the path that is {path}");
                return Err(Problem::new(expected, got, "see the logs").see([self.ping.log()]));
            };
            let pong: Value = serde_json::from_str(&line).unwrap_or_default();
            if let (Some(path), Some(rtt)) = (pong["path"].as_str(), pong["rtt_ms"].as_f64()) {
                self.seen.push((path.to_owned(), rtt));
            }
        }
        Ok(())
    }

    fn over(&self, path: &str) -> Vec<f64> {
        self.seen.iter().filter(|(on, _)| on == path).map(|(_, rtt)| *rtt).collect()
    }
}

impl Demo {
    pub(super) fn first_byte(&mut self) -> Result<(), Problem> {
        let connected = self.wait_for_session()?;
        let mut pings = Pings::start(&self.stage.laptop, &self.report)?;
        let output = self.curl(&[&format!("http://{NAME}/healthz")])?;
        let measured = self.measured(&output)?;
        if output.stdout != "ok\n" {
            return Err(Problem::new("the server's `ok`", output.stdout, "see the server's log")
                .see([self.stage.server.log("mcp-server")]));
        }
        let came = Instant::now() - measured.total.saturating_sub(measured.first_byte);
        let path = self.timeline.path_at(came).unwrap_or_default();
        if path != "relayed" {
            let got = format!("it came over a path that is {path}");
            return Err(Problem::new("the first byte by relay", got, "see the agents' logs").see(self.logs()));
        }
        let ms = measured.first_byte.as_secs_f64() * 1e3;
        let after = (came - connected).as_secs_f64() * 1e3;
        self.report.output(output.stdout.trim());
        self.report.saw(
            &format!("`ok`, by relay: the first byte came {ms:.0} ms after curl began to look the name up"),
            json!({"event": "first_byte", "ms": ms, "after_connected_ms": after, "path": path}),
        );
        self.figures.add("first byte, by relay", format!("{ms:.0} ms"));
        pings.wait_for("relayed", 1)?;
        self.pings = Some(pings);
        Ok(())
    }

    pub(super) fn upgrade(&mut self) -> Result<(), Problem> {
        self.stage.close_direct_way(false);
        let opened = Instant::now();
        self.report.note("the straight way between the two opens");
        self.report.object(json!({"event": "direct_way", "open": true}));
        let to_direct = |event: &Event| match event {
            Event::PathChanged { from, to, .. } if to != "relayed" => Some((from.clone(), to.clone())),
            _ => None,
        };
        let patience = if self.stage.must_be_direct() { UPGRADE } else { STAYS };
        let path = match self.timeline.wait(patience, to_direct) {
            Some((at, (from, to))) => {
                let took = at.saturating_duration_since(opened).as_millis();
                self.figures.add(format!("{from} → {to}"), format!("{took} ms after the way was open"));
                to
            }
            None if self.stage.must_be_direct() => {
                let (path, why) = self.path()?;
                let got = format!("still {path} after {} s: {why}", UPGRADE.as_secs());
                let hint = "does another process use much of this machine? Try again, with --keep for the logs";
                return Err(Problem::new("a direct path through both NATs", got, hint).see(self.logs()));
            }
            None => self.stays_relayed()?,
        };
        self.round_trips(&path)
    }

    /// Two NATs of which neither lets the other's packets find it: the relay is the answer, and says so.
    fn stays_relayed(&mut self) -> Result<String, Problem> {
        let until = Instant::now() + UPGRADE;
        let (mut path, mut why) = self.path()?;
        let undecided = |why: &str| why.starts_with("still checking");
        while undecided(&why) && Instant::now() < until {
            std::thread::sleep(super::LOOK);
            (path, why) = self.path()?;
        }
        if path != "relayed" || why.is_empty() || undecided(&why) {
            let got = format!("path `{path}`, reason `{why}`");
            return Err(Problem::new("`relayed`, with a reason", got, "see the agents' logs").see(self.logs()));
        }
        self.report.saw(
            &format!("it stays relayed, as it must with these NATs: {why}"),
            json!({"event": "stays_relayed", "why": why}),
        );
        self.figures.add("path", format!("stays relayed: {why}"));
        Ok(path)
    }

    /// The path and why it is no better, as `peerage peers` shows them.
    fn path(&self) -> Result<(String, String), Problem> {
        let peer = last(self.stage.laptop.ask_quietly(&["peers"])?);
        Ok((text(&peer["path"]), text(&peer["why"])))
    }

    /// What the ping saw by relay and over `path`.
    fn round_trips(&mut self, path: &str) -> Result<(), Problem> {
        let Some(mut pings) = self.pings.take() else {
            return Ok(());
        };
        pings.wait_for(path, ENOUGH).map_err(|problem| problem.see(self.logs()))?;
        let mut paths = vec!["relayed", path];
        paths.dedup();
        for path in paths {
            let Some(rtt) = median(pings.over(path)) else { continue };
            self.report
                .saw(&format!("round trip, {path}: {rtt:.1} ms"), json!({"event": "rtt", "path": path, "rtt_ms": rtt}));
            self.figures.add(format!("round trip, {path}"), format!("{rtt:.1} ms"));
        }
        Ok(())
    }
}
