//! What each command does.

mod doctor;
mod invite;
mod look;
mod path;
mod trust;

use std::process::ExitCode;

use peerage_output::Output;

use crate::args::{Cli, Command};
use crate::cluster::Cluster;
use crate::failure::Failure;

/// Does what was typed.
///
/// # Errors
/// [`Failure`], with what to do next.
pub async fn run(cli: Cli, output: Output) -> Result<ExitCode, Failure> {
    let cluster = Cluster::new(&cli).await?;
    match &cli.command {
        Command::Invite(how) => invite::invite(&cluster, how, output).await?,
        Command::Link(how) => invite::link(&cluster, how, output).await?,
        Command::Keys => invite::keys(&cluster, output).await?,
        Command::Requests(of) => trust::requests(&cluster, of.all_namespaces, output).await?,
        Command::Approve(how) => trust::approve(&cluster, how, output).await?,
        Command::Reject(name) => trust::reject(&cluster, &name.name, output).await?,
        Command::Trust(how) => trust::trust(&cluster, how, output).await?,
        Command::Revoke(how) => trust::revoke(&cluster, how, output).await?,
        Command::Status(of) => look::status(&cluster, of.all_namespaces, output).await?,
        Command::Path(to) => path::path(&cluster, to, output).await?,
        Command::Doctor(of) => return doctor::doctor(&cluster, of.agent.as_deref(), output).await,
    }
    Ok(ExitCode::SUCCESS)
}
