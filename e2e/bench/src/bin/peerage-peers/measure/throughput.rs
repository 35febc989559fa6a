//! As many bytes as go through in a time, over one connection or several; what processors did for each; and the most that
//! the subject's process on the client's side held meanwhile.

use std::time::Duration;

use peerage_bench::Result;
use peerage_bench::bulk::{self, Amount, Load};
use peerage_bench::network::Network;

use super::{Figure, Measure, memory, spent};
use crate::subject::{Running, Service};

pub struct Throughput {
    /// Connections at once.
    pub streams: usize,
    /// How long to send.
    pub time: Duration,
    /// Put before the names of figures: which route this is.
    pub route: &'static str,
}

impl Measure for Throughput {
    fn name(&self) -> String {
        let plural = if self.streams == 1 { "" } else { "s" };
        format!("{}throughput, {} stream{plural}", self.route, self.streams)
    }

    fn take(&self, network: &Network, subject: &mut dyn Running) -> Result<Vec<Figure>> {
        let before = spent(subject)?;
        memory::forget_peak(subject)?;
        let to = subject.address(Service::Bulk);
        let load = Load { to, streams: self.streams, amount: Amount::For(self.time), mark: Duration::MAX };
        let sent = bulk::send(&network.client, load)?;
        let processor = (spent(subject)? - before).as_secs_f64() / (sent.bytes as f64 / 1e9);
        let name = self.name();
        let mut figures = vec![Figure::new(&name, sent.gigabits_per_second(), "Gbit/s")];
        figures.push(Figure::new(format!("processor time, {name}"), processor, "s/GB"));
        if let Some(peak) = memory::peak(subject)? {
            figures.push(Figure::new(format!("memory, {name}"), peak, "MiB"));
        }
        Ok(figures)
    }
}
