//! `peerage demo`: everything the product promises first, on one machine, as a person would do it.
//!
//! A small internet is made of network namespaces and emulated NATs (`peerage-netlab`). In it run the same program that
//! runs the demo, as relays, agents and commands, a real MCP server, and the machine's own curl. The demo does nothing
//! behind their backs: what it does it does by the command line, and shows the line. Only to *see* (when a path
//! changed, to the millisecond) it also listens to an agent's events.
//!
//! `story` is the list of steps. Each is a function that returns what it saw or a `problem::Problem`: what was expected,
//! what came, and what to do. `stage` is where it plays, `machine` how commands run there, `timeline` the events,
//! `report` what people and programs read, `mcp` the server.

mod figures;
mod interrupt;
mod machine;
mod mcp;
mod options;
mod problem;
mod report;
mod stage;
mod story;
mod timeline;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use peerage_netlab::EnterError;

pub use options::{NatPreset, Options};

use crate::problem::Problem;
use crate::report::Report;

/// Runs the demo and says how it went; with `json`, one object a line. Call it before the process has threads: where
/// it has, the demo starts this program once more with the same arguments.
#[must_use]
pub fn run(options: &Options, json: bool) -> ExitCode {
    if let Some(address) = options.serve_mcp {
        return mcp::serve(address);
    }
    match peerage_netlab::enter() {
        Ok(()) => play(options, json),
        Err(EnterError::Threads) => again_inside(json),
        Err(refused) => Report::new(json).failed("The demo makes a network of its own", &no_network(&refused)),
    }
}

fn play(options: &Options, json: bool) -> ExitCode {
    let report = Arc::new(Report::new(json));
    story::play(options, &report)
}

/// Starts this program again where it may make networks.
fn again_inside(json: bool) -> ExitCode {
    let begun = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1));
        peerage_netlab::command_inside(command).spawn()
    });
    let report = Report::new(json);
    let step = "The demo makes a network of its own";
    match begun.map(|mut child| child.wait()) {
        // Its own words have been said already.
        Ok(Ok(status)) => {
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
        Ok(Err(error)) => report.failed(step, &Problem::unforeseen(&error)),
        Err(error) => report.failed(step, &no_network(&peerage_netlab::explain(error))),
    }
}

fn no_network(refused: &EnterError) -> Problem {
    let hint = match refused {
        EnterError::NotPermitted { hint, .. } | EnterError::Map { hint, .. } => hint.clone(),
        EnterError::Threads => "this is a fault of the demo; please report it".to_owned(),
    };
    Problem::new("to make network namespaces, by root's right or in a user namespace", refused.to_string(), hint)
}
