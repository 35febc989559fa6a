//! `peerage-agent`: the agent for containers.
//!
//! With `--operator` it is the sidecar of a pod: an operator says who it is and whom it may talk to. Without, it is what
//! `peerage up` is, told everything by its environment:
//!
//! | variable | as in `peerage up` |
//! |---|---|
//! | `PEERAGE_STATE` | `--state` |
//! | `PEERAGE_HOSTNAME` | `--hostname` |
//! | `PEERAGE_RELAYS`, `PEERAGE_ENDPOINTS`, `PEERAGE_BIND`, `PEERAGE_EXPOSE`, `PEERAGE_AVOID` | `--relay`, `--endpoint`, `--bind`, `--expose`, `--avoid`; commas between several |
//! | `PEERAGE_PORT_MAPPING` | `--port-mapping`, but `off` unless set: a pod's gateway is nobody's home router |
//! | `PEERAGE_PROXY`, `PEERAGE_HEALTH` | `--proxy`, `--health` |
//! | `PEERAGE_TUNNEL_MEMORY` | `--tunnel-memory` |
//! | `PEERAGE_LOG` | (both) what to log: a level, or `target=level` pairs with commas between; `info` unless set, or where it cannot be read, which is then said |
//!
//! A sidecar reads `PEERAGE_ENDPOINTS`, `PEERAGE_BIND`, `PEERAGE_PROXY`, `PEERAGE_HEALTH` and `PEERAGE_TUNNEL_MEMORY` of these,
//! too, and `PEERAGE_DNS`.
//!
//! `peerage-agent ask WHAT` asks the agent that runs on the same state, in the same container, and prints its answer as JSON:
//! the image has no other program.
//!
//! Logs are JSON on stderr. Exit status 0 after SIGTERM, 1 with the failure as JSON when it cannot run.

use std::env;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use peerage_agent::cluster::{self, Dns, Operator};
use peerage_agent::control::{Failure, Request, client};
use peerage_agent::daemon::{self, Options, Stopper, driver};
use peerage_agent::dns::HandedOn;
use peerage_agent::driver::ProxySettings;
use peerage_agent::keep;
use peerage_agent::listen::Avoid;
use peerage_agent::log;
use peerage_agent::process;
use peerage_agent::state::Place;
use peerage_model::{AgentId, Fingerprint};
use serde_json::{Value, json};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The Peerage agent. Settings without a flag are environment variables, see docs/reference/agent.md.
#[derive(Debug, Parser)]
#[command(name = "peerage-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where operators are; commas between several. With this, the agent is a pod's sidecar
    #[arg(long, env = "PEERAGE_OPERATOR", value_name = "HOST:PORT", value_delimiter = ',', requires = "authority")]
    operator: Vec<Operator>,
    /// The fingerprint of the authority that operators must speak for
    #[arg(long, env = "PEERAGE_AUTHORITY", value_name = "FINGERPRINT", requires = "operator")]
    authority: Option<Fingerprint>,
    /// The projected ServiceAccount token, of audience peerage.dev/FINGERPRINT
    #[arg(long, env = "PEERAGE_TOKEN_FILE", value_name = "PATH", default_value = "/var/run/secrets/peerage.dev/token")]
    token_file: PathBuf,
    /// Ports that the pod's containers declare, like 80 or 53/udp; commas between several
    #[arg(long, env = "PEERAGE_RESERVED_PORTS", value_name = "PORT", value_delimiter = ',')]
    reserved_ports: Vec<Avoid>,
    /// Addresses of peers that the pod's hosts file has, each with whose it is; commas between several
    #[arg(long, env = "PEERAGE_ADDRESSES", value_name = "ADDRESS=NAME@FINGERPRINT", value_delimiter = ',')]
    addresses: Vec<Known>,
    /// The DNS servers that a sidecar asks about names that are not ours, commas between several; `off` for no DNS of ours.
    /// Those of /etc/resolv.conf unless said
    #[arg(long, env = "PEERAGE_DNS", value_name = "ADDRESS[:PORT]")]
    dns: Option<Dns>,
    /// Run the agent in a process of its own, and start it anew at once when it dies: a pod without it has no DNS
    #[arg(long)]
    keep: bool,
    /// The directory for key, passport and what the operator said; for a sidecar a volume in memory
    #[arg(long, env = "PEERAGE_STATE", value_name = "PATH", global = true)]
    state: Option<PathBuf>,
}

/// What else the program does than being the agent.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Asks the agent that runs here, and prints its answer as JSON
    Ask {
        /// What about
        what: Question,
    },
}

/// What a running agent can be asked from within its container.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Question {
    /// Who it is, its relays, its NAT, its operator
    Status,
    /// Whom it trusts, by which path, and why not by a better one
    Peers,
    /// What stands in the way, and what to do about it
    Doctor,
}

/// `ADDRESS=NAME@FINGERPRINT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known(AgentId, Ipv4Addr);

impl FromStr for Known {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not ADDRESS=NAME@FINGERPRINT");
        let (address, id) = text.trim().split_once('=').ok_or_else(wrong)?;
        Ok(Self(id.parse().map_err(|_| wrong())?, address.parse().map_err(|_| wrong())?))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Ask { what }) = arguments.command {
        return ask(arguments.state.as_deref(), what);
    }
    let (filter, complaint) = log::filter(env::var(log::VARIABLE).ok().as_deref(), tracing::Level::INFO);
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().json().with_writer(io::stderr))
        .init();
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    if arguments.keep {
        return match keep::run(env::args_os().skip(1)) {
            Ok(code) => code,
            Err(error) => {
                tracing::error!(%error, "cannot start");
                ExitCode::FAILURE
            }
        };
    }
    keep::name_agent();
    process::end_at_panic();
    process::allow_files();
    // One thread carries traffic best: driver and copying take turns instead of waking each other (docs/benchmarks).
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!(code = ?failure.code, hint = failure.hint, "{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what the running agent answers, or its failure, as one line of JSON.
fn ask(state: Option<&Path>, what: Question) -> ExitCode {
    let request = match what {
        Question::Status => Request::Status,
        Question::Peers => Request::Peers,
        Question::Doctor => Request::Doctor,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let place = Place::find(state).map_err(Failure::from);
    let answer: Result<Value, Failure> = place.and_then(|place| runtime.block_on(client::call(&place, &request)));
    let (said, code) = match &answer {
        Ok(answer) => (answer.clone(), ExitCode::SUCCESS),
        Err(failure) => (json!({ "error": failure }), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{said}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE, // nobody is left to tell
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let place = Place::find(arguments.state.as_deref())?;
    let variable = |name: &str| env::var(name).ok();
    if let (false, Some(authority)) = (arguments.operator.is_empty(), arguments.authority) {
        let sidecar =
            cluster::start(place, sidecar(arguments, authority, variable)?, Box::new(driver::starter)).await?;
        stop_by_signal(sidecar.stopper())?;
        tracing::info!("started; an operator decides whom this agent may talk to");
        sidecar.run().await;
        return Ok(());
    }
    let daemon = daemon::start(place, options(variable)?, driver::starter()).await?;
    let problems = daemon.problems();
    tracing::info!(agent = %daemon.agent().routing_id(), problems = problems.len(), "started");
    tracing::debug!(agent = %daemon.agent(), ?problems, "started");
    stop_by_signal(daemon.stopper())?;
    daemon.run().await
}

fn stop_by_signal(stopper: Stopper) -> Result<(), Failure> {
    let stop =
        process::stop_signal().map_err(|error| Failure::bad_request(format!("cannot listen for signals: {error}")))?;
    tokio::spawn(async move {
        stop.await;
        stopper.stop();
    });
    Ok(())
}

fn sidecar(
    arguments: Arguments,
    authority: Fingerprint,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<cluster::Options, Failure> {
    let get = |name: &str| variable(name).filter(|value| !value.is_empty());
    let addresses = |name: &str| -> Result<Vec<SocketAddr>, Failure> { several(name, get(name)) };
    Ok(cluster::Options {
        operators: arguments.operator,
        authority,
        token_file: arguments.token_file,
        bind: addresses("PEERAGE_BIND")?,
        endpoints: addresses("PEERAGE_ENDPOINTS")?,
        relay_proxy: ProxySettings::from_env(&variable),
        memory: one("PEERAGE_TUNNEL_MEMORY", get("PEERAGE_TUNNEL_MEMORY"))?.unwrap_or_default(),
        proxy: one("PEERAGE_PROXY", get("PEERAGE_PROXY"))?,
        names: true,
        dns: arguments.dns.unwrap_or_default(),
        handed_on: HandedOn::received().map(Arc::new),
        health: one("PEERAGE_HEALTH", get("PEERAGE_HEALTH"))?,
        reserved: arguments.reserved_ports.into_iter().map(|avoid| (avoid.protocol, avoid.port)).collect(),
        addresses: arguments.addresses.into_iter().map(|Known(id, address)| (id, address)).collect(),
    })
}

fn options(variable: impl Fn(&str) -> Option<String>) -> Result<Options, Failure> {
    let get = |name: &str| variable(name).filter(|value| !value.is_empty());
    Ok(Options {
        hostname: one("PEERAGE_HOSTNAME", get("PEERAGE_HOSTNAME"))?,
        relays: several("PEERAGE_RELAYS", get("PEERAGE_RELAYS"))?,
        public: one("PEERAGE_PUBLIC", get("PEERAGE_PUBLIC"))?,
        expose: several("PEERAGE_EXPOSE", get("PEERAGE_EXPOSE"))?,
        avoid: several("PEERAGE_AVOID", get("PEERAGE_AVOID"))?,
        endpoints: several("PEERAGE_ENDPOINTS", get("PEERAGE_ENDPOINTS"))?,
        bind: several("PEERAGE_BIND", get("PEERAGE_BIND"))?,
        port_mapping: one("PEERAGE_PORT_MAPPING", get("PEERAGE_PORT_MAPPING"))?.unwrap_or_default(),
        relay_proxy: ProxySettings::from_env(&variable),
        memory: one("PEERAGE_TUNNEL_MEMORY", get("PEERAGE_TUNNEL_MEMORY"))?.unwrap_or_default(),
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
    fn a_sidecar_needs_an_operator_and_its_authority() {
        let line = |more: &[&str]| Arguments::try_parse_from([&["peerage-agent"], more].concat());
        let fingerprint = "ab".repeat(32);
        let whole =
            ["--operator", "a.svc:9443,[fd00::1]:1", "--authority", &fingerprint, "--reserved-ports", "80,53/udp"];
        let arguments = line(&whole).expect("it is right");
        assert_eq!(arguments.operator.len(), 2);
        let reserved: Vec<String> = arguments.reserved_ports.iter().map(ToString::to_string).collect();
        assert_eq!(reserved, ["80", "53/udp"]);
        assert!(line(&["--operator", "a.svc:9443"]).is_err(), "it would not know whom to believe");
        assert!(line(&["--authority", &fingerprint]).is_err(), "it would be an agent outside of clusters");
        assert!(line(&["--reserved-ports", "0"]).is_err());
        assert!(line(&["--addresses", "127.64.9.9"]).is_err(), "whose it is must be said");
        assert!(line(&["--reserved-ports", "80/sctp"]).is_err());
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let failure = options(|name| (name == "PEERAGE_RELAYS").then(|| "host".into())).expect_err("it is wrong");
        assert!(failure.message.starts_with("PEERAGE_RELAYS: "), "{failure}");
    }

    #[test]
    fn the_reference_has_every_flag_and_variable() {
        let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
        let variable = |name: &str| {
            asked.borrow_mut().insert(name.to_owned());
            None
        };
        options(variable).expect("nothing is said");
        let line = Arguments::try_parse_from(["peerage-agent"]).expect("nothing is said");
        sidecar(line, Fingerprint([0; 32]), variable).expect("nothing is said");
        let command = <Arguments as clap::CommandFactory>::command();
        let flags = command.get_arguments().filter_map(|one| one.get_env());
        asked.borrow_mut().extend(flags.map(|name| name.to_string_lossy().into_owned()));
        // What is asked for in small letters, too, is told in large ones.
        let asked = asked.into_inner().into_iter().filter(|name| *name == name.to_uppercase());
        peerage_docs::Page::at("docs/reference/agent.md").names("`peerage-agent`", asked);
    }
}
