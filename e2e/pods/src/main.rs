//! What `scripts/e2e pods` runs: a real cluster with a node, the chart, and unmodified programs in pods that reach each
//! other by hostname.
//!
//! One line for each test, with `--json` as `{"test":…,"ok":…}`; it ends with 0 only if everything was as expected.

mod tests;

use std::process::ExitCode;

use clap::Parser;
use peerage_e2e_pods::failed::Failed;
use peerage_e2e_pods::stage::Stage;
use peerage_suite::{Choice, exit_code, repository};

use crate::tests::ALL;

/// Pods that reach each other by hostname, on a real cluster
#[derive(Parser, Debug)]
#[command(name = "peerage-e2e-pods")]
struct Cli {
    #[command(flatten)]
    tests: Choice,

    /// Images that are not optimised, which are built sooner
    #[arg(long)]
    debug: bool,

    /// Leave the cluster as it is at the end
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    exit_code(run(&Cli::parse()))
}

/// Runs what was asked for; true if all of it was as expected.
fn run(cli: &Cli) -> Result<bool, Failed> {
    cli.tests.check(&ALL)?;
    let stage = Stage::set(repository()?, cli.debug, cli.keep)?;
    Ok(cli.tests.run_from_nothing(&ALL, &stage))
}
