//! Giving trust and taking it back.

use std::time::{Duration, Instant};

use peerage_agent::control::view::Event;
use serde_json::{Value, json};

use super::{Demo, NAME};
use crate::machine::{Following, both};
use crate::mcp;
use crate::problem::Problem;

const REASON: &str = "the weekly report reads orders from your database";
/// A request passes a relay in a round trip; minutes would be too late for the person who waits.
const REQUEST: Duration = Duration::from_secs(15);
/// How long the stream is seen to flow before trust is taken back.
const STREAMED: usize = 10;
/// The promise: streams are reset within 1 s of the write, on both sides.
const PROMISE: Duration = Duration::from_secs(1);
/// When the demo stops waiting for what was promised for earlier.
const PATIENCE: Duration = Duration::from_secs(10);

impl Demo {
    pub(super) fn make_trust(&mut self) -> Result<(), Problem> {
        let (laptop, server) = (&self.stage.laptop, &self.stage.server);
        let invited = last(server.ask(&self.report, &["invite"])?);
        let Some(ticket) = invited["ticket"].as_str() else {
            return Err(self.unexpected("a ticket", &invited));
        };
        self.report.output(&format!(
            "{}…  (send it as you like: it works once, and asks only)",
            &ticket[..ticket.len().min(20)]
        ));
        laptop.ask(&self.report, &["handshake", ticket, REASON])?;
        let asked = self.wait_for_request()?;
        let (name, reason) = (text(&asked["name"]), text(&asked["reason"]));
        self.report.output(&format!("{name} asks: {reason}"));
        if (name.as_str(), reason.as_str()) != ("laptop", REASON) {
            return Err(self.unexpected("the laptop's request with its reason", &asked));
        }
        self.stage.server.ask(&self.report, &["approve", "laptop", "--inbound", "mcp"])?;
        self.report.saw(
            "both owners agree: the laptop may open mcp on db-tool-server, and nothing else",
            json!({"event": "trusted", "laptop": "laptop", "server": NAME, "inbound": ["mcp"]}),
        );
        Ok(())
    }

    /// Asks as a person would who waits for a request.
    fn wait_for_request(&self) -> Result<Value, Problem> {
        let until = Instant::now() + REQUEST;
        let mut answer = self.stage.server.ask(&self.report, &["requests"])?;
        loop {
            match answer.into_iter().next() {
                Some(request) => return Ok(request),
                None if Instant::now() >= until => {
                    let hint = "both agents must reach a relay of the ticket: see their logs";
                    return Err(Problem::new("the laptop's request to arrive", "none", hint).see(self.logs()));
                }
                None => std::thread::sleep(super::LOOK),
            }
            answer = self.stage.server.ask_quietly(&["requests"])?;
        }
    }

    pub(super) fn revoke(&mut self) -> Result<(), Problem> {
        let url = format!("http://{NAME}/mcp");
        let words = ["run", "--", "curl", "--no-buffer", "-H", "Accept: text/event-stream", &url];
        let mut stream = self.stage.laptop.follow(&self.report, &words, "stream")?;
        let last_message = self.let_it_flow(&stream)?;
        let every = mcp::MESSAGE_INTERVAL.as_millis();
        self.report.note(&format!("the stream is open: {last_message} (one every {every} ms)"));

        let begun = Instant::now();
        let revoked = last(self.stage.server.ask(&self.report, &["revoke", "laptop", "--wait"])?);
        let ended = self.wait_for_end(&stream)?;
        let took = ended.saturating_duration_since(begun);
        let status = stream.wait()?;
        let said = std::fs::read_to_string(stream.log()).unwrap_or_default();
        let said = complaint(&said);
        if status.success() {
            let hint = "a reset must not look like the end of an answer: see the agents' logs";
            return Err(Problem::new("curl to see a broken stream", "it ended as if complete", hint).see(self.logs()));
        }
        if took > PROMISE {
            let got = format!("{} ms", took.as_millis());
            let hint = "a busy machine? Try again; else see the agents' logs";
            return Err(Problem::new("the stream to be reset within 1 s", got, hint).see(self.logs()));
        }
        let reset_ms = took.as_secs_f64() * 1e3;
        self.report.saw(
            &format!("{reset_ms:.0} ms after the command was typed, the laptop's curl lost its stream: {said}"),
            json!({
                "event": "revoked", "reset_ms": reset_ms, "by": "db-tool-server", "agent_reset_ms": revoked["reset_ms"],
                "streams_reset": revoked["streams_reset"], "curl": said,
            }),
        );
        self.figures.add("open stream reset after revocation", format!("{reset_ms:.0} ms"));
        self.nothing_gets_through()
    }

    /// Sees the stream flow; returns what its last message said.
    fn let_it_flow(&self, stream: &Following) -> Result<String, Problem> {
        let mut messages = Vec::new();
        while messages.len() < STREAMED {
            let line = stream.line(PATIENCE).ok().flatten().map(|(_, line)| line);
            let Some(line) = line else {
                let got = format!("it ended or stood still after {}", messages.len());
                return Err(Problem::new(format!("{STREAMED} messages of the event stream"), got, "see the logs")
                    .see(self.logs())
                    .see([stream.log()]));
            };
            messages.extend(line.strip_prefix("data: ").map(str::to_owned));
        }
        let message: Value = messages.last().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(text(&message["params"]["data"]))
    }

    /// When curl closed its output, which it does when its connection is gone.
    fn wait_for_end(&self, stream: &Following) -> Result<Instant, Problem> {
        let until = Instant::now() + PATIENCE;
        loop {
            match stream.line(until.saturating_duration_since(Instant::now())) {
                // Messages that were there before.
                Ok(Some(_)) if Instant::now() < until => {}
                Ok(None) => return Ok(Instant::now()),
                Ok(Some(_)) | Err(_) => {
                    let hint = "this breaks a promise of Peerage: please report it with both logs";
                    return Err(Problem::new("the open stream to be reset", "it still flows", hint).see(self.logs()));
                }
            }
        }
    }

    fn nothing_gets_through(&self) -> Result<(), Problem> {
        let url = format!("http://{NAME}/healthz");
        let output = self.stage.laptop.run(&self.report, &["curl", "--max-time", "2", &url])?;
        if output.status.success() {
            let hint = "this breaks a promise of Peerage: please report it with both logs";
            return Err(Problem::new("a new request to fail", both(&output), hint).see(self.logs()));
        }
        let said = complaint(&output.stderr);
        self.report.saw(&format!("a new request gets nowhere: {said}"), json!({"event": "refused", "curl": said}));
        Ok(())
    }

    fn unexpected(&self, expected: &str, got: &Value) -> Problem {
        Problem::new(expected, got.to_string(), "are all parts of one version? Build again").see(self.logs())
    }

    /// When the first session came up. Returns when the peer has said which ports it opens.
    pub(super) fn wait_for_session(&self) -> Result<Instant, Problem> {
        let hint = "both agents must reach a relay: see their logs";
        let connected = self.timeline.wait(PATIENCE, |event| matches!(event, Event::Connected { .. }).then_some(()));
        let Some((at, ())) = connected else {
            return Err(Problem::new("a session with db-tool-server", "none came up", hint).see(self.logs()));
        };
        let opens = |event: &Event| matches!(event, Event::Ports { ports, .. } if !ports.is_empty()).then_some(());
        match self.timeline.wait(PATIENCE, opens) {
            Some(_) => Ok(at),
            None => {
                Err(Problem::new("db-tool-server to say which ports it opens", "it did not", hint).see(self.logs()))
            }
        }
    }
}

/// The line in which curl says what went wrong.
fn complaint(said: &str) -> &str {
    said.lines().find(|line| line.starts_with("curl:")).unwrap_or(said).trim()
}

pub(super) fn last(mut values: Vec<Value>) -> Value {
    values.pop().unwrap_or_default()
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
