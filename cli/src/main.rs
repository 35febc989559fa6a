//! `peerage`: agents and relays on any machine, and everything a person asks of them.
//!
//! `args` is what can be typed, `commands` what it does. Almost every command is one question to
//! the daemon over its control socket; only `up`, `relay`, `run` and `install` do work of their own.

mod args;
mod commands;
#[cfg(test)]
mod reference;

use std::process::ExitCode;

use clap::Parser;
use peerage_output::{Output, usage};

use crate::args::Cli;
use crate::commands::failed;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error, "peerage help"),
    };
    let output = Output::new(cli.json);
    match commands::run(cli, output) {
        Ok(code) => code,
        Err(failure) => failed(output, &failure),
    }
}
