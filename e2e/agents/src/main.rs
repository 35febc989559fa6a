//! What `scripts/e2e` runs: the end-to-end tests that need an optimised build, or more time than a test may take. It
//! prints a table, or with `--json` one object a line, and ends with 0 only if everything was as expected.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use peerage_e2e::matrix::{self, Cell, Pair, Plan};
use peerage_e2e::{
    Failed, Nats, Programs, Trying, World, fallback, field, memory, origin, proxy, table, transfer, warm,
};
use peerage_netlab::kernel::Network;

/// Agents and relays as real processes, on an emulated internet
#[derive(Parser, Debug)]
#[command(name = "peerage-e2e")]
struct Cli {
    /// One JSON object a line
    #[arg(long, global = true)]
    json: bool,

    /// The `peerage` to test [default: the one beside this program]
    #[arg(long, global = true, value_name = "FILE")]
    peerage: Option<PathBuf>,

    #[command(subcommand)]
    test: Test,
}

#[derive(Subcommand, Clone, Debug)]
enum Test {
    /// Every kind of network against every other, on the real kernel
    Nat(Nat),
    /// What others stumble over: symmetric NATs, changed addresses, dead relays, restarts, revocation, long pauses
    Field {
        /// Which; with commas between them [default: all]
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        only: Vec<String>,
        /// The small size that tests run: seconds instead of minutes
        #[arg(long)]
        small: bool,
    },
    /// How soon a request is at the server when there is no session yet, in round trips of the relay path
    Warm {
        /// As for `nat`
        #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
        pairs: Vec<String>,
    },
    /// Relays by UDP, by TLS on TCP port 443, and by TLS through an HTTP proxy: throughput and latency beside each other
    Fallback {
        /// How often each is measured
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        rounds: u16,
        /// The size of each download
        #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
        mib: u64,
    },
    /// One long download while the path moves and addresses change
    Transfer {
        /// Its size
        #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(32..=65_536))]
        mib: u64,
    },
    /// Memory of an idle agent and relay
    Memory,
    /// All of these
    All,
    /// Be an HTTP proxy instead
    #[command(hide = true)]
    Proxy {
        /// Where to listen
        address: String,
    },
    /// Be the HTTP server instead
    #[command(hide = true)]
    Serve {
        /// Where to listen
        address: String,
    },
}

/// Which part of the matrix, and how
#[derive(Args, Clone, Debug)]
struct Nat {
    /// Networks, of which every ordered pair is tried, or pairs CLIENT:SERVER; with commas between them [default: all]
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
    pairs: Vec<String>,

    /// How many pairs are tried at the same time; one after the other measures best
    #[arg(long, value_name = "N", default_value_t = 6)]
    at_once: usize,

    /// One way from every client to every server; relays are where the clients are
    #[arg(long, value_name = "MS", default_value_t = 10)]
    delay: u64,

    /// How often each pair is tried, one time after the other by the same agents behind the same NATs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    times: u16,

    /// Instead: N runs of each pair that takes guessed ports, with both sides' leave
    #[arg(long, value_name = "N", conflicts_with_all = ["pairs", "times"])]
    birthday: Option<usize>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match play(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            if cli.json {
                println!("{}", serde_json::json!({"error": {"code": "failed", "message": failed.to_string()}}));
            }
            eprintln!("error: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for; true if all of it was as expected.
fn play(cli: &Cli) -> Result<bool, Failed> {
    match &cli.test {
        Test::Serve { address } => return origin::serve(address).trying("serve").map(|()| true),
        Test::Proxy { address } => return proxy::serve(address).trying("serve").map(|()| true),
        Test::Nat(_)
        | Test::Field { .. }
        | Test::Warm { .. }
        | Test::Fallback { .. }
        | Test::Transfer { .. }
        | Test::Memory
        | Test::All => {}
    }
    peerage_netlab::enter().trying("make networks")?;
    let origin = env::current_exe().trying("find this program")?;
    let peerage = cli.peerage.clone().unwrap_or_else(|| origin.with_file_name("peerage"));
    let programs = Programs { peerage, origin };
    match &cli.test {
        Test::Nat(nat) => nats(&programs, nat, cli.json),
        Test::Field { only, small } => in_the_field(&programs, only, *small, cli.json),
        Test::Warm { pairs } => warm_up(&programs, pairs, cli.json),
        Test::Fallback { rounds, mib } => fall_back(&programs, *rounds, *mib, cli.json),
        Test::Transfer { mib } => download(&programs, *mib, cli.json),
        Test::Memory => idle(&programs, cli.json),
        Test::All => {
            let everything = Nat { pairs: Vec::new(), at_once: 6, delay: 10, times: 1, birthday: None };
            let good = nats(&programs, &everything, cli.json)?;
            let good = warm_up(&programs, &[], cli.json)? & good;
            let good = in_the_field(&programs, &[], false, cli.json)? & good;
            Ok(download(&programs, 1024, cli.json)? & idle(&programs, cli.json)? & good)
        }
        Test::Serve { .. } | Test::Proxy { .. } => Ok(true),
    }
}

fn nats(programs: &Programs, nat: &Nat, json: bool) -> Result<bool, Failed> {
    let pairs = match nat.birthday {
        Some(_) => GUESSED.to_vec(),
        None => wanted_pairs(&nat.pairs)?.repeat(nat.times.into()),
    };
    let runs = nat.birthday.unwrap_or(1);
    let delay = Duration::from_millis(nat.delay);
    let plan = Plan { pairs, at_once: nat.at_once, delay, birthday: nat.birthday.is_some() };
    let mut cells = Vec::new();
    let done = |cell: Cell| {
        if json {
            println!("{}", cell.json());
        } else {
            eprintln!(
                "{:>3} of {}: {} to {}: {}",
                cells.len() + 1,
                plan.pairs.len() * runs,
                cell.client,
                cell.server,
                cell.path()
            );
        }
        cells.push(cell);
    };
    match nat.birthday {
        // Each world tries two of its four pairs at a time.
        Some(runs) => matrix::run_apart(programs, &plan, runs, nat.at_once / 2, done)?,
        None => matrix::run(programs, &plan, done)?,
    }
    if nat.birthday.is_some() {
        return Ok(birthdays(&cells, json));
    }
    if !json {
        print!("{}", table::matrix(&cells));
    }
    Ok(cells.len() == plan.pairs.len() && cells.iter().all(Cell::is_as_expected))
}

fn warm_up(programs: &Programs, pairs: &[String], json: bool) -> Result<bool, Failed> {
    let pairs = wanted_pairs(pairs)?;
    let mut flights = Vec::new();
    warm::run(programs, &pairs, |flight| {
        if json {
            println!("{}", flight.json());
        }
        flights.push(flight);
    })?;
    if !json {
        print!("{}", table::flights(&flights));
    }
    Ok(flights.iter().all(|flight| flight.warm.is_ok() && flight.cold.is_ok()))
}

fn fall_back(programs: &Programs, rounds: u16, mib: u64, json: bool) -> Result<bool, Failed> {
    let rows = fallback::run(programs, rounds.into(), mib)?;
    match json {
        true => rows.iter().for_each(|(way, row)| println!("{}", row.json(*way))),
        false => print!("{}", table::fallback(&rows, mib)),
    }
    Ok(true)
}

/// Runs the tests of the field; a failure does not keep the others from running.
fn in_the_field(programs: &Programs, only: &[String], small: bool, json: bool) -> Result<bool, Failed> {
    let tests = field::tests();
    if let Some(unknown) = only.iter().find(|name| !tests.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = tests.iter().map(|(name, _)| *name).collect();
        return Err(Failed::new(format!("`{unknown}` is not one of {}", known.join(", "))));
    }
    let size = if small { field::Size::SMALL } else { field::Size::FULL };
    let mut good = true;
    for (name, test) in tests.into_iter().filter(|(name, _)| only.is_empty() || only.iter().any(|one| one == name)) {
        let found = test(programs, size);
        good &= found.is_ok();
        match found {
            Ok(finding) if json => println!("{}", finding.json()),
            Ok(finding) => {
                let figures: Vec<String> = finding
                    .millis
                    .iter()
                    .map(|(what, value)| format!("{} {value:.0} ms", what.replace('_', " ")))
                    .collect();
                println!("ok      {name:<20} {}; {}", figures.join(", "), finding.said);
            }
            Err(failed) if json => println!("{}", serde_json::json!({"test": name, "error": failed.to_string()})),
            Err(failed) => println!("FAILED  {name:<20} {failed}"),
        }
    }
    Ok(good)
}

/// The pairs that guessed ports make direct, in either role.
const GUESSED: [Pair; 4] = [
    (Network::SymmetricRandom, Network::PortRestricted),
    (Network::PortRestricted, Network::SymmetricRandom),
    (Network::SymmetricRandom, Network::SymmetricPreserving),
    (Network::SymmetricPreserving, Network::SymmetricRandom),
];

/// Says how many runs went direct; true if of each pair 37 of 40 did, which is what is promised.
fn birthdays(cells: &[Cell], json: bool) -> bool {
    let mut good = true;
    for (client, server) in GUESSED {
        let of: Vec<&Cell> = cells.iter().filter(|cell| (cell.client, cell.server) == (client, server)).collect();
        let direct = of.iter().filter(|cell| cell.is_direct()).count();
        let runs = of.len();
        good &= runs > 0 && direct * 40 >= runs * 37;
        if json {
            let line = serde_json::json!({
                "test": "birthday", "client": client.name(), "server": server.name(), "direct": direct, "runs": runs,
            });
            println!("{line}");
        } else {
            println!("{client} to {server}: {direct} of {runs} direct");
        }
    }
    good
}

/// `a,b` is each of them with each; `a:b` is one pair; nothing is everything.
fn wanted_pairs(words: &[String]) -> Result<Vec<Pair>, Failed> {
    let network = |word: &str| word.parse::<Network>().trying("understand --pairs");
    let (pairs, networks): (Vec<&String>, Vec<&String>) = words.iter().partition(|word| word.contains(':'));
    let networks: Vec<Network> = networks.into_iter().map(|word| network(word)).collect::<Result<_, _>>()?;
    let mut wanted = matrix::all_pairs(if words.is_empty() { &Network::ALL } else { &networks });
    for (client, server) in pairs.into_iter().filter_map(|pair| pair.split_once(':')) {
        wanted.push((network(client)?, network(server)?));
    }
    Ok(wanted)
}

fn download(programs: &Programs, mib: u64, json: bool) -> Result<bool, Failed> {
    let world = World::new(programs, Nats::home_routers(), 1)?;
    world.block_direct(true);
    let (client, _server) = world.acquainted()?;
    let transfer = transfer::run(&world, &client, mib * 1024 * 1024)?;
    if json {
        println!("{}", transfer.json());
        return Ok(true);
    }
    println!("{:<38} {:>9} {:>9} {:>11}", "stage", "relayed", "direct", "moved after");
    for stage in &transfer.stages {
        let moved = millis(Some(stage.moved_after));
        println!("{:<38} {:>5} MiB {:>5} MiB {moved:>11}", stage.what, stage.relayed >> 20, stage.direct >> 20);
    }
    println!("{mib} MiB in {:.1} s, SHA-256 {} as sent", transfer.took.as_secs_f64(), transfer.sha256);
    Ok(true)
}

fn idle(programs: &Programs, json: bool) -> Result<bool, Failed> {
    let idle = memory::measure(programs)?;
    if json {
        println!("{}", idle.json());
        return Ok(idle.is_as_expected());
    }
    println!("{:<12} {:>9} {:>9} {:>9}", "memory, KiB", "pss", "rss", "peak rss");
    for (name, of) in [("idle agent", idle.agent), ("idle relay", idle.relay)] {
        println!("{name:<12} {:>9} {:>9} {:>9}", of.proportional, of.resident, of.peak);
    }
    if !idle.is_as_expected() {
        println!("NOT AS EXPECTED: an idle agent may have {} KiB resident", memory::LIMIT);
    }
    Ok(idle.is_as_expected())
}

fn millis(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{:.0} ms", duration.as_secs_f64() * 1e3))
}
