//! What travels through the tunnel, and how fast.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Demo, NAME};
use crate::machine::Output;
use crate::problem::Problem;

const DOWNLOAD_SECONDS: u64 = 2;

/// What curl measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) first_byte: Duration,
    pub(super) total: Duration,
    bytes: f64,
}

impl Demo {
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
    pub(super) fn measured(&self, output: &Output) -> Result<Measured, Problem> {
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
