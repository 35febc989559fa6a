//! Programs of others, got as their users get them, from the registries; each kept in a folder named after its version,
//! outside of the checkout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use peerage_bench::Result;

/// Where a program is built in its folder until it is whole.
const BUILD: &str = "build";

/// Where installed programs stay between runs.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where an installed program is.
    pub fn program(&self, name: &str, version: &str, program: &str) -> PathBuf {
        self.folder(name, version).join("bin").join(program)
    }

    /// `go install` of these packages.
    pub fn go(&self, name: &str, version: &str, packages: &[&str]) -> Result<()> {
        self.once(name, version, |folder| {
            let mut command = Command::new(go());
            command.arg("install").args(["-ldflags", "-s -w"]);
            command.args(packages.iter().map(|package| format!("{package}@{version}")));
            command.env("GOBIN", folder.join("bin")).env("CGO_ENABLED", "0").env("GOFLAGS", "-trimpath");
            vec![command]
        })
    }

    /// `cargo install`, with these features instead of the default ones.
    pub fn cargo(&self, name: &str, version: &str, features: &str) -> Result<()> {
        self.once(name, version, |folder| {
            let mut command = cargo();
            command.args(["install", "--quiet", "--no-default-features", "--features", features]);
            command.arg("--root").arg(folder).arg(format!("{name}@{version}"));
            vec![command]
        })
    }

    /// Builds the one program of a workspace of ours that is kept apart, and says where it is. Its version is what its lock and
    /// sources say.
    pub fn build(&self, name: &str, sources: &Path) -> Result<PathBuf> {
        let version = version(sources, &["Cargo.toml", "Cargo.lock", "src/main.rs"])?;
        self.once(name, &version, |folder| {
            let mut command = cargo();
            command.args(["install", "--quiet", "--locked", "--path"]).arg(sources).arg("--root").arg(folder);
            // By default it would be built within the sources.
            command.arg("--target-dir").arg(folder.join(BUILD));
            vec![command]
        })?;
        Ok(self.program(name, &version, name))
    }

    /// The same for a program of ours in Go.
    pub fn build_go(&self, name: &str, sources: &Path) -> Result<PathBuf> {
        let version = version(sources, &["go.mod", "go.sum", "main.go"])?;
        self.once(name, &version, |folder| {
            let mut command = Command::new(go());
            command.arg("build").arg("-C").arg(sources).args(["-trimpath", "-ldflags", "-s -w", "-o"]);
            command.arg(folder.join("bin").join(name)).arg(".").env("CGO_ENABLED", "0");
            vec![command]
        })?;
        Ok(self.program(name, &version, name))
    }

    fn folder(&self, name: &str, version: &str) -> PathBuf {
        self.root.join(format!("{name}-{version}"))
    }

    /// Runs commands that fill a folder, unless it is there; it gets its name when it is whole.
    fn once(&self, name: &str, version: &str, commands: impl FnOnce(&Path) -> Vec<Command>) -> Result<()> {
        let folder = self.folder(name, version);
        if folder.exists() {
            return Ok(());
        }
        eprintln!("installing {name} {version}");
        let partial = self.root.join(format!("partial-{name}-{}", std::process::id()));
        fs::create_dir_all(&partial)?;
        let done = commands(&partial).iter_mut().try_for_each(run);
        match done {
            Ok(()) => {
                if partial.join(BUILD).exists() {
                    fs::remove_dir_all(partial.join(BUILD))?;
                }
                Ok(fs::rename(&partial, &folder)?)
            }
            Err(error) => {
                fs::remove_dir_all(&partial)?;
                Err(error)
            }
        }
    }
}

/// Go, also where only its own installer knows it.
fn go() -> PathBuf {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = std::env::split_paths(&path).any(|folder| folder.join("go").is_file());
    if !known && usual.is_file() { usual } else { "go".into() }
}

/// Cargo, told to build apart from whatever this program is built in.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.env_remove("CARGO_TARGET_DIR");
    command
}

/// Runs a command to its end; what fails is told in its own last words.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(last_words(&program, &String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// The first line that names an error and the one after it, without the address of whoever was asked.
fn last_words(program: &str, said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_error = |line: &&str| line.starts_with("error") || line.contains("server response");
    let line = lines.iter().copied().find(|line| is_error(line)).or(lines.last().copied()).unwrap_or("it says nothing");
    format!("could not be installed by {program}: {}", line.trim_start_matches("server response: "))
}

/// What these files of a folder say, in short.
fn version(sources: &Path, files: &[&str]) -> Result<String> {
    let mut whole = Vec::new();
    for file in files {
        let read = fs::read(sources.join(file));
        whole.extend(read.map_err(|error| format!("{}: {error}", sources.display()))?);
    }
    Ok(format!("{:016x}", fnv(&whole)))
}

/// FNV-1a: tells versions of a few files apart, no more.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_installed_says_why_in_one_line() {
        let said = "go: downloading x\n\tserver response: This module version is not available.\n";
        assert_eq!(last_words("go", said), "could not be installed by go: This module version is not available.");
        assert_eq!(last_words("cargo", ""), "could not be installed by cargo: it says nothing");
    }

    #[test]
    fn what_is_there_is_not_installed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().to_owned());
        let touch = |bin: &Path| {
            let mut command = Command::new("mkdir");
            command.arg(bin.join("bin"));
            vec![command]
        };
        cache.once("it", "1", touch).expect("the first time");
        assert!(cache.program("it", "1", "").is_dir());
        let fails = |_: &Path| vec![Command::new("false")];
        cache.once("it", "1", fails).expect("nothing is run");
        cache.once("it", "2", fails).expect_err("another version is another thing");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing half is left");
    }
}
