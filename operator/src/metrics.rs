//! What the operator counts, by Prometheus' conventions. No agent's name is a label: there may be ten thousands.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::watch::Health;

/// Upper bounds in seconds; a revocation's promise is 1 s (DESIGN section 1).
const SECONDS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Upper bounds of a number of agents.
const AGENTS: [f64; 8] = [0.0, 1.0, 2.0, 4.0, 16.0, 64.0, 256.0, 1024.0];

/// How reviews for the API server can be answered.
const OUTCOMES: [&str; 8] =
    ["injected", "left_alone", "unchanged", "opted_out", "nothing", "allowed", "warned", "refused"];

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// In one word: `ok`, or the code of the refusal.
    pub outcome: String,
}

/// One kind of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// In one word.
    pub kind: Word,
}

/// How a review was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Admission {
    /// In one word.
    pub outcome: Word,
}

/// A label's value that the program knows beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word(pub &'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

/// The operator's metrics.
#[derive(Debug)]
pub struct Metrics {
    /// Streams that are open.
    pub streams: Gauge,
    /// How enrolments and resumptions ended.
    pub enrolments: Family<Outcome, Counter>,
    /// Passports issued.
    pub passports: Counter,
    /// Instances denied.
    pub denied: Counter,
    /// Streams woken by one change.
    pub woken: Histogram,
    /// Bytes of updates sent.
    pub update_bytes: Counter,
    /// From a deletion, as the watch delivered it, to its acknowledgement by one agent.
    pub revocation: Histogram,
    /// From a change, as the watch delivered it, to its acknowledgement by one agent.
    pub propagation: Histogram,
    /// Status writes, by kind.
    pub status_writes: Family<Kind, Counter>,
    /// Status writes that failed, by kind.
    pub status_failures: Family<Kind, Counter>,
    /// Reviews for the API server, by how they were answered.
    pub admissions: Family<Admission, Counter>,
    /// Whether this replica leads.
    pub leader: Gauge,
    /// Whether the authority's keys are there.
    pub authority: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let admissions = Family::<Admission, Counter>::default();
        // A series that is born with its first event never rises, and no alarm sees that event.
        for outcome in OUTCOMES {
            admissions.get_or_create(&Admission { outcome: Word(outcome) }).inc_by(0);
        }
        Self {
            streams: Gauge::default(),
            enrolments: Family::default(),
            passports: Counter::default(),
            denied: Counter::default(),
            woken: Histogram::new(AGENTS),
            update_bytes: Counter::default(),
            revocation: Histogram::new(SECONDS),
            propagation: Histogram::new(SECONDS),
            status_writes: Family::default(),
            status_failures: Family::default(),
            admissions,
            leader: Gauge::default(),
            authority: Gauge::default(),
        }
    }
}

impl Metrics {
    /// A registry with these and how the watches are.
    #[must_use]
    pub fn registry(&self, watches: Vec<Arc<Health>>) -> Registry {
        let mut registry = Registry::with_prefix("peerage_operator");
        registry.register("streams", "Agents connected to this replica", self.streams.clone());
        registry.register("enrolments", "Enrolments and resumptions, by how they ended", self.enrolments.clone());
        registry.register("passports_issued", "Passports issued", self.passports.clone());
        registry.register("instances_denied", "Instances whose passport was withdrawn", self.denied.clone());
        registry.register("change_streams", "Streams that one change touched", self.woken.clone());
        registry.register("update_bytes", "Bytes of updates sent to agents", self.update_bytes.clone());
        for (name, help, histogram) in [
            (
                "revocation",
                "From a deletion, as the watch delivered it, to the acknowledgement of one agent that has acted on it",
                &self.revocation,
            ),
            (
                "propagation",
                "From a change, as the watch delivered it, to the acknowledgement of one agent that has acted on it",
                &self.propagation,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        registry.register("status_writes", "Status writes, by kind", self.status_writes.clone());
        registry.register("status_failures", "Status writes that failed, by kind", self.status_failures.clone());
        registry.register("admission_reviews", "Admission reviews, by how they were answered", self.admissions.clone());
        registry.register("leader", "1 while this replica writes", self.leader.clone());
        registry.register("authority_usable", "1 while the authority's keys can be used", self.authority.clone());
        registry.register_collector(Box::new(Watches(watches)));
        registry
    }
}

/// How the watches are, read when asked: a counter that somebody must update would lie about what died.
#[derive(Debug)]
struct Watches(Vec<Arc<Health>>);

impl Collector for Watches {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        type Read = fn(&Health) -> f64;
        let columns: [(&str, &str, Option<&Unit>, Read); 3] = [
            ("watch_age", "Since the API server was last heard, by kind", Some(&Unit::Seconds), |h| {
                h.age().as_secs_f64()
            }),
            ("watch_version", "The resourceVersion that was reached, by kind", None, |h| h.version() as f64),
            ("watch_unreadable", "Objects that could not be read, by kind", None, |h| h.unreadable() as f64),
        ];
        for (name, help, unit, read) in columns {
            let mut family =
                encoder.encode_descriptor(name, help, unit, prometheus_client::metrics::MetricType::Gauge)?;
            for health in &self.0 {
                let label = [("kind", health.kind())];
                ConstGauge::new(read(health)).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_every_series() {
        let metrics = Metrics::default();
        // A family shows its labels once it has a member.
        metrics.enrolments.get_or_create(&Outcome { outcome: "ok".into() }).inc_by(0);
        metrics.status_writes.get_or_create(&Kind { kind: Word("AgentPeer") }).inc_by(0);
        metrics.status_failures.get_or_create(&Kind { kind: Word("AgentPeer") }).inc_by(0);
        let mut scraped = String::new();
        let registry = metrics.registry(vec![Health::new("AgentPeer")]);
        prometheus_client::encoding::text::encode(&mut scraped, &registry).expect("text");
        peerage_docs::Page::at("docs/reference/metrics.md").holds("operator", &peerage_docs::series(&scraped));
    }

    #[test]
    fn every_answer_to_a_review_is_counted_from_zero() {
        let mut text = String::new();
        let registry = Metrics::default().registry(Vec::new());
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for outcome in OUTCOMES {
            let line = format!("peerage_operator_admission_reviews_total{{outcome=\"{outcome}\"}} 0\n");
            assert!(text.contains(&line), "{line}");
        }
    }
}
