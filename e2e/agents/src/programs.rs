//! Where the programs under test are.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Says which `peerage` to test, instead of the one of this build.
const VARIABLE: &str = "PEERAGE_E2E_PROGRAM";

/// The programs that machines of a [`crate::World`] run.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The `peerage` command.
    pub peerage: PathBuf,
    /// `peerage-e2e`, which is also the HTTP server that knows nothing of Peerage.
    pub origin: PathBuf,
}

impl Programs {
    /// `peerage` as built from these sources, built now if need be, next to `origin`.
    ///
    /// # Panics
    /// It cannot be built.
    #[must_use]
    pub fn of_this_build(origin: &Path) -> Self {
        static PEERAGE: OnceLock<PathBuf> = OnceLock::new();
        let peerage = PEERAGE.get_or_init(|| env::var_os(VARIABLE).map_or_else(|| built_beside(origin), PathBuf::from));
        Self { peerage: peerage.clone(), origin: origin.to_owned() }
    }

    /// Hands this choice to a process that is a test itself.
    pub fn pass_on(&self, to: &mut Command) {
        to.env(VARIABLE, &self.peerage);
    }
}

/// Cargo gives a test the binaries of its own package only. Those of the workspace lie beside them: `cargo test
/// --workspace` has built this one for the tests of `cli`, and otherwise cargo is asked to.
fn built_beside(origin: &Path) -> PathBuf {
    let folder = origin.parent().expect("a program lies in a folder");
    let program = folder.join("peerage");
    if !is_fresh(&program) {
        build(folder);
    }
    assert!(program.exists(), "cargo did not leave {}", program.display());
    program
}

/// Whether it is younger than all its sources, as cargo wrote them down beside it.
fn is_fresh(program: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let Some(built) = modified(program) else { return false };
    let Ok(sources) = fs::read_to_string(program.with_extension("d")) else { return false };
    let older = |source: &str| modified(Path::new(source)).is_some_and(|changed: SystemTime| changed <= built);
    sources.split_whitespace().skip(1).all(older)
}

fn build(folder: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(["build", "--locked", "-p", "peerage", "--bin", "peerage"]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let target = folder.parent().expect("a profile lies in a target directory");
    command.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = command.status().expect("cargo starts");
    assert!(status.success(), "cargo could not build peerage: {status}");
}
