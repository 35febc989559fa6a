//! Every kind of NAT against every other: which path two agents end up on, and how soon.

use std::time::{Duration, Instant};

use peerage_netlab::{NatKind, Possibility, can_be_direct};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::failed::Failed;
use crate::programs::Programs;
use crate::wait::until;
use crate::world::{Nats, SERVER, World};

/// How long a path that cannot exist is waited for: a direct one is found within a second or two.
const NO_PATH: Duration = Duration::from_secs(6);
/// The same where it must exist.
const PATH: Duration = Duration::from_secs(20);

/// A kind of NAT by its RFC 3489 name.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// For people.
    pub name: &'static str,
    /// For the lab.
    pub kind: NatKind,
}

/// The four types of RFC 3489; the symmetric one gives out random ports, which is the hardest.
#[must_use]
pub const fn types() -> [Named; 4] {
    [
        Named { name: "full cone", kind: NatKind::full_cone() },
        Named { name: "restricted cone", kind: NatKind::restricted_cone() },
        Named { name: "port-restricted cone", kind: NatKind::port_restricted_cone() },
        Named { name: "symmetric", kind: NatKind::symmetric_random() },
    ]
}

/// What one pair of NATs led to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Before the client.
    pub client: &'static str,
    /// Before the server.
    pub server: &'static str,
    /// The path at the end, in the client's words.
    pub path: String,
    /// What theory says of this pair.
    pub possibility: Possibility,
    /// From curl's first byte sent to the first byte of its answer, as curl measures it.
    pub first_byte: Duration,
    /// From the session's start to a direct path.
    pub direct_after: Option<Duration>,
    /// The client's NAT as its agent found it.
    pub found: String,
    /// Why the path is no better, in the agent's words.
    pub why: String,
}

impl Outcome {
    /// Whether agents must find a direct path. Predicting and guessing ports is not asked of them.
    #[must_use]
    pub const fn must_be_direct(&self) -> bool {
        matches!(self.possibility, Possibility::Direct | Possibility::Punched)
    }

    /// Whether the path is what theory says.
    #[must_use]
    pub fn is_as_expected(&self) -> bool {
        match self.possibility {
            Possibility::Direct | Possibility::Punched => self.path != "relayed",
            // Finding one all the same is no fault.
            Possibility::NeedsPrediction | Possibility::NeedsBirthday => true,
            Possibility::Impossible => self.path == "relayed",
        }
    }

    /// `direct` or `relayed`, and how sure that is.
    #[must_use]
    pub const fn expected(&self) -> &'static str {
        match self.possibility {
            Possibility::Direct => "direct",
            Possibility::Punched => "punched",
            Possibility::NeedsPrediction => "relayed (direct by predicting a port)",
            Possibility::NeedsBirthday => "relayed (direct by guessing ports)",
            Possibility::Impossible => "relayed",
        }
    }

    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "test": "nat", "client": self.client, "server": self.server, "path": self.path, "expected": self.expected(),
            "ok": self.is_as_expected(), "first_byte_ms": self.first_byte.as_secs_f64() * 1e3,
            "direct_ms": self.direct_after.map(|after| after.as_secs_f64() * 1e3), "nat_found": self.found,
            "why": self.why,
        })
    }
}

/// Lets two agents meet, fetches something by hostname, and waits for their path to be final.
///
/// # Errors
/// They do not meet, or the answer does not come.
pub fn pair(programs: &Programs, client_nat: Named, server_nat: Named) -> Result<Outcome, Failed> {
    let nats = Nats { client: client_nat.kind, server: server_nat.kind };
    let world = World::new(programs, nats, 2)?;
    let (client, server) = world.acquainted()?;
    let (connected, _) = client.wait_for(Agent::beginning(), "connected", |_| true)?;
    let first_byte = fetch(&client)?;
    let possibility = can_be_direct(&nats.client, &nats.server);
    let patience = if matches!(possibility, Possibility::Direct | Possibility::Punched) { PATH } else { NO_PATH };
    let direct_after = direct_since(&client, patience).map(|at| at.saturating_duration_since(connected));
    // Once more, by whatever path it is by then.
    fetch(&client)?;
    let status = client.ask(&["status"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let outcome = Outcome {
        client: client_nat.name,
        server: server_nat.name,
        path: text(&status["peers"][0]["path"]),
        possibility,
        first_byte,
        direct_after,
        found: text(&status["nat"]["kind"]),
        why: text(&status["peers"][0]["why"]),
    };
    check_counters(&world, &outcome)?;
    drop(server);
    Ok(outcome)
}

/// When the client's path became a direct one.
fn direct_since(client: &Agent, patience: Duration) -> Option<Instant> {
    let direct = |event: &Value| {
        let path = match event["event"].as_str() {
            Some("connected") => &event["path"],
            Some("path_changed") => &event["to"],
            _ => return false,
        };
        path.is_string() && path != "relayed"
    };
    client.heard(Agent::beginning(), patience, direct).map(|(at, _)| at)
}

/// Fetches a page by hostname; returns the time to its first byte.
fn fetch(client: &Agent) -> Result<Duration, Failed> {
    let answer = client.curl(&["-w", "%{stderr}%{time_starttransfer}", &format!("http://{SERVER}/")])?;
    if !answer.status.success() || answer.stdout != "hello\n" {
        return Err(Failed::new(format!("curl: {}", answer.said())));
    }
    let seconds = answer.stderr.trim().parse().map_err(|_| Failed::new(format!("curl said {:?}", answer.stderr)))?;
    Ok(Duration::from_secs_f64(seconds))
}

/// Whatever agents say: a path that is called direct has carried packets past the relays, both ways, and where none can
/// exist nothing has passed.
fn check_counters(world: &World, outcome: &Outcome) -> Result<(), Failed> {
    let passed = || world.direct_bytes() > 0 && world.direct_bytes_back() > 0;
    match (outcome.path.as_str(), outcome.possibility) {
        ("relayed", Possibility::Impossible) if world.direct_bytes() + world.direct_bytes_back() > 0 => {
            Err(Failed::new("something went past the relays where nothing can"))
        }
        ("relayed", _) => Ok(()),
        _ => until("packets past the relays, both ways", || Ok(passed().then_some(()))),
    }
}
