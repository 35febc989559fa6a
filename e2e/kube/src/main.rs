//! What `scripts/e2e operator` runs: operators as processes on a real API server, with the rights of the chart's own
//! ServiceAccount. An administrator's kubeconfig would hide a missing verb.
//!
//! One line for each test, with `--json` as `{"test":…,"ok":…}`; it ends with 0 only if everything was as expected.

mod agent;
mod answering;
mod api;
mod audit;
mod cluster;
mod etcd;
mod fleet;
mod gate;
mod injection;
mod linked;
mod load;
mod operator;
mod pair;
mod process;
mod relay;
mod scale;
mod stranger;
mod surroundings;
mod tests;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use peerage_netlab::kernel::KernelLab;
use peerage_suite::{Choice, exit_code, failed, repository};

use crate::api::Api;
use crate::cluster::Cluster;
use crate::failed::{Failed, Trying, ensure};
use crate::operator::Operator;
use crate::tests::{ALL, Programs, Stage};

/// Operators on a real Kubernetes control plane
#[derive(Parser, Debug)]
#[command(name = "peerage-e2e-kube")]
struct Cli {
    #[command(flatten)]
    tests: Choice,

    /// The `peerage-operator` to test [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    operator: Option<PathBuf>,

    /// The chart that is installed, for an operator of another version [default: this repository's]
    #[arg(long, value_name = "FOLDER")]
    chart: Option<PathBuf>,

    /// The `peerage-agent` to test [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,

    /// The `peerage-relay` to test with [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    relay: Option<PathBuf>,

    /// The `kubectl-peerage` to test with [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,

    /// How many operators run [default: 2, and for --scale 1: what is measured is one that serves all of them]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=4))]
    replicas: Option<u8>,

    /// Measures instead: so many AgentPeers, five AgentTrusts for each, and as many agents connected as --streams says
    #[arg(long, value_name = "AGENTS", conflicts_with = "only", value_parser = clap::value_parser!(u16).range(10..=60_000))]
    scale: Option<u16>,

    /// For --scale: how many agents are connected, one number after the other
    #[arg(long, value_name = "N,N", value_delimiter = ',', requires = "scale", default_values_t = [1000])]
    streams: Vec<usize>,
}

impl Cli {
    fn replicas(&self) -> u8 {
        self.replicas.unwrap_or(if self.scale.is_some() { 1 } else { 2 })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before anything starts a thread: control plane, operators and agents are in a network of their own.
    exit_code(peerage_netlab::enter_own_network().trying("make a network").and_then(|()| run(&cli)))
}

/// Runs what was asked for; true if all of it was as expected.
fn run(cli: &Cli) -> Result<bool, Failed> {
    cli.tests.check(&ALL)?;
    let programs = Programs {
        operator: program(cli.operator.as_deref(), "peerage-operator")?,
        agent: program(cli.agent.as_deref(), "peerage-agent")?,
        relay: program(cli.relay.as_deref(), "peerage-relay")?,
        plugin: program(cli.plugin.as_deref(), "kubectl-peerage")?,
    };
    process::many_files()?;
    let stage = set_up(cli, programs)?;
    if let Some(agents) = cli.scale {
        let size = scale::Size { agents: agents.into(), streams: cli.streams.clone(), json: cli.tests.json };
        return scale::run(&stage, &size).map(|()| true);
    }
    Ok(cli.tests.run(&ALL, &stage))
}

/// The program that was named, or the one beside this one.
fn program(named: Option<&Path>, name: &str) -> Result<PathBuf, Failed> {
    let beside = || env::current_exe().map(|this| this.with_file_name(name)).trying("find this program");
    let program = named.map_or_else(beside, |named| Ok(named.to_owned()))?;
    ensure(program.exists(), || format!("there is no {}", program.display()))?;
    Ok(program)
}

fn set_up(cli: &Cli, programs: Programs) -> Result<Stage, Failed> {
    let repository = repository()?;
    let mut lab = KernelLab::new().trying("make an internet")?;
    let addresses: Vec<_> =
        (0..operator::MOST).map(operator::address).chain([pair::RELAY, linked::GATE]).chain(tests::RELAYS).collect();
    lab.join_outside(&addresses).trying("join the internet")?;
    let mut cluster = Cluster::start(repository)?;
    if let Some(chart) = &cli.chart {
        cluster.chart.clone_from(chart);
    }
    operator::install(&cluster)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let api = Api::new(&cluster)?;
    // One after the other: the second finds what the first has made.
    let operators = (0..cli.replicas()).map(|number| Operator::start(&cluster, &programs.operator, number));
    let operators = operators.collect::<Result<Vec<_>, _>>()?;
    Ok(Stage::new(cluster, api, programs, lab, operators, runtime.trying("start a runtime")?))
}
