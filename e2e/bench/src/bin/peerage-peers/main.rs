//! Peerage beside what people would use instead, in one run: the same programs talk through each of them, in the same
//! namespaces, in turns. Started by `scripts/bench peers`; `docs/benchmarks/peers.md` says what it found.
//!
//! Whatever cannot run is told with its reason. Values of all rounds are kept; what is told is their median.

mod cache;
mod helper;
mod load;
mod measure;
mod piece;
mod plot;
mod subject;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use cache::Cache;
use measure::Measure;
use measure::memory::Idle;
use measure::requests::Requests;
use measure::setup::SetUp;
use measure::throughput::Throughput;
use measure::transfer::{File, Link, Long};
use peerage_bench::command::Output;
use peerage_bench::figures::{Figures, Line};
use peerage_bench::network::Network;
use peerage_bench::{Result, command, machine};
use piece::{Bench, Piece};
use subject::{Route, Subject};

/// Measures Peerage beside what people would use instead.
#[derive(Debug, Parser)]
#[command(name = "peerage-peers", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure
    Run(Run),
    /// Draw what was measured: reads lines of JSON, writes a picture for each group of measures
    Plot {
        /// What `run --json` printed
        #[arg(required = true)]
        lines: Vec<PathBuf>,
        /// Where pictures go
        #[arg(long, value_name = "FOLDER", default_value = ".")]
        to: PathBuf,
    },
    /// Copy connections: a relay for plain TCP
    #[command(hide = true)]
    Forward { forwards: Vec<helper::Forward> },
    /// Copy what comes by TLS to plain connections
    #[command(hide = true)]
    TlsServe { certificate: PathBuf, forwards: Vec<helper::Forward> },
    /// Copy what comes by plain connections to TLS
    #[command(hide = true)]
    TlsDial { certificate: PathBuf, forwards: Vec<helper::Forward> },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The `peerage` command to measure
    #[arg(long, value_name = "FILE")]
    peerage: PathBuf,
    /// Where programs of others are installed and kept
    #[arg(long, value_name = "FOLDER")]
    cache: PathBuf,
    /// Measurements of each kind; what is told is their median
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds that each throughput and request measurement takes
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds without a load before memory is looked at
    #[arg(long, default_value_t = 25.0)]
    settle: f64,
    /// Measure only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    only: Vec<Part>,
    /// Measure only these subjects, by name
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Links of the part `links`, as MILLISECONDS/PERCENT
    #[arg(long, value_delimiter = ',', value_parser = Link::parse, default_value = "0/0,0/0.5,0/2,30/0,30/0.5,30/2,100/0,100/0.5,100/2")]
    links: Vec<Link>,
    /// Draw pictures of it into this folder, too
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Parts of a run, each with a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput, requests, memory and set-up by the direct link
    Direct,
    /// Throughput and requests by way of a relay
    Relayed,
    /// Set-up over a link of 30 ms
    Setup,
    /// A file of 5 MB over links that take time and lose
    Links,
    /// One stream over 100 ms at 500 Mbit/s
    Long,
}

impl Part {
    const ALL: [Self; 5] = [Self::Direct, Self::Relayed, Self::Setup, Self::Links, Self::Long];
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(run) => measure(&run).map(|text| print!("{text}")),
        Command::Plot { lines, to } => read(&lines).and_then(|figures| draw(&figures, &to)),
        Command::Forward { forwards } => helper::forward(&forwards),
        Command::TlsServe { certificate, forwards } => helper::tls_serve(&certificate, &forwards),
        Command::TlsDial { certificate, forwards } => helper::tls_dial(&certificate, &forwards),
    };
    command::end(done)
}

fn measure(run: &Run) -> Result<String> {
    let mut figures = Figures::default();
    // While the network is the machine's own, and this process has no threads.
    let cache = Cache::new(run.cache.clone());
    let subjects = installed(run, &cache, &mut figures)?;
    peerage_netlab::enter()?;
    let itself = std::env::current_exe()?;
    let bench =
        Bench { cache: &cache, peerage: &run.peerage, itself: &itself, rounds: run.rounds.into(), subjects: &subjects };
    let load = machine::load();
    let order: Vec<_> = subject::all().iter().map(|subject| subject.name()).collect();
    let mut told = 0;
    for part in Part::ALL.into_iter().filter(|part| run.only.contains(part)) {
        match part {
            Part::Direct => direct(&bench, run, &mut figures)?,
            Part::Relayed => relayed(&bench, run, &mut figures)?,
            Part::Setup | Part::Links | Part::Long => wired(&bench, run, part, &mut figures)?,
        }
        if run.output.json {
            // Each part when it is done: who ends a long run early has those before.
            let mut part = Figures::new(figures.lines()[told..].to_vec());
            part.sort(&order);
            print!("{}", part.json());
            told = figures.lines().len();
        }
    }
    figures.sort(&order);
    if let Some(folder) = &run.plot {
        draw(&figures, folder)?;
    }
    let record = run
        .output
        .record(&format!("medians of {}, in turns; the kernel's TCP by {}", run.rounds, machine::tcp()), &load);
    eprintln!("{record}");
    Ok(if run.output.json { String::new() } else { run.output.text(&figures, &record) })
}

/// The subjects that are wanted and can be had.
fn installed(run: &Run, cache: &Cache, figures: &mut Figures) -> Result<Vec<Box<dyn Subject>>> {
    let all = subject::all();
    if let Some(unknown) = run.subjects.iter().find(|name| !all.iter().any(|subject| subject.name() == **name)) {
        let names: Vec<_> = all.iter().map(|subject| subject.name()).collect();
        return Err(format!("there is no subject {unknown}: there are {}", names.join(", ")).into());
    }
    let wanted = |name: &str| run.subjects.is_empty() || run.subjects.iter().any(|one| one == name);
    let mut kept = Vec::new();
    for subject in all.into_iter().filter(|subject| wanted(subject.name())) {
        match subject.install(cache) {
            Ok(()) => kept.push(subject),
            Err(why) => figures.not_run(subject.name(), "", &why.to_string()),
        }
    }
    Ok(kept)
}

fn direct(bench: &Bench<'_>, run: &Run, figures: &mut Figures) -> Result<()> {
    let network = Network::in_namespaces()?;
    let mut piece = Piece::start(bench, &network, Route::Direct, figures)?;
    std::thread::sleep(Duration::from_secs_f64(run.settle));
    piece.once(&Idle, figures);
    let time = Duration::from_secs_f64(run.seconds);
    let measures: [Box<dyn Measure>; 5] = [
        Box::new(Throughput { streams: 1, time, route: "" }),
        Box::new(Throughput { streams: 16, time, route: "" }),
        Box::new(Requests { fresh: false, time, route: "" }),
        Box::new(Requests { fresh: true, time, route: "" }),
        Box::new(SetUp { time: time / 4, link: "" }),
    ];
    piece.rounds(&measures, figures);
    Ok(())
}

fn relayed(bench: &Bench<'_>, run: &Run, figures: &mut Figures) -> Result<()> {
    let network = Network::in_namespaces()?;
    let mut piece = Piece::start(bench, &network, Route::Relayed, figures)?;
    let time = Duration::from_secs_f64(run.seconds);
    let measures: [Box<dyn Measure>; 3] = [
        Box::new(Throughput { streams: 1, time, route: "relayed " }),
        Box::new(Throughput { streams: 16, time, route: "relayed " }),
        Box::new(Requests { fresh: false, time, route: "relayed " }),
    ];
    piece.rounds(&measures, figures);
    Ok(())
}

/// What is measured over links in user space: never beside the throughput of the others.
fn wired(bench: &Bench<'_>, run: &Run, part: Part, figures: &mut Figures) -> Result<()> {
    // The first one decides that all of them see packets, not batches of them.
    let network = Network::behind_wire(Long::config())?;
    network.set_wire(Link { round_trip_ms: 0, loss_percent: 0.0 }.config())?;
    let mut piece = Piece::start(bench, &network, Route::Direct, figures)?;
    match part {
        Part::Setup => {
            network.set_wire(Link { round_trip_ms: 30, loss_percent: 0.0 }.config())?;
            let time = Duration::from_secs_f64(run.seconds);
            piece.rounds(&[Box::new(SetUp { time, link: ", at 30 ms" })], figures);
        }
        Part::Links => {
            for link in &run.links {
                network.set_wire(link.config())?;
                piece.rounds(&[Box::new(File(*link))], figures);
            }
        }
        Part::Long => {
            network.set_wire(Long::config())?;
            piece.rounds(&[Box::new(Long)], figures);
        }
        Part::Direct | Part::Relayed => unreachable!("these have no wire"),
    }
    Ok(())
}

/// What earlier runs have printed.
fn read(files: &[PathBuf]) -> Result<Figures> {
    let mut lines: Vec<Line> = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        for line in text.lines() {
            lines.push(serde_json::from_str(line).map_err(|error| format!("{}: {error}: {line}", file.display()))?);
        }
    }
    Ok(Figures::new(lines))
}

fn draw(figures: &Figures, to: &Path) -> Result<()> {
    for (name, picture) in plot::pictures(figures) {
        let file = to.join(name);
        fs::write(&file, picture).map_err(|error| format!("{}: {error}", file.display()))?;
        eprintln!("{}", file.display());
    }
    Ok(())
}
