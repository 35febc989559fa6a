//! What the programs here have in common: where they measure, how they tell it, and how they end.

use std::process::ExitCode;

use crate::figures::Figures;
use crate::network::Network;
use crate::{Result, machine};

/// How a program tells what it found.
#[derive(Clone, Debug, clap::Args)]
pub struct Output {
    /// The commit that is measured, for the record
    #[arg(long, default_value = "unknown")]
    pub commit: String,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

impl Output {
    /// On what, when and how it was measured; `load` is that of before.
    #[must_use]
    pub fn record(&self, how: &str, load: &str) -> String {
        format!("commit {}; {how}; {}; load {load} before, {} after", self.commit, machine::name(), machine::load())
    }

    /// A line of JSON for each figure, or a table under the record.
    #[must_use]
    pub fn text(&self, figures: &Figures, record: &str) -> String {
        if self.json { figures.json() } else { format!("{record}\n\n{}", figures.table()) }
    }
}

/// Three places in namespaces, or on this machine's loopback if that is asked for or no namespaces can be made. To be called first, while
/// the process has no threads.
///
/// # Errors
/// There may be namespaces, and what should be in them fails.
pub fn network(loopback: bool) -> Result<Network> {
    let entered = if loopback { Err("--loopback was asked for".into()) } else { enter() };
    match entered {
        Ok(()) => Network::in_namespaces(),
        Err(why) => {
            eprintln!("on loopback: {why}");
            Ok(Network::on_loopback())
        }
    }
}

fn enter() -> Result<()> {
    Ok(peerage_netlab::enter()?)
}

/// Says what went wrong, if anything did.
pub fn end(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
