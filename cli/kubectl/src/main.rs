//! `kubectl peerage`: what people do with agents in a cluster beyond applying objects.
//!
//! It has the rights of whoever calls it, by kubectl's own configuration, and nothing else: every command reads or writes
//! objects that could be read and written by hand. `args` is what can be typed, `commands` what it does, `output` how it is
//! said; `cluster` is the way to the API server.

mod args;
mod cluster;
mod commands;
mod failure;
mod output;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::failure::{Code, Failure};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = Output::new(cli.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(cli, output)),
        Err(error) => Err(Failure::new(Code::Internal, format!("cannot start: {error}"), "")),
    };
    match done {
        Ok(code) => code,
        Err(failure) => output.fail(&failure),
    }
}

/// Help is an answer; what cannot be understood is exit status 2, said as JSON where that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !help && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        let message = text.trim().trim_start_matches("error: ");
        Output::new(true).fail(&Failure::new(Code::Usage, message, "see `kubectl peerage help`"));
    } else {
        // A closed terminal is nobody to tell.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
