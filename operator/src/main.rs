//! `peerage-operator`: reads flags, sets up logging and a client, and runs.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use peerage_operator::causes::causes;
use peerage_operator::index::Staleness;
use peerage_operator::managed::Settings;
use peerage_operator::run::{AdmissionOptions, Options, RunError, run};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Turns Peerage's custom resources into passports, allowlists and relay lists, and serves them to agents.
///
/// It finds the API server as kubectl does ($KUBECONFIG), or by its pod's ServiceAccount. $PEERAGE_LOG is the log's level
/// (error, warn, info, debug, trace).
#[derive(Debug, Parser)]
#[command(name = "peerage-operator", version)]
struct Arguments {
    /// The operator's own namespace, where it keeps its keys.
    #[arg(long, env = "POD_NAMESPACE", default_value = "peerage-system")]
    namespace: String,
    /// Where agents, and the other replicas, are served over TLS.
    #[arg(long, default_value = "[::]:8443", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where the other replicas reach this one; written into the Lease while it leads. An IPv6 address needs no brackets.
    #[arg(long, env = "PEERAGE_ADVERTISE", default_value = "127.0.0.1:8443", value_name = "HOST:PORT", value_parser = advertised)]
    advertise: String,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, default_value = "[::]:8080", value_name = "ADDRESS:PORT")]
    health: SocketAddr,
    /// What the chart says of webhooks and sidecars, as JSON; without it nothing is injected and nothing validated.
    #[arg(long, env = "PEERAGE_ADMISSION", value_name = "FILE")]
    admission: Option<PathBuf>,
    /// Where the API server's admission reviews are answered over TLS.
    #[arg(long, default_value = "[::]:9443", value_name = "ADDRESS:PORT")]
    listen_admission: SocketAddr,
    /// What this replica is called in the Lease; its host's name and a random part if it is left out.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    /// Run nothing: ask the operator whose --health is there whether it is ready.
    #[arg(long, value_name = "HOST:PORT")]
    ask: Option<String>,
    /// After how many seconds without an operator agents raise an alarm; 0: never. Signs of life come every 15 s at most.
    #[arg(long, env = "PEERAGE_AGENT_MAX_STALENESS", default_value_t = 300, value_name = "SECONDS")]
    agent_max_staleness: u64,
    /// Agents that are over that limit talk to nobody until an operator is back.
    #[arg(long, env = "PEERAGE_AGENT_FAIL_CLOSED")]
    agent_fail_closed: bool,
    /// How relays of AgentRelays with `managed` are run, as JSON; without it none is.
    #[arg(long, env = "PEERAGE_MANAGED_RELAYS", value_name = "JSON")]
    managed_relays: Option<Settings>,
    /// How to log.
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log: LogFormat,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// A JSON object for each event.
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(error) = contradiction(&arguments) {
        error.exit();
    }
    start_logging(arguments.log);
    if let Some(place) = arguments.ask {
        return match peerage_operator::ask::ready(&place) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(operate(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// What one option says and another takes back, where that hangs on their values.
fn contradiction(arguments: &Arguments) -> Option<clap::Error> {
    let never_over = arguments.agent_fail_closed && arguments.agent_max_staleness == 0;
    never_over.then(|| {
        let said = "--agent-fail-closed needs a limit, and --agent-max-staleness 0 says that there is none";
        Arguments::command().error(ErrorKind::ArgumentConflict, said)
    })
}

async fn operate(arguments: Arguments) -> Result<(), RunError> {
    let client = peerage_operator::run::client().await?;
    let admission = arguments.admission.map(|file| AdmissionOptions { listen: arguments.listen_admission, file });
    let options = Options {
        admission,
        relays: arguments.managed_relays,
        namespace: arguments.namespace,
        listen: arguments.listen,
        advertise: arguments.advertise,
        health: arguments.health,
        identity: arguments.identity.unwrap_or_else(identity),
        staleness: Staleness {
            limit: (arguments.agent_max_staleness > 0).then_some(arguments.agent_max_staleness),
            fail_closed: arguments.agent_fail_closed,
        },
    };
    run(options, client, asked_to_stop()).await
}

/// `HOST:PORT`; a pod's own address comes from the downward API, which writes IPv6 without brackets.
fn advertised(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("it is written HOST:PORT")?;
    port.parse::<u16>().map_err(|error| format!("`{port}` is no port: {error}"))?;
    Ok(match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => text.to_owned(),
    })
}

/// Two processes of one host must not take each other for themselves.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut random = [0; 4];
    // Without randomness there are no keys either, and that is said where they are needed.
    let _ = peerage_operator::random::fill(&mut random);
    format!("{}-{}", host.trim(), data_encoding::HEXLOWER.encode(&random))
}

async fn asked_to_stop() {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await; // SIGKILL is left
    };
    either(&mut term, &mut interrupt).await;
    // The API server is answered for a while. Whoever asks twice does not want to wait for that.
    tokio::spawn(async move {
        either(&mut term, &mut interrupt).await;
        std::process::exit(1);
    });
}

async fn either(term: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn start_logging(format: LogFormat) {
    let level = std::env::var("PEERAGE_LOG").ok().and_then(|text| text.parse().ok());
    let level = level.unwrap_or(tracing::level_filters::LevelFilter::INFO);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    let builder = builder.with_ansi(peerage_agent::log::stderr_has_colours());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!("{}", causes(error));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_cannot_be_closed_by_a_limit_that_there_is_not() {
        let contradicts = |more: &[&str]| {
            let line = [&["peerage-operator", "--agent-fail-closed"], more].concat();
            contradiction(&Arguments::try_parse_from(line).expect("each is right")).is_some()
        };
        assert!(contradicts(&["--agent-max-staleness", "0"]));
        assert!(!contradicts(&[]) && !contradicts(&["--agent-max-staleness", "30"]));
    }

    #[test]
    fn an_address_of_a_pod_is_written_with_its_port_as_one_connects_to_it() {
        for (said, meant) in [
            ("10.0.0.7:8443", "10.0.0.7:8443"),
            ("fd00::7:8443", "[fd00::7]:8443"),
            ("fd00:1:2:3:4:5:6:7:8443", "[fd00:1:2:3:4:5:6:7]:8443"),
            ("[fd00::7]:8443", "[fd00::7]:8443"),
            ("operator.svc:8443", "operator.svc:8443"),
        ] {
            assert_eq!(advertised(said), Ok(meant.to_owned()));
        }
        assert!(advertised("10.0.0.7").is_err() && advertised("host:port").is_err());
    }
}
