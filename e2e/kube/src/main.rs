//! What `scripts/e2e operator` runs: operators as processes on a real API server, with the rights of the chart's own
//! ServiceAccount. An administrator's kubeconfig would hide a missing verb.
//!
//! One line for each test, with `--json` as `{"test":…,"ok":…}`; it ends with 0 only if everything was as expected.

mod agent;
mod audit;
mod cluster;
mod failed;
mod injection;
mod operator;
mod tests;

use std::cell::RefCell;
use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use crate::cluster::Cluster;
use crate::failed::{Failed, Trying, ensure};
use crate::operator::Operator;
use crate::tests::{ALL, Stage};

/// Operators on a real Kubernetes control plane
#[derive(Parser, Debug)]
#[command(name = "peerage-e2e-kube")]
struct Cli {
    /// One JSON object a line
    #[arg(long)]
    json: bool,

    /// The `peerage-operator` to test [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    operator: Option<PathBuf>,

    /// The `peerage-agent` to test [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,

    /// How many operators run
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,

    /// Only these tests; commas between them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            eprintln!("error: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for; true if all of it was as expected.
fn run(cli: &Cli) -> Result<bool, Failed> {
    if let Some(unknown) = cli.only.iter().find(|name| !ALL.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        return Err(Failed::new(format!("`{unknown}` is not one of {}", known.join(", "))));
    }
    let programs =
        [program(cli.operator.as_deref(), "peerage-operator")?, program(cli.agent.as_deref(), "peerage-agent")?];
    let stage = set_up(cli, programs)?;
    let mut good = true;
    for (name, test) in ALL.iter().filter(|(name, _)| cli.only.is_empty() || cli.only.iter().any(|one| one == name)) {
        let begun = Instant::now();
        let found = test(&stage);
        good &= found.is_ok();
        say(cli.json, name, &found, begun);
    }
    Ok(good)
}

/// The program that was named, or the one beside this one.
fn program(named: Option<&Path>, name: &str) -> Result<PathBuf, Failed> {
    let beside = || env::current_exe().map(|this| this.with_file_name(name)).trying("find this program");
    let program = named.map_or_else(beside, |named| Ok(named.to_owned()))?;
    ensure(program.exists(), || format!("there is no {}", program.display()))?;
    Ok(program)
}

fn set_up(cli: &Cli, [program, agent]: [PathBuf; 2]) -> Result<Stage, Failed> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let repository = repository.ok_or_else(|| Failed::new("this crate lies in no repository"))?;
    let cluster = Cluster::start(repository)?;
    operator::install(&cluster, repository)?;
    // One after the other, and then at once: the second finds what the first has made.
    let operators = (0..cli.replicas).map(|number| Operator::start(&cluster, &program, number));
    let operators = operators.collect::<Result<Vec<_>, _>>()?;
    Ok(Stage { cluster, program, agent, operators: RefCell::new(operators) })
}

fn say(json: bool, name: &str, found: &Result<String, Failed>, begun: Instant) {
    let seconds = (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let (ok, said) = match found {
        Ok(said) => (true, said.clone()),
        Err(failed) => (false, failed.to_string()),
    };
    if json {
        println!("{}", serde_json::json!({"test": name, "ok": ok, "said": said, "seconds": seconds}));
    } else {
        println!("{:<7} {name:<14} {seconds:>5.1} s  {said}", if ok { "ok" } else { "FAILED" });
    }
}
