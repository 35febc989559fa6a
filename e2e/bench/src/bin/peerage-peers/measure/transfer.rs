//! One stream over a link that takes time, loses, or has a rate. The link is a thread of this process ([`Network::set_wire`]),
//! so these figures are not to be set beside those of throughput, where nothing but the kernel is in between.

use std::time::Duration;

use peerage_bench::Result;
use peerage_bench::bulk::{self, Amount, Load};
use peerage_bench::network::Network;
use peerage_netlab::{Bottleneck, Chance, LinkConfig};

use super::{Figure, Measure, until_answered};
use crate::subject::{Running, Service};

/// A file of 5 MB.
const FILE: u64 = 5_000_000;
/// The link that one stream is to fill, and how much may wait in front of it: what is under way in a round trip of 100 ms.
const LINK: Bottleneck = Bottleneck { bits_per_second: 500_000_000, queue_bytes: 6_250_000 };
const LONG_ROUND_TRIP: Duration = Duration::from_millis(100);
/// From when on the link should be full, and for how long that is looked at.
const FILLED_AFTER: Duration = Duration::from_secs(5);
const LOOKED_AT: Duration = Duration::from_secs(5);

/// What a link does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    pub round_trip_ms: u32,
    pub loss_percent: f64,
}

impl Link {
    /// `MILLISECONDS/PERCENT`.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(trip, loss)| {
            Some(Self { round_trip_ms: trip.parse().ok()?, loss_percent: loss.parse().ok()? })
        });
        let parsed = parsed.filter(|link| (0.0..=100.0).contains(&link.loss_percent));
        parsed.ok_or_else(|| format!("{text} is not MILLISECONDS/PERCENT, such as 30/2"))
    }

    /// As the emulation takes it: half of the round trip each way, and the same loss.
    pub fn config(self) -> LinkConfig {
        let delay = Duration::from_millis(self.round_trip_ms.into()) / 2;
        LinkConfig { loss: Chance::per_million((self.loss_percent * 1e4) as u32), ..LinkConfig::with_delay(delay) }
    }
}

/// The time that a file takes over a link.
pub struct File(pub Link);

impl Measure for File {
    fn name(&self) -> String {
        format!("5 MB at {} ms, {} % loss", self.0.round_trip_ms, self.0.loss_percent)
    }

    fn take(&self, network: &Network, subject: &mut dyn Running) -> Result<Vec<Figure>> {
        until_answered(&network.client, subject)?;
        let to = subject.address(Service::Bulk);
        let load = Load { to, streams: 1, amount: Amount::Bytes(FILE), mark: Duration::MAX };
        let sent = bulk::send(&network.client, load)?;
        Ok(vec![Figure::new(self.name(), sent.took.as_secs_f64(), "s")])
    }
}

/// What one stream makes of a long fat link, once it has had time to find out.
pub struct Long;

impl Long {
    /// Its link.
    pub fn config() -> LinkConfig {
        LinkConfig { bottleneck: Some(LINK), ..LinkConfig::with_delay(LONG_ROUND_TRIP / 2) }
    }
}

impl Measure for Long {
    fn name(&self) -> String {
        "one stream at 100 ms, 500 Mbit/s, after 5 s".into()
    }

    fn take(&self, network: &Network, subject: &mut dyn Running) -> Result<Vec<Figure>> {
        until_answered(&network.client, subject)?;
        let amount = Amount::For(FILLED_AFTER + LOOKED_AT);
        let load = Load { to: subject.address(Service::Bulk), streams: 1, amount, mark: FILLED_AFTER };
        let sent = bulk::send(&network.client, load)?;
        Ok(vec![Figure::new(self.name(), sent.late_rate() / 1e6, "Mbit/s")])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_written_as_milliseconds_and_percent() {
        assert_eq!(Link::parse("30/0.5"), Ok(Link { round_trip_ms: 30, loss_percent: 0.5 }));
        for wrong in ["30", "30/", "x/1", "30/-1", "30/101"] {
            assert!(Link::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_round_trip_is_half_there_and_half_back() {
        let link = Link { round_trip_ms: 30, loss_percent: 2.0 };
        assert_eq!(link.config().delay, Duration::from_millis(15));
    }
}
