//! What belongs into the comparison and is not in it, with the reason, so that nobody takes silence for a victory.

use peerage_bench::Result;

use super::{Route, Running, Stage, Subject};
use crate::cache::Cache;

pub fn all() -> impl Iterator<Item = Box<dyn Subject>> {
    let all = [
        (
            "frp",
            "its module github.com/fatedier/frp was refused by the Go module proxy where this was written; rathole is of the same kind",
        ),
        (
            "Pilot Protocol",
            "the wheel has the daemon and no rendezvous, without which two daemons do not find each other away from the internet",
        ),
    ];
    all.into_iter().map(|(name, reason)| Box::new(Unavailable { name, reason }) as Box<dyn Subject>)
}

struct Unavailable {
    name: &'static str,
    reason: &'static str,
}

impl Subject for Unavailable {
    fn name(&self) -> &'static str {
        self.name
    }

    fn install(&self, _: &Cache) -> Result<()> {
        Err(self.reason.into())
    }

    fn start(&self, _: &Stage<'_>, _: Route) -> Result<Box<dyn Running>> {
        Err(self.reason.into())
    }
}
