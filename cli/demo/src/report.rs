//! What people and programs read: sentences, or one JSON object a line.
//!
//! Everything goes to stdout, one whole line at a time, because the events of the agents are told by another thread
//! than the steps. Colours only where a terminal shows them and `NO_COLOR` does not forbid them.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::problem::Problem;

/// Lines of a log that are shown on failure.
const LOG_LINES: usize = 12;

/// Where everything is told.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    colour: bool,
    begun: Instant,
    /// One line at a time; false once nothing more shall be said.
    open: Mutex<bool>,
}

/// What commands print is cut after this many characters.
const WIDTH: usize = 160;

/// How a text is painted.
#[derive(Clone, Copy)]
enum Paint {
    Bold,
    Dim,
    Good,
    Bad,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { json, colour, begun: Instant::now(), open: Mutex::new(true) }
    }

    /// A step begins.
    pub(crate) fn step(&self, number: usize, of: usize, title: &str) {
        self.text(&format!("\n{}", self.painted(Paint::Bold, &format!("{number}. {title}"))));
        self.object(json!({"event": "step", "number": number, "of": of, "title": title}));
    }

    /// A command that is run, as a person would type it.
    pub(crate) fn command(&self, machine: &str, line: &str) {
        self.text(&format!("   {} {line}", self.painted(Paint::Dim, &format!("{machine}$"))));
        self.object(json!({"event": "command", "machine": machine, "line": line}));
    }

    /// Something that a command printed.
    pub(crate) fn output(&self, line: &str) {
        let mut shown: String = line.chars().take(WIDTH).collect();
        if shown.len() < line.len() {
            shown.push('…');
        }
        self.text(&format!("     {}", self.painted(Paint::Dim, &shown)));
    }

    /// Something that was seen to work.
    pub(crate) fn saw(&self, sentence: &str, event: Value) {
        self.text(&format!("   {} {sentence}", self.painted(Paint::Good, "✓")));
        self.object(event);
    }

    /// Something worth knowing for people.
    pub(crate) fn note(&self, sentence: &str) {
        self.text(&format!("   {sentence}"));
    }

    /// Lines as they are, for people: a picture or a table.
    pub(crate) fn lines(&self, lines: &str) {
        self.text(lines);
    }

    /// An event for programs alone.
    pub(crate) fn object(&self, mut event: Value) {
        if !self.json {
            return;
        }
        if let Some(fields) = event.as_object_mut() {
            let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            fields.insert("at_ms".to_owned(), at.into());
        }
        self.line(&event.to_string());
    }

    /// Nothing is said from here on: what fails now fails because everything is being taken down.
    pub(crate) fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    pub(crate) fn is_closed(&self) -> bool {
        !*self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which step failed and what to do.
    pub(crate) fn failed(&self, step: &str, problem: &Problem) -> ExitCode {
        self.text(&format!("\n{} {step}", self.painted(Paint::Bad, "✗ failed:")));
        self.text(&format!("   expected  {}", problem.expected));
        self.text(&format!("   got       {}", problem.got.trim_end().replace('\n', "\n             ")));
        let logs: Vec<(&Path, Vec<String>)> = problem.logs.iter().map(|log| (log.as_path(), tail(log))).collect();
        for (log, lines) in &logs {
            self.text(&format!("   the last lines of {}:", short(log)));
            lines.iter().for_each(|line| self.text(&format!("     {}", self.painted(Paint::Dim, line))));
        }
        self.text(&format!("   {}  {}", self.painted(Paint::Bold, "hint"), problem.hint));
        let logs: Vec<Value> =
            logs.iter().map(|(log, lines)| json!({"file": log.to_string_lossy(), "lines": lines})).collect();
        self.object(json!({
            "event": "failed", "step": step, "expected": problem.expected, "got": problem.got, "hint": problem.hint,
            "logs": logs,
        }));
        ExitCode::FAILURE
    }

    fn text(&self, line: &str) {
        if !self.json {
            self.line(line);
        }
    }

    fn line(&self, line: &str) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return;
        }
        let mut out = io::stdout().lock();
        // A reader that has gone away (`peerage demo | head`) is no reason to break off: things must be taken down.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    fn painted(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Bold => 1,
            Paint::Dim => 2,
            Paint::Good => 32,
            Paint::Bad => 31,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A log's machine and name.
fn short(log: &Path) -> String {
    let machine = log.parent().and_then(Path::file_name).unwrap_or_default();
    format!("{}/{}", machine.display(), log.file_name().unwrap_or_default().display())
}

/// The last lines of a log; what cannot be read says so.
fn tail(log: &Path) -> Vec<String> {
    match std::fs::read(log) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| (*line).to_owned()).collect()
        }
        Err(error) => vec![format!("(cannot be read: {error})")],
    }
}
