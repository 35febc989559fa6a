//! What the agent counts, by Prometheus' conventions. No peer's name and no address is a label: metrics leave the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::forward::Stats;

/// Upper bounds for revocations, in seconds; the promise is 1 s (DESIGN section 1).
const REVOCATION_BUCKETS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The agent's own metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Trusted peers.
    pub peers: Gauge,
    /// Relays that we are bound at.
    pub relays_up: Gauge,
    /// 1 while no operator has confirmed the peers for longer than it allows.
    pub stale: Gauge,
    /// Sessions that came up.
    pub sessions_opened: Counter,
    /// Streams that were reset because trust ended.
    pub streams_reset: Counter,
    /// From the word that trust was taken back to the reset of the peer's streams.
    pub revocation: Histogram,
    relays: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            peers: Gauge::default(),
            relays_up: Gauge::default(),
            stale: Gauge::default(),
            sessions_opened: Counter::default(),
            streams_reset: Counter::default(),
            revocation: Histogram::new(REVOCATION_BUCKETS),
            relays: Arc::default(),
        }
    }
}

impl Metrics {
    /// A registry with these and what local programs and peers did.
    #[must_use]
    pub fn registry(&self, stats: Arc<Stats>) -> Registry {
        let mut registry = Registry::with_prefix("peerage_agent");
        registry.register("peers", "Trusted peers", self.peers.clone());
        registry.register("relays_up", "Relays that the agent is bound at", self.relays_up.clone());
        let help = "1 while no operator has confirmed the peers for longer than maxStaleness";
        registry.register("peers_stale", help, self.stale.clone());
        registry.register("sessions_opened", "Sessions that came up", self.sessions_opened.clone());
        registry.register("streams_reset", "Streams reset because trust ended", self.streams_reset.clone());
        registry.register_with_unit(
            "revocation",
            "From the word that trust was taken back, the owner's or in a cluster the operator's, to the reset of the peer's streams",
            Unit::Seconds,
            self.revocation.clone(),
        );
        registry.register_collector(Box::new(Traffic(stats)));
        registry
    }

    /// Counts relays that are up.
    pub fn relay_changed(&self, relay: &str, up: bool) {
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        relays.insert(relay.to_owned(), up);
        self.relays_up.set(i64::try_from(relays.values().filter(|up| **up).count()).unwrap_or(i64::MAX));
    }
}

/// The forwarders' counters, read when asked.
#[derive(Debug)]
struct Traffic(Arc<Stats>);

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = &self.0;
        for (name, help, value) in [
            ("connections_outbound", "Connections of local programs towards peers", stats.outbound.get()),
            ("connections_inbound", "Streams of peers that reached a service", stats.inbound.get()),
            ("connections_refused", "Streams of peers that were refused", stats.refused.get()),
            ("dials_failed", "Dials that failed or were refused", stats.dial_failed.get()),
            ("sent_bytes", "Bytes of local programs into tunnels", stats.bytes_sent.get()),
            ("received_bytes", "Bytes of tunnels to local programs", stats.bytes_received.get()),
            ("packets_dropped", "UDP packets that found a full queue", stats.packets_dropped.get()),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_every_series() {
        let mut scraped = String::new();
        let registry = Metrics::default().registry(Arc::default());
        prometheus_client::encoding::text::encode(&mut scraped, &registry).expect("text");
        peerage_docs::Page::at("docs/reference/metrics.md").holds("agent", &peerage_docs::series(&scraped));
    }
}
