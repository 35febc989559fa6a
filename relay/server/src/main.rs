//! `peerage-relay`: the relay on its own, for containers and for machines that do nothing else.

mod filter;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use peerage_relay::Options;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Runs a relay: it forwards sealed packets between agents, and holds no key that opens one
#[derive(Parser, Debug)]
#[command(name = "peerage-relay", version)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let (filter, complaint) = filter::filter(std::env::var(filter::VARIABLE).ok().as_deref());
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colours);
    tracing_subscriber::registry().with(filter).with(lines).init();
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    match start(command.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", whole_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let threads = usize::from(options.workers);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(peerage_relay::run(options, |info| println!("{info}"), shutdown).await?)
    })
}

fn whole_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
