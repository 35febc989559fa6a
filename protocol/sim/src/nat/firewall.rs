//! A firewall before hosts whose addresses nothing translates, as routers have it for IPv6 (RFC 6092, simple security).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Linux keeps an unanswered UDP flow for so long; RFC 6092 asks for two minutes.
const EXPIRY: Duration = Duration::from_secs(30);

/// Lets everything out, and in only what answers it: from the very endpoint that was sent to.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    /// (Inside, outside) endpoints, and until when they may talk.
    open: BTreeMap<(SocketAddr, SocketAddr), Instant>,
}

impl Firewall {
    /// A packet leaves.
    pub fn outbound(&mut self, now: Instant, from: SocketAddr, to: SocketAddr) {
        self.open.retain(|_, until| *until > now);
        self.open.insert((from, to), now + EXPIRY);
    }

    /// Whether a packet for `to` is let in.
    #[must_use]
    pub fn admits(&self, now: Instant, from: SocketAddr, to: SocketAddr) -> bool {
        self.open.get(&(to, from)).is_some_and(|until| *until > now)
    }

    /// Forgets everything, as after a restart.
    pub fn flush(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_sent_to_may_answer_and_only_for_a_while() {
        let at = |text: &str| text.parse().expect("an endpoint");
        let (inside, peer, other) = (at("[2001:db8::2]:4000"), at("[2001:db8:1::2]:5000"), at("[2001:db8:1::2]:5001"));
        let (mut firewall, now) = (Firewall::default(), Instant::now());
        assert!(!firewall.admits(now, peer, inside));
        firewall.outbound(now, inside, peer);
        assert!(firewall.admits(now, peer, inside) && !firewall.admits(now, other, inside));
        assert!(!firewall.admits(now + EXPIRY, peer, inside));
    }
}
