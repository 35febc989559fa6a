//! Small HTTP requests: how long one takes when nothing else is under way, and how many a second sixteen at a time are.

use std::time::Duration;

use peerage_bench::Result;
use peerage_bench::network::Network;

use super::{Figure, Measure};
use crate::load::web::{self, Load};
use crate::subject::{Running, Service};

const AT_ONCE: usize = 16;

pub struct Requests {
    /// Whether each has a connection of its own.
    pub fresh: bool,
    /// How long to ask, each time.
    pub time: Duration,
    /// Put before the names of figures: which route this is.
    pub route: &'static str,
}

impl Measure for Requests {
    fn name(&self) -> String {
        let connection = if self.fresh { "new connection" } else { "keep-alive" };
        format!("{}requests, {connection}", self.route)
    }

    fn take(&self, network: &Network, subject: &mut dyn Running) -> Result<Vec<Figure>> {
        let load =
            |connections| Load { to: subject.address(Service::Web), connections, fresh: self.fresh, time: self.time };
        let (alone, _) = web::load(&network.client, load(1))?;
        let (many, took) = web::load(&network.client, load(AT_ONCE))?;
        let quantile = |share| alone.quantile(share).map(|time| time.as_secs_f64() * 1e6).ok_or("nothing was answered");
        let name = self.name();
        Ok(vec![
            Figure::new(format!("{name}, p50"), quantile(0.5)?, "µs"),
            Figure::new(format!("{name}, p99"), quantile(0.99)?, "µs"),
            Figure::new(format!("{name}, rate"), many.count() as f64 / took.as_secs_f64(), "1/s"),
        ])
    }
}
