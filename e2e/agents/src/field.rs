//! What others in the field stumble over, each as a test with real programs on the real kernel, and what it takes.
//!
//! Tests run these in a small size, `scripts/e2e field` in full. A figure is reported; what is asserted is that it works,
//! and where the design promises a bound, that bound.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use peerage_netlab::Access;
use peerage_netlab::kernel::{Network, SiteConfig};
use serde_json::{Map, Value, json};

use crate::agent::Agent;
use crate::flow::Download;
use crate::kernel::{KernelWorld, Place, acquaint_on, fetch, path_to};
use crate::programs::Programs;
use crate::wait::{PATIENCE, until};
use peerage_suite::failed::{Failed, Trying};

/// One way between a client and its server where a test wants a distance.
const FAR: Duration = Duration::from_millis(10);
/// DESIGN.md, promise 7.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);
/// FIELD.md, figures to beat: recovery after a peer restarts.
const FOUND_WITHIN: Duration = Duration::from_secs(2);
/// A request after a long pause is not to wait for a person to notice.
const AT_ONCE: Duration = Duration::from_secs(2);
/// What the agents are called here.
const CLIENT: &str = "reporter";
const SERVER: &str = "db-tool-server";

/// What a test found, besides that it works.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which test.
    pub test: &'static str,
    /// Milliseconds, by what they are of.
    pub millis: Vec<(&'static str, f64)>,
    /// Anything else.
    pub said: String,
}

impl Finding {
    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        let millis: Map<String, Value> =
            self.millis.iter().map(|(name, value)| (format!("{name}_ms"), json!(value))).collect();
        let mut line = json!({"test": self.test, "said": self.said});
        if let Value::Object(line) = &mut line {
            line.extend(millis);
        }
        line
    }
}

/// How much of each test is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Of a transfer, in bytes.
    pub bytes: u64,
    /// How long nothing is said, and the lifetime of the NAT's mappings meanwhile.
    pub idle: Duration,
    /// That lifetime.
    pub lifetime: Duration,
    /// How many times a promised bound a figure may be before the test fails: a busy machine must not fail a change, and
    /// what is promised is held where nothing else runs.
    pub slack: u32,
}

impl Size {
    /// For every change of the code.
    pub const SMALL: Self =
        Self { bytes: 48 << 20, idle: Duration::from_secs(24), lifetime: Duration::from_secs(20), slack: 8 };
    /// What is promised.
    pub const FULL: Self =
        Self { bytes: 1 << 30, idle: Duration::from_secs(300), lifetime: Duration::from_secs(30), slack: 1 };
}

/// A test.
pub type Test = fn(&Programs, Size) -> Result<Finding, Failed>;

/// All tests of the field, by name.
#[must_use]
pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("both-symmetric", both_sides_symmetric),
        ("address-change", address_change_in_a_transfer),
        ("relay-killed", primary_relay_killed_in_a_transfer),
        ("upgrade", upgrade_to_direct),
        ("revocation", revocation_resets_both_sides),
        ("restarted-elsewhere", restarted_with_a_new_address),
        ("idle", idle_behind_a_forgetful_nat),
    ]
}

/// Two agents that have met.
struct Pair {
    client: Agent,
    server: Agent,
    at_client: Place,
    at_server: Place,
    world: KernelWorld,
}

impl Pair {
    /// In such networks, so far apart, on these terms.
    fn new(programs: &Programs, networks: [SiteConfig; 2], apart: Duration, terms: &[&str]) -> Result<Self, Failed> {
        let mut world = match apart.is_zero() {
            true => KernelWorld::new(programs, 2, &Access::default())?,
            false => KernelWorld::with_sides(programs, 2, apart)?,
        };
        let [near, far] = networks;
        let at_client = world.client(CLIENT, &near)?;
        let at_server = world.server(SERVER, &far.far())?;
        let (client, server) = (world.start_bound(&at_client)?, world.start_bound(&at_server)?);
        acquaint_on(&client, &server, CLIENT, terms)?;
        Ok(Self { client, server, at_client, at_server, world })
    }

    /// Waits for a direct path, and says how long that took.
    fn until_direct(&self) -> Result<Duration, Failed> {
        let begun = Instant::now();
        until("a direct path", || {
            let path = path_to(&self.client, SERVER)?;
            Ok((!path.is_empty() && path != "relayed").then_some(()))
        })?;
        Ok(begun.elapsed())
    }

    /// What went past all relays, there and back.
    fn direct_bytes(&self) -> Result<u64, Failed> {
        Ok(self.world.direct_bytes(&self.at_client, &self.at_server)?.iter().sum())
    }

    /// What both agents had to say, for whoever looks after a failure.
    fn logs(&self, failed: &Failed) -> Failed {
        Failed::new(format!(
            "{failed}\nthe client's agent: {}\nthe server's agent: {}",
            self.client.log("agent"),
            self.server.log("agent")
        ))
    }
}

fn both(network: Network) -> [SiteConfig; 2] {
    [SiteConfig::new(network), SiteConfig::new(network)]
}

/// Two symmetric NATs with random ports: no path but the relay's, and it says so.
///
/// # Errors
/// They do not meet, or something went past the relays.
pub fn both_sides_symmetric(programs: &Programs, _: Size) -> Result<Finding, Failed> {
    let pair = Pair::new(programs, both(Network::SymmetricRandom), Duration::ZERO, &[])?;
    let cold = fetch(&pair.client, SERVER)?;
    let warm = fetch(&pair.client, SERVER)?;
    let status = pair.client.until_status("it is relayed, and says why", |status| {
        let peer = &status["peers"][0];
        peer["path"] == "relayed" && peer["why"].as_str().is_some_and(|why| why.contains("symmetric"))
    })?;
    let why = status["peers"][0]["why"].as_str().unwrap_or_default().to_owned();
    if status["nat"]["kind"] != "symmetric" {
        return Err(Failed::new(format!("the NAT is symmetric, not {}", status["nat"])));
    }
    Ok(Finding {
        test: "both-symmetric",
        millis: vec![("first_request", millis(cold)), ("next_request", millis(warm))],
        said: why,
    })
}

/// A download goes on while the client's gateway gets another address, then the client itself.
///
/// # Errors
/// It breaks, or what came is not what was sent.
pub fn address_change_in_a_transfer(programs: &Programs, size: Size) -> Result<Finding, Failed> {
    let pair = Pair::new(programs, both(Network::SymmetricPreserving), FAR, &[])?;
    pair.until_direct()?;
    let download = Download::start(&pair.client, SERVER, size.bytes)?;
    let site = &pair.at_client.site;
    let run = || -> Result<[Duration; 3], Failed> {
        let before = download.read_to(size.bytes / 4)?;
        pair.world.lab.change_public_address(site).trying("change an address")?;
        let public = download.read_to(size.bytes / 2)?;
        pair.world.lab.change_address(site).trying("change an address")?;
        Ok([before, public, download.read_to(size.bytes / 4 * 3)?])
    };
    let [before, public, own] = run().map_err(|failed| pair.logs(&failed))?;
    let took = download.finish().map_err(|failed| pair.logs(&failed))?;
    let direct_again = pair.until_direct()?;
    Ok(Finding {
        test: "address-change",
        millis: vec![
            ("longest_pause_before", millis(before)),
            ("pause_at_a_new_public_address", millis(public)),
            ("pause_at_a_new_own_address", millis(own)),
            ("direct_after_the_end", millis(direct_again)),
            ("all", millis(took)),
        ],
        said: format!("{} MiB, hash as sent", size.bytes >> 20),
    })
}

/// A relayed download goes on when the relay that carries it is killed.
///
/// # Errors
/// It breaks, or what came is not what was sent.
pub fn primary_relay_killed_in_a_transfer(programs: &Programs, size: Size) -> Result<Finding, Failed> {
    let mut pair = Pair::new(programs, both(Network::SymmetricRandom), FAR, &[])?;
    let download = Download::start(&pair.client, SERVER, size.bytes)?;
    let before = download.read_to(size.bytes / 4).map_err(|failed| pair.logs(&failed))?;
    let primary = busiest_relay(&pair)?;
    pair.world.kill_relay(primary)?;
    let pause = download.read_to(size.bytes / 2).map_err(|failed| pair.logs(&failed))?;
    let took = download.finish().map_err(|failed| pair.logs(&failed))?;
    Ok(Finding {
        test: "relay-killed",
        millis: vec![("longest_pause_before", millis(before)), ("pause", millis(pause)), ("all", millis(took))],
        said: format!("{} MiB, hash as sent", size.bytes >> 20),
    })
}

/// The relay that has sent the client most.
fn busiest_relay(pair: &Pair) -> Result<usize, Failed> {
    let mut carried = Vec::new();
    for number in 0..pair.world.relays() {
        let site = pair.world.relay_site(number).ok_or_else(|| Failed::new("there is no such relay"))?;
        carried.push((pair.world.lab.bytes(site, &pair.at_client.site).trying("count packets")?, number));
    }
    let (bytes, number) = carried.into_iter().max().ok_or_else(|| Failed::new("there are no relays"))?;
    if bytes < 1 << 20 { Err(Failed::new("no relay carries the download")) } else { Ok(number) }
}

/// A stream that began on a relay goes on directly once that is allowed, and says when.
///
/// # Errors
/// It breaks, stays relayed, or what came is not what was sent.
pub fn upgrade_to_direct(programs: &Programs, size: Size) -> Result<Finding, Failed> {
    let pair = Pair::new(programs, both(Network::PortRestricted), FAR, &["--path", "relay-only"])?;
    let download = Download::start(&pair.client, SERVER, size.bytes)?;
    let run = || -> Result<Duration, Failed> {
        download.read_to(size.bytes / 4)?;
        if pair.direct_bytes()? > 0 {
            return Err(Failed::new("something went past the relays before that was allowed"));
        }
        let mark = pair.client.mark();
        pair.server.ask(&["approve", CLIENT, "--path", "auto"])?;
        let begun = Instant::now();
        pair.client.ask(&["approve", SERVER, "--path", "auto"])?;
        let direct = |event: &Value| event["event"] == "path_changed" && event["to"] != "relayed";
        // Data flows meanwhile.
        let reading = download.read_to(size.bytes / 2);
        let (at, _) = pair.client.heard(mark, PATIENCE, direct).ok_or_else(|| Failed::new("no direct path came"))?;
        reading.map(|_| at.saturating_duration_since(begun))
    };
    let upgrade = run().map_err(|failed| pair.logs(&failed))?;
    let took = download.finish().map_err(|failed| pair.logs(&failed))?;
    // Nothing went directly before (seen above). Of the rest, windows and pipes hold what the relays carried already.
    if pair.direct_bytes()? < size.bytes / 8 {
        return Err(pair.logs(&Failed::new("the rest did not go past the relays")));
    }
    Ok(Finding {
        test: "upgrade",
        millis: vec![("direct_after", millis(upgrade)), ("all", millis(took))],
        said: format!("{} MiB, hash as sent", size.bytes >> 20),
    })
}

/// Trust that is taken back ends an open stream at both ends within a second.
///
/// # Errors
/// It does not.
pub fn revocation_resets_both_sides(programs: &Programs, size: Size) -> Result<Finding, Failed> {
    let pair = Pair::new(programs, both(Network::PortRestricted), FAR, &[])?;
    let words = ["run", "--", "curl", "-sS", "--no-buffer", &format!("http://{SERVER}/drip")];
    let mut curl = pair.client.start(pair.client.peerage(&words), "curl")?;
    let mut lines = BufReader::new(curl.stdout());
    for _ in 0..5 {
        lines.read_line(&mut String::new()).trying("read from curl")?;
    }
    let ended = std::thread::spawn(move || {
        let rest = lines.read_to_end(&mut Vec::new());
        (Instant::now(), rest)
    });
    let begun = Instant::now();
    pair.server.ask(&["revoke", CLIENT])?;
    // The program at the other end notices with its next line.
    until("the server's program is told", || Ok(pair.server.log("origin").contains("drip ended").then_some(())))?;
    let server_side = begun.elapsed();
    let (at, rest) = ended.join().map_err(|_| Failed::new("the reader panicked"))?;
    rest.trying("read from curl")?;
    let client_side = at.saturating_duration_since(begun);
    let status = curl.wait()?;
    if status.success() {
        return Err(Failed::new("a reset must not look like the end of an answer"));
    }
    if client_side.max(server_side) > REVOKED_WITHIN * size.slack {
        return Err(Failed::new(format!("it took {client_side:?} at the client and {server_side:?} at the server")));
    }
    Ok(Finding {
        test: "revocation",
        millis: vec![("client_side", millis(client_side)), ("server_side", millis(server_side))],
        said: format!("curl: {status}"),
    })
}

/// An agent that is killed and comes back elsewhere is found again; there is nothing but relays to ask.
///
/// # Errors
/// It is not found within two seconds of its own start.
pub fn restarted_with_a_new_address(programs: &Programs, size: Size) -> Result<Finding, Failed> {
    let mut pair = Pair::new(programs, both(Network::SymmetricPreserving), FAR, &[])?;
    pair.until_direct()?;
    fetch(&pair.client, SERVER)?;
    pair.server.process().kill()?;
    pair.world.lab.change_public_address(&pair.at_server.site).trying("change an address")?;
    pair.world.lab.change_address(&pair.at_server.site).trying("change an address")?;
    pair.server = pair.world.start_bound(&pair.at_server)?;
    let up = Instant::now();
    // A program that connects in the very moment in which the old session gives way is refused, and asks again.
    let mut refused = 0;
    let first_byte = until("an answer", || {
        let answer = fetch(&pair.client, SERVER);
        refused += u32::from(answer.is_err());
        Ok(answer.ok())
    })
    .map_err(|failed| pair.logs(&failed))?;
    let found = up.elapsed();
    if found > FOUND_WITHIN * size.slack {
        return Err(pair.logs(&Failed::new(format!("it took {found:?}"))));
    }
    Ok(Finding {
        test: "restarted-elsewhere",
        millis: vec![("answered_after", millis(found)), ("first_byte", millis(first_byte))],
        said: format!("killed, both addresses changed, started again; {refused} requests refused before"),
    })
}

/// After a pause that no mapping survives by itself, the next request is answered at once.
///
/// # Errors
/// It is not.
pub fn idle_behind_a_forgetful_nat(programs: &Programs, size: Size) -> Result<Finding, Failed> {
    let networks = both(Network::SymmetricPreserving).map(|site| site.with_mapping_lifetime(size.lifetime));
    let pair = Pair::new(programs, networks, FAR, &[])?;
    pair.until_direct()?;
    let before = fetch(&pair.client, SERVER)?;
    // Nothing is waited for: that nothing happens for so long is the test.
    std::thread::sleep(size.idle);
    let begun = Instant::now();
    let after = fetch(&pair.client, SERVER).map_err(|failed| pair.logs(&failed))?;
    if begun.elapsed() > AT_ONCE * size.slack {
        return Err(pair.logs(&Failed::new(format!("after the pause a request took {:?}", begun.elapsed()))));
    }
    Ok(Finding {
        test: "idle",
        millis: vec![("request_before", millis(before)), ("request_after", millis(after))],
        said: format!("{} s idle, mappings live {} s", size.idle.as_secs(), size.lifetime.as_secs()),
    })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
