//! rathole, a reverse proxy: the server's side connects to the relay and is reached there. It has no direct route and
//! nothing on the client's side; what goes between relay and server is keyed by Noise, the client's leg is plain TCP.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;

use peerage_bench::Result;
use peerage_bench::network::{Place, Program};

use super::{Route, Running, Service, Stage, Subject};
use crate::cache::Cache;

const NAME: &str = "rathole";
const VERSION: &str = "0.5.0";
/// What a container of it has: client, server, Noise; no OpenSSL.
const FEATURES: &str = "embedded";
const CONTROL: u16 = 2_333;
/// How far above a service's port the relay listens for it.
const AT_RELAY: u16 = 6_000;
const TOKEN: &str = "for a benchmark";

pub struct Rathole;

impl Subject for Rathole {
    fn name(&self) -> &'static str {
        NAME
    }

    fn install(&self, cache: &Cache) -> Result<()> {
        cache.cargo(NAME, VERSION, FEATURES)
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        if route == Route::Direct {
            return Err("rathole has no direct route: all goes by its server".into());
        }
        let program = stage.cache.program(NAME, VERSION, NAME);
        let keys = Command::new(&program).arg("--genkey").output()?;
        let keys = String::from_utf8_lossy(&keys.stdout);
        let (private, public) = keys_of(&keys).ok_or("it makes no keys")?;
        let run = |place: &Place, name: &str, config: String| {
            let file = stage.file(&format!("{name}.toml"));
            std::fs::write(&file, config)?;
            let mut command = Command::new(&program);
            command.arg(format!("--{name}")).arg(&file);
            place.spawn_logged(&mut command, &stage.file(&format!("{name}.log")))
        };
        let (server, relay) = (&stage.network.server, &stage.network.relay);
        let at_relay = config(
            "server",
            relay.address(CONTROL),
            "bind_addr",
            &format!("local_private_key = \"{private}\""),
            |service| format!("bind_addr = \"{}\"", relay.address(service.port() + AT_RELAY)),
        );
        let at_server = config(
            "client",
            relay.address(CONTROL),
            "remote_addr",
            &format!("remote_public_key = \"{public}\""),
            |service| format!("local_addr = \"{}\"", server.loopback().address(service.port())),
        );
        let others = [run(relay, "server", at_relay)?, run(server, "client", at_server)?];
        Ok(Box::new(Reverse { relay: relay.clone(), others }))
    }
}

/// One side's configuration; both have the same shape.
fn config(side: &str, control: SocketAddr, named: &str, key: &str, address: impl Fn(Service) -> String) -> String {
    let mut text = format!("[{side}]\n{named} = \"{control}\"\ndefault_token = \"{TOKEN}\"\n");
    let _ = write!(text, "[{side}.transport]\ntype = \"noise\"\n[{side}.transport.noise]\n{key}\n");
    for (name, service) in [("bulk", Service::Bulk), ("web", Service::Web)] {
        let _ = write!(text, "[{side}.services.{name}]\nnodelay = true\n{}\n", address(service));
    }
    text
}

/// The private and the public key that `--genkey` prints, each on a line after its title.
fn keys_of(said: &str) -> Option<(&str, &str)> {
    let after = |title: &str| said.split_once(title)?.1.split_whitespace().next();
    Some((after("Private Key:")?, after("Public Key:")?))
}

struct Reverse {
    relay: Place,
    others: [Program; 2],
}

impl Running for Reverse {
    fn address(&self, service: Service) -> SocketAddr {
        self.relay.address(service.port() + AT_RELAY)
    }

    fn client(&self) -> Vec<u32> {
        Vec::new()
    }

    fn others(&self) -> Vec<u32> {
        self.others.iter().map(Program::id).collect()
    }

    fn restart_client(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_keys_are_read_by_their_titles() {
        assert_eq!(keys_of("Private Key:\nabc=\n\nPublic Key:\ndef=\n"), Some(("abc=", "def=")));
        assert_eq!(keys_of("error"), None);
    }
}
