//! What can be typed.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use peerage_agent::driver::TunnelMemory;
use peerage_agent::listen::Avoid;
use peerage_agent::portmap;
use peerage_agent::state::document::{Path, Service};
use peerage_agent::state::time::parse_span;
use peerage_model::AgentName;
use peerage_model::relay::RelayInfo;

/// Agents that find each other by hostname and trust each other by consent
#[derive(Parser, Debug)]
#[command(name = "peerage", version, arg_required_else_help = true, propagate_version = false)]
pub struct Cli {
    /// One JSON object a line on stdout, errors too
    #[arg(long, global = true)]
    pub json: bool,

    /// Directory with the agent's keys and state [default: /var/lib/peerage for root, else ~/.local/state/peerage]
    // One that is empty is as one that is not set, as with other variables.
    #[arg(long, global = true, value_name = "DIR", env = "PEERAGE_STATE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub state: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start this machine's agent
    Up(Box<Up>),
    /// Stop this machine's agent
    Down,
    /// Show the agent, its relays, its peers and what stands in the way
    Status,
    /// Make a ticket with which somebody can ask this agent for trust, once
    Invite {
        /// How long the ticket is good for, like 10m, 12h or 7d
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_span)]
        expires: Duration,
        /// Make none, and list those that nobody has used yet
        #[arg(long, conflicts_with_all = ["expires", "withdraw"])]
        list: bool,
        /// Make none, and take one back that nobody has used yet: by its text (- reads it from stdin), the first digits of its id,
        /// or `all`
        #[arg(long, value_name = "TICKET|ID", conflicts_with = "expires")]
        withdraw: Option<String>,
    },
    /// Ask an agent for trust: the one that made a ticket, or a public one by its name
    Handshake {
        /// The ticket, from `peerage invite` on the other machine; - reads it from stdin. Or, where it runs `up --public`, its name,
        /// or NAME@FINGERPRINT, of which the first digits are enough
        #[arg(value_name = "TICKET|NAME")]
        ticket: String,
        /// Why; its owner reads this
        reason: String,
        /// Relay to look for a name at; repeat for more [default: those this agent uses]
        #[arg(long, value_name = "KEY@HOST:PORT")]
        relay: Vec<RelayInfo>,
        /// With a cluster's ticket, from `kubectl peerage invite`: which of its agents this one is to trust
        #[arg(long, value_name = "NAME.NAMESPACE")]
        to: Option<String>,
        #[command(flatten)]
        terms: TermsArgs,
    },
    /// List who asks for this agent's trust
    Requests,
    /// Trust an agent that asked, or change what was agreed with a peer
    Approve {
        /// Its name from `peerage requests`, or NAME@FINGERPRINT where two have that name
        name: String,
        #[command(flatten)]
        terms: TermsArgs,
    },
    /// Turn a request down; the asker is not told
    Reject {
        /// Its name from `peerage requests`
        name: String,
    },
    /// Take trust back; open streams with the peer are reset
    Revoke {
        /// The peer's name here
        name: String,
        /// Return only when the peer's streams have been reset
        #[arg(long)]
        wait: bool,
        /// Refuse only this running instance of the peer, from `peerage peers --json`, until its passport has ended
        #[arg(long, value_name = "ID", conflicts_with = "wait")]
        instance: Option<String>,
    },
    /// Give this agent's authority new keys; its name, its peers and their open streams stay
    Rotate {
        /// How long the former keys count, too: peers learn the new ones in a session within this time
        #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = parse_span)]
        overlap: Duration,
        /// End the former keys now, as when one was stolen: peers that are not connected need a new ticket
        #[arg(long, conflicts_with = "overlap")]
        at_once: bool,
    },
    /// List whom this agent trusts, and how it stands with them
    Peers,
    /// Measure the round trip to a peer through the tunnel
    Ping {
        /// The peer's name here
        name: String,
        /// How many times
        #[arg(long, short, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// Milliseconds between two
        #[arg(long, value_name = "MS", default_value_t = 1000)]
        interval: u64,
    },
    /// Open a port of a peer and pipe stdin and stdout through it
    Connect {
        /// The peer's name here
        name: String,
        /// Which of its ports
        #[arg(long, short, default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Send this text instead of stdin, and print the answer
        #[arg(long, value_name = "TEXT")]
        message: Option<String>,
    },
    /// Offer a port of this machine to peers
    Expose {
        /// `[NAME=]PORT[:TARGET][/udp]`: the port peers see, and the local port or address it leads to
        #[arg(required_unless_present = "remove", value_name = "SERVICE")]
        service: Option<String>,
        /// Stop offering this name or port
        #[arg(long, value_name = "NAME", conflicts_with = "service")]
        remove: Option<String>,
    },
    /// Run a program that finds peers by hostname, also on low ports, without root
    Run {
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Measure throughput to a peer through the tunnel
    Bench {
        /// The peer's name here
        name: String,
        /// For how many seconds
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
        seconds: u32,
    },
    /// Look for what may be wrong, and say what to do about it
    Doctor,
    /// Set this machine up, once, as root: service, names for all programs, low ports
    Install(Install),
    /// Run a relay
    Relay(peerage_relay::Options),
    /// Show two agents behind emulated NATs finding each other by name, on this machine
    Demo(peerage_demo::Options),
    /// Print a completion script for a shell
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Args, Debug, Clone)]
pub struct Up {
    /// What this agent is called, without dots [default: what it was called before, else the machine's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<AgentName>,
    /// A relay to be found at, as `peerage relay` prints it; repeat for more [default: those used before]
    #[arg(long, value_name = "KEY@HOST:PORT")]
    pub relay: Vec<RelayInfo>,
    /// Let strangers ask this agent for trust by its name alone: its relays keep a sealed mailbox for it [default: as before]
    #[arg(long)]
    pub public: bool,
    /// Do not, from now on
    #[arg(long, conflicts_with = "public")]
    pub no_public: bool,
    /// An address at which this agent can be reached from outside; repeat for more
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub endpoint: Vec<SocketAddr>,
    /// Local address to send from; repeat for IPv4 and IPv6 [default: all, any port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bind: Vec<SocketAddr>,
    /// A port to offer to peers, as for `peerage expose`; repeat for more
    #[arg(long, value_name = "[NAME=]PORT[:TARGET]")]
    pub expose: Vec<Service>,
    /// A port that a program here listens on, on all addresses, so that no peer's port may be there; repeat for more [default: those
    /// said before]
    #[arg(long, value_name = "PORT[/udp]")]
    pub avoid: Vec<Avoid>,
    /// Ask the router for a port by PCP, NAT-PMP or UPnP, so that peers reach this machine directly: auto or off
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub port_mapping: portmap::Mode,
    /// What streams may hold that nobody has read yet, like 64Mi [default: 384Mi, or half of the control group's limit if less]
    #[arg(long, value_name = "AMOUNT")]
    pub tunnel_memory: Option<TunnelMemory>,
    /// Local SOCKS5 and HTTP proxy that leads to peers
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub proxy: Option<SocketAddr>,
    /// Address for /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub health: Option<SocketAddr>,
    /// Return once the agent runs in the background; it logs to agent.log in its state
    #[arg(long, short)]
    pub detach: bool,
    /// We are what `--detach` started.
    #[arg(long, hide = true)]
    pub detached: bool,
}

/// What a peer may do here
#[derive(Args, Debug, Clone, Default)]
pub struct TermsArgs {
    /// What to call the peer here [default: its own name]
    #[arg(long = "as", value_name = "NAME")]
    pub alias: Option<String>,
    /// What it may open here: a port or its name, `all` or `none`; repeat for more
    #[arg(long, value_name = "PORT")]
    pub inbound: Vec<String>,
    /// How long the trust lasts, like 12h or 30d [default: until revoked]
    #[arg(long, value_name = "DURATION", value_parser = parse_span)]
    pub expires: Option<Duration>,
    /// How data may travel
    #[arg(long, value_name = "MODE")]
    pub path: Option<PathArg>,
    /// Whether a thousand ports may be tried where both NATs leave no other way; both sides must say so
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub birthday: Option<bool>,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
pub enum PathArg {
    /// By relay first, directly as soon as possible
    Auto,
    /// Never directly: the peer does not learn this machine's addresses
    RelayOnly,
    /// Data never by relay
    DirectOnly,
}

impl From<PathArg> for Path {
    fn from(path: PathArg) -> Self {
        match path {
            PathArg::Auto => Self::Auto,
            PathArg::RelayOnly => Self::RelayOnly,
            PathArg::DirectOnly => Self::DirectOnly,
        }
    }
}

#[derive(Args, Debug, Clone)]
pub struct Install {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Take back what was installed; keys and state stay
    #[arg(long)]
    pub uninstall: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn refused(args: &[&str]) -> String {
        let args = std::iter::once(&"peerage").chain(args);
        Cli::try_parse_from(args).expect_err("it is refused").to_string()
    }

    #[test]
    fn the_definitions_agree_with_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_typed_wrongly_is_refused_with_the_reason() {
        for (args, reason) in [
            (&["fly"][..], "unrecognized subcommand 'fly'"),
            (&["invite", "--expires", "soon"], "like 10m or 30d"),
            (&["up", "--relay", "host"], "KEY@HOST:PORT"),
            (&["up", "--hostname", "Not_A_Name"], "is not a DNS label"),
            (&["up", "--expose", "80:nowhere"], "is not a target"),
            (&["connect", "db", "--port", "0"], "0 is not in 1..=65535"),
            (&["ping", "db", "--count", "0"], "0 is not in 1.."),
            (&["handshake", "peerage1-x"], "<REASON>"),
            (&["run"], "<COMMAND>..."),
            (&["invite", "--list", "--withdraw", "all"], "cannot be used with"),
            (&["up", "--public", "--no-public"], "'--public' cannot be used with '--no-public'"),
            (&["up", "--no-public", "--public"], "'--no-public' cannot be used with '--public'"),
            (&["relay", "--open", "--no-tls", "--tls-streams", "9"], "'--no-tls' cannot be used with '--tls-streams"),
            (&["expose"], "<SERVICE>"),
            (&["bench", "db", "--seconds", "601"], "601 is not in 1..=600"),
        ] {
            let said = refused(args);
            assert!(said.contains(reason), "{args:?}: {said}");
        }
    }

    #[test]
    fn a_programs_own_options_are_left_to_it() {
        let cli =
            Cli::try_parse_from(["peerage", "run", "--", "curl", "--json", "{}", "http://db/"]).expect("it parses");
        let Command::Run { command } = cli.command else { panic!("it is `run`") };
        assert_eq!(command.len(), 4);
        assert!(!cli.json);
    }

    #[test]
    fn every_command_says_what_it_is_for() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
