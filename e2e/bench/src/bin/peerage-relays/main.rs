//! What one relay carries: packets per core, idle clients, modest clients beside a greedy one, and everybody at once after a
//! restart. The relay is a process of the `peerage` command, clients are real sockets with the state machine of agents. Started by
//! `scripts/bench relay`; `docs/benchmarks/relay.md` says what it found.
//!
//! Other builds of the command can be measured beside it (`--beside`), in turns, so that a change is seen in one run.

mod crowd;
mod fairness;
mod forward;
mod idle;
mod stage;
mod storm;
mod streams;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use peerage_bench::command::Output;
use peerage_bench::figures::{Figure, Figures};
use peerage_bench::network::Place;
use peerage_bench::{Result, command, machine};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Measures a relay.
#[derive(Clone, Debug, Parser)]
#[command(name = "peerage-relays", version)]
struct Arguments {
    /// The `peerage` command to measure
    #[arg(long, value_name = "FILE")]
    peerage: PathBuf,
    /// Another one to measure in the same run
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    beside: Vec<(String, PathBuf)>,
    /// Measurements of each kind; what is told is their median
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds of each measurement of forwarding and fairness
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds that idle clients are watched; each says that it is there every 25
    #[arg(long, default_value_t = 30.0)]
    settle: f64,
    /// Measure only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    only: Vec<Part>,
    /// Idle clients by UDP
    #[arg(long, value_delimiter = ',', default_value = "10000,100000", value_parser = clap::value_parser!(u32).range(1..=110_000))]
    datagrams: Vec<u32>,
    /// Idle clients by TLS; a relay takes 10,000 of one authority, and this process needs a file for each
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(17..=10_000))]
    streams: u32,
    /// Clients that come back at once
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    storm: u32,
    /// Sockets and threads of the relay that forwards
    #[arg(long, default_value_t = 1)]
    workers: u16,
    /// Use loopback of this machine also where namespaces can be made
    #[arg(long)]
    loopback: bool,
    #[command(flatten)]
    output: Output,
}

/// Parts of a run. Memory does not change from round to round, so those parts have three rounds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Packets and bits per core
    Forward,
    /// Modest clients beside a greedy one
    Fairness,
    /// All clients at once after an orderly restart
    Restart,
    /// The same after a crash
    Crash,
    /// Memory of idle clients by UDP
    Idle,
    /// The same by TLS
    Tls,
}

impl Part {
    const ALL: [Self; 6] = [Self::Forward, Self::Fairness, Self::Restart, Self::Crash, Self::Idle, Self::Tls];

    fn rounds(self, wanted: u16) -> u16 {
        match self {
            Self::Forward | Self::Fairness => wanted,
            Self::Restart | Self::Crash | Self::Idle | Self::Tls => wanted.min(3),
        }
    }

    fn take(self, peerage: &Path, place: &Place, wanted: &Arguments) -> Result<Vec<Figure>> {
        let (time, idle) = (Duration::from_secs_f64(wanted.seconds), Duration::from_secs_f64(wanted.settle));
        match self {
            Self::Forward => forward::take(peerage, place, wanted.workers, time),
            Self::Fairness => fairness::take(peerage, place, time),
            Self::Restart => storm::take(peerage, place, wanted.storm, storm::End::Told),
            Self::Crash => storm::take(peerage, place, wanted.storm, storm::End::Killed),
            Self::Idle => {
                let each = wanted.datagrams.iter().map(|clients| idle::datagrams(peerage, place, *clients, idle));
                Ok(each.collect::<Result<Vec<_>>>()?.concat())
            }
            Self::Tls => idle::streams(peerage, place, wanted.streams, idle),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    command::end(measure(&arguments).map(|text| print!("{text}")))
}

fn measure(arguments: &Arguments) -> Result<String> {
    let network = command::network(arguments.loopback)?;
    allow_files(u64::from(arguments.streams.max(arguments.storm)) + 1_000)?;
    let place = network.relay.loopback();
    let mut subjects = vec![("Peerage".to_owned(), arguments.peerage.clone())];
    subjects.extend(arguments.beside.iter().cloned());
    let (mut figures, load) = (Figures::default(), machine::load());
    for part in Part::ALL.into_iter().filter(|part| arguments.only.contains(part)) {
        for round in 0..part.rounds(arguments.rounds) {
            for (name, peerage) in &subjects {
                let (peerage, here, wanted) = (peerage.clone(), place.clone(), arguments.clone());
                let taken = place.thread(move || part.take(&peerage, &here, &wanted))?.join();
                match taken.map_err(|_| "a measurement panicked")? {
                    Ok(taken) => taken.into_iter().for_each(|figure| figures.note(name, figure)),
                    Err(why) => figures.not_run(name, &format!("{part:?}"), &why.to_string()),
                }
            }
            // In turns: whatever the machine does for a while falls on all of them.
            subjects.reverse();
            eprintln!("{part:?}: {} of {}", round + 1, part.rounds(arguments.rounds));
        }
    }
    figures.sort(&[]);
    let record = arguments.output.record(&format!("medians of {}", arguments.rounds), &load);
    eprintln!("{record}");
    Ok(arguments.output.text(&figures, &record))
}

/// A descriptor for each client, here and in a relay of ours, which sees to its own.
fn allow_files(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < wanted) {
        return Err(format!("this needs {wanted} open files; see ulimit -Hn, or measure fewer clients").into());
    }
    setrlimit(
        Resource::Nofile,
        Rlimit { current: Some(limit.current.map_or(wanted, |now| now.max(wanted))), ..limit },
    )?;
    Ok(())
}

fn named(text: &str) -> std::result::Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("write NAME=FILE")?;
    Ok((name.to_owned(), PathBuf::from(file)))
}
