//! Tailscale in user space, by a small program on its library tsnet (`e2e/bench/tailscale`), with its own relay (DERP) and
//! the control server of its own tests. Direct, both ends find each other as they do; relayed, they are told to use DERP always.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use peerage_bench::Result;
use peerage_bench::wait::until;

use super::tls::Tunnel;
use super::{Route, Running, Service, Stage, Subject, first_line};
use crate::cache::Cache;

/// Beside this crate's own manifest.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tailscale");
const PROGRAM: &str = "peerage-bench-tailscale";
const AT_CLIENT: u16 = 6_000;
/// Its own switch for this.
const ALWAYS_RELAYED: &str = "TS_DEBUG_ALWAYS_USE_DERP";

pub struct Tailscale;

impl Subject for Tailscale {
    fn name(&self) -> &'static str {
        "Tailscale"
    }

    fn install(&self, cache: &Cache) -> Result<()> {
        cache.build_go(PROGRAM, Path::new(SOURCES)).map(drop)
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        let (client, server, relay) = (&stage.network.client, &stage.network.server, &stage.network.relay);
        let program = stage.cache.build_go(PROGRAM, Path::new(SOURCES))?;
        let run = |mode: &str| {
            let mut command = Command::new(&program);
            command.arg(mode).env("HOME", &stage.folder).env("TS_LOGS_DIR", &stage.folder);
            if route == Route::Relayed {
                command.env(ALWAYS_RELAYED, "true");
            }
            command
        };
        let mut command = run("middle");
        command.arg(relay.address(0).ip().to_string());
        let log = stage.file("middle.log");
        let mut middle = relay.spawn_logged(&mut command, &log)?;
        let control = first_line(&mut middle, &log)?;
        let mut command = run("serve");
        command.arg(&control).arg(stage.file("server")).args(Service::ALL.map(|service| service.port().to_string()));
        let log = stage.file("server.log");
        let mut serving = server.spawn_logged(&mut command, &log)?;
        let far = first_line(&mut serving, &log)?;
        let mut command = run("dial");
        command.arg(&control).arg(stage.file("client")).arg(far);
        command.args(stage.listens(AT_CLIENT));
        let log = stage.file("client.log");
        let dialling = client.spawn_logged(&mut command, &log)?;
        let others = vec![middle, serving];
        let ends = Tunnel { at: client.clone(), command, log, client: dialling, others, offset: AT_CLIENT };
        Ok(Box::new(Ends { ends, route }))
    }
}

struct Ends {
    ends: Tunnel,
    route: Route,
}

impl Running for Ends {
    fn address(&self, service: Service) -> SocketAddr {
        self.ends.address(service)
    }

    fn client(&self) -> Vec<u32> {
        self.ends.client()
    }

    fn others(&self) -> Vec<u32> {
        self.ends.others()
    }

    fn restart_client(&mut self) -> Result<()> {
        self.ends.restart_client()
    }

    fn settle(&self) -> Result<()> {
        if self.route == Route::Relayed {
            return Ok(());
        }
        until("a direct path", || {
            let said = std::fs::read_to_string(&self.ends.log)?;
            Ok(said.lines().any(|line| line.starts_with("direct ")).then_some(()))
        })
    }
}
