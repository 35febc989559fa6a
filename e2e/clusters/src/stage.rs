//! What the tests share: the internet, the two clusters, and a shell that reaches both as their administrator's does.

use std::cell::RefCell;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use peerage_e2e::Programs;
use peerage_e2e::kernel::KernelWorld;
use peerage_e2e_pods::stage::images;
use peerage_netlab::Access;
use peerage_suite::failed::{Failed, Trying as _, ensure};
use tempfile::TempDir;

use crate::side::Side;

/// Everything. What is declared first ends first.
#[derive(Debug)]
pub struct Stage {
    /// The cluster that has what others use, in namespace `tools`.
    pub hub: Side,
    /// The cluster that uses it, from namespace `reports`.
    pub branch: Side,
    /// The internet with its relay; whoever else is put there.
    pub world: RefCell<KernelWorld>,
    /// How often a test revokes that counts how long it takes.
    pub runs: u32,
    /// How long operators stay away.
    pub away: Duration,
    repository: PathBuf,
    /// The archives of the images, one a line.
    archives: String,
    kubeconfig: PathBuf,
    _home: TempDir,
}

impl Stage {
    /// Starts an internet with two relays, of which the second waits for its test, and two empty clusters with the images of
    /// every test, and `others`.
    ///
    /// # Errors
    /// Something does not start.
    pub fn set(repository: &Path, others: &[&str], debug: bool, runs: u32, away: Duration) -> Result<Self, Failed> {
        let home = tempfile::tempdir().trying("make a folder")?;
        let here = std::env::current_exe().trying("find this program")?;
        let programs = Programs::of_this_build(&here.with_file_name("peerage-e2e"));
        let mut world = KernelWorld::new(&programs, 2, &Access::default()).trying("make an internet")?;
        let sites = (0..world.relays()).filter_map(|number| world.relay_site(number));
        let names = sites.zip(1..).map(|(site, number)| format!("{} relay-{number}.test\n", world.lab.public(site)));
        let hosts: String = names.collect();
        let hub = Side::start(repository, "hub", &hosts)?;
        let branch = Side::start(repository, "branch", &hosts)?;
        let archives = images(&hub, others, debug)?;
        let hub = Side::new(hub, "hub", repository, &archives, &mut world.lab)?;
        let branch = Side::new(branch, "branch", repository, &archives, &mut world.lab)?;
        let kubeconfig = home.path().join("kubeconfig");
        let world = RefCell::new(world);
        let repository = repository.to_owned();
        let stage = Self { hub, branch, world, runs, away, repository, archives, kubeconfig, _home: home };
        stage.join_kubeconfigs()?;
        Ok(stage)
    }

    /// One kubeconfig with a context for each cluster, called as the documentation calls them.
    fn join_kubeconfigs(&self) -> Result<(), Failed> {
        let mut files = Vec::new();
        for side in [&self.hub, &self.branch] {
            files.push(side.cluster().script("kube", &["kubeconfig", &side.cluster().name])?);
        }
        let mut view = self.hub.cluster().command("kubectl");
        view.env("KUBECONFIG", files.join(":")).args(["config", "view", "--flatten"]);
        let joined = view.output().trying("run kubectl")?;
        std::fs::write(&self.kubeconfig, joined.stdout).trying("write a kubeconfig")?;
        for side in [&self.hub, &self.branch] {
            self.shell(&format!("kubectl config rename-context {} {}", side.cluster().name, side.context))?;
        }
        Ok(())
    }

    /// Runs a line of shell in the repository's folder, as somebody would who administers both clusters.
    ///
    /// # Errors
    /// It fails, with what it said.
    pub fn shell(&self, line: &str) -> Result<String, Failed> {
        let said = self.command(line)?.output().trying("run a shell")?;
        let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        ensure(said.status.success(), || format!("`{line}`: {out} {err}"))?;
        ensure(!err.contains("PodSecurity"), || format!("`{line}` is warned: {err}"))?;
        Ok(out.trim().to_owned())
    }

    /// What [`Self::shell`] runs.
    fn command(&self, line: &str) -> Result<Command, Failed> {
        let here = std::env::current_exe().trying("find this program")?;
        let plugin = here.parent().ok_or_else(|| Failed::new("this program is in no folder"))?;
        let mut shell = self.hub.cluster().command("bash");
        let path = shell.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value);
        let path = path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        shell.env("PATH", format!("{}:{path}", plugin.display())).env("KUBECONFIG", &self.kubeconfig);
        shell.args(["-euo", "pipefail", "-c", line]).stdin(Stdio::null()).current_dir(&self.repository);
        Ok(shell)
    }

    /// How agents name the relay.
    ///
    /// # Errors
    /// There is none.
    pub fn relay(&self) -> Result<String, Failed> {
        let world = self.world.borrow();
        world.relay_info(0).map(str::to_owned).ok_or_else(|| Failed::new("there is no relay"))
    }

    /// What is under `/app` in the image of this name, for a machine that runs no containers.
    ///
    /// # Errors
    /// There is no such image.
    pub fn unpacked(&self, image: &str) -> Result<TempDir, Failed> {
        let named = |archive: &&str| archive.contains(&format!("peerage-test-{image}-"));
        let archive =
            self.archives.lines().find(named).ok_or_else(|| Failed::new(format!("there is no image {image}")))?;
        let folder = tempfile::tempdir().trying("make a folder")?;
        self.shell(&format!("tar -xOf {archive} layer.tar | tar -xC {} ./app", folder.path().display()))?;
        Ok(folder)
    }

    /// The cluster across from one.
    #[must_use]
    pub fn across(&self, side: &Side) -> &Side {
        if side.context == self.hub.context { &self.branch } else { &self.hub }
    }

    /// Says how to look at everything, and waits until somebody has.
    pub fn wait_for_enter(&self) {
        eprintln!("export KUBECONFIG={}; contexts hub and branch; Enter ends everything", self.kubeconfig.display());
        // Whatever comes of reading, it is over.
        let _ = std::io::stdin().read(&mut [0]);
    }
}
