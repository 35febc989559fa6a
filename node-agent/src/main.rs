//! `peerage-agent`: the agent for containers, told everything by its environment.
//!
//! | variable | as in `peerage up` |
//! |---|---|
//! | `PEERAGE_STATE` | `--state` |
//! | `PEERAGE_HOSTNAME` | `--hostname` |
//! | `PEERAGE_RELAYS`, `PEERAGE_ENDPOINTS`, `PEERAGE_BIND`, `PEERAGE_EXPOSE` | `--relay`, `--endpoint`, `--bind`, `--expose`; commas between several |
//! | `PEERAGE_PORT_MAPPING` | `--port-mapping`, but `off` unless set: a pod's gateway is nobody's home router |
//! | `PEERAGE_PROXY`, `PEERAGE_HEALTH` | `--proxy`, `--health` |
//! | `PEERAGE_LOG` | what to log: a level, or `target=level` pairs with commas between; `info` unless set |
//!
//! Logs are JSON on stderr. Exit status 0 after SIGTERM, 1 with the failure as JSON when it cannot run.

use std::env;
use std::fmt::Display;
use std::io;
use std::process::ExitCode;
use std::str::FromStr;

use peerage_agent::control::Failure;
use peerage_agent::daemon::{self, Options, driver};
use peerage_agent::driver::ProxySettings;
use peerage_agent::state::Place;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    let said = env::var("PEERAGE_LOG").ok().and_then(|filter| filter.parse().ok());
    let filter: Targets = said.unwrap_or_else(|| Targets::new().with_default(tracing::Level::INFO));
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().json().with_writer(io::stderr))
        .init();
    // One thread carries traffic best: driver and copying take turns instead of waking each other (docs/benchmarks).
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!(code = ?failure.code, hint = failure.hint, "{failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::bad_request(format!("cannot listen for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let daemon = daemon::start(Place::find(None)?, options(|name| env::var(name).ok())?, driver::starter()).await?;
    let problems = daemon.problems();
    tracing::info!(agent = %daemon.agent().routing_id(), problems = problems.len(), "started");
    tracing::debug!(agent = %daemon.agent(), ?problems, "started");
    let stopper = daemon.stopper();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopper.stop();
    });
    daemon.run().await;
    Ok(())
}

fn options(variable: impl Fn(&str) -> Option<String>) -> Result<Options, Failure> {
    let get = |name: &str| variable(name).filter(|value| !value.is_empty());
    Ok(Options {
        hostname: one("PEERAGE_HOSTNAME", get("PEERAGE_HOSTNAME"))?,
        relays: several("PEERAGE_RELAYS", get("PEERAGE_RELAYS"))?,
        public: one("PEERAGE_PUBLIC", get("PEERAGE_PUBLIC"))?,
        expose: several("PEERAGE_EXPOSE", get("PEERAGE_EXPOSE"))?,
        endpoints: several("PEERAGE_ENDPOINTS", get("PEERAGE_ENDPOINTS"))?,
        bind: several("PEERAGE_BIND", get("PEERAGE_BIND"))?,
        port_mapping: one("PEERAGE_PORT_MAPPING", get("PEERAGE_PORT_MAPPING"))?.unwrap_or_default(),
        relay_proxy: ProxySettings::from_env(&variable),
        proxy: one("PEERAGE_PROXY", get("PEERAGE_PROXY"))?,
        names: true,
        health: one("PEERAGE_HEALTH", get("PEERAGE_HEALTH"))?,
    })
}

fn one<T: FromStr<Err: Display>>(name: &str, value: Option<String>) -> Result<Option<T>, Failure> {
    let parse = |text: String| text.trim().parse().map_err(|error| Failure::bad_request(format!("{name}: {error}")));
    value.map(parse).transpose()
}

fn several<T: FromStr<Err: Display>>(name: &str, value: Option<String>) -> Result<Vec<T>, Failure> {
    let text = value.unwrap_or_default();
    let parts = text.split(',').filter(|part| !part.trim().is_empty());
    let parsed = parts.map(|part| one(name, Some(part.to_owned())));
    parsed.filter_map(Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_everything() {
        let options = options(|name| match name {
            "PEERAGE_HOSTNAME" => Some("db".into()),
            "PEERAGE_EXPOSE" => Some("mcp=80:8080, 443".into()),
            "PEERAGE_HEALTH" => Some(String::new()),
            _ => None,
        })
        .expect("it is right");
        assert_eq!(options.hostname, Some("db".parse().expect("a name")));
        assert_eq!(options.expose.len(), 2);
        assert_eq!(options.health, None);
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let failure = options(|name| (name == "PEERAGE_RELAYS").then(|| "host".into())).expect_err("it is wrong");
        assert!(failure.message.starts_with("PEERAGE_RELAYS: "), "{failure}");
    }
}
