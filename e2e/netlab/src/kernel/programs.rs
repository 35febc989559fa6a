//! `ip` and `nft`, run in a namespace.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host::Jobs;

/// Where administrators' programs are, also for users whose PATH does not say so.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Finds a program, in PATH or where administrators' programs are.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.iter().map(PathBuf::from));
    places.map(|place| place.join(name)).find(|program| program.is_file())
}

/// Lets `ip` do these lines.
pub(crate) fn ip(jobs: &Jobs, lines: Vec<String>) -> io::Result<()> {
    run(jobs, "ip", &["-batch", "-"], lines.join("\n") + "\n").map(drop)
}

/// Replaces the rules of a namespace.
pub(crate) fn nft(jobs: &Jobs, rules: String) -> io::Result<()> {
    run(jobs, "nft", &["-f", "-"], rules).map(drop)
}

/// Runs a program with this input; its output, or what it said when it failed.
pub(crate) fn run(jobs: &Jobs, name: &'static str, words: &[&str], input: String) -> io::Result<String> {
    let program = find(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no `{name}`")))?;
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let output = jobs.run(move || run_here(&program, &words, &input))??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("`{name}` says: {}", said.trim())))
}

fn run_here(program: &Path, words: &[String], input: &str) -> io::Result<std::process::Output> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // Both programs read all of their input before they say more than a pipe holds.
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    child.wait_with_output()
}
