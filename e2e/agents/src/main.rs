//! What `scripts/e2e` runs: the end-to-end tests that need an optimised build, or more time than a test may take. It
//! prints a table, or with `--json` one object a line, and ends with 0 only if everything was as expected.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use peerage_e2e::{Failed, Nats, Programs, Trying, World, memory, nat, origin, transfer};

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
    /// Each of the four NAT types against each
    Nat,
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
    /// Be the HTTP server instead
    #[command(hide = true)]
    Serve {
        /// Where to listen
        address: String,
    },
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
    if let Test::Serve { address } = &cli.test {
        return origin::serve(address).trying("serve").map(|()| true);
    }
    peerage_netlab::enter().trying("make networks")?;
    let origin = env::current_exe().trying("find this program")?;
    let peerage = cli.peerage.clone().unwrap_or_else(|| origin.with_file_name("peerage"));
    let programs = Programs { peerage, origin };
    match cli.test {
        Test::Nat => nats(&programs, cli.json),
        Test::Transfer { mib } => download(&programs, mib, cli.json),
        Test::Memory => idle(&programs, cli.json),
        Test::All => {
            let good = nats(&programs, cli.json)?;
            Ok(download(&programs, 1024, cli.json)? & idle(&programs, cli.json)? & good)
        }
        Test::Serve { .. } => Ok(true),
    }
}

fn nats(programs: &Programs, json: bool) -> Result<bool, Failed> {
    let mut good = true;
    if !json {
        println!(
            "{:<21} {:<21} {:<8} {:<38} {:>10} {:>10}",
            "client", "server", "path", "expected", "first byte", "direct"
        );
    }
    for client in nat::types() {
        for server in nat::types() {
            let outcome = nat::pair(programs, client, server)
                .map_err(|failed| Failed::new(format!("{} to {}: {failed}", client.name, server.name)))?;
            good &= outcome.is_as_expected();
            if json {
                println!("{}", outcome.json());
            } else {
                let verdict = if outcome.is_as_expected() { "" } else { "  NOT AS EXPECTED" };
                println!(
                    "{:<21} {:<21} {:<8} {:<38} {:>10} {:>10}{verdict}",
                    outcome.client,
                    outcome.server,
                    outcome.path,
                    outcome.expected(),
                    millis(Some(outcome.first_byte)),
                    millis(outcome.direct_after),
                );
            }
        }
    }
    Ok(good)
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
        return Ok(true);
    }
    println!("{:<12} {:>9} {:>9} {:>9}", "memory, KiB", "pss", "rss", "peak rss");
    for (name, of) in [("idle agent", idle.agent), ("idle relay", idle.relay)] {
        println!("{name:<12} {:>9} {:>9} {:>9}", of.proportional, of.resident, of.peak);
    }
    Ok(true)
}

fn millis(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{:.0} ms", duration.as_secs_f64() * 1e3))
}
