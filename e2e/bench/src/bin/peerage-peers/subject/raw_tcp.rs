//! TCP and nothing else: what all others are measured against. Relayed, it passes a program that copies.

use std::net::SocketAddr;
use std::process::Command;

use peerage_bench::Result;
use peerage_bench::network::{Place, Program};

use super::{Route, Running, Service, Stage, Subject};
use crate::cache::Cache;

/// How far above a service's port the relay listens for it.
const AT_RELAY: u16 = 1_000;

pub struct RawTcp;

impl Subject for RawTcp {
    fn name(&self) -> &'static str {
        "raw TCP"
    }

    fn install(&self, _: &Cache) -> Result<()> {
        Ok(())
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        let network = stage.network;
        let (to, offset, relay) = match route {
            Route::Direct => (network.server.clone(), 0, None),
            Route::Relayed => {
                let (relay, server) = (&network.relay, &network.server);
                let forwards = Stage::forwards(|port| relay.address(port), AT_RELAY, |port| server.address(port), 0);
                let mut command = Command::new(stage.itself);
                command.arg("forward").args(forwards);
                (relay.clone(), AT_RELAY, Some(relay.spawn_logged(&mut command, &stage.file("relay.log"))?))
            }
        };
        Ok(Box::new(Straight { to, offset, relay }))
    }
}

struct Straight {
    to: Place,
    offset: u16,
    relay: Option<Program>,
}

impl Running for Straight {
    fn address(&self, service: Service) -> SocketAddr {
        self.to.address(service.port() + self.offset)
    }

    fn client(&self) -> Vec<u32> {
        Vec::new()
    }

    fn others(&self) -> Vec<u32> {
        self.relay.iter().map(Program::id).collect()
    }

    fn restart_client(&mut self) -> Result<()> {
        Ok(())
    }
}
