//! iroh, by a small program on its crate (`e2e/bench/iroh`): one connection, a stream for each TCP connection. Direct, it
//! is told the address, and no relay; relayed, it may use iroh's own relay and nothing else.

use std::path::Path;
use std::process::Command;

use peerage_bench::Result;

use super::tls::Tunnel;
use super::{Route, Running, Stage, Subject, first_line};
use crate::cache::Cache;

/// Beside this crate's own manifest.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/iroh");
const PROGRAM: &str = "peerage-bench-iroh";
const AT_CLIENT: u16 = 5_000;
const SERVER_PORT: u16 = 11_204;
const RELAY_PORT: u16 = 3_340;

pub struct Iroh;

impl Subject for Iroh {
    fn name(&self) -> &'static str {
        "iroh"
    }

    fn install(&self, cache: &Cache) -> Result<()> {
        cache.build(PROGRAM, Path::new(SOURCES)).map(drop)
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        let (client, server, relay) = (&stage.network.client, &stage.network.server, &stage.network.relay);
        let program = stage.cache.build(PROGRAM, Path::new(SOURCES))?;
        let mut others = Vec::new();
        let way = match route {
            Route::Direct => "direct".to_owned(),
            Route::Relayed => {
                let mut command = Command::new(&program);
                command.arg("relay").arg(relay.address(RELAY_PORT).to_string());
                let log = stage.file("relay.log");
                let mut running = relay.spawn_logged(&mut command, &log)?;
                let url = first_line(&mut running, &log)?;
                others.push(running);
                url
            }
        };
        let listen = server.address(SERVER_PORT).to_string();
        let mut command = Command::new(&program);
        command.args(["serve", &listen, &way]);
        let log = stage.file("server.log");
        let mut serving = server.spawn_logged(&mut command, &log)?;
        let id = first_line(&mut serving, &log)?;
        others.push(serving);
        let mut command = Command::new(&program);
        command.args(["dial", &id, &listen, &way]);
        command.args(stage.listens(AT_CLIENT));
        let log = stage.file("client.log");
        let dialling = client.spawn_logged(&mut command, &log)?;
        Ok(Box::new(Tunnel { at: client.clone(), command, log, client: dialling, others, offset: AT_CLIENT }))
    }
}
