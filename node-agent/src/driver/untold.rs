//! What the daemon has not been told yet.
//!
//! A daemon that waits for its disk hears nothing for a while, and relays and peers go on all the same. What waits for it is
//! merged where the newer word makes the older one needless, so the queue grows with what there is (relays, peers, sessions)
//! and not with how long nobody listens.

use std::collections::VecDeque;

use super::event::DriverEvent;

/// In the order in which it happened.
#[derive(Debug, Default)]
pub(super) struct Untold(VecDeque<DriverEvent>);

impl Untold {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<DriverEvent> {
        self.0.pop_front()
    }

    pub(super) fn push(&mut self, event: DriverEvent) {
        match event {
            // Came and went, and nothing was on it: nobody need know.
            DriverEvent::SessionDown { session, streams: 0, .. } if self.take_start_of(session) => {}
            DriverEvent::PathChanged { peer, from, to, why, rtt } => {
                let earlier =
                    self.take(|told| matches!(told, DriverEvent::PathChanged { peer: of, .. } if *of == peer));
                let from = match earlier {
                    Some(DriverEvent::PathChanged { from, .. }) => from,
                    Some(_) | None => from,
                };
                self.0.push_back(DriverEvent::PathChanged { peer, from, to, why, rtt });
            }
            event => {
                self.take(|told| is_replaced(told, &event));
                self.0.push_back(event);
            }
        }
    }

    fn take_start_of(&mut self, ended: peerage_engine::node::SessionKey) -> bool {
        self.take(|told| matches!(told, DriverEvent::SessionUp { session, .. } if *session == ended)).is_some()
    }

    fn take(&mut self, which: impl Fn(&DriverEvent) -> bool) -> Option<DriverEvent> {
        self.0.iter().position(which).and_then(|at| self.0.remove(at))
    }
}

/// Whether nobody need hear `old` who will hear `new`.
fn is_replaced(old: &DriverEvent, new: &DriverEvent) -> bool {
    use DriverEvent::{Nat, PeerPorts, PeerRecord, Relay, RelayRefused};
    match (old, new) {
        (
            Relay { relay: of, .. } | RelayRefused { relay: of, .. },
            Relay { relay, .. } | RelayRefused { relay, .. },
        ) => of == relay,
        (Nat(_), Nat(_)) => true,
        (PeerPorts { peer: of, .. }, PeerPorts { peer, .. }) => of == peer,
        (PeerRecord { peer: of, .. }, PeerRecord { peer, .. }) => of == peer,
        (_, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use peerage_engine::node::{DownReason, SessionKey};
    use peerage_engine::path::PathKind;
    use peerage_model::{AgentId, Fingerprint, InstanceId};

    use super::*;

    fn peer(name: &str) -> AgentId {
        AgentId { authority: Fingerprint([7; 32]), name: name.parse().expect("a name") }
    }

    fn up(session: u64) -> DriverEvent {
        let (instance, path) = (InstanceId([1; 8]), PathKind::Relayed);
        DriverEvent::SessionUp { session: SessionKey(session), peer: peer("db"), instance, path }
    }

    fn down(session: u64, streams: usize) -> DriverEvent {
        DriverEvent::SessionDown {
            session: SessionKey(session),
            peer: peer("db"),
            reason: DownReason::PeerLeft,
            streams,
        }
    }

    fn waiting(events: impl IntoIterator<Item = DriverEvent>) -> Vec<DriverEvent> {
        let mut untold = Untold::default();
        events.into_iter().for_each(|event| untold.push(event));
        std::iter::from_fn(|| untold.pop()).collect()
    }

    #[test]
    fn a_peer_that_talks_while_nobody_listens_fills_no_memory() {
        let chatter = (0..1000).flat_map(|n| {
            let ports = DriverEvent::PeerPorts { peer: peer("db"), ports: Vec::new() };
            [up(n), ports, down(n, 0)]
        });
        assert_eq!(waiting(chatter).len(), 1, "its ports, once");
    }

    #[test]
    fn streams_that_were_reset_are_told_of_with_their_session() {
        let told = waiting([up(1), down(1, 3)]);
        assert!(matches!(told[..], [DriverEvent::SessionUp { .. }, DriverEvent::SessionDown { streams: 3, .. }]));
    }

    #[test]
    fn a_path_that_changed_twice_changed_from_the_first_to_the_last() {
        let changed = |name, from, to| {
            let (peer, why) = (peer(name), String::new());
            DriverEvent::PathChanged { peer, from, to, why, rtt: None }
        };
        let told = waiting([
            changed("db", PathKind::Relayed, PathKind::Punched),
            changed("other", PathKind::Relayed, PathKind::Local),
            changed("db", PathKind::Punched, PathKind::Direct),
        ]);
        assert_eq!(told.len(), 2);
        assert!(matches!(told[1], DriverEvent::PathChanged { from: PathKind::Relayed, to: PathKind::Direct, .. }));
    }
}
