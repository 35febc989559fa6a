//! `peerage up` as a process: what ends it, what does not, and where it may live.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Up {
    process: Child,
    state: PathBuf,
    _dir: tempfile::TempDir,
}

impl Up {
    /// An agent whose standard output is `said`, once it answers.
    fn start(said: impl Into<Stdio>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path().join("state");
        let mut command = peerage(&state, &["up", "--hostname", "db"]);
        let process = command.stdout(said).stderr(Stdio::null()).spawn().expect("it starts");
        let mut up = Self { process, state, _dir: dir };
        eventually("it answers", || {
            assert_eq!(up.process.try_wait().expect("it is ours"), None, "it must not end");
            peerage(&up.state, &["status"]).output().is_ok_and(|output| output.status.success()).then_some(())
        });
        up
    }

    fn ends(&mut self) -> ExitStatus {
        eventually("it ends", || self.process.try_wait().expect("it is ours"))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Also where the tests were started to ignore SIGHUP (`nohup`), which an agent would respect.
fn peerage(state: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_peerage")]);
    command.arg("--state").arg(state).args(args).stdin(Stdio::null()).env_remove("PEERAGE_STATE");
    command
}

#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where nothing more can be written.
fn full_disk() -> File {
    File::options().write(true).open("/dev/full").expect("Linux has it")
}

#[test]
fn an_agent_goes_on_when_nothing_it_says_can_be_written() {
    let mut up = Up::start(full_disk());
    assert!(peerage(&up.state, &["down"]).output().expect("it runs").status.success());
    assert!(up.ends().success());
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let up = Up::start(Stdio::null());
    let asked = peerage(&up.state, &["status"]).stdout(full_disk()).output().expect("it runs");
    assert_eq!(asked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&asked.stderr).contains("cannot write the answer"), "{asked:?}");
}

#[test]
fn an_agent_whose_terminal_is_closed_says_goodbye_and_ends() {
    let mut up = Up::start(Stdio::null());
    kill_process(Pid::from_child(&up.process), Signal::HUP).expect("it runs");
    assert!(up.ends().success(), "a signal that nobody hears would have ended it");
}

#[test]
fn an_agent_in_the_background_that_nobody_can_find_says_so_and_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let said = |args: &[&str]| {
        let output = peerage(&state, args).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("it is text")
    };
    let alone = said(&["up", "--detach", "--hostname", "db"]);
    assert!(alone.lines().any(|line| line.starts_with("problem") && line.contains("peerage up --relay")), "{alone}");
    said(&["down"]);
    let relay = format!("{}@127.0.0.1:3478", "a".repeat(52));
    let with_one = said(&["up", "--detach", "--relay", &relay]);
    assert!(!with_one.contains("problem"), "{with_one}");
    said(&["down"]);
}

#[test]
fn an_empty_directory_that_was_open_to_others_is_as_good_in_the_background() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let started = peerage(dir.path(), &["up", "--detach", "--hostname", "db"]).output().expect("it runs");
    assert!(started.status.success(), "{started:?}");
    assert!(peerage(dir.path(), &["down"]).output().expect("it runs").status.success());
}
