//! `kubectl peerage`: what people do with agents in a cluster beyond applying objects.
//!
//! It has the rights of whoever calls it, by kubectl's own configuration, and nothing else: every command reads or writes
//! objects that could be read and written by hand. `args` is what can be typed, `commands` what it does; `cluster`
//! is the way to the API server, `agents` the one to agents in their pods.

mod agents;
mod args;
mod cluster;
mod commands;
mod failure;
#[cfg(test)]
mod reference;

use std::process::ExitCode;

use clap::Parser;
use peerage_output::{Output, usage};

use crate::args::Cli;
use crate::failure::{Code, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error, "kubectl peerage help"),
    };
    let output = Output::new(cli.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(cli, output)),
        Err(error) => Err(Failure::new(Code::Internal, format!("cannot start: {error}"), "")),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            output.fail(&failure, &failure.message, &failure.hint);
            ExitCode::FAILURE
        }
    }
}
