//! What travels, by which path, and how fast.

use std::time::{Duration, Instant};

use peerage_agent::control::view::Event;
use serde_json::{Value, json};

use super::trust::{last, text};
use super::{Demo, NAME};
use crate::figures::median;
use crate::machine::Output;
use crate::problem::Problem;

/// Echoes while the path changes: as many as come in two seconds.
const PINGS: &str = "60";
const PING_INTERVAL: &str = "20";
/// Upgrading takes less than a second where nothing is lost; after this it does not come.
const UPGRADE: Duration = Duration::from_secs(15);
/// How long a path that should stay is watched.
const STAYS: Duration = Duration::from_secs(4);
const DOWNLOAD_SECONDS: u64 = 2;

/// What curl measured.
#[derive(Clone, Copy, Debug)]
struct Measured {
    first_byte: Duration,
    total: Duration,
    bytes: f64,
}

impl Demo {
    pub(super) fn first_byte(&mut self) -> Result<(), Problem> {
        let connected = self.wait_for_session()?;
        self.ping = Some(self.stage.laptop.follow(
            &self.report,
            &["--json", "ping", NAME, "--count", PINGS, "--interval", PING_INTERVAL],
            "ping",
        )?);
        let url = format!("http://{NAME}/healthz");
        let laptop = &self.stage.laptop;
        // At the same time: a moment later the path may be another.
        let (output, peers) = std::thread::scope(|scope| {
            let peers = scope.spawn(|| laptop.ask_quietly(&["peers"]));
            (self.curl(&[&url]), peers.join())
        });
        let (output, peer) = (output?, peers.ok().and_then(Result::ok).map(last).unwrap_or_default());
        if peer["path"] == "relayed" {
            self.relayed_rtt = peer["rtt_ms"].as_f64();
        }
        let measured = self.measured(&output)?;
        if output.stdout != "ok\n" {
            return Err(Problem::new("the server's `ok`", output.stdout, "see the server's log")
                .see([self.stage.server.log("mcp-server")]));
        }
        let came = Instant::now() - measured.total.saturating_sub(measured.first_byte);
        let path = self.timeline.path_at(came).unwrap_or_default();
        let ms = measured.first_byte.as_secs_f64() * 1e3;
        let after = (came - connected).as_secs_f64() * 1e3;
        self.report.output(output.stdout.trim());
        self.report.saw(
            &format!("`ok`: the first byte came {ms:.0} ms after curl looked the name up; path: {path}"),
            json!({"event": "first_byte", "ms": ms, "after_connected_ms": after, "path": path}),
        );
        self.figures.add(format!("first byte, cold ({path})"), format!("{ms:.0} ms"));
        Ok(())
    }

    pub(super) fn upgrade(&mut self) -> Result<(), Problem> {
        let connected = self.wait_for_session()?;
        let to_direct = |event: &Event| match event {
            Event::Connected { path, .. } if path != "relayed" => Some((path.clone(), path.clone())),
            Event::PathChanged { from, to, .. } if to != "relayed" => Some((from.clone(), to.clone())),
            _ => None,
        };
        let patience = if self.stage.must_be_direct() { UPGRADE } else { STAYS };
        match self.timeline.wait(patience, to_direct) {
            Some((at, (from, to))) => {
                let took = format!("{} ms after connecting", (at - connected).as_millis());
                self.figures.add(format!("{from} → {to}"), took);
            }
            None if self.stage.must_be_direct() => {
                let (path, why) = self.path()?;
                let got = format!("still {path} after {} s: {why}", UPGRADE.as_secs());
                let hint = "does another process use much of this machine? Try again, with --keep for the logs";
                return Err(Problem::new("a direct path through both NATs", got, hint).see(self.logs()));
            }
            None => self.stays_relayed()?,
        }
        self.round_trips()
    }

    /// Two NATs of which neither lets the other's packets find it: the relay is the answer, and says so.
    fn stays_relayed(&mut self) -> Result<(), Problem> {
        let until = Instant::now() + UPGRADE;
        let (mut path, mut why) = self.path()?;
        while why.starts_with("still checking") && Instant::now() < until {
            std::thread::sleep(super::LOOK);
            (path, why) = self.path()?;
        }
        if path != "relayed" || why.is_empty() || why.starts_with("still checking") {
            let got = format!("path `{path}`, reason `{why}`");
            return Err(Problem::new("`relayed`, with a reason", got, "see the agents' logs").see(self.logs()));
        }
        self.report.saw(
            &format!("it stays relayed, as it must with these NATs: {why}"),
            json!({"event": "stays_relayed", "why": why}),
        );
        self.figures.add("path", "stays relayed");
        Ok(())
    }

    /// The path and why it is no better, as `peerage peers` shows them.
    fn path(&self) -> Result<(String, String), Problem> {
        let peer = last(self.stage.laptop.ask_quietly(&["peers"])?);
        Ok((text(&peer["path"]), text(&peer["why"])))
    }

    /// What the ping saw before and after.
    fn round_trips(&mut self) -> Result<(), Problem> {
        let Some(mut ping) = self.ping.take() else {
            return Ok(());
        };
        let mut pongs: Vec<(String, f64)> = Vec::new();
        while let Ok(Some((_, line))) = ping.line(UPGRADE) {
            let pong: Value = serde_json::from_str(&line).unwrap_or_default();
            if let (Some(path), Some(rtt)) = (pong["path"].as_str(), pong["rtt_ms"].as_f64()) {
                pongs.push((path.to_owned(), rtt));
            }
        }
        if !ping.wait()?.success() || pongs.is_empty() {
            let got = format!("{} answers", pongs.len());
            return Err(Problem::new("the ping to be answered", got, "see the logs")
                .see(self.logs())
                .see([ping.log()]));
        }
        let mut paths: Vec<String> = pongs.iter().map(|(path, _)| path.clone()).collect();
        if let Some(rtt) = self.relayed_rtt.take()
            && !paths.iter().any(|path| path == "relayed")
        {
            pongs.push(("relayed".to_owned(), rtt));
            paths.insert(0, "relayed".to_owned());
        }
        paths.dedup();
        for path in paths {
            let on_path = pongs.iter().filter(|(on, _)| *on == path).map(|(_, rtt)| *rtt);
            let Some(rtt) = median(on_path.collect()) else { continue };
            self.report
                .saw(&format!("round trip, {path}: {rtt:.1} ms"), json!({"event": "rtt", "path": path, "rtt_ms": rtt}));
            self.figures.add(format!("round trip, {path}"), format!("{rtt:.1} ms"));
        }
        Ok(())
    }

    pub(super) fn use_mcp(&mut self) -> Result<(), Problem> {
        let said = self.post(json!({
            "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-06-18", "capabilities": {},
                "clientInfo": {"name": "curl", "version": "1"},
            },
        }))?;
        self.expect_text(&said, "/result/serverInfo/name", NAME)?;
        let said = self.post(json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}))?;
        self.expect_text(&said, "/result/tools/0/name", "query")?;
        let said = self.post(json!({
            "jsonrpc": "2.0", "id": 3, "method": "tools/call",
            "params": {"name": "query", "arguments": {"region": "south"}},
        }))?;
        let answer = "south: 1540 orders";
        self.expect_text(&said, "/result/content/0/text", answer)?;
        self.report.saw(
            &format!("initialize, tools/list and tools/call were answered: {answer}"),
            json!({"event": "mcp", "tool": "query", "answer": answer}),
        );
        Ok(())
    }

    fn post(&self, message: Value) -> Result<Value, Problem> {
        let (message, url) = (message.to_string(), format!("http://{NAME}/mcp"));
        let accept = "Accept: application/json, text/event-stream";
        let output = self.curl(&["-H", "Content-Type: application/json", "-H", accept, "-d", &message, &url])?;
        self.report.output(output.stdout.trim());
        Ok(serde_json::from_str(&output.stdout).unwrap_or_default())
    }

    fn expect_text(&self, said: &Value, at: &str, wanted: &str) -> Result<(), Problem> {
        if said.pointer(at).and_then(Value::as_str) == Some(wanted) {
            return Ok(());
        }
        let log = self.stage.server.log("mcp-server");
        Err(Problem::new(format!("`{wanted}` at {at}"), said.to_string(), "see the server's log").see([log]))
    }

    pub(super) fn throughput(&mut self) -> Result<(), Problem> {
        let url = format!("http://{NAME}/export?seconds={DOWNLOAD_SECONDS}");
        let before = self.stage.bytes_past_relays();
        let output = self.curl(&["-o", "/dev/null", &url])?;
        let measured = self.measured(&output)?;
        let seconds = measured.total.saturating_sub(measured.first_byte).as_secs_f64();
        let gbit_per_s = measured.bytes * 8.0 / seconds.max(1e-9) / 1e9;
        let path = self.timeline.path_at(Instant::now()).unwrap_or_default();
        if seconds < 1.0 || gbit_per_s <= 0.0 {
            let got = format!("{} bytes in {seconds:.2} s", measured.bytes);
            return Err(Problem::new("a download of at least a second", got, "see the logs").see(self.logs()));
        }
        #[expect(clippy::cast_precision_loss, reason = "2^53 bytes are more than a download of seconds")]
        let direct = (self.stage.bytes_past_relays() - before) as f64 / measured.bytes;
        // A tenth for what was on its way before a path changed.
        if (path == "relayed" && direct > 0.1) || (path != "relayed" && direct < 0.9) {
            let got = format!("{:.0} % of it went past the relays", direct * 100.0);
            let hint = "the agents say something else than the emulated internet counts: please report it";
            return Err(Problem::new(format!("a download that is {path}"), got, hint).see(self.logs()));
        }
        let megabytes = measured.bytes / 1e6;
        self.report.saw(
            &format!("{megabytes:.0} MB in {seconds:.1} s over HTTP through the tunnel ({path}): {gbit_per_s:.2} Gbit/s"),
            json!({
                "event": "throughput", "gbit_per_s": gbit_per_s, "bytes": measured.bytes, "seconds": seconds, "path": path,
                "past_relays": direct,
            }),
        );
        self.figures.add(format!("throughput, {path}"), format!("{gbit_per_s:.2} Gbit/s"));
        Ok(())
    }

    /// What curl said of a request that was answered with status 200.
    fn measured(&self, output: &Output) -> Result<Measured, Problem> {
        let line = output.stderr.lines().last().unwrap_or_default();
        let figure = |key: &str| -> Option<f64> {
            line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
        };
        let seconds = |key| figure(key).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        match (figure("status"), seconds("first_byte"), seconds("total"), figure("bytes")) {
            (Some(200.0), Some(first_byte), Some(total), Some(bytes)) => Ok(Measured { first_byte, total, bytes }),
            _ => {
                let hint = "see the server's log";
                Err(Problem::new("HTTP status 200 and curl's figures", output.stderr.clone(), hint)
                    .see([self.stage.server.log("mcp-server")]))
            }
        }
    }
}
