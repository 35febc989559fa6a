//! Where things run: a client's and a server's place with a direct link, and a relay's place that both reach.
//!
//! In namespaces each link is a veth pair of its own, with nothing but the kernel between the ends: the lab's router is
//! a thread and would take a core from what is measured. On loopback all three are the same place.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use peerage_netlab::{Host, HostConfig, Lab};

use crate::Result;

/// A network with three places.
pub struct Network {
    pub client: Place,
    pub server: Place,
    pub relay: Place,
    /// Programs that hold the namespaces' names, and the lab that holds the namespaces.
    _held: Vec<Program>,
    lab: Option<Lab>,
}

/// Somewhere with an address.
#[derive(Clone)]
pub struct Place {
    host: Option<Host>,
    address: Ipv4Addr,
}

/// A process that is killed when it is dropped.
pub struct Program(Child);

impl Network {
    /// Three namespaces.
    pub fn in_namespaces() -> Result<Self> {
        let mut lab = Lab::new()?;
        let mut place = |name: &str, number: u8, address: [u8; 4]| -> Result<(Place, Program)> {
            let host = lab.host(name, HostConfig::public([198, 51, 100, number].into()))?;
            let place = Place { host: Some(host), address: address.into() };
            // Not by way of the lab's router: these places have links of their own.
            place.ip("address flush dev eth0")?;
            let holder = place.spawn(Command::new("sleep").arg("infinity"))?;
            Ok((place, holder))
        };
        let (client, one) = place("client", 1, [10, 77, 1, 1])?;
        let (server, two) = place("server", 2, [10, 77, 1, 2])?;
        let (relay, three) = place("relay", 3, [10, 77, 9, 9])?;
        relay.ip("address add 10.77.9.9/32 dev lo")?;
        for (near, name, far) in [(&client, "direct", &two), (&client, "relay", &three), (&server, "relay", &three)] {
            let other = if near.address == client.address { "a" } else { "b" };
            near.ip(&format!("link add {name} type veth peer name {name}-{other} netns {}", far.0.id()))?;
        }
        client.up("direct", "10.77.1.1/24")?;
        server.up("direct-a", "10.77.1.2/24")?;
        client.up("relay", "10.77.2.1/24")?;
        relay.up("relay-a", "10.77.2.9/24")?;
        server.up("relay", "10.77.3.1/24")?;
        relay.up("relay-b", "10.77.3.9/24")?;
        client.ip("route add 10.77.9.9/32 via 10.77.2.9")?;
        server.ip("route add 10.77.9.9/32 via 10.77.3.9")?;
        Ok(Self { client, server, relay, _held: vec![one, two, three], lab: Some(lab) })
    }

    /// One place for all.
    pub fn on_loopback() -> Self {
        let here = Place { host: None, address: Ipv4Addr::LOCALHOST };
        Self { client: here.clone(), server: here.clone(), relay: here, _held: Vec::new(), lab: None }
    }

    pub fn is_namespaces(&self) -> bool {
        self.lab.is_some()
    }

    pub fn name(&self) -> &'static str {
        if self.is_namespaces() { "veth pairs between namespaces, MTU 1500" } else { "loopback" }
    }
}

impl Place {
    pub fn at(host: Host, address: Ipv4Addr) -> Self {
        Self { host: Some(host), address }
    }

    /// The same place by its loopback address.
    pub fn loopback(&self) -> Self {
        Self { host: self.host.clone(), address: Ipv4Addr::LOCALHOST }
    }

    /// An address of this place that the others reach.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }

    /// Starts a thread here; threads that it starts are here, too.
    pub fn thread<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        match &self.host {
            Some(host) => host.run(|| std::thread::spawn(job)),
            None => Ok(std::thread::spawn(job)),
        }
    }

    /// Starts a program here.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Program> {
        let mut owned = Command::new(command.get_program());
        owned.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
        match &self.host {
            Some(host) => host.spawn(owned),
            None => owned.spawn(),
        }
        .map(Program)
    }

    fn up(&self, link: &str, address: &str) -> Result<()> {
        self.ip(&format!("address add {address} dev {link}"))?;
        self.ip(&format!("link set {link} up"))
    }

    fn ip(&self, words: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(words.split(' '));
        let run = move || command.output();
        let output = self.thread(run)?.join().map_err(|_| "running ip panicked")??;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
        }
    }
}

impl Program {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
