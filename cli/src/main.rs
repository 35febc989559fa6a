//! `peerage`: agents and relays on any machine, and everything a person asks of them.
//!
//! `args` is what can be typed, `commands` what it does, `output` how it is said. Almost every command is one question to
//! the daemon over its control socket; only `up`, `relay`, `run` and `install` do work of their own.

mod args;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = Output::new(cli.json);
    match commands::run(cli, output) {
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
        output::say_usage(&error.to_string());
    } else {
        // A closed terminal is nobody to tell.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
