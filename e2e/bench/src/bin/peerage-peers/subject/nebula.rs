//! nebula: a lighthouse in the third place, and a host on each side that asks it where the other is. Programs use the
//! addresses of nebula's devices. Relayed, the lighthouse is also the relay, and neither host may use the direct link.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use peerage_bench::Result;
use peerage_bench::network::{Place, Program};

use super::{Route, Running, Service, Stage, Subject, can_make_devices};
use crate::cache::Cache;

const NAME: &str = "nebula";
/// Newer ones need a fork of a module that the Go module proxy does not serve everywhere.
const VERSION: &str = "v1.10.3";
const PORT: u16 = 4_242;
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 79, 1, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 79, 1, 2);
const LIGHTHOUSE: Ipv4Addr = Ipv4Addr::new(10, 79, 1, 9);

pub struct Nebula;

impl Subject for Nebula {
    fn name(&self) -> &'static str {
        NAME
    }

    fn install(&self, cache: &Cache) -> Result<()> {
        let packages = ["github.com/slackhq/nebula/cmd/nebula", "github.com/slackhq/nebula/cmd/nebula-cert"];
        cache.go(NAME, VERSION, &packages)
    }

    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>> {
        can_make_devices()?;
        let network = stage.network;
        let certificates = stage.cache.program(NAME, VERSION, "nebula-cert");
        certify(&certificates, &stage.folder, &["ca", "-name", "bench"])?;
        let end = |name: &str, place: &Place, own: Ipv4Addr| -> Result<End> {
            certify(&certificates, &stage.folder, &["sign", "-name", name, "-networks", &format!("{own}/24")])?;
            let config = config(name, &stage.folder, network.relay.address(PORT), route);
            let file = stage.file(&format!("{name}.yml"));
            std::fs::write(&file, config)?;
            let program = stage.cache.program(NAME, VERSION, "nebula");
            Ok(End { place: place.clone(), program, file, log: stage.file(&format!("{name}.log")) })
        };
        let lighthouse = end("lighthouse", &network.relay, LIGHTHOUSE)?.start()?;
        let there = end("server", &network.server, FAR)?.start()?;
        let near = end("client", &network.client, NEAR)?;
        let here = near.start()?;
        Ok(Box::new(Hosts { near, here, others: [there, lighthouse] }))
    }
}

/// Runs `nebula-cert` in a folder.
fn certify(program: &Path, folder: &Path, words: &[&str]) -> Result<()> {
    let output = Command::new(program).args(words).current_dir(folder).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("nebula-cert: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}

/// One machine, to be started as often as one likes.
struct End {
    place: Place,
    program: PathBuf,
    file: PathBuf,
    log: PathBuf,
}

impl End {
    fn start(&self) -> Result<Program> {
        let mut command = Command::new(&self.program);
        command.arg("-config").arg(&self.file);
        Ok(self.place.spawn_logged(&mut command, &self.log)?)
    }
}

/// The configuration of one machine, as short as it may be.
fn config(name: &str, folder: &Path, lighthouse: SocketAddr, route: Route) -> String {
    let (folder, relayed) = (folder.display(), route == Route::Relayed);
    let mut text = format!(
        "pki: {{ca: {folder}/ca.crt, cert: {folder}/{name}.crt, key: {folder}/{name}.key}}\n\
         static_host_map: {{\"{LIGHTHOUSE}\": [\"{lighthouse}\"]}}\n\
         tun: {{dev: nebula}}\n\
         firewall: {{outbound: [{{port: any, proto: any, host: any}}], inbound: [{{port: any, proto: any, host: any}}]}}\n"
    );
    if name == "lighthouse" {
        // By this address: the route back may have another one, which the others would not know.
        text += &format!("listen: {{host: {}, port: {PORT}}}\nlighthouse: {{am_lighthouse: true}}\n", lighthouse.ip());
        return text + &format!("relay: {{am_relay: {relayed}}}\n");
    }
    text += "listen: {host: 0.0.0.0, port: 0}\n";
    // Told to hear of no other address than the lighthouse's, a host is left with the relay.
    let only = if relayed {
        format!(", remote_allow_list: {{\"0.0.0.0/0\": false, \"{}/32\": true}}", lighthouse.ip())
    } else {
        String::new()
    };
    text += &format!("lighthouse: {{am_lighthouse: false, interval: 10, hosts: [\"{LIGHTHOUSE}\"]{only}}}\n");
    if relayed {
        text += &format!("relay: {{am_relay: false, use_relays: true, relays: [\"{LIGHTHOUSE}\"]}}\n");
    }
    text
}

struct Hosts {
    near: End,
    here: Program,
    others: [Program; 2],
}

impl Running for Hosts {
    fn address(&self, service: Service) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(FAR), service.port())
    }

    fn client(&self) -> Vec<u32> {
        vec![self.here.id()]
    }

    fn others(&self) -> Vec<u32> {
        self.others.iter().map(Program::id).collect()
    }

    fn restart_client(&mut self) -> Result<()> {
        self.here.end();
        self.here = self.near.start()?;
        Ok(())
    }
}
