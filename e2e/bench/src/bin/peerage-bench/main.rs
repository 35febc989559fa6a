//! Everything side by side in one run: raw TCP, bare quinn, the engine alone, and programs that talk through two agents,
//! directly and by relay; then how long connections take to set up, and what idle processes hold.
//!
//! Agents and relay are real processes of the `peerage` command; the programs at both ends use plain TCP. Kinds take
//! turns within each round, so that whatever else the machine does falls on all of them. Started by `scripts/bench`.

mod bare;
mod memory;
mod report;
mod setup;
mod throughput;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use peerage_bench::command::Output;
use peerage_bench::{Error, Result, agents, command, network, people, process};
use report::Report;

/// Measures Peerage beside what it is built from.
#[derive(Debug, Parser)]
#[command(name = "peerage-bench", version)]
struct Arguments {
    /// The `peerage` command to measure
    #[arg(long, value_name = "FILE")]
    peerage: PathBuf,
    /// The `peerage-agent` program, to see what it holds when idle
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Measurements of each kind; tables show their medians
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Mebibytes that each throughput measurement sends over one stream
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    mebibytes: u32,
    /// Measure only these
    #[arg(long, value_delimiter = ',', default_values_t = ["throughput", "setup", "memory"].map(String::from))]
    only: Vec<String>,
    /// Use loopback also where namespaces can be made
    #[arg(long)]
    loopback: bool,
    #[command(flatten)]
    output: Output,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    command::end(measure(&arguments).map(|report| match arguments.output.json {
        true => report.print_json(),
        false => report.print_tables(),
    }))
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let network = command::network(arguments.loopback)?;
    let mut report = Report::new(&arguments.output.commit, arguments.rounds, network.name());
    let wanted = |what: &str| arguments.only.iter().any(|only| only == what);
    if wanted("memory") {
        memory::measure(&arguments.peerage, arguments.agent.as_deref(), &network, &mut report)?;
    }
    if wanted("throughput") {
        throughput::measure(&arguments.peerage, &network, arguments.rounds, arguments.mebibytes, &mut report)?;
    }
    if wanted("setup") {
        if network.is_namespaces() {
            setup::measure(&arguments.peerage, arguments.rounds, &mut report)?;
        } else {
            eprintln!("set-up times need namespaces, for links that take time: left out");
        }
    }
    report.finish();
    Ok(report)
}
