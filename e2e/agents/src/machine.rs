//! One computer: a host of the lab, a home of its own, and the programs that run there.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use peerage_netlab::Host;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::Value;

use crate::programs::Programs;
use crate::wait::PATIENCE;
use peerage_suite::failed::{Failed, Trying};

/// A computer of the world.
#[derive(Clone, Debug)]
pub struct Machine {
    host: Host,
    home: PathBuf,
    programs: Programs,
}

/// What a command left that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// The first JSON value that it printed; null if there is none.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut values = serde_json::Deserializer::from_str(&self.stdout).into_iter::<Value>();
        values.next().and_then(Result::ok).unwrap_or_default()
    }

    /// The code of the error that it printed as JSON; empty if there is none.
    #[must_use]
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Everything it said, in one line.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{} ({} {})", self.status, self.stdout.trim(), self.stderr.trim())
    }
}

impl Machine {
    /// A computer at `host` whose files are in a folder of `home`.
    pub(crate) fn new(host: Host, home: &Path, programs: &Programs) -> Result<Self, Failed> {
        let home = home.join(host.name());
        std::fs::create_dir(&home).trying("make a home")?;
        give_up_privileges(&host)?;
        Ok(Self { host, home, programs: programs.clone() })
    }

    /// Where it is in the lab.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its home folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Which programs it has.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// What the process that was started under this name said on stderr.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_file(name)).unwrap_or_default()
    }

    /// A command as a person would type it here.
    #[must_use]
    pub fn peerage(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.peerage);
        command.args(words);
        self.at_home(command)
    }

    /// A line of a page, as a person would paste it into a shell here.
    #[must_use]
    pub fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        let programs = self.programs.peerage.parent().into_iter().map(Path::to_owned);
        let searched = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(programs.chain(std::env::split_paths(&searched)));
        command.args(["-euo", "pipefail", "-c", line]).env("PATH", path.unwrap_or(searched));
        self.at_home(command)
    }

    fn at_home(&self, mut command: Command) -> Command {
        // What the tester's own agents, relays and proxies are told is not meant for these.
        let places = ["XDG_STATE_HOME", "STATE_DIRECTORY"];
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if places.contains(&name.as_str())
                || name.starts_with("PEERAGE_") && name != "PEERAGE_LOG"
                || name.to_ascii_lowercase().ends_with("_proxy")
            {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).current_dir(&self.home);
        command.env("HOME", &self.home).env("PEERAGE_STATE", self.home.join("state"));
        command
    }

    /// Starts a program that stays until it is dropped; its stderr goes to a log of that name.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, mut command: Command, name: &str) -> Result<Running, Failed> {
        let log = File::options().create(true).append(true).open(self.log_file(name)).trying("open a log")?;
        command.stdout(Stdio::piped()).stderr(log).process_group(0);
        Ok(Running { child: self.host.spawn(command).trying(&format!("start {name}"))? })
    }

    /// Runs `peerage` with these words to its end.
    ///
    /// # Errors
    /// It cannot be started, or does not end.
    pub fn attempt(&self, words: &[&str]) -> Result<Finished, Failed> {
        self.finish(self.peerage(words), &format!("peerage {}", words.join(" ")))
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// As [`Self::attempt`].
    pub fn finish(&self, mut command: Command, name: &str) -> Result<Finished, Failed> {
        let begun = Instant::now();
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = self.host.spawn(command).trying(&format!("start {name}"))?;
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let mut running = Running { child };
        let (out, err) = (whole(out), whole(err));
        let stuck = || Failed::new(format!("`{name}` still runs after {PATIENCE:?}"));
        let stdout = out.recv_timeout(PATIENCE).map_err(|_| stuck())?;
        let stderr = err.recv_timeout(PATIENCE).map_err(|_| stuck())?;
        Ok(Finished { status: running.wait()?, stdout, stderr, took: begun.elapsed() })
    }

    /// As [`Self::attempt`] with `--json`; returns the first object of the answer.
    ///
    /// # Errors
    /// Also if it ends with a failure.
    pub fn ask(&self, words: &[&str]) -> Result<Value, Failed> {
        let finished = self.attempt(&[&["--json"], words].concat())?;
        if finished.status.success() {
            return Ok(finished.json());
        }
        Err(Failed::new(format!("`peerage {}`: {}", words.join(" "), finished.said())))
    }

    /// Fetches a URL as an unmodified program does that knows nothing of Peerage.
    ///
    /// # Errors
    /// curl cannot be started, or does not end.
    pub fn curl(&self, words: &[&str]) -> Result<Finished, Failed> {
        self.attempt(&[&["run", "--", "curl", "-sS", "--max-time", "25"], words].concat())
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.home.join(format!("{name}.log"))
    }
}

/// A program that runs; dropping it kills it and what it has started.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it prints from here on; to be taken once.
    ///
    /// # Panics
    /// It was taken before.
    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("taken once")
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<(), Failed> {
        self.child.kill().trying("kill a program")?;
        self.wait().map(drop)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Failed> {
        self.child.try_wait().trying("look after a program")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn wait(&mut self) -> Result<ExitStatus, Failed> {
        self.child.wait().trying("wait for a program")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Both fail only where it has ended in between.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Reads to the end on a thread of its own.
fn whole(mut from: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is shown; the exit status says whether all was well. Nobody listens after a timeout.
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// What starts on this host from here on has no capability, as in an ordinary container or for an ordinary user: whoever
/// makes networks is root of them, and agents must not need to be.
fn give_up_privileges(host: &Host) -> Result<(), Failed> {
    let given_up = host.run(|| {
        CapabilitySet::all().iter().try_for_each(|capability| match remove_capability_from_bounding_set(capability) {
            // A kernel older than that capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(error) => Err(error),
        })
    });
    given_up.trying("reach a host")?.trying("give up privileges")
}
