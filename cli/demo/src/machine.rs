//! Running commands on one of the demo's machines, as the person in front of it would.
//!
//! `peerage` is the very program that runs the demo. Each machine has a home of its own; `PEERAGE_STATE` points into it,
//! so that the lines need no `--state`. What is asked for is asked with `--json`, and shown without.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use peerage_agent::state::{Place, STATE_VARIABLE};
use peerage_netlab::Host;
use serde_json::Value;

use crate::problem::Problem;
use crate::report::Report;
use crate::stage::Teardown;

/// A command that takes longer hangs; the slowest of them (a handshake over a 1 s round trip) takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer words (tickets) are shortened where they are shown.
const SHOWN: usize = 80;

/// What curl reads on these machines, so that the lines stay as short as they would be typed: no progress meter, and
/// the figures of each request on stderr, apart from the answer.
const CURLRC: &str = r#"# Made by `peerage demo`.
silent
show-error
write-out = "%{stderr}status=%{http_code} first_byte=%{time_starttransfer} total=%{time_total} bytes=%{size_download}\n"
"#;

/// One machine of the demo.
#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    host: Host,
    home: PathBuf,
    program: PathBuf,
    teardown: Arc<Teardown>,
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Machine {
    pub(crate) fn new(name: &str, host: Host, teardown: &Arc<Teardown>) -> Result<Self, Problem> {
        let home = teardown.home().join(name);
        std::fs::create_dir(&home)?;
        std::fs::write(home.join(".curlrc"), CURLRC)?;
        let program = std::env::current_exe()?;
        Ok(Self { name: name.to_owned(), host, home, program, teardown: Arc::clone(teardown) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The agent's state.
    pub(crate) fn place(&self) -> Place {
        Place::find(Some(&self.home.join("state"))).expect("a place that is said needs no home")
    }

    /// What the process that was started as `log` printed.
    pub(crate) fn log(&self, log: &str) -> PathBuf {
        self.home.join(format!("{log}.log"))
    }

    /// Starts a process that stays; what it prints goes to a log.
    pub(crate) fn start(&self, report: &Report, words: &[&str], log: &str) -> Result<Running, Problem> {
        report.command(&self.name, &shown(words));
        self.start_quietly(words, log)
    }

    /// As [`Self::start`], for what is no part of the story.
    pub(crate) fn start_quietly(&self, words: &[&str], log: &str) -> Result<Running, Problem> {
        let out = OpenOptions::new().create(true).append(true).open(self.log(log))?;
        let mut command = self.peerage(words);
        command.stdout(out.try_clone()?).stderr(out);
        Ok(Running { child: self.spawn(command)?, log: self.log(log), teardown: Arc::clone(&self.teardown) })
    }

    /// Starts a process whose lines are heard as they come.
    pub(crate) fn follow(&self, report: &Report, words: &[&str], log: &str) -> Result<Following, Problem> {
        report.command(&self.name, &shown(words));
        let mut command = self.peerage(words);
        command.stdout(Stdio::piped()).stderr(File::create(self.log(log))?);
        let mut child = self.spawn(command)?;
        let stdout = child.stdout.take().expect("it was piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // It ends with the process, or when nobody listens.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let running = Running { child, log: self.log(log), teardown: Arc::clone(&self.teardown) };
        Ok(Following { running, lines })
    }

    /// Asks and shows the question; the answer is one or more JSON values.
    pub(crate) fn ask(&self, report: &Report, words: &[&str]) -> Result<Vec<Value>, Problem> {
        report.command(&self.name, &shown(words));
        self.ask_quietly(words)
    }

    /// Asks without showing the question.
    pub(crate) fn ask_quietly(&self, words: &[&str]) -> Result<Vec<Value>, Problem> {
        let with_json: Vec<&str> = std::iter::once("--json").chain(words.iter().copied()).collect();
        let output = self.output(&with_json, PATIENCE)?;
        let values = objects(&output.stdout);
        if output.status.success() {
            return Ok(values);
        }
        let said = values.iter().chain(&objects(&output.stderr)).find_map(failure);
        let (got, hint) =
            said.unwrap_or_else(|| (both(&output), "its log and the command's words may say more".to_owned()));
        Err(Problem::new(format!("`{}` to succeed", shown(words)), got, hint).see([self.log("agent")]))
    }

    /// Runs a program by `peerage run`, and shows the line.
    pub(crate) fn run(&self, report: &Report, words: &[&str]) -> Result<Output, Problem> {
        let words: Vec<&str> = ["run", "--"].iter().chain(words).copied().collect();
        report.command(&self.name, &shown(&words));
        self.output(&words, PATIENCE)
    }

    fn output(&self, words: &[&str], patience: Duration) -> Result<Output, Problem> {
        let mut command = self.peerage(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let mut running = Running { child, log: self.log("agent"), teardown: Arc::clone(&self.teardown) };
        let (out, err) = (whole(out), whole(err));
        let deadline = Instant::now() + patience;
        let slow = |_: RecvTimeoutError| {
            let expected = format!("`{}` to end within {} s", shown(words), patience.as_secs());
            Problem::new(expected, "it still runs", "a busy machine? Try again, with --keep for the logs")
                .see([self.log("agent")])
        };
        let stdout = out.recv_timeout(patience).map_err(slow)?;
        let stderr = err.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(slow)?;
        Ok(Output { status: running.wait()?, stdout, stderr })
    }

    fn peerage(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // A group of its own, so that Ctrl-C asks the demo alone, which then ends everything in order.
        command.args(words).stdin(Stdio::null()).process_group(0);
        // What the person's own agents, relays and proxies are told is not meant for these.
        let ours = |name: &str| name.starts_with("PEERAGE_") && name != "PEERAGE_LOG";
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| ours(name) || name.to_ascii_lowercase().ends_with("_proxy")) {
                command.env_remove(name);
            }
        }
        command.current_dir(&self.home).env("HOME", &self.home).env("CURL_HOME", &self.home);
        command.env(STATE_VARIABLE, self.home.join("state"));
        command
    }

    fn spawn(&self, command: Command) -> io::Result<Child> {
        let child = self.host.spawn(command)?;
        self.teardown.started(child.id());
        Ok(child)
    }
}

/// A process that stays; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    teardown: Arc<Teardown>,
}

impl Running {
    /// What it printed.
    pub(crate) fn log(&self) -> PathBuf {
        self.log.clone()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.teardown.ended(self.child.id());
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.wait();
    }
}

/// A process and its lines, with the time each came.
#[derive(Debug)]
pub(crate) struct Following {
    running: Running,
    lines: Receiver<(Instant, String)>,
}

impl Following {
    /// The next line; `Ok(None)` when it has closed its output, `Err` when none came in time.
    pub(crate) fn line(&self, patience: Duration) -> Result<Option<(Instant, String)>, RecvTimeoutError> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(RecvTimeoutError::Timeout),
        }
    }

    /// How it ended, once it has closed its output.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.running.wait()
    }

    /// What it printed to stderr.
    pub(crate) fn log(&self) -> PathBuf {
        self.running.log()
    }
}

/// Reads to the end on a thread of its own.
fn whole(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is shown; the exit status says whether all was well.
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// The JSON values in a command's output: one that spans lines, or one a line.
fn objects(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter::<Value>().map_while(Result::ok).collect()
}

/// Message and hint of a failure as every command prints it.
fn failure(value: &Value) -> Option<(String, String)> {
    let error = value.get("error")?;
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some((format!("{} ({})", text("message"), text("code")), text("hint")))
}

/// Everything a command said.
pub(crate) fn both(output: &Output) -> String {
    let said = format!("{}{}", output.stdout, output.stderr);
    format!("{} ({})", said.trim(), output.status)
}

/// The command line as a person would type it, who reads and needs no JSON.
fn shown(words: &[&str]) -> String {
    let typed = words.iter().skip_while(|word| **word == "--json");
    typed.fold("peerage".to_owned(), |line, word| format!("{line} {}", quoted(word)))
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if word.chars().all(plain) && !word.is_empty() {
        return if word.len() > SHOWN { format!("{}…", &word[..SHOWN / 4]) } else { word.to_owned() };
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_line_can_be_typed() {
        assert_eq!(shown(&["handshake", "it's why"]), r"peerage handshake 'it'\''s why'");
        assert_eq!(shown(&["run", "--", "curl", "http://db/?a=1"]), "peerage run -- curl 'http://db/?a=1'");
    }

    #[test]
    fn a_ticket_is_shortened() {
        assert_eq!(quoted(&"a".repeat(200)), format!("{}…", "a".repeat(20)));
    }

    #[test]
    fn answers_may_span_lines_or_come_one_a_line() {
        assert_eq!(objects("{\n \"a\": 1\n}\n").len(), 1);
        assert_eq!(objects("{\"seq\":1}\n{\"seq\":2}\n").len(), 2);
        assert!(objects("error: no agent").is_empty());
    }
}
