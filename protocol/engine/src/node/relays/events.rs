//! What follows from what relays say.

use std::net::SocketAddr;

use peerage_model::relay::RelayInfo;
use tracing::{debug, info};

use super::{By, Entry, Place, RelayKey, Relays};
use crate::node::Node;
use crate::node::event::{Event, Now};
use crate::node::session::RelayRoute;
use crate::relay::RelayEvent;

impl Relays {
    /// What the clients have to say, as (relay, event).
    fn poll_event(&mut self) -> Option<(RelayKey, By, RelayEvent)> {
        self.entries.iter_mut().find_map(|(key, entry)| {
            let udp = match &mut entry.place {
                Place::Known { client, .. } => client.poll_event(),
                Place::Resolving | Place::Taken { .. } => None,
            };
            let stream = |entry: &mut Entry| entry.fallback.client().and_then(|(_, client)| client.poll_event());
            let by_udp = udp.map(|event| (*key, By::Udp, event));
            by_udp.or_else(|| stream(entry).map(|event| (*key, By::Stream, event)))
        })
    }
}

impl Node {
    /// Lets everything follow from what relays said.
    pub(in super::super) fn settle_relays(&mut self, now: Now) {
        let addresses = self.outside_addresses();
        while let Some((key, by, event)) = self.relays.poll_event() {
            match by {
                By::Udp => self.on_relay_event(key, event, now),
                By::Stream => self.on_relay_stream_event(key, event, now),
            }
        }
        self.settle_mail(now);
        self.tell_orders();
        while let Some(relay) = self.relays.names.next(now.mono) {
            self.events.push_back(Event::Resolve { relay });
        }
        self.seen_from(&addresses, now);
        self.drive_outside(now);
        self.tell_what_relays_see(now);
    }

    pub(super) fn on_relay_event(&mut self, key: RelayKey, event: RelayEvent, now: Now) {
        match event {
            RelayEvent::Ready { observed } => {
                let Some((relay, own, _)) = self.relays.observed(key, Some(observed)) else {
                    return;
                };
                self.relay_is_up(key, relay, own, observed, now);
            }
            RelayEvent::Lost => {
                self.relays.look_up_again(key, now.mono);
                let Some((relay, own, _)) = self.relays.observed(key, None) else {
                    return;
                };
                if self.relays.is_up(key) {
                    return; // the stream carries on
                }
                if own {
                    info!(target: "events::relay_down", ?relay);
                    self.events.push_back(Event::RelayDown { relay });
                }
                self.leave_relay(key, now);
            }
            RelayEvent::Silent => self.relays.look_up_again(key, now.mono),
            RelayEvent::Refused(reason) => {
                if let Some((relay, _, _)) = self.relays.observed(key, None) {
                    info!(target: "events::relay_refused", ?relay, ?reason);
                    self.events.push_back(Event::RelayRefused { relay, reason });
                }
            }
            RelayEvent::Others => self.siblings_changed(),
            RelayEvent::Draining { grace } => {
                debug!(?key, ?grace, "relay drains");
                self.relays.note_drain(key);
                self.leave_relay(key, now);
            }
        }
    }

    pub(super) fn relay_is_up(&mut self, key: RelayKey, relay: RelayInfo, own: bool, observed: SocketAddr, now: Now) {
        if own {
            info!(target: "events::relay_up", ?relay);
            self.events.push_back(Event::RelayUp { relay, observed });
        }
        self.send_held(key, now);
        self.say_we_are_there(key);
    }

    /// First flights that waited for this relay go out now, instead of after a retransmission timeout.
    fn send_held(&mut self, relay: RelayKey, now: Now) {
        let waiting: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.held.is_some())
            .filter(|(_, s)| matches!(&s.relayed, RelayRoute::Racing { relays, .. } if relays.contains(&relay)))
            .map(|(key, _)| *key)
            .collect();
        for key in waiting {
            self.release_held(key, relay, now.mono);
        }
    }
}
