//! A relay as a process.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::failed::{Failed, Trying, ensure};
use crate::process::Process;

/// A running relay that lets everybody in; killed when this is dropped.
#[derive(Debug)]
pub struct Relay {
    _process: Process,
    _folder: TempDir,
    /// What it says of itself: `KEY@HOST:PORT`.
    pub address: String,
}

impl Relay {
    /// Starts one at `address`, with a key of its own.
    ///
    /// # Errors
    /// It does not start; the error has its log.
    pub fn start(program: &Path, address: Ipv4Addr) -> Result<Self, Failed> {
        Self::launch(program, address, "--open", |_| Ok(()))
    }

    /// Starts one at `address` that lets in agents of this authority only.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn only_for(program: &Path, address: Ipv4Addr, authority: &str) -> Result<Self, Failed> {
        Self::launch(program, address, &format!("--allow-authority={authority}"), |_| Ok(()))
    }

    /// Starts one at `address`, whose key file holds this.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with_key(program: &Path, address: Ipv4Addr, key: &[u8]) -> Result<Self, Failed> {
        Self::launch(program, address, "--open", |file| {
            fs::write(file, key).trying("write a key")?;
            let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(file, owner).trying("write a key")
        })
    }

    fn launch(
        program: &Path,
        address: Ipv4Addr,
        access: &str,
        prepare: impl FnOnce(&PathBuf) -> Result<(), Failed>,
    ) -> Result<Self, Failed> {
        let folder = tempfile::tempdir().trying("make a folder")?;
        let (key, log) = (folder.path().join("relay.key"), folder.path().join("relay.log"));
        prepare(&key)?;
        let listen = SocketAddr::from((address, 3478)).to_string();
        let mut command = Command::new(program);
        command.args(["--listen", &listen, "--advertise", &listen, access, "--no-tls", "--key-file"]).arg(key);
        let errors = fs::File::create(&log).trying("make a log")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut process = Process(command.spawn().trying("start the relay")?);
        let mut line = String::new();
        let stdout = process.0.stdout.take().ok_or_else(|| Failed::new("the relay has no output"))?;
        BufReader::new(stdout).read_line(&mut line).trying("hear the relay")?;
        let log = || fs::read_to_string(&log).unwrap_or_default();
        ensure(line.contains('@'), || format!("the relay says `{line}`: {}", log()))?;
        Ok(Self { _process: process, _folder: folder, address: line.trim().to_owned() })
    }
}
