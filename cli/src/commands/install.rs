//! `peerage install`: what needs root, once, so that nothing else does.
//!
//! A systemd unit for the agent (its own user, and of all capabilities the one for low ports), and names of peers for every
//! program of the machine. Each file is ours alone and written only where it differs, so doing it again changes nothing, and
//! `--uninstall` takes back exactly that. A program that lies where the unit cannot see it (a home directory, /tmp) is copied.
//! `/etc/resolv.conf` is not touched: where systemd-resolved does not run, the text says what to add.
//!
//! Low ports stay root's, but for this unit. The whole machine asks port 53 of 127.64.0.1 for names from here on: were it anybody's
//! (as by `net.ipv4.ip_unprivileged_port_start`, which earlier versions set), any local user could take it while the agent does
//! not run, and answer for every name there is.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use peerage_agent::control::{Code, Failure};
use peerage_output::Output;
use serde_json::json;

use super::{Done, system};
use crate::args::Install;

const UNIT: &str = "/etc/systemd/system/peerage.service";
/// What earlier versions wrote.
const SYSCTL: &str = "/etc/sysctl.d/60-peerage.conf";
const RESOLVED: &str = "/etc/systemd/resolved.conf.d/peerage.conf";

/// Our own copy of a program that the unit would not find.
const PROGRAM: &str = "/usr/local/lib/peerage/peerage";
/// What `ProtectHome` and `PrivateTmp` hide from the unit.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// `peer.internal` is a search domain too, so that `db` alone is tried as `db.peer.internal`.
const RESOLVED_TEXT: &str =
    "# Made by `peerage install`.\n[Resolve]\nDNS=127.64.0.1\nDomains=peer.internal ~peer.internal\n";
/// Back to what the kernel begins with.
const LOW_PORTS: &str = "net.ipv4.ip_unprivileged_port_start=1024";

/// A step, in the order in which it is done.
enum Step {
    File {
        path: &'static str,
        text: String,
    },
    Remove {
        path: &'static str,
    },
    /// Copies `from`, the running program, to [`PROGRAM`].
    Program {
        from: PathBuf,
    },
    Run {
        command: &'static [&'static str],
        /// Where all of these paths are.
        only_if: &'static [&'static str],
    },
}

pub fn install(options: &Install, output: Output) -> Done {
    let program = std::env::current_exe().map_err(|error| system("find this program", &error))?;
    let steps = if options.uninstall { removal() } else { plan(&program) };
    if !options.dry_run && !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            Code::NotPermitted,
            "this changes the machine, so it needs root",
            "run it with sudo, or see what it would do: peerage install --dry-run",
        ));
    }
    let mut failed = Vec::new();
    for step in &steps {
        let done = if options.dry_run { step.describe() } else { step.perform()? };
        if let Some((what, text)) = done {
            if what == FAILED {
                failed.push(text.clone());
            }
            output.answer(&json!({ "event": what, "detail": text }), |_| format!("{what:<9}  {text}"));
        }
    }
    if !failed.is_empty() {
        return Err(Failure::new(
            Code::Internal,
            format!("not everything could be done: {}", failed.join("; ")),
            "find out why each of these fails, then do this again: what is done already stays as it is",
        ));
    }
    if !options.dry_run && !options.uninstall {
        output.note("Set the agent up, then start it:\n  peerage up --state /var/lib/peerage --hostname NAME --relay KEY@HOST:PORT  (once, then stop it)\n  systemctl enable --now peerage");
        if !Path::new("/run/systemd/resolve").exists() {
            output.note("systemd-resolved does not run here: put `nameserver 127.64.0.1` and `search peer.internal` first in /etc/resolv.conf");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a step says that did not work.
const FAILED: &str = "failed";

/// Takes back what earlier versions gave to every user.
const RESERVE_LOW_PORTS: &[&str] = &["sysctl", "-q", "-w", LOW_PORTS];

fn plan(program: &Path) -> Vec<Step> {
    let hidden = HIDDEN.iter().any(|place| program.starts_with(place));
    let copy = hidden.then(|| Step::Program { from: program.to_owned() });
    let program = if hidden { Path::new(PROGRAM) } else { program };
    let files = [
        Step::Run { command: RESERVE_LOW_PORTS, only_if: &[SYSCTL] },
        Step::Remove { path: SYSCTL },
        Step::File { path: UNIT, text: unit(program) },
        Step::Run { command: &["systemctl", "daemon-reload"], only_if: &["/run/systemd/system"] },
        Step::File { path: RESOLVED, text: RESOLVED_TEXT.into() },
        Step::Run { command: &["systemctl", "try-restart", "systemd-resolved"], only_if: &["/run/systemd/resolve"] },
    ];
    copy.into_iter().chain(files).collect()
}

fn removal() -> Vec<Step> {
    let file = |path| Step::Remove { path };
    vec![
        Step::Run { command: &["systemctl", "stop", "peerage"], only_if: &[UNIT, "/run/systemd/system"] },
        Step::Run { command: &["systemctl", "disable", "-q", "peerage"], only_if: &[UNIT] },
        file(UNIT),
        Step::Run { command: &["systemctl", "daemon-reload"], only_if: &["/run/systemd/system"] },
        file(RESOLVED),
        Step::Run { command: &["systemctl", "try-restart", "systemd-resolved"], only_if: &["/run/systemd/resolve"] },
        Step::Run { command: RESERVE_LOW_PORTS, only_if: &[SYSCTL] },
        file(SYSCTL),
        file(PROGRAM),
    ]
}

fn unit(program: &Path) -> String {
    format!(
        "# Made by `peerage install`.\n\
         [Unit]\n\
         Description=Peerage agent\n\
         Documentation=https://github.com/peerage-dev/peerage\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={} --state /var/lib/peerage up\n\
         User=peerage\n\
         DynamicUser=yes\n\
         StateDirectory=peerage\n\
         StateDirectoryMode=0700\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         AmbientCapabilities=CAP_NET_BIND_SERVICE\n\
         CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n\
         NoNewPrivileges=yes\n\
         ProtectSystem=strict\n\
         ProtectHome=yes\n\
         PrivateDevices=yes\n\
         PrivateTmp=yes\n\
         RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n\
         LockPersonality=yes\n\
         MemoryDenyWriteExecute=yes\n\
         ProtectClock=yes\n\
         ProtectControlGroups=yes\n\
         ProtectHostname=yes\n\
         ProtectKernelLogs=yes\n\
         ProtectKernelModules=yes\n\
         ProtectKernelTunables=yes\n\
         RestrictNamespaces=yes\n\
         RestrictRealtime=yes\n\
         RestrictSUIDSGID=yes\n\
         UMask=0077\n\
         SystemCallArchitectures=native\n\
         LimitNOFILE=65536\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        program.display()
    )
}

impl Step {
    fn describe(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Remove { path } => Path::new(path).exists().then(|| ("would remove", (*path).into())),
            Self::File { path, text } => Some(("would write", format!("{path}\n{text}"))),
            Self::Program { from } => Some(("would copy", format!("{} to {PROGRAM}", from.display()))),
            Self::Run { command, only_if } => applies(only_if).then(|| ("would run", command.join(" "))),
        }
    }

    /// What was done, if anything had to be.
    fn perform(&self) -> Result<Option<(&'static str, String)>, Failure> {
        match self {
            Self::Remove { path } => match fs::remove_file(path) {
                Ok(()) => Ok(Some(("removed", (*path).into()))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(system(&format!("remove `{path}`"), &error)),
            },
            Self::File { path, text } => {
                let written = write_where_it_differs(Path::new(path), text);
                let written = written.map_err(|error| system(&format!("write `{path}`"), &error))?;
                Ok(written.then(|| ("wrote", (*path).into())))
            }
            Self::Program { from } => {
                let copied = copy_where_it_differs(from, Path::new(PROGRAM));
                let copied = copied.map_err(|error| system(&format!("copy this program to `{PROGRAM}`"), &error))?;
                Ok(copied.then(|| ("wrote", PROGRAM.into())))
            }
            Self::Run { command, only_if } if applies(only_if) => {
                let [program, args @ ..] = command else { return Ok(None) };
                let words = command.join(" ");
                match Command::new(program).args(args).status() {
                    Ok(status) if status.success() => Ok(Some(("ran", words))),
                    Ok(status) => Ok(Some((FAILED, format!("{words}: {status}")))),
                    Err(error) => Ok(Some((FAILED, format!("{words}: {error}")))),
                }
            }
            Self::Run { .. } => Ok(None),
        }
    }
}

fn applies(only_if: &[&str]) -> bool {
    only_if.iter().all(|path| Path::new(path).exists())
}

/// For everybody to read, like all configuration.
const FILE: u32 = 0o644;
const EXECUTABLE: u32 = 0o755;

fn write_where_it_differs(path: &Path, text: &str) -> io::Result<bool> {
    let is_there = fs::read_to_string(path).is_ok_and(|there| there == text) && mode_of(path)? == FILE;
    if !is_there {
        replace(path, text.as_bytes(), FILE)?;
    }
    Ok(!is_there)
}

fn copy_where_it_differs(from: &Path, to: &Path) -> io::Result<bool> {
    let program = fs::read(from)?;
    let is_there = fs::read(to).is_ok_and(|there| there == program) && mode_of(to)? == EXECUTABLE;
    if !is_there {
        replace(to, &program, EXECUTABLE)?;
    }
    Ok(!is_there)
}

fn mode_of(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

/// Whole or not at all, since what is there may be read or running; and with this mode, whatever the umask of who installs.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        make_open_directory(directory)?;
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, content)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
    fs::rename(&fresh, path)
}

/// Also for others to enter, where it is ours to make: resolved does not run as root.
fn make_open_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(above) = directory.parent() {
        make_open_directory(above)?;
    }
    fs::create_dir(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_and_again_only_when_it_differs() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/b.conf");
        assert!(write_where_it_differs(&path, "x").expect("it writes"));
        assert!(!write_where_it_differs(&path, "x").expect("it looks"));
        assert!(write_where_it_differs(&path, "y").expect("it writes"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        assert!(write_where_it_differs(&path, "y").expect("it writes"), "nobody else could read it");
    }

    #[test]
    fn a_program_that_the_unit_cannot_see_is_copied_and_the_copy_is_run() {
        let steps = plan(Path::new("/home/ada/peerage/target/release/peerage"));
        assert!(matches!(&steps[0], Step::Program { from } if from.starts_with("/home/ada")));
        let runs_copy =
            |step: &Step| matches!(step, Step::File { text, .. } if text.contains(&format!("ExecStart={PROGRAM} ")));
        assert!(steps.iter().any(runs_copy));
        let seen = plan(Path::new("/usr/local/bin/peerage"));
        assert!(!seen.iter().any(|step| matches!(step, Step::Program { .. })));
    }

    #[test]
    fn the_unit_runs_the_agent_with_no_capability_but_that_for_low_ports() {
        let unit = unit(Path::new("/usr/local/bin/peerage"));
        assert!(unit.contains("ExecStart=/usr/local/bin/peerage --state /var/lib/peerage up\n"));
        for set in ["AmbientCapabilities", "CapabilityBoundingSet"] {
            assert!(unit.contains(&format!("{set}=CAP_NET_BIND_SERVICE\n")));
        }
    }
}
