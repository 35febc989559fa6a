//! Where relays see us: whose word counts, and how often others hear of a change.
//!
//! A relay's word becomes a candidate that every peer gets, and a verdict on our NAT. So only the relays that our owner
//! chose speak for us. One that a peer named is believed as far as nobody else says anything: it may say whatever it
//! likes, as often as it likes, and what it said must not move the sessions of others (docs/spec/paths.md section 6).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::relay::RelayInfo;

use super::super::Node;
use super::super::event::{Event, Now};
use super::{Entry, Place, RelayKey, Relays, Word};
use crate::nat::{FilterOutcome, FilterTest, NatReport};
use crate::path::budget::Budget;

/// Two observations tell a mapping; a relay that we only visit counts where our own give fewer.
const ENOUGH: usize = 2;
/// A change is told at once, this often, ...
const AT_ONCE: u32 = 4;
/// ... and then once in this time: peers take ten control messages a second (docs/spec/session.md).
const INTERVAL: Duration = Duration::from_secs(1);

/// What others were told of where relays see us.
#[derive(Debug, Default)]
pub(super) struct News {
    outside: BTreeSet<SocketAddr>,
    report: Option<NatReport>,
    budget: Option<Budget>,
    /// There is something to tell, and it is not the time.
    due: Option<Instant>,
}

impl News {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

/// What changed since others were told.
struct Changes {
    outside: bool,
    report: Option<NatReport>,
}

impl Relays {
    /// What a relay said of where it sees us by UDP; `None` when it does not know us any more.
    pub(super) fn observed(
        &mut self,
        key: RelayKey,
        seen: Option<SocketAddr>,
    ) -> Option<(RelayInfo, bool, SocketAddr)> {
        let entry = self.entries.get_mut(&key)?;
        let Place::Known { address, observed, .. } = &mut entry.place else {
            return None;
        };
        *observed = seen.map(crate::stun::canonical);
        let (address, observed) = (*address, *observed);
        let about = (entry.info.clone(), entry.own, address);
        if let Some(seen) = observed {
            (entry.lost, entry.draining) = (false, false);
            self.heard(key, Word { relay: address, seen });
        }
        Some(about)
    }

    /// The first word of a relay that we visit stands while ours speak, until one of those says that our NAT has rebound.
    fn heard(&mut self, key: RelayKey, word: Word) {
        let ours_speak = self.entries.values().any(|entry| entry.own && entry.word.is_some());
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let before = entry.word;
        if !entry.own && ours_speak && before.is_some() {
            return;
        }
        entry.word = Some(word);
        let rebound = before.is_some_and(|before| before.relay == word.relay && before.seen != word.seen);
        if entry.own && rebound {
            // What the silent ones said is of the time before.
            self.second_port = None;
            for (_, other) in self.entries.iter_mut().filter(|(other, _)| **other != key) {
                other.word = other.latest_word();
            }
        }
        self.judge_nat();
    }

    /// Lets the verdict and our outside addresses follow from what each relay said.
    pub(super) fn judge_nat(&mut self) {
        let words = |own: bool| self.entries.values().filter(move |e| e.own == own).filter_map(|e| e.word);
        let (ours, visited): (Vec<Word>, Vec<Word>) = (words(true).collect(), words(false).collect());
        let witnesses: &[Word] = if ours.len() < ENOUGH { &visited } else { &[] };
        // A word of another time is none on whether ports count: relays see us elsewhere since.
        let same = |word: &&Word| ours.iter().any(|of| of.relay.ip() == word.relay.ip());
        let second_port = self.second_port.iter().filter(same);
        let all = ours.iter().chain(witnesses).chain(second_port);
        self.nat.set_mappings(all.map(|word| (word.relay, word.seen)));
        let speakers = if ours.is_empty() { &visited } else { &ours };
        self.outside = speakers.iter().map(|word| word.seen).collect();
    }

    /// An endpoint that tells a socket where it is seen, for the family in which there are NATs; one of ours if possible.
    pub(in super::super) fn any_stun_address(&self) -> Option<SocketAddr> {
        let answers = |entry: &&Entry| entry.latest_word().is_some_and(|word| word.relay.is_ipv4());
        let best = self.entries.values().filter(answers).max_by_key(|entry| entry.own);
        best.and_then(Entry::latest_word).map(|word| word.relay)
    }

    /// As [`Self::any_stun_address`], of our own relays and none of `others`: what they say is a verdict on our NAT.
    pub(in super::super) fn stun_address_but(&self, others: &BTreeSet<SocketAddr>) -> Option<SocketAddr> {
        let own = self.entries.values().filter(|entry| entry.own);
        let mut addresses = own.filter_map(Entry::latest_word).map(|word| word.relay);
        addresses.find(|address| address.is_ipv4() && !others.contains(address))
    }

    pub(in super::super) fn observe_filtering(&mut self, test: FilterTest, outcome: FilterOutcome) {
        self.nat.observe_filtering(test, outcome);
    }

    pub(in super::super) fn filtering_runs(&mut self, runs: bool) {
        self.nat.filtering_runs(runs);
    }

    pub(in super::super) fn forget_filtering(&mut self) {
        self.nat.forget_filtering();
        self.second_port = None;
    }

    /// The second port of a relay says where it sees us: whether ports count to our NAT.
    pub(in super::super) fn observe_second_port(&mut self, place: SocketAddr, seen: SocketAddr) {
        self.second_port = Some(Word { relay: place, seen });
        self.judge_nat();
    }

    /// Where relays see us.
    pub(in super::super) fn reflexive(&self) -> &BTreeSet<SocketAddr> {
        &self.outside
    }

    pub(in super::super) fn nat_report(&self) -> NatReport {
        self.nat.report()
    }

    /// What is to be told now, if anything.
    fn take_news(&mut self, now: Instant) -> Option<Changes> {
        let report = Some(self.nat_report()).filter(|report| self.news.report != Some(*report) && self.any_reachable());
        // An address that is only gone wakes nobody; it is told with the next change.
        let changes = Changes { outside: !self.outside.is_subset(&self.news.outside), report };
        if !changes.outside && changes.report.is_none() {
            self.news.due = None;
            return None;
        }
        if !self.news.budget.get_or_insert_with(|| Budget::full(now, AT_ONCE, INTERVAL)).take(now) {
            self.news.due.get_or_insert(now + INTERVAL);
            return None;
        }
        self.news.due = None;
        self.news.outside.clone_from(&self.outside);
        self.news.report = changes.report.or(self.news.report);
        Some(changes)
    }
}

impl Entry {
    /// Where the relay sees us while it knows us.
    fn latest_word(&self) -> Option<Word> {
        match &self.place {
            Place::Known { address, observed: Some(seen), .. } => Some(Word { relay: *address, seen: *seen }),
            Place::Known { observed: None, .. } | Place::Resolving | Place::Taken { .. } => None,
        }
    }
}

impl Node {
    /// Tells peers and the driver where relays see us, where that changed.
    pub(super) fn tell_what_relays_see(&mut self, now: Now) {
        let Some(changes) = self.relays.take_news(now.mono) else { return };
        if changes.outside {
            self.candidates_changed(now);
        }
        if let Some(report) = changes.report {
            self.events.push_back(Event::Nat(report));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use peerage_model::{AgreementSecret, RoutingId};

    use super::*;
    use crate::nat::{Mapping, NatType};
    use crate::noise::SeededRandom;

    /// Relays 1 to `own` are ours, those up to `all` a peer's; all are known by address.
    fn relays(own: u8, all: u8) -> (Relays, Vec<RelayKey>, Instant) {
        let now = Instant::now();
        let info = |n: u8| RelayInfo {
            key: AgreementSecret::from_bytes([n; 32]).public(),
            host: format!("192.0.2.{n}").parse().expect("a host"),
            port: 3478,
            tls: None,
        };
        let mut relays =
            Relays::new(AgreementSecret::from_bytes([99; 32]), Vec::new(), SeededRandom::from_seed([1; 32]));
        relays.set_hosts(&BTreeSet::from([at("10.0.0.5:4000")]), now);
        relays.set_own(&(1..=own).map(info).collect::<Vec<_>>(), &RoutingId([2; 16]), now);
        for n in own + 1..=all {
            relays.towards(&RoutingId([3; 16]), [&[info(n)][..]], now);
        }
        let of = |n: u8| relays.by_address[&SocketAddr::new(IpAddr::from([192, 0, 2, n]), 3478)];
        let keys = (1..=all).map(of).collect();
        (relays, keys, now)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn sees(relays: &mut Relays, key: RelayKey, seen: &str) {
        relays.observed(key, Some(at(seen)));
    }

    fn outside(relays: &Relays) -> Vec<String> {
        relays.reflexive().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_relay_that_a_peer_named_does_not_speak_for_our_address() {
        let (mut relays, keys, _) = relays(2, 3);
        sees(&mut relays, keys[2], "203.0.113.9:1");
        assert_eq!(outside(&relays), ["203.0.113.9:1"], "nobody else says anything");
        sees(&mut relays, keys[0], "198.51.100.7:4000");
        sees(&mut relays, keys[1], "198.51.100.7:4000");
        sees(&mut relays, keys[2], "203.0.113.9:2");
        assert_eq!(outside(&relays), ["198.51.100.7:4000"]);
        assert_eq!(relays.nat_report().nat_type, NatType::Cone);
    }

    #[test]
    fn with_one_relay_of_ours_a_peers_first_word_is_the_second_opinion_on_the_nat_and_stands() {
        let (mut relays, keys, _) = relays(1, 2);
        sees(&mut relays, keys[0], "198.51.100.7:4000");
        sees(&mut relays, keys[1], "198.51.100.7:4000");
        for port in 1..9 {
            sees(&mut relays, keys[1], &format!("203.0.113.9:{port}"));
        }
        assert_eq!(relays.nat_report().behaviour.mapping, Mapping::EndpointIndependent);
        assert_eq!(outside(&relays), ["198.51.100.7:4000"]);
    }

    #[test]
    fn a_nat_that_has_rebound_takes_the_words_of_silent_and_visited_relays_with_it() {
        let (mut relays, keys, _) = relays(2, 3);
        for key in &keys {
            sees(&mut relays, *key, "198.51.100.7:4000");
        }
        relays.observed(keys[1], None);
        assert_eq!(outside(&relays), ["198.51.100.7:4000"]);
        sees(&mut relays, keys[2], "198.51.100.7:5000");
        sees(&mut relays, keys[0], "198.51.100.7:5000");
        assert_eq!(outside(&relays), ["198.51.100.7:5000"]);
        assert_eq!(relays.nat_report().behaviour.mapping, Mapping::EndpointIndependent, "by ours and the visited one");
    }

    #[test]
    fn a_relay_that_falls_silent_takes_no_address_of_ours_with_it() {
        let (mut relays, keys, _) = relays(1, 1);
        sees(&mut relays, keys[0], "198.51.100.7:4000");
        relays.observed(keys[0], None);
        assert_eq!(outside(&relays), ["198.51.100.7:4000"], "direct paths outlive their relay");
    }

    #[test]
    fn a_relay_that_was_left_and_a_network_that_was_left_say_nothing() {
        let (mut relays, keys, now) = relays(2, 2);
        sees(&mut relays, keys[0], "198.51.100.7:4000");
        sees(&mut relays, keys[1], "198.51.100.7:4001");
        assert_eq!(relays.nat_report().nat_type, NatType::Symmetric);
        relays.remove(keys[1], now);
        assert_eq!(
            (outside(&relays), relays.nat_report().nat_type),
            (vec!["198.51.100.7:4000".into()], NatType::Unknown)
        );
        relays.set_hosts(&BTreeSet::from([at("10.9.9.9:4000")]), now);
        assert_eq!(outside(&relays), Vec::<String>::new());
    }

    #[test]
    fn an_address_that_is_only_gone_wakes_no_session() {
        let (mut relays, keys, now) = relays(2, 2);
        sees(&mut relays, keys[0], "198.51.100.7:4000");
        sees(&mut relays, keys[1], "198.51.100.7:4001");
        assert!(relays.take_news(now).is_some_and(|changes| changes.outside));
        relays.remove(keys[1], now);
        assert!(relays.take_news(now).is_none_or(|changes| !changes.outside));
    }

    #[test]
    fn changes_are_told_four_times_at_once_and_then_once_a_second() {
        let (mut relays, keys, now) = relays(1, 1);
        let mut told = 0;
        for millis in 0..3_500_u16 {
            sees(&mut relays, keys[0], &format!("198.51.100.7:{}", 4000 + millis));
            told += u32::from(relays.take_news(now + Duration::from_millis(millis.into())).is_some());
        }
        assert_eq!(told, 4 + 3);
        let due = relays.news.due().expect("the last change is not told");
        assert!(relays.take_news(due).is_some_and(|changes| changes.outside));
        assert_eq!(relays.news.due(), None);
    }

    #[test]
    fn ports_are_measured_at_a_relay_of_ours_if_one_answers() {
        let (mut relays, keys, _) = relays(1, 2);
        sees(&mut relays, keys[1], "198.51.100.7:4000");
        assert_eq!(relays.any_stun_address(), Some(at("192.0.2.2:3478")));
        sees(&mut relays, keys[0], "198.51.100.7:4000");
        assert_eq!(relays.any_stun_address(), Some(at("192.0.2.1:3478")));
    }
}
