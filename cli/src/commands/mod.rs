//! What each command does.

mod install;
mod log;
mod look;
mod run;
mod traffic;
mod trust;
mod up;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use peerage_agent::control::failure::chain;
use peerage_agent::control::{Code, Failure};
use peerage_agent::process;
use peerage_agent::state::Place;
use peerage_model::relay::RelayInfo;
use peerage_output::Output;
use serde_json::json;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, Command};

/// Exit status of a command that needs a daemon and found none.
const NOT_RUNNING: u8 = 3;

/// What a command gives: the status to end with.
pub type Done = Result<ExitCode, Failure>;

/// Says what went wrong, and with which status to end.
pub fn failed(output: Output, failure: &Failure) -> ExitCode {
    output.fail(failure, &failure.message, &failure.hint);
    match failure.code {
        Code::NotRunning => ExitCode::from(NOT_RUNNING),
        _ => ExitCode::FAILURE,
    }
}

/// Does what was typed.
///
/// # Errors
/// The failure to say.
pub fn run(cli: Cli, output: Output) -> Done {
    let place = Place::find(cli.state.as_deref());
    match cli.command {
        Command::Completions { shell } => completions(shell),
        Command::Install(options) => install::install(&options, output),
        Command::Relay(options) => relay(options, cli.state.as_deref(), output),
        Command::Demo(options) => Ok(peerage_demo::run(&options, output.is_json())),
        Command::Run { command } => run::run(&place?, command, output),
        Command::Up(up) if up.detach => up::detach(&place?, output),
        Command::Up(up) => runtime(Threads::Some(1))?.block_on(up::foreground(place?, *up, output)),
        Command::Down => runtime(Threads::None)?.block_on(up::down(&place?, output)),
        other => runtime(Threads::None)?.block_on(ask(&place?, other, output)),
    }
}

/// Commands that are questions to the daemon.
async fn ask(place: &Place, command: Command, output: Output) -> Done {
    match command {
        Command::Status => look::status(place, output).await,
        Command::Peers => look::peers(place, output).await,
        Command::Doctor => look::doctor(place, output).await,
        Command::Invite { withdraw: Some(ticket), .. } => trust::withdraw(place, ticket, output).await,
        Command::Invite { list: true, .. } => trust::tickets(place, output).await,
        Command::Invite { expires, .. } => trust::invite(place, expires, output).await,
        Command::Handshake { ticket, reason, relay, to, terms } => {
            trust::handshake(place, ticket, reason, &relay, to, &terms, output).await
        }
        Command::Requests => trust::requests(place, output).await,
        Command::Approve { name, terms } => trust::approve(place, name, &terms, output).await,
        Command::Reject { name } => trust::reject(place, name, output).await,
        Command::Revoke { name, instance: Some(instance), .. } => trust::deny(place, name, instance, output).await,
        Command::Revoke { name, wait, instance: None } => trust::revoke(place, name, wait, output).await,
        Command::Rotate { overlap, at_once } => {
            trust::rotate(place, if at_once { Duration::ZERO } else { overlap }, output).await
        }
        Command::Expose { service, remove } => trust::expose(place, service, remove, output).await,
        Command::Ping { name, count, interval } => traffic::ping(place, name, count, interval, output).await,
        Command::Bench { name, seconds } => traffic::bench(place, name, seconds, output).await,
        Command::Connect { name, port, message } => traffic::connect(place, name, port, message, output).await,
        Command::Up(_)
        | Command::Down
        | Command::Run { .. }
        | Command::Install(_)
        | Command::Relay(_)
        | Command::Demo(_)
        | Command::Completions { .. } => unreachable!("`run` has these"),
    }
}

fn completions(shell: clap_complete::Shell) -> Done {
    clap_complete::generate(shell, &mut Cli::command(), "peerage", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

fn relay(mut options: peerage_relay::Options, state: Option<&Path>, output: Output) -> Done {
    if let (None, Some(state)) = (&options.key_file, state) {
        let path = peerage_relay::key_file_in(state);
        options.key_file =
            Some(path.map_err(|error| Failure::new(Code::Internal, chain(&error), "name another --state"))?);
    }
    log_to_stderr(tracing::Level::INFO);
    runtime(Threads::Some(usize::from(options.workers)))?.block_on(async {
        let stop = process::stop_signal().map_err(|error| system("listen for signals", &error))?;
        let announce = |info: &RelayInfo| {
            let started = json!({ "event": "started", "relay": info.to_string() });
            output.event(&started, |_| info.to_string());
        };
        let result = peerage_relay::run(options, announce, stop).await;
        result.map(|()| ExitCode::SUCCESS).map_err(|error| {
            Failure::new(Code::Internal, chain(&error), "`peerage relay --help` lists what can be set")
        })
    })
}

fn log_to_stderr(default: tracing::Level) {
    let said = std::env::var(peerage_agent::log::VARIABLE).ok();
    let (filter, complaint) = peerage_agent::log::filter(said.as_deref(), default);
    let stderr = std::io::stderr;
    let colours = peerage_agent::log::stderr_has_colours();
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(colours);
    // Set already in tests that start two: then the first stays.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
}

/// How many threads carry traffic.
#[derive(Clone, Copy)]
enum Threads {
    /// None beside this one: a question and its answer.
    None,
    /// So many. One is best for an agent: its driver and its copying take turns, and a second thread made transfers a sixth
    /// slower on two cores (docs/benchmarks).
    Some(usize),
}

fn runtime(threads: Threads) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = match threads {
        Threads::None => tokio::runtime::Builder::new_current_thread(),
        Threads::Some(count) => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(count);
            builder
        }
    };
    builder.enable_all().build().map_err(|error| system("start", &error))
}

/// A failure of the system under us.
fn system(doing: &str, error: &std::io::Error) -> Failure {
    Failure::new(
        Code::Internal,
        format!("cannot {doing}: {error}"),
        "check the limits of this user (`ulimit -a`) and the disk",
    )
}
