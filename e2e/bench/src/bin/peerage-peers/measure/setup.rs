//! How soon somebody is answered: cold, from the start of the subject's processes on the client's side; warm, from a
//! program's `connect` while everything is up.

use std::time::{Duration, Instant};

use peerage_bench::Result;
use peerage_bench::network::Network;
use peerage_bench::wait::until;

use super::{Figure, Measure, until_answered};
use crate::load::web::{self, Load};
use crate::subject::{Running, Service};

/// For each step of a first request. It is asked anew after that: a packet that went nowhere, because the subject was not
/// ready yet, should not cost a second of TCP's own patience.
const IMPATIENCE: Duration = Duration::from_millis(400);

pub struct SetUp {
    /// How long to ask when everything is up.
    pub time: Duration,
    /// Put after the names of figures: over which link.
    pub link: &'static str,
}

impl Measure for SetUp {
    fn name(&self) -> String {
        format!("set-up{}", self.link)
    }

    fn take(&self, network: &Network, subject: &mut dyn Running) -> Result<Vec<Figure>> {
        let began = Instant::now();
        subject.restart_client()?;
        let to = subject.address(Service::Web);
        let asking = network.client.thread(move || {
            until("a first answer", || Ok(web::once(to, IMPATIENCE).ok())).map_err(|error| error.to_string())
        })?;
        asking.join().map_err(|_| "a client panicked")??;
        let cold = began.elapsed();
        subject.settle()?;
        until_answered(&network.client, subject)?;
        let (warm, _) = web::load(&network.client, Load { to, connections: 1, fresh: true, time: self.time })?;
        let warm = warm.quantile(0.5).ok_or("nothing was answered")?;
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(vec![
            Figure::new(format!("set-up, cold{}", self.link), millis(cold), "ms"),
            Figure::new(format!("set-up, warm{}", self.link), millis(warm), "ms"),
        ])
    }
}
