//! What may be wrong with this machine, and what to do about it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use peerage_model::{AgentId, UnixTime};
use rustix::thread::{CapabilitySet, capabilities};

use super::agent::Agent;
use super::link::{LinkSession, LinkStatus};
use crate::control::failure::chain;
use crate::control::view::{Finding, Severity};
use crate::listen::{Avoid, Listening};
use crate::portmap::Mapping;
use crate::state::{StateError, time};

/// A file written this far in the future shows a clock that went back: more than filesystems round.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// A difference between clocks that is worth a word: a hello that was sent again may be some seconds old.
const CLOCKS_DIFFER: u64 = 30;
/// The smallest packet every IPv6 path carries is 1280 bytes; QUIC needs 1200 of payload (RFC 9000 section 14).
const SMALL_PACKET: u16 = 1200;

/// What is looked at, and what to do about it is in `docs/troubleshooting.md`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(serde::Deserialize))]
#[cfg_attr(test, serde(rename_all = "snake_case"))]
enum Check {
    State,
    Relay,
    Nat,
    Mapping,
    Path,
    Clock,
    PeerClocks,
    Mtu,
    LowPorts,
    Dns,
    Run,
    Ports,
    Problem,
}

impl Check {
    const fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Relay => "relay",
            Self::Nat => "nat",
            Self::Mapping => "mapping",
            Self::Path => "path",
            Self::Clock => "clock",
            Self::PeerClocks => "peer_clocks",
            Self::Mtu => "mtu",
            Self::LowPorts => "low_ports",
            Self::Dns => "dns",
            Self::Run => "run",
            Self::Ports => "ports",
            Self::Problem => "problem",
        }
    }
}

/// Looks at everything.
pub(super) async fn examine(agent: &Agent) -> Vec<Finding> {
    let link = agent.link.status().await;
    let store = agent.store();
    let directory = store.place().directory().to_owned();
    // The disk is waited for on a thread of its own.
    let written = tokio::task::spawn_blocking(move || store.try_writing()).await;
    let mut findings: Vec<Finding> = written.map(|written| state(&directory, &written)).into_iter().collect();
    findings.extend(relays(&link));
    findings.push(nat(&link));
    findings.extend(mapping(&link));
    findings.extend(paths(&link, |peer| agent.alias(peer)));
    findings.push(clock(&directory, time::now()));
    findings.extend(clocks_of_peers(link.sessions.iter().filter_map(|session| session.clock_ahead)));
    findings.extend(packets(&link));
    findings.push(low_ports());
    findings.push(names(agent));
    findings.extend(run_without_root());
    findings.extend(held_ports(&agent.edge.listening()));
    findings.extend(agent.problems().into_iter().map(|problem| {
        let severity = if problem.expected { Severity::Note } else { Severity::Problem };
        finding(Check::Problem, severity, problem.text, "")
    }));
    findings
}

fn finding(check: Check, severity: Severity, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check: check.word().into(), severity, found: found.into(), remedy: remedy.into() }
}

fn good(check: Check, found: impl Into<String>) -> Finding {
    finding(check, Severity::Good, found, "")
}

fn state(directory: &Path, written: &Result<(), StateError>) -> Finding {
    match written {
        Ok(()) => good(Check::State, format!("`{}` can be written", directory.display())),
        Err(error) => finding(
            Check::State,
            Severity::Problem,
            format!("the state cannot be written: {}", chain(error)),
            format!(
                "make room on the disk of `{}` and see that it is not mounted read-only: until then nothing that is decided here can be \
                 kept, and what is taken back comes back with a restart",
                directory.display()
            ),
        ),
    }
}

fn relays(link: &LinkStatus) -> Vec<Finding> {
    if link.relays.is_empty() {
        let remedy = "start one with `peerage relay` on a public machine, then `peerage up --relay KEY@HOST:PORT`";
        return vec![finding(
            Check::Relay,
            Severity::Problem,
            "no relay is configured: peers cannot find this agent",
            remedy,
        )];
    }
    let answers = |relay: &crate::control::view::Relay| match relay.rtt_ms {
        Some(rtt) => format!("{} answers in {rtt:.1} ms", place(&relay.relay)),
        None => format!("{} answers", place(&relay.relay)),
    };
    let look = |relay: &crate::control::view::Relay| match (relay.up, relay.observed) {
        (true, _) if relay.tls => finding(
            Check::Relay,
            Severity::Note,
            format!("{}: {}", place(&relay.relay), relay.note.as_deref().unwrap_or("using TLS on TCP")),
            "it works, with more delay and without direct paths; a firewall that lets UDP out to the relay gives both",
        ),
        (true, Some(observed)) => good(Check::Relay, format!("{} and sees us at {observed}", answers(relay))),
        (true, None) => good(Check::Relay, answers(relay)),
        (false, _) => finding(
            Check::Relay,
            Severity::Problem,
            match &relay.note {
                Some(note) => format!("{} cannot be used: {note}", place(&relay.relay)),
                None => format!("{} does not answer", place(&relay.relay)),
            },
            "check its address and key, that it runs, and that a firewall here lets UDP or, for TLS, TCP out to its port; behind an HTTP proxy set \
             HTTPS_PROXY",
        ),
    };
    link.relays.iter().map(look).collect()
}

/// Without the key, which says nothing to people.
fn place(relay: &str) -> &str {
    relay.split_once('@').map_or(relay, |(_, place)| place)
}

fn nat(link: &LinkStatus) -> Finding {
    // The long form begins with the short one.
    let text = if link.nat.detail.is_empty() { link.nat.kind.clone() } else { link.nat.detail.clone() };
    match link.nat.kind.as_str() {
        "" | "unknown" => finding(
            Check::Nat,
            Severity::Note,
            "the kind of NAT is not known yet",
            "two relays are needed to tell kinds apart: give a second --relay",
        ),
        kind if kind.contains("symmetric") => finding(
            Check::Nat,
            Severity::Note,
            text,
            "direct paths to peers behind a NAT that is symmetric or port-restricted need luck: ports that can be predicted, or \
             both owners' leave to guess them (--birthday); else they stay relayed. A forwarded UDP port, told with --endpoint, \
             or IPv6 at both ends makes them certain",
        ),
        kind if kind.contains("firewalled") => finding(
            Check::Nat,
            Severity::Note,
            text,
            "only answers are let in, which is enough for peers whose address outside can be known; let UDP in to this agent's port \
             for all others",
        ),
        kind if kind.contains("blocked") => finding(
            Check::Nat,
            // By TLS it works.
            if link.relays.iter().any(|relay| relay.up) { Severity::Note } else { Severity::Problem },
            text,
            "let UDP out of this network, to the relay's port and for direct paths to any",
        ),
        _ => good(Check::Nat, text),
    }
}

/// Most peers whose path is told one by one.
const NAMED_PATHS: usize = 20;

/// How each peer that is connected is reached, and why not better. The reasons say what would help.
fn paths(link: &LinkStatus, alias: impl Fn(&AgentId) -> String) -> Vec<Finding> {
    let peers: BTreeSet<&AgentId> = link.sessions.iter().map(|session| &session.peer).collect();
    let best = peers.into_iter().filter_map(|peer| Some((alias(peer), link.best_session_with(peer)?)));
    let said: BTreeSet<(bool, String)> = best.map(|(peer, session)| path(&peer, session)).collect();
    let more = said.len().saturating_sub(NAMED_PATHS);
    let told = said.into_iter().take(NAMED_PATHS).map(|(direct, text)| match direct {
        true => good(Check::Path, text),
        false => finding(Check::Path, Severity::Note, text, ""),
    });
    let more = (more > 0).then(|| good(Check::Path, format!("and {more} more: `peerage peers`")));
    told.chain(more).collect()
}

/// Relayed ones come first.
fn path(peer: &str, session: &LinkSession) -> (bool, String) {
    let took = session.rtt.map(|rtt| format!(", {:.1} ms", rtt.as_secs_f64() * 1e3)).unwrap_or_default();
    let how = session.path.as_str();
    match (&session.why_not_better, how) {
        (Some(why), _) => (false, format!("{peer} is reached through a relay{took}: {why}")),
        (None, "relayed") => (false, format!("{peer} is reached through a relay{took}")),
        (None, _) => (true, format!("{peer} is reached directly ({how}{took})")),
    }
}

/// The port from the router; nothing to say where nobody is asked, as in containers, and where one would open nothing that is not
/// open, or could not be reached.
fn mapping(link: &LinkStatus) -> Option<Finding> {
    let of_no_use = ["open internet", "no NAT", "full cone", "blocked"].contains(&link.nat.kind.as_str());
    Some(match &link.mapping {
        Mapping::Off => return None,
        Mapping::Asking | Mapping::None { .. } if of_no_use => return None,
        Mapping::Asking => {
            finding(Check::Mapping, Severity::Note, "the router has not answered yet", "look again in some seconds")
        }
        Mapping::Mapped { external, by } => {
            good(Check::Mapping, format!("the router forwards {external} to this agent ({by})"))
        }
        Mapping::None { why } => finding(
            Check::Mapping,
            Severity::Note,
            format!("the router forwards no port to this agent: {why}"),
            "where direct paths are missing, allow PCP, NAT-PMP or UPnP in the router, or forward a UDP port by hand and \
             tell it with --bind and --endpoint",
        ),
    })
}

fn clock(directory: &Path, now: UnixTime) -> Finding {
    let written = fs::metadata(directory.join("state.json")).and_then(|metadata| metadata.modified());
    let written =
        written.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| UnixTime(since.as_secs()));
    if written.is_some_and(|written| written > now.plus(CLOCK_SLACK)) {
        return finding(
            Check::Clock,
            Severity::Problem,
            "the clock went back: the state was written in the future",
            "set the clock (`timedatectl set-ntp true`); passports of peers are checked against it",
        );
    }
    let timesyncd = Path::new("/run/systemd/timesync");
    if timesyncd.exists() && !timesyncd.join("synchronized").exists() {
        return finding(
            Check::Clock,
            Severity::Note,
            "the clock is not synchronised yet",
            "more than 5 minutes of difference end sessions: `timedatectl status` says more",
        );
    }
    good(Check::Clock, format!("it is {}", time::rfc3339(now)))
}

/// What peers' clocks say of ours: the middle one, so that of three peers one that is wrong, or lies, says nothing.
fn clocks_of_peers(ahead: impl Iterator<Item = i64>) -> Option<Finding> {
    let mut ahead: Vec<_> = ahead.collect();
    ahead.sort_unstable();
    let middle = *ahead.get(ahead.len() / 2)?;
    let seconds = middle.unsigned_abs();
    if seconds < CLOCKS_DIFFER {
        return Some(good(Check::PeerClocks, "the clocks of peers agree with this one"));
    }
    let direction = if middle > 0 { "ahead of" } else { "behind" };
    Some(finding(
        Check::PeerClocks,
        Severity::Note,
        format!("peers say that their clocks are {seconds} s {direction} this one"),
        "compare `date` here and there: more than 5 minutes of difference end sessions",
    ))
}

fn packets(link: &LinkStatus) -> Option<Finding> {
    let smallest = link.sessions.iter().filter_map(|session| session.mtu).min()?;
    Some(match smallest <= SMALL_PACKET {
        true => finding(
            Check::Mtu,
            Severity::Note,
            format!("packets of {smallest} bytes are the largest that get through on some path"),
            "larger ones are faster: check the MTU of VPNs and of the interface towards the peer",
        ),
        false => good(Check::Mtu, format!("packets of {smallest} bytes get through on every path")),
    })
}

fn low_ports() -> Finding {
    let start = read_number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024);
    let capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_BIND_SERVICE));
    if start <= 53 || capable {
        return good(Check::LowPorts, "ports below 1024 can be bound here");
    }
    finding(
        Check::LowPorts,
        Severity::Note,
        format!("ports below {start} are reserved to root, so names and low ports work inside `peerage run` only"),
        "start programs by `peerage run -- COMMAND`, or run the agent of the whole machine: `sudo peerage install`",
    )
}

fn names(agent: &Agent) -> Finding {
    match agent.edge.dns() {
        Some(address) if address.port() == 53 => good(Check::Dns, format!("names of peers are answered at {address}")),
        Some(address) => finding(
            Check::Dns,
            Severity::Note,
            format!("names of peers are answered at {address}, where no program looks by itself"),
            "start programs by `peerage run -- COMMAND`, or run the agent of the whole machine: `sudo peerage install`",
        ),
        None => finding(
            Check::Dns,
            Severity::Note,
            "names of peers are not answered by DNS",
            "start programs by `peerage run -- COMMAND`, or use `peerage connect`",
        ),
    }
}

/// Most ports that are named one by one.
const NAMED_PORTS: usize = 20;

/// Ports of peers at which we listen. A program that wants one of them on all addresses does not start, and says only that it is
/// in use.
fn held_ports(listening: &Listening) -> Option<Finding> {
    let asked = listening.bound.iter().filter(|(endpoint, actual)| endpoint.address == **actual);
    let ports: BTreeSet<Avoid> =
        asked.map(|(endpoint, _)| Avoid { protocol: endpoint.protocol, port: endpoint.address.port() }).collect();
    let mut texts: Vec<String> = ports.iter().take(NAMED_PORTS).map(ToString::to_string).collect();
    if ports.len() > NAMED_PORTS {
        texts.push(format!("and {} more", ports.len() - NAMED_PORTS));
    }
    (!texts.is_empty()).then(|| {
        finding(
            Check::Ports,
            Severity::Note,
            format!("ports of peers that listen here: {}", texts.join(", ")),
            "a program that is to listen on one of them, on all addresses, needs it named: `peerage up --avoid PORT`",
        )
    })
}

/// What `peerage run` needs of the kernel (docs/decisions: run without root).
fn run_without_root() -> Vec<Finding> {
    let mut findings = Vec::new();
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    findings.push(match actions.split_whitespace().any(|action| action == "user_notif") {
        true => good(Check::Run, "the kernel lets `peerage run` supervise a program"),
        false => finding(
            Check::Run,
            Severity::Problem,
            "the kernel has no seccomp user notification, so `peerage run` cannot work",
            "use Linux 5.14 or newer, or `sudo peerage install` once",
        ),
    });
    if read_number("/proc/sys/kernel/yama/ptrace_scope").is_some_and(|scope| scope > 1) {
        findings.push(finding(
            Check::Run,
            Severity::Problem,
            "kernel.yama.ptrace_scope forbids `peerage run` to look into its program",
            "set it to 1: `sudo sysctl kernel.yama.ptrace_scope=1`",
        ));
    }
    findings
}

fn read_number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use peerage_model::{Fingerprint, InstanceId};

    use super::*;
    use crate::control::view::{Nat, Relay};

    fn told(ahead: &[i64]) -> Option<(Severity, String)> {
        clocks_of_peers(ahead.iter().copied()).map(|finding| (finding.severity, finding.found))
    }

    fn session(peer: &str, path: &str, why: Option<&str>) -> LinkSession {
        LinkSession {
            peer: AgentId { authority: Fingerprint([1; 32]), name: peer.parse().expect("a name") },
            instance: InstanceId([2; 8]),
            path: path.into(),
            rtt: Some(Duration::from_millis(20)),
            since: UnixTime(1),
            why_not_better: why.map(Into::into),
            bytes_in: 0,
            bytes_out: 0,
            streams: 0,
            mtu: None,
            clock_ahead: None,
        }
    }

    #[test]
    fn a_state_that_cannot_be_written_is_a_problem_with_its_cause_and_a_remedy() {
        let cause = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = StateError::Io { doing: "write", path: "/s/state.json".into(), cause };
        let told = state(Path::new("/s"), &Err(full));
        assert_eq!((told.check.as_str(), told.severity), ("state", Severity::Problem));
        assert!(told.found.contains("no storage space") && told.remedy.contains("make room"), "{told:?}");
        assert_eq!(state(Path::new("/s"), &Ok(())).severity, Severity::Good);
    }

    #[test]
    fn each_peers_path_is_told_the_relayed_ones_first_with_the_reason() {
        let sessions =
            vec![session("db", "punched", None), session("planner", "relayed", Some("both NATs are symmetric"))];
        let link = LinkStatus { sessions, ..LinkStatus::default() };
        let told: Vec<_> = paths(&link, |peer| peer.name.to_string())
            .into_iter()
            .map(|finding| (finding.severity, finding.found))
            .collect();
        let expected = [
            (Severity::Note, "planner is reached through a relay, 20.0 ms: both NATs are symmetric"),
            (Severity::Good, "db is reached directly (punched, 20.0 ms)"),
        ];
        assert_eq!(told, expected.map(|(severity, text)| (severity, text.to_owned())));
    }

    #[test]
    fn of_many_peers_some_are_told_and_the_others_counted() {
        let sessions = (0..30).map(|n| session(&format!("peer-{n}"), "direct", None)).collect();
        let told = paths(&LinkStatus { sessions, ..LinkStatus::default() }, |peer| peer.name.to_string());
        assert_eq!(told.len(), NAMED_PATHS + 1);
        assert_eq!(told[NAMED_PATHS].found, "and 10 more: `peerage peers`");
    }

    #[test]
    fn a_missing_port_mapping_is_told_only_where_one_would_help() {
        let told = |kind: &str| {
            let nat = Nat { kind: kind.into(), detail: String::new() };
            let none = Mapping::None { why: "nobody answers".into() };
            mapping(&LinkStatus { nat, mapping: none, ..LinkStatus::default() }).is_some()
        };
        assert_eq!(["symmetric", "port-restricted cone"].map(told), [true; 2]);
        assert_eq!(["open internet", "no NAT", "full cone", "blocked"].map(told), [false; 4]);
    }

    #[test]
    fn blocked_udp_is_a_problem_only_where_no_relay_is_reached_by_tls() {
        let told = |up| {
            let nat_view = Nat { kind: "blocked".into(), detail: String::new() };
            let relay = Relay { up, tls: up, ..relay() };
            nat(&LinkStatus { nat: nat_view, relays: vec![relay], ..LinkStatus::default() }).severity
        };
        assert_eq!((told(true), told(false)), (Severity::Note, Severity::Problem));
    }

    fn relay() -> Relay {
        Relay {
            relay: "key@relay.test:3478".into(),
            up: false,
            observed: None,
            rtt_ms: None,
            mailbox: false,
            tls: false,
            note: None,
        }
    }

    #[test]
    fn clocks_that_differ_are_told_and_one_wrong_peer_of_three_is_not() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[1, i64::MIN, -3]).map(|(severity, _)| severity), Some(Severity::Good));
        let ahead = (Severity::Note, "peers say that their clocks are 95 s ahead of this one".to_owned());
        assert_eq!(told(&[95, 95, 0]), Some(ahead));
        let behind = (Severity::Note, "peers say that their clocks are 31 s behind this one".to_owned());
        assert_eq!(told(&[-31]), Some(behind));
    }

    #[test]
    fn the_reference_says_what_to_do_about_each_check() {
        let checks = peerage_docs::words_of(&serde_json::from_str::<Check>("\"?\"").expect_err("no such check"));
        for check in &checks {
            let known: Check = serde_json::from_value(check.as_str().into()).expect("one of them");
            assert_eq!(known.word(), check);
        }
        peerage_docs::Page::at("docs/troubleshooting.md").has_rows("peerage doctor", checks);
    }
}
