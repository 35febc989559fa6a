//! TLS 1.3 over TCP, as a sidecar would do it: a program on each side that copies between plain connections of its own
//! side and one TLS connection for each of them. Relayed, they pass the same copying program as raw TCP does.

use std::net::SocketAddr;
use std::process::Command;

use peerage_bench::Result;
use peerage_bench::network::{Place, Program};
use peerage_bench::wait::until;

use super::{Route, Running, Service, Stage, Subject};
use crate::cache::Cache;

/// How far above a service's port each of the programs listens.
const AT_SERVER: u16 = 2_000;
const AT_CLIENT: u16 = 3_000;
const AT_RELAY: u16 = 4_000;

pub struct Tls;

impl Subject for Tls {
    fn name(&self) -> &'static str {
        "TLS over TCP"
    }

    fn install(&self, _: &Cache) -> Result<()> {
        Ok(())
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        let (client, server, relay) = (&stage.network.client, &stage.network.server, &stage.network.relay);
        let certificate = stage.file("certificate");
        let own = |place: &Place, words: &[&str], forwards: [String; 2], log: &str| {
            let mut command = Command::new(stage.itself);
            command.args(words).args(forwards);
            place.spawn_logged(&mut command, &stage.file(log))
        };
        let path = certificate.to_str().ok_or("the folder's name is no text")?;
        let there = Stage::forwards(|port| server.address(port), AT_SERVER, |port| server.loopback().address(port), 0);
        let mut others = vec![own(server, &["tls-serve", path], there, "server.log")?];
        until("a certificate", || Ok(certificate.exists().then_some(())))?;
        let (next, above) = match route {
            Route::Direct => (server, AT_SERVER),
            Route::Relayed => {
                let between =
                    Stage::forwards(|port| relay.address(port), AT_RELAY, |port| server.address(port), AT_SERVER);
                others.push(own(relay, &["forward"], between, "relay.log")?);
                (relay, AT_RELAY)
            }
        };
        let here = Stage::forwards(|port| client.loopback().address(port), AT_CLIENT, |port| next.address(port), above);
        let mut command = Command::new(stage.itself);
        command.args(["tls-dial", path]).args(here);
        let log = stage.file("client.log");
        let dialling = client.spawn_logged(&mut command, &log)?;
        Ok(Box::new(Tunnel { at: client.clone(), command, log, client: dialling, others, offset: AT_CLIENT }))
    }
}

/// Programs on both sides, of which the client's takes connections on loopback.
pub(super) struct Tunnel {
    /// Where the client's side is.
    pub at: Place,
    /// What is run there.
    pub command: Command,
    /// Where it says what it has to say.
    pub log: std::path::PathBuf,
    /// It.
    pub client: Program,
    /// What runs elsewhere.
    pub others: Vec<Program>,
    /// How far above a service's port the client's side listens for it.
    pub offset: u16,
}

impl Running for Tunnel {
    fn address(&self, service: Service) -> SocketAddr {
        self.at.loopback().address(service.port() + self.offset)
    }

    fn client(&self) -> Vec<u32> {
        vec![self.client.id()]
    }

    fn others(&self) -> Vec<u32> {
        self.others.iter().map(Program::id).collect()
    }

    fn restart_client(&mut self) -> Result<()> {
        self.client.end();
        self.client = self.at.spawn_logged(&mut self.command, &self.log)?;
        Ok(())
    }
}
