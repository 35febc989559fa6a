//! Peerage: two agents as `peerage up` starts them, and a relay that takes these two. Programs reach each other at the
//! loopback address that the other agent's name has.

use std::net::SocketAddr;

use peerage_agent::state::document::Path as PathMode;
use peerage_bench::Result;
use peerage_bench::agents::{Agent, Relay};

use super::{Route, Running, Service, Stage, Subject};
use crate::cache::Cache;

const RELAY_PORT: u16 = 3_478;

pub struct Peerage;

impl Subject for Peerage {
    fn name(&self) -> &'static str {
        "Peerage"
    }

    fn install(&self, _: &Cache) -> Result<()> {
        Ok(())
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        let (network, folder) = (stage.network, &stage.folder);
        // Who may use it is known when the agents have made their keys; until then it only says what it is called.
        let relay = Relay::start(stage.peerage, &network.relay, RELAY_PORT, folder)?.info;
        let offered = [("bulk", Service::Bulk), ("web", Service::Web)].map(|(name, s)| format!("{name}={}", s.port()));
        let ann = Agent::start(stage.peerage, &network.client, "ann", &relay, &[], folder)?;
        let bob = Agent::start(stage.peerage, &network.server, "bob", &relay, &offered, folder)?;
        let relay = Relay::start_for(&[&ann, &bob], stage.peerage, &network.relay, RELAY_PORT, folder)?;
        let mode = match route {
            Route::Direct => PathMode::Auto,
            Route::Relayed => PathMode::RelayOnly,
        };
        ann.befriend(&bob, mode)?;
        let addresses = Service::ALL.map(|service| ann.address_of(&bob, service.port()));
        let [bulk, web] = addresses;
        Ok(Box::new(Agents { ann, bob, relay, route, bulk: bulk?, web: web? }))
    }
}

struct Agents {
    ann: Agent,
    bob: Agent,
    relay: Relay,
    route: Route,
    bulk: SocketAddr,
    web: SocketAddr,
}

impl Running for Agents {
    fn address(&self, service: Service) -> SocketAddr {
        match service {
            Service::Bulk => self.bulk,
            Service::Web => self.web,
        }
    }

    fn client(&self) -> Vec<u32> {
        vec![self.ann.program.id()]
    }

    fn others(&self) -> Vec<u32> {
        vec![self.bob.program.id(), self.relay.program.id()]
    }

    fn restart_client(&mut self) -> Result<()> {
        self.ann.restart()
    }

    fn settle(&self) -> Result<()> {
        let relayed = self.route == Route::Relayed;
        self.ann.wait_for_path(&self.bob, |path| (path == "relayed") == relayed).map(drop)
    }
}
