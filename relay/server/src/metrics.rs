//! The relay's counters in the words of Prometheus. Read when scraped, so counting costs the data path nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerage_relay_proto::DropReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::worker::Shared;

#[derive(Debug)]
struct Reading(Arc<Shared>);

/// What `/metrics` shows.
pub(crate) fn registry(shared: Arc<Shared>) -> Registry {
    let mut registry = Registry::with_prefix("peerage_relay");
    registry.register_collector(Box::new(Reading(shared)));
    registry
}

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (counters, held) = {
            let relay = self.0.relay();
            (relay.counters(), relay.occupancy())
        };
        let streams = &self.0.stream_counters;
        let totals = [
            ("forwarded_packets", "Datagrams handed on", counters.forwarded_packets),
            ("forwarded_bytes", "Bytes of UDP payload handed on", counters.forwarded_bytes),
            ("cookies", "Address challenges sent", counters.cookies),
            ("binds", "Bindings granted or renewed", counters.binds),
            ("bind_refusals", "Bindings refused with a reason", counters.refusals),
            ("visits", "Visitors admitted", counters.visits),
            ("moves", "Clients that kept their id over a change of address", counters.moves),
            ("unbinds", "Bindings ended by their agents", counters.unbinds),
            ("visitors_shed", "Visitors pushed out to make room", counters.shed),
            ("stun_answers", "STUN Binding requests answered", counters.stun),
            ("tls_streams_accepted", "TLS streams taken in", streams.accepted.load(Ordering::Relaxed)),
            ("tls_streams_turned_away", "TLS streams above a limit", streams.turned_away.load(Ordering::Relaxed)),
            ("tls_streams_failed", "TLS streams that spoke something else", streams.failed.load(Ordering::Relaxed)),
            ("tls_queue_dropped_packets", "Packets that slow TLS streams did not take", self.0.streams.dropped()),
            ("name_lookups", "Look-ups of names answered", counters.lookups),
            ("mailbox_posts", "Posts answered, whether or not there is such a mailbox", counters.posts),
            (
                "overload_dropped_packets",
                "Packets of who sent more than its share, while there was not time for all",
                self.0.shed.load(Ordering::Relaxed),
            ),
            ("send_errors", "Batches the kernel did not take", self.0.send_errors.load(Ordering::Relaxed)),
        ];
        for (name, help, value) in totals {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let help = "Datagrams that went nowhere, by reason";
        let mut dropped = encoder.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
        for reason in DropReason::ALL {
            let labels = [("reason", reason.label())];
            ConstCounter::new(counters.dropped(reason)).encode(dropped.encode_family(&labels)?)?;
        }
        let gauges = [
            ("bound_instances", "Instances bound now", held.bound),
            ("visitors", "Visitors now", held.visitors),
            ("flows", "Pairs past first contact", held.flows),
            ("binds_waiting", "Bindings asked for that wait for their proof to be looked at", held.binds_waiting),
            ("tls_streams", "TLS streams open now", self.0.streams.count()),
            ("tls_queued_bytes", "Bytes that wait for TLS streams", self.0.streams.waiting()),
            ("mailboxes", "Open mailboxes", held.mailboxes),
            ("mail", "Sealed requests that wait for their owners", held.mail),
            ("mailbox_memory_bytes", "Memory counted against the limit of mailboxes", held.mailbox_memory),
            ("counted_memory_bytes", "Memory counted against the limit, each entry at its worst", held.memory),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}
