//! What `peerage doctor` says where its agent is, held against what is true there.
//!
//! A user reads these words and acts on them, so what is wrong counts as much as what is missing: a problem where everything
//! works, a remedy that cannot help, a reason that is not the one.

use std::time::{Duration, Instant};

use peerage_netlab::kernel::Network;
use serde_json::Value;

use crate::agent::Agent;
use peerage_suite::failed::{Failed, Trying};

/// How long an agent may take to find out all that it says.
const KNOWS: Duration = Duration::from_secs(20);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);

/// How reasons begin that pass by themselves: there is nothing to be done about them.
const PASSING: [&str; 3] = ["still checking ", "packets got lost on the direct path", "the direct path takes "];

/// What is the case for an agent that is asked.
struct Truth<'a> {
    /// Where it is.
    network: Network,
    /// Whom it is connected to.
    peer: &'a str,
    /// By which path.
    path: &'a str,
    /// Why by no better one.
    why: &'a str,
}

/// What the doctor of an agent in this network, connected to this peer, says that is not so, once it had its time; nothing
/// where all of it is.
pub(crate) fn faults(agent: &Agent, network: Network, peer: &str) -> Result<Vec<String>, Failed> {
    let begun = Instant::now();
    loop {
        // Paths change, so both are asked anew each time.
        let status = agent.ask(&["status"])?;
        let faults = Truth::of(&status, network, peer).faults(&findings(agent)?);
        if faults.is_empty() || begun.elapsed() >= KNOWS {
            return Ok(faults);
        }
        std::thread::sleep(PAUSE);
    }
}

fn findings(agent: &Agent) -> Result<Vec<Value>, Failed> {
    let finished = agent.attempt(&["--json", "doctor"])?;
    let values = serde_json::Deserializer::from_str(&finished.stdout).into_iter::<Value>();
    let values: Vec<Value> = values.collect::<Result<_, _>>().trying("read what the doctor says")?;
    // One object a line, or one list.
    Ok(values.into_iter().flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value])).collect())
}

impl<'a> Truth<'a> {
    fn of(status: &'a Value, network: Network, peer: &'a str) -> Self {
        let known = status["peers"].as_array().into_iter().flatten().find(|known| known["name"] == peer);
        let field = |field: &str| known.and_then(|known| known[field].as_str()).unwrap_or_default();
        Self { network, peer, path: field("path"), why: field("why") }
    }
}

impl Truth<'_> {
    fn faults(&self, findings: &[Value]) -> Vec<String> {
        let mut faults: Vec<String> = findings
            .iter()
            .filter(|finding| finding["severity"] == "problem")
            .map(|finding| format!("calls it a problem, and all works: {}", text(finding, "found")))
            .collect();
        let mut demand = |holds: bool, fault: &str, of: &str| {
            if !holds {
                let said: Vec<&str> = about(findings, of).map(|finding| text(finding, "found")).collect();
                faults.push(format!("{fault}: {said:?}"));
            }
        };
        demand(one(findings, "nat", |found| self.names_nat(found)), "does not name the NAT", "nat");
        demand(
            one(findings, "nat", |found| !found.contains("needs ")),
            "wants more to know it, and all is there",
            "nat",
        );
        demand(about(findings, "relay").all(|relay| self.names_way(relay)), "names no way to a relay", "relay");
        demand(
            about(findings, "path").any(|path| self.names_path(path)),
            "does not name the path and its reason",
            "path",
        );
        demand(about(findings, "mtu").all(is_good), "finds packets small, and links are not", "mtu");
        if !self.could_use_a_mapping() {
            demand(about(findings, "mapping").next().is_none(), "wants a port from the router, for nothing", "mapping");
        }
        faults
    }

    /// In the words of RFC 3489, then of RFC 4787.
    fn names_nat(&self, found: &str) -> bool {
        let behaviour = match self.network {
            Network::UdpBlocked | Network::HttpProxy => "no relay answers over UDP",
            Network::None | Network::Ipv6Only => "no mapping, ",
            Network::SymmetricSequential | Network::SymmetricRandom | Network::DualStack => {
                "address-and-port-dependent mapping, address-and-port-dependent filtering"
            }
            Network::FullCone => "endpoint-independent mapping, endpoint-independent filtering",
            Network::RestrictedCone => "endpoint-independent mapping, address-dependent filtering",
            Network::PortRestricted
            | Network::PortRestrictedOpenInput
            | Network::SymmetricPreserving
            | Network::CarrierHairpin
            | Network::Carrier
            | Network::ShortLived => "endpoint-independent mapping, address-and-port-dependent filtering",
        };
        found.starts_with(self.network.nat_type()) && found.contains(behaviour)
    }

    fn names_way(&self, relay: &Value) -> bool {
        match self.network.has_udp() {
            true => is_good(relay) && text(relay, "found").contains("sees us at"),
            false => text(relay, "found").contains("using TLS on TCP port 443") && !text(relay, "remedy").is_empty(),
        }
    }

    fn names_path(&self, path: &Value) -> bool {
        let found = text(path, "found");
        found.starts_with(self.peer)
            && match self.path {
                "relayed" => found.ends_with(self.why) && is_helpful(self.why),
                direct => is_good(path) && found.contains(direct),
            }
    }

    /// Whether a port that the router forwards would let anybody in who is not, and could be reached.
    fn could_use_a_mapping(&self) -> bool {
        !matches!(
            self.network,
            Network::None | Network::FullCone | Network::Ipv6Only | Network::UdpBlocked | Network::HttpProxy
        )
    }
}

/// Whether a reason says what would help, where anything has to be done.
fn is_helpful(why: &str) -> bool {
    let passes = PASSING.iter().any(|begin| why.starts_with(begin));
    passes || ["would help", "would, too"].iter().any(|help| why.contains(help))
}

fn about<'a>(findings: &'a [Value], check: &'a str) -> impl Iterator<Item = &'a Value> {
    findings.iter().filter(move |finding| finding["check"] == check)
}

fn one(findings: &[Value], check: &str, holds: impl Fn(&str) -> bool) -> bool {
    let mut of = about(findings, check);
    matches!((of.next(), of.next()), (Some(finding), None) if holds(text(finding, "found")))
}

fn is_good(finding: &Value) -> bool {
    finding["severity"] == "good"
}

fn text<'a>(finding: &'a Value, field: &str) -> &'a str {
    finding[field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn finding(check: &str, severity: &str, found: &str) -> Value {
        json!({"check": check, "severity": severity, "found": found, "remedy": "try"})
    }

    fn random_to_random() -> Truth<'static> {
        Truth { network: Network::SymmetricRandom, peer: "db", path: "relayed", why: "both; a mapping would help" }
    }

    fn true_findings() -> Vec<Value> {
        let nat = "symmetric (address-and-port-dependent mapping, address-and-port-dependent filtering)";
        vec![
            finding("relay", "good", "it answers and sees us at 198.51.100.1:9"),
            finding("nat", "note", nat),
            finding("path", "note", "db is reached through a relay: both; a mapping would help"),
            finding("mtu", "good", "packets of 1452 bytes get through on every path"),
        ]
    }

    #[test]
    fn nothing_is_wrong_with_what_is_true() {
        assert_eq!(random_to_random().faults(&true_findings()), Vec::<String>::new());
    }

    #[test]
    fn a_reason_names_what_would_help_unless_it_passes_by_itself() {
        let guessed = "one NAT is symmetric; 3 rounds of guessing found none yet; a fixed endpoint would, too";
        let rests = "packets got lost on the direct path, so it rests; it is tried again by itself";
        assert!([guessed, rests, "still checking 3 addresses of the peer"].into_iter().all(is_helpful));
        assert!(!is_helpful("bad luck") && !is_helpful(""));
    }

    #[test]
    fn path_and_reason_are_those_of_the_peer_that_was_asked_about() {
        let status =
            json!({"peers": [{"name": "web", "path": "direct"}, {"name": "db", "path": "relayed", "why": "bad luck"}]});
        let truth = Truth::of(&status, Network::None, "db");
        assert_eq!((truth.path, truth.why), ("relayed", "bad luck"));
    }

    #[test]
    fn each_untruth_is_one_fault() {
        for (at, false_one) in [
            (0, finding("relay", "good", "it answers")),
            (1, finding("nat", "note", "full cone (no mapping)")),
            (2, finding("path", "note", "db is reached through a relay: bad luck")),
            (3, finding("mtu", "note", "packets of 1200 bytes are the largest")),
        ] {
            let mut findings = true_findings();
            findings[at] = false_one;
            let faults = random_to_random().faults(&findings);
            assert_eq!(faults.len(), 1, "{faults:?}");
        }
        let mut findings = true_findings();
        findings.push(finding("clock", "problem", "it is Monday"));
        assert_eq!(random_to_random().faults(&findings).len(), 1);
    }
}
