//! What an agent costs that does nothing: memory and processor time beside nobody, ten and a thousand peers, and how big
//! its program is.
//!
//! The agent is the real program for containers, as a process; its peers are drivers of this process, each with its own
//! key, sockets and sessions. Started by `scripts/bench agent`.

mod crowd;
mod idle;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use peerage_bench::command::Output;
use peerage_bench::figures::{Figure, Figures};
use peerage_bench::{Result, command, machine};

/// The program of this name in the output.
const SUBJECT: &str = "peerage-agent";

/// Measures an agent that has nothing to do.
#[derive(Debug, Parser)]
#[command(name = "peerage-agents", version)]
struct Arguments {
    /// The `peerage` command, for its relay
    #[arg(long, value_name = "FILE")]
    peerage: PathBuf,
    /// The `peerage-agent` program to measure
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// Measurements of each kind; what is told is their median
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many peers the agent trusts, one measurement after the other
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 1000])]
    peers: Vec<u16>,
    #[command(flatten)]
    output: Output,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    command::end(measure(&arguments).map(|text| print!("{text}")))
}

fn measure(arguments: &Arguments) -> Result<String> {
    // Before anything else: it wants a process without threads.
    let network = command::network(false)?;
    let (mut figures, load) = (Figures::default(), machine::load());
    figures.note(SUBJECT, Figure::new("program, without symbols", stripped(&arguments.agent)? / 1e6, "MB"));
    for _ in 0..arguments.rounds {
        for peers in &arguments.peers {
            let found = idle::measure(&arguments.peerage, &arguments.agent, &network, *peers)?;
            for figure in found {
                eprintln!("{}: {:.2} {}", figure.measure, figure.value, figure.unit);
                figures.note(SUBJECT, figure);
            }
        }
    }
    let record = arguments.output.record(&format!("medians of {}", arguments.rounds), &load);
    eprintln!("{record}");
    Ok(arguments.output.text(&figures, &record))
}

/// How many bytes the program has as it is in an image.
fn stripped(program: &Path) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let bare = folder.path().join("program");
    let status = std::process::Command::new("strip").arg("-o").arg(&bare).arg(program).status()?;
    if !status.success() {
        return Err("strip failed: it is in Debian's binutils".into());
    }
    Ok(std::fs::metadata(bare)?.len() as f64)
}
