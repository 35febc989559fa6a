//! What `scripts/e2e clusters` runs: two real clusters with pods, each behind a symmetric NAT of the kernel's, a laptop behind
//! a third, and a relay on the internet between them. Nothing of any of them can be reached from outside.
//!
//! One line for each test, with `--json` as `{"test":…,"ok":…}`; it ends with 0 only if everything was as expected.

mod side;
mod stage;
mod tests;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use peerage_suite::failed::Failed;
use peerage_suite::{Choice, exit_code, repository};

use crate::stage::Stage;
use crate::tests::{ALL, OF_A2A};

/// Pods of two clusters that reach each other by hostname, with nothing exposed
#[derive(Parser, Debug)]
#[command(name = "peerage-e2e-clusters")]
struct Cli {
    #[command(flatten)]
    tests: Choice,

    /// How often `revocation` revokes
    #[arg(long, value_name = "N", default_value_t = 100)]
    runs: u32,

    /// How many seconds `operators-away` leaves both clusters without operators
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    away: u64,

    /// Images that are not optimised, which are built sooner
    #[arg(long)]
    debug: bool,

    /// At the end, leave everything as it is until somebody presses Enter
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    exit_code(run(&Cli::parse()))
}

/// Runs what was asked for; true if all of it was as expected.
fn run(cli: &Cli) -> Result<bool, Failed> {
    cli.tests.check(&ALL)?;
    // What only some tests run is not made for the others.
    let others = if OF_A2A.iter().any(|name| cli.tests.is_chosen(name)) { &["a2a"][..] } else { &[] };
    let stage = Stage::set(repository()?, others, cli.debug, cli.runs, Duration::from_secs(cli.away))?;
    let good = cli.tests.run_from_nothing(&ALL, &stage);
    if cli.keep {
        stage.wait_for_enter();
    }
    Ok(good)
}
