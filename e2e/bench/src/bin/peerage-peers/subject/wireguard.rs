//! WireGuard in user space: `wireguard-go` on both sides, each with a device of its own, told by its socket what `wg` would
//! tell it. Programs use the addresses of those devices. It has no relay of its own.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use peerage_bench::Result;
use peerage_bench::network::{Place, Program};
use peerage_bench::people::random;
use peerage_bench::wait::until;
use peerage_model::AgreementSecret;

use super::{Route, Running, Service, Stage, Subject, can_make_devices};
use crate::cache::Cache;

const NAME: &str = "wireguard-go";
/// The newest when this was written.
const VERSION: &str = "v0.0.0-20260522210424-ecfc5a8d5446";
const PORT: u16 = 51_820;
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 78, 1, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 78, 1, 2);
/// Where every wireguard-go has its socket.
const SOCKETS: &str = "/var/run/wireguard";

pub struct WireGuard;

impl Subject for WireGuard {
    fn name(&self) -> &'static str {
        NAME
    }

    fn install(&self, cache: &Cache) -> Result<()> {
        cache.go(NAME, VERSION, &["golang.zx2c4.com/wireguard"])
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        if route == Route::Relayed {
            return Err("WireGuard has no relay".into());
        }
        can_make_devices()?;
        let (client, server) = (&stage.network.client, &stage.network.server);
        let (ours, theirs) = (AgreementSecret::from_bytes(random()), AgreementSecret::from_bytes(random()));
        let end = |side: &str, place: &Place, address, settings| End {
            place: place.clone(),
            program: stage.cache.program(NAME, VERSION, "wireguard"),
            // Sockets of all namespaces are in one folder.
            device: format!("pb{side}{}", std::process::id()),
            address,
            log: stage.file(&format!("{side}.log")),
            settings,
        };
        let to_server = settings(&ours, &theirs, FAR, Some(server.address(PORT)));
        let near = end("c", client, NEAR, to_server);
        let far = end("s", server, FAR, settings(&theirs, &ours, NEAR, None));
        let there = far.start()?;
        let here = near.start()?;
        Ok(Box::new(Devices { near, here, there }))
    }
}

/// One side, to be started as often as one likes.
struct End {
    place: Place,
    program: PathBuf,
    device: String,
    address: Ipv4Addr,
    log: PathBuf,
    settings: String,
}

impl End {
    fn start(&self) -> Result<Program> {
        let mut command = Command::new(&self.program);
        command.args(["-f", &self.device]);
        let mut program = self.place.spawn_logged(&mut command, &self.log)?;
        let socket = format!("{SOCKETS}/{}.sock", self.device);
        let mut socket = until("its socket", || match (UnixStream::connect(&socket), program.has_ended()) {
            (Ok(socket), _) => Ok(Some(socket)),
            (Err(_), false) => Ok(None),
            (Err(_), true) => Err(std::fs::read_to_string(&self.log).unwrap_or_default().trim().into()),
        })?;
        socket.write_all(self.settings.as_bytes())?;
        socket.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        if answer.trim() != "errno=0" {
            return Err(format!("it does not take its settings: {}", answer.trim()).into());
        }
        self.place.ip(&format!("address add {}/24 dev {}", self.address, self.device))?;
        self.place.ip(&format!("link set {} up", self.device))?;
        Ok(program)
    }
}

/// What is written to a side's socket; a side without an address of the other learns it.
fn settings(own: &AgreementSecret, peer: &AgreementSecret, address: Ipv4Addr, at: Option<SocketAddr>) -> String {
    let mut text = format!("set=1\nprivate_key={}\nlisten_port={PORT}\n", hex(own.expose()));
    let _ = write!(text, "public_key={}\nallowed_ip={address}/32\n", hex(&peer.public().0));
    if let Some(at) = at {
        let _ = writeln!(text, "endpoint={at}");
    }
    text + "\n"
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Devices {
    near: End,
    here: Program,
    there: Program,
}

impl Running for Devices {
    fn address(&self, service: Service) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(FAR), service.port())
    }

    fn client(&self) -> Vec<u32> {
        vec![self.here.id()]
    }

    fn others(&self) -> Vec<u32> {
        vec![self.there.id()]
    }

    fn restart_client(&mut self) -> Result<()> {
        self.here.end();
        self.here = self.near.start()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_in_the_words_of_its_socket() {
        let (own, peer) = (AgreementSecret::from_bytes([1; 32]), AgreementSecret::from_bytes([2; 32]));
        let text = settings(&own, &peer, FAR, Some(SocketAddr::from(([192, 0, 2, 1], 7))));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["set=1", &format!("private_key={}", "01".repeat(32))]);
        assert_eq!(lines[3], format!("public_key={}", hex(&peer.public().0)));
        assert_eq!(lines[4..], ["allowed_ip=10.78.1.2/32", "endpoint=192.0.2.1:7", ""], "an empty line ends them");
    }
}
