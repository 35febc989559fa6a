//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use peerage_model::Fingerprint;

/// Agents of this cluster, and clusters that it is linked with
#[derive(Parser, Debug)]
#[command(name = "kubectl peerage", bin_name = "kubectl peerage", version, arg_required_else_help = true)]
pub struct Cli {
    /// One JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// The context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace [default: the context's]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Where the operator runs
    #[arg(long, global = true, value_name = "NAME", default_value = "peerage-system")]
    pub operator_namespace: String,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Prints a ticket with which another cluster links itself with this one; it works once
    Invite(Invite),
    /// Links this cluster with the one that a ticket is from
    Link(Link),
    /// Prints what another cluster must declare to link itself without a ticket
    Keys,
    /// Who of linked clusters asks to talk to agents here
    Requests(All),
    /// Agrees to a request: makes the AgentTrust
    Approve(Approve),
    /// Refuses a request
    Reject(Name),
    /// Consents that an agent of this namespace talks to an agent of a linked cluster, or of this one
    Trust(Trust),
    /// Takes an AgentTrust back
    Revoke(Revoke),
    /// Links, trusts and requests, and what stands in their way
    Status(All),
    /// By which path an agent's pods reach its peers, and why not by a better one
    Path(PathTo),
    /// Looks for what stands in the way, and says what to do about it
    Doctor(Doctor),
}

/// Whose namespaces may use a link.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Allowed {
    /// Namespaces whose AgentTrusts may use the link; commas between them
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Every namespace may use the link
    #[arg(long)]
    pub all_namespaces: bool,
}

#[derive(Args, Debug)]
pub struct Invite {
    /// What the other cluster will be called here
    pub link: String,
    #[command(flatten)]
    pub allowed: Allowed,
    /// For how long the ticket is good: 30m, 2h, 1d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub expires: Duration,
}

#[derive(Args, Debug)]
pub struct Link {
    /// What the other cluster will be called here
    pub link: String,
    /// A file with the ticket; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub ticket: PathBuf,
    #[command(flatten)]
    pub allowed: Allowed,
    /// Waits until the two operators talk, for at most so long: --wait=5m
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s", value_parser = duration)]
    pub wait: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct All {
    /// Of every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Args, Debug)]
pub struct Name {
    /// The request's name
    pub name: String,
}

/// What the other side may open here.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct Open {
    /// Ports of our agent that the other may open, by their names; commas between them
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub open: Vec<String>,
    /// The other may open nothing; our agent can still open what the other permits
    #[arg(long)]
    pub open_nothing: bool,
}

#[derive(Args, Debug)]
pub struct Approve {
    /// The request's name
    pub name: String,
    #[command(flatten)]
    pub open: Open,
    /// What our agent calls the other [default: the first part of its name, unless a Service of this namespace is called so]
    #[arg(long = "as", value_name = "ALIAS")]
    pub alias: Option<String>,
    /// After how long the consent ends by itself: 12h, 30d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub expires: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Trust {
    /// Our agent, an AgentPeer of this namespace
    pub agent: String,
    /// The other agent: NAME.NAMESPACE, or NAME in this namespace
    pub peer: String,
    /// The AgentLink that leads to its cluster; without it, this cluster
    #[arg(long, value_name = "NAME")]
    pub link: Option<String>,
    /// The fingerprint of that cluster's authority, for who may not read AgentLinks
    #[arg(long, value_name = "FINGERPRINT", requires = "link")]
    pub authority: Option<Fingerprint>,
    #[command(flatten)]
    pub open: Open,
    /// What our agent calls the other [default: the first part of its name]
    #[arg(long = "as", value_name = "ALIAS")]
    pub alias: Option<String>,
    /// What it is for; shown to the other's owner
    #[arg(long, value_name = "TEXT")]
    pub purpose: Option<String>,
    /// After how long the consent ends by itself: 12h, 30d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub expires: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Revoke {
    /// The AgentTrust's name
    pub name: String,
    /// Waits until every connected agent has ended its connections, for at most so long: --wait=5m
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "30s", value_parser = duration)]
    pub wait: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct PathTo {
    /// Our agent, an AgentPeer of this namespace
    pub agent: String,
    /// Only to this peer, by the name that our agent calls it
    pub peer: Option<String>,
}

#[derive(Args, Debug)]
pub struct Doctor {
    /// An AgentPeer of this namespace whose pods are asked, too
    pub agent: Option<String>,
}

/// A number and one of s, m, h, d.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write 90s, 30m, 2h or 7d");
    let split = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    match Duration::from_secs(u64::from(number) * unit) {
        Duration::ZERO => Err(wrong()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_name_after_wait_is_not_taken_for_a_time() {
        let cli = Cli::try_parse_from(["kubectl-peerage", "revoke", "--wait", "reporter-db"]).expect("a command");
        let Command::Revoke(revoke) = cli.command else { panic!("{cli:?}") };
        assert_eq!((revoke.name.as_str(), revoke.wait), ("reporter-db", Some(Duration::from_secs(30))));
    }

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "s", "0s", "1.5h", "-1s", "1w", "99999999999s", "5é"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
