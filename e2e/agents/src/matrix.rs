//! Every network against every other, on the real kernel: which path two agents end up on, how soon, and whether it is
//! the one that theory promises.
//!
//! All agents of one run are up at once, a client and a server in each network, and pairs that share nobody are tried
//! at the same time. A pair gets to know each other from nothing (ticket, request, approval), fetches a page by
//! hostname, is watched until its path is final, and parts again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use peerage_netlab::kernel::{Network, SiteConfig, possibility};
use peerage_netlab::{Access, Possibility};
use serde_json::{Value, json};

use crate::agent::{Agent, Mark};
use crate::doctor;
use crate::kernel::{KernelWorld, Place, acquaint_on, fetch};
use crate::programs::Programs;
use crate::wait::{PATIENCE, until};
use peerage_suite::failed::Failed;

/// A direct path must be there by then.
const PATH: Duration = Duration::from_secs(20);
/// How long an agent may take to find out what its NAT is.
const NAT: Duration = Duration::from_secs(8);
/// How long a path that must not come is waited for.
const NO_PATH: Duration = Duration::from_secs(6);

/// A client's network and a server's.
pub type Pair = (Network, Network);

/// What a matrix is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which pairs.
    pub pairs: Vec<Pair>,
    /// How many at the same time.
    pub at_once: usize,
    /// One way from every client to every server; relays are where the clients are.
    pub delay: Duration,
    /// Whether both sides allow ports to be guessed.
    pub birthday: bool,
}

/// What one pair led to.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Before the client.
    pub client: Network,
    /// Before the server.
    pub server: Network,
    /// What theory says.
    pub possibility: Possibility,
    /// Whether both sides allowed ports to be guessed.
    pub birthday: bool,
    /// What was seen, or why nothing was.
    pub seen: Result<Seen, String>,
}

/// What was seen of a pair that met.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The path at the end, in the client's words.
    pub path: String,
    /// From curl's start to the first byte of its answer, as curl measures it, right after the session came up.
    pub first_byte: Duration,
    /// From the session's start to a direct path.
    pub direct_after: Option<Duration>,
    /// The NATs as the agents found them: the client's and the server's.
    pub nats: [String; 2],
    /// Why the path is no better, in the client's words.
    pub why: String,
    /// What the client's doctor said that is not so.
    pub misadvised: Vec<String>,
}

impl Cell {
    /// Whether the path was a direct one.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.seen.as_ref().is_ok_and(|seen| seen.path != "relayed")
    }

    /// Whether it is as theory says.
    #[must_use]
    pub fn is_as_expected(&self) -> bool {
        match self.possibility {
            Possibility::Direct | Possibility::Punched | Possibility::NeedsPrediction => self.is_direct(),
            // Finding one all the same is no fault, and a guess may fail: who counts many decides.
            Possibility::NeedsBirthday => self.seen.is_ok(),
            Possibility::Impossible => self.seen.is_ok() && !self.is_direct(),
        }
    }

    /// `direct` or `relayed`, and by what effort.
    #[must_use]
    pub const fn expected(&self) -> &'static str {
        match self.possibility {
            Possibility::Direct => "direct",
            Possibility::Punched => "punched",
            Possibility::NeedsPrediction => "punched (a predicted port)",
            Possibility::NeedsBirthday if self.birthday => "punched (guessed ports)",
            Possibility::NeedsBirthday => "relayed (direct by guessing ports)",
            Possibility::Impossible => "relayed",
        }
    }

    /// Agents of this pair that call their NAT something else than it is: network, and what they say.
    #[must_use]
    pub fn misnamed(&self) -> Vec<(Network, &str)> {
        let nats = self.seen.iter().flat_map(|seen| [self.client, self.server].into_iter().zip(&seen.nats));
        nats.filter(|(network, said)| network.nat_type() != *said)
            .map(|(network, said)| (network, said.as_str()))
            .collect()
    }

    /// What the client's doctor said that is not so.
    #[must_use]
    pub fn misadvised(&self) -> &[String] {
        self.seen.as_ref().map_or(&[], |seen| &seen.misadvised)
    }

    /// The path in a word; `failed` if there was none.
    #[must_use]
    pub fn path(&self) -> &str {
        self.seen.as_ref().map_or("failed", |seen| seen.path.as_str())
    }

    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut line = json!({
            "test": "nat", "client": self.client.name(), "server": self.server.name(), "path": self.path(),
            "expected": self.expected(), "ok": self.is_as_expected(),
        });
        match &self.seen {
            Ok(seen) => {
                line["first_byte_ms"] = json!(millis(seen.first_byte));
                line["direct_ms"] = json!(seen.direct_after.map(millis));
                line["client_nat"] = json!(seen.nats[0]);
                line["server_nat"] = json!(seen.nats[1]);
                line["why"] = json!(seen.why);
                line["misadvised"] = json!(seen.misadvised);
            }
            Err(why) => line["error"] = json!(why),
        }
        line
    }
}

/// Every ordered pair of these networks, in an order that lets many be tried at once.
#[must_use]
pub fn all_pairs(networks: &[Network]) -> Vec<Pair> {
    let count = networks.len();
    let diagonals = (0..count).flat_map(|shift| (0..count).map(move |row| (row, (row + shift) % count)));
    diagonals.map(|(row, column)| (networks[row], networks[column])).collect()
}

/// Runs a plan, and hands over each cell as it is done.
///
/// # Errors
/// The lab cannot be made. What goes wrong in a pair is in its cell.
pub fn run(programs: &Programs, plan: &Plan, done: impl FnMut(Cell)) -> Result<(), Failed> {
    let world = match plan.delay.is_zero() {
        true => KernelWorld::new(programs, 2, &Access::default())?,
        false => KernelWorld::with_sides(programs, 2, plan.delay)?,
    };
    let stage = Stage::new(world, &plan.pairs)?;
    in_rounds(&plan.pairs, plan.at_once, |pair| stage.cell(pair, plan.birthday), done);
    Ok(())
}

/// Runs a plan so often, each time on an internet of its own and with agents that know nobody: a NAT that remembers the
/// ports of one run would make the next one easier. So many worlds are up at the same time.
///
/// # Errors
/// A lab cannot be made.
pub fn run_apart(
    programs: &Programs,
    plan: &Plan,
    times: usize,
    worlds: usize,
    mut done: impl FnMut(Cell),
) -> Result<(), Failed> {
    let left = AtomicUsize::new(times);
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    let (sender, cells) = mpsc::channel();
    let work = |sender: mpsc::Sender<Cell>| -> Result<(), Failed> {
        while take() {
            // Whoever listens does so until all of them have ended.
            run(programs, plan, |cell| drop(sender.send(cell)))?;
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let start = |sender| scope.spawn(move || work(sender));
        let workers: Vec<_> = (0..worlds.max(1)).map(|_| start(sender.clone())).collect();
        drop(sender);
        cells.iter().for_each(&mut done);
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(Failed::new("a run panicked"))))
    })
}

/// Does something with every pair, many at once, none of which share a client or a server.
pub(crate) fn in_rounds<T: Send>(
    pairs: &[Pair],
    at_once: usize,
    work: impl Fn(Pair) -> T + Sync,
    mut done: impl FnMut(T),
) {
    let mut left = pairs.to_vec();
    while !left.is_empty() {
        let round = take_round(&mut left, at_once.max(1));
        let results: Vec<T> = std::thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> = round.into_iter().map(|pair| scope.spawn(move || work(pair))).collect();
            running.into_iter().filter_map(|result| result.join().ok()).collect()
        });
        results.into_iter().for_each(&mut done);
    }
}

/// Takes pairs of which no two share a client or a server.
fn take_round(left: &mut Vec<Pair>, most: usize) -> Vec<Pair> {
    let (mut clients, mut servers, mut round) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    left.retain(|&(client, server)| {
        let free = round.len() < most && !clients.contains(&client) && !servers.contains(&server);
        if free {
            clients.insert(client);
            servers.insert(server);
            round.push((client, server));
        }
        !free
    });
    round
}

/// Everybody who takes part.
pub(crate) struct Stage {
    pub(crate) clients: BTreeMap<Network, Party>,
    pub(crate) servers: BTreeMap<Network, Party>,
    pub(crate) world: KernelWorld,
}

/// An agent where it is.
pub(crate) struct Party {
    pub(crate) place: Place,
    pub(crate) agent: Agent,
    /// Why it takes part in nothing, if so.
    pub(crate) missing: Option<String>,
}

impl Party {
    /// What the agent says of itself once it knows its NAT and its path to `peer` is direct, or after the time that it may take
    /// for that. A direct path that a busy machine made look silent rests for some seconds; one that is gone stays gone.
    fn settled(&self, peer: Option<&str>) -> Result<Value, Failed> {
        let begun = Instant::now();
        loop {
            let status = self.agent.ask(&["status"])?;
            let named = status["nat"]["kind"] == self.place.site.network().nat_type() || begun.elapsed() >= NAT;
            let path = |peer| status["peers"].as_array()?.iter().find(|known| known["name"] == peer)?["path"].as_str();
            let direct = peer.is_none_or(|peer| path(peer).is_some_and(|path| path != "relayed"));
            if named && direct || begun.elapsed() >= PATH {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Stage {
    /// A client and a server in each network of these pairs, and their agents.
    pub(crate) fn new(mut world: KernelWorld, pairs: &[Pair]) -> Result<Self, Failed> {
        let mut party = |prefix: &str, network: Network| {
            let (name, config) = (format!("{prefix}-{network}"), SiteConfig::new(network));
            let place = match prefix {
                "server" => world.server(&name, &config.far())?,
                _ => world.client(&name, &config)?,
            };
            let agent = world.start(&place)?;
            Ok((network, Party { place, agent, missing: None }))
        };
        let clients: BTreeSet<Network> = pairs.iter().map(|pair| pair.0).collect();
        let servers: BTreeSet<Network> = pairs.iter().map(|pair| pair.1).collect();
        let clients = clients.into_iter().map(|network| party("client", network)).collect::<Result<_, Failed>>()?;
        let servers = servers.into_iter().map(|network| party("server", network)).collect::<Result<_, Failed>>()?;
        let mut stage = Self { clients, servers, world };
        stage.wait_for_relays();
        Ok(stage)
    }

    /// All at once, so that those who find no relay cost one patience together.
    fn wait_for_relays(&mut self) {
        let begun = Instant::now();
        for party in self.clients.values_mut().chain(self.servers.values_mut()) {
            let patience = PATIENCE.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            let up = |event: &Value| event["event"] == "relay" && event["up"] == true;
            if party.agent.heard(Agent::beginning(), patience, up).is_none() {
                party.missing = Some(format!("{} found no relay within {PATIENCE:?}", party.place.name()));
            }
        }
    }

    fn cell(&self, (client, server): Pair, birthday: bool) -> Cell {
        let possibility = possibility(client, server);
        let patience = match possibility {
            Possibility::Direct | Possibility::Punched | Possibility::NeedsPrediction => PATH,
            Possibility::NeedsBirthday if birthday => PATH,
            Possibility::NeedsBirthday | Possibility::Impossible => NO_PATH,
        };
        let terms: &[&str] = if birthday { &["--birthday"] } else { &[] };
        let seen = self.meet(client, server, patience, terms).map_err(|failed| failed.to_string());
        Cell { client, server, possibility, birthday, seen }
    }

    fn meet(&self, client: Network, server: Network, patience: Duration, terms: &[&str]) -> Result<Seen, Failed> {
        let (client, server) = (&self.clients[&client], &self.servers[&server]);
        if let Some(missing) = [client, server].into_iter().find_map(|party| party.missing.as_ref()) {
            return Err(Failed::new(missing));
        }
        let mark = client.agent.mark();
        let before = self.world.direct_bytes(&client.place, &server.place)?;
        acquaint_on(&client.agent, &server.agent, client.place.name(), terms)?;
        let seen = self.watch(client, server, mark, patience);
        if let Ok(seen) = &seen
            && seen.path != "relayed"
        {
            self.check_counters(client, server, before)?;
        }
        // Strangers again, so that the next pair has its NATs to itself.
        client.agent.ask(&["revoke", server.place.name()])?;
        server.agent.ask(&["revoke", client.place.name()])?;
        seen
    }

    fn watch(&self, client: &Party, server: &Party, mark: Mark, patience: Duration) -> Result<Seen, Failed> {
        let name = server.place.name();
        let (connected, _) = client.agent.wait_for(mark, "connected", |event| event["peer"] == name)?;
        let first_byte = fetch(&client.agent, name)?;
        let direct = client.agent.heard(mark, patience, |event| is_direct(event, name));
        // Once more, by whatever path it is by then.
        fetch(&client.agent, name)?;
        let status = client.settled(direct.is_some().then_some(name))?;
        let other = server.settled(None)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let peers = status["peers"].as_array().into_iter().flatten();
        let peer = peers.into_iter().find(|peer| peer["name"] == name).cloned().unwrap_or_default();
        let (path, why) = (text(&peer["path"]), text(&peer["why"]));
        let misadvised = doctor::faults(&client.agent, client.place.site.network(), name)?;
        Ok(Seen {
            path,
            first_byte,
            direct_after: direct.map(|(at, _)| at.saturating_duration_since(connected)),
            nats: [text(&status["nat"]["kind"]), text(&other["nat"]["kind"])],
            why,
            misadvised,
        })
    }

    /// Whatever agents say: a path that is called direct has carried packets past the relays, both ways.
    fn check_counters(&self, client: &Party, server: &Party, before: [u64; 2]) -> Result<(), Failed> {
        until("packets past the relays, both ways", || {
            let after = self.world.direct_bytes(&client.place, &server.place)?;
            Ok((after[0] > before[0] && after[1] > before[1]).then_some(()))
        })
    }
}

/// Whether an event says that the path to `peer` is direct.
fn is_direct(event: &Value, peer: &str) -> bool {
    let path = match event["event"].as_str() {
        Some("connected") => &event["path"],
        Some("path_changed") => &event["to"],
        _ => return false,
    };
    event["peer"] == peer && path.is_string() && path != "relayed"
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_nobody_twice_and_all_pairs_come() {
        let networks = &Network::ALL[..5];
        let mut left = all_pairs(networks);
        let (mut seen, mut rounds) = (BTreeSet::new(), 0);
        while !left.is_empty() {
            let round = take_round(&mut left, 4);
            let clients: BTreeSet<Network> = round.iter().map(|pair| pair.0).collect();
            let servers: BTreeSet<Network> = round.iter().map(|pair| pair.1).collect();
            assert_eq!([clients.len(), servers.len()], [round.len(); 2]);
            assert!(round.len() <= 4);
            seen.extend(round);
            rounds += 1;
        }
        assert_eq!(seen.len(), 25);
        assert!(rounds <= 8, "{rounds} rounds of four for 25 pairs");
    }
}
