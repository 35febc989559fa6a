//! Where things run: a client's and a server's place with a direct link, and a relay's place that both reach.
//!
//! In namespaces each link is a veth pair of its own, with nothing but the kernel between the ends: the lab's router is
//! a thread and would take a core from what is measured. On loopback all three are the same place.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use peerage_netlab::kernel::{KernelLab, Network as KernelNetwork, Site, SiteConfig};
use peerage_netlab::{Host, HostConfig, Lab, LinkConfig};

use crate::Result;

/// A network with three places.
#[derive(Debug)]
pub struct Network {
    /// Where programs ask.
    pub client: Place,
    /// Where programs answer.
    pub server: Place,
    /// What both reach.
    pub relay: Place,
    kind: Kind,
}

/// What is between the places, and what holds it.
#[derive(Debug)]
enum Kind {
    Loopback,
    /// Veth pairs: programs that hold the namespaces' names, and the lab that holds the namespaces.
    Veth {
        _names: [Program; 3],
        _lab: Lab,
    },
    /// The kernel's laboratory, where all that goes from or to the client passes a wire in user space.
    Wire {
        lab: Box<KernelLab>,
        client: Site,
    },
}

/// Somewhere with an address.
#[derive(Clone, Debug)]
pub struct Place {
    host: Option<Host>,
    address: Ipv4Addr,
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Program(Child);

impl Network {
    /// Three namespaces.
    ///
    /// # Errors
    /// This process may not make them.
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
        // Each has one address that both others know.
        relay.ip("route add 10.77.1.1/32 via 10.77.2.1")?;
        relay.ip("route add 10.77.1.2/32 via 10.77.3.1")?;
        Ok(Self { client, server, relay, kind: Kind::Veth { _names: [one, two, three], _lab: lab } })
    }

    /// Three namespaces, the client's behind a wire that does this to every packet from and to it.
    ///
    /// # Errors
    /// This process may not make them.
    pub fn behind_wire(link: LinkConfig) -> Result<Self> {
        let mut lab = Box::new(KernelLab::new()?);
        let client = lab.site("client", &SiteConfig::new(KernelNetwork::None).with_access(link))?;
        let server = lab.site("server", &SiteConfig::new(KernelNetwork::None))?;
        let relay = lab.site("relay", &SiteConfig::server(1))?;
        let place = |site: &Site| Place::at(site.host().clone(), lab.public(site));
        let (near, far, middle) = (place(&client), place(&server), place(&relay));
        Ok(Self { client: near, server: far, relay: middle, kind: Kind::Wire { lab, client } })
    }

    /// Changes what the client's wire does.
    ///
    /// # Errors
    /// There is none.
    pub fn set_wire(&self, link: LinkConfig) -> Result<()> {
        match &self.kind {
            Kind::Wire { lab, client } => Ok(lab.set_access(client, link)?),
            Kind::Loopback | Kind::Veth { .. } => Err("this network has no wire".into()),
        }
    }

    /// One place for all.
    #[must_use]
    pub fn on_loopback() -> Self {
        let here = Place { host: None, address: Ipv4Addr::LOCALHOST };
        Self { client: here.clone(), server: here.clone(), relay: here, kind: Kind::Loopback }
    }

    /// Whether the places are apart.
    #[must_use]
    pub fn is_namespaces(&self) -> bool {
        !matches!(self.kind, Kind::Loopback)
    }

    /// What is between them, for the record.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.kind {
            Kind::Loopback => "loopback",
            Kind::Veth { .. } => "veth pairs between namespaces, MTU 1500",
            Kind::Wire { .. } => "namespaces, the client behind a user-space wire, MTU 1500",
        }
    }
}

impl Place {
    /// This host, by its address.
    #[must_use]
    pub const fn at(host: Host, address: Ipv4Addr) -> Self {
        Self { host: Some(host), address }
    }

    /// The same place by its loopback address.
    #[must_use]
    pub fn loopback(&self) -> Self {
        Self { host: self.host.clone(), address: Ipv4Addr::LOCALHOST }
    }

    /// An address of this place that the others reach.
    #[must_use]
    pub const fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }

    /// Starts a thread here; threads that it starts are here, too.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn thread<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        match &self.host {
            Some(host) => host.run(|| std::thread::spawn(job)),
            None => Ok(std::thread::spawn(job)),
        }
    }

    /// Listens at this address of this place.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn listen(&self, at: SocketAddr) -> Result<TcpListener> {
        Ok(self.thread(move || TcpListener::bind(at))?.join().map_err(|_| "binding panicked")??)
    }

    /// Starts a program here that says nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Program> {
        self.start(command, Stdio::null(), Stdio::inherit())
    }

    /// Starts a program here; what it says goes into a file.
    ///
    /// # Errors
    /// It cannot be started, or the file not be made.
    pub fn spawn_logged(&self, command: &mut Command, log: &Path) -> io::Result<Program> {
        let file = File::create(log)?;
        let same = file.try_clone()?;
        self.start(command, file.into(), same.into())
    }

    fn start(&self, command: &Command, stdout: Stdio, stderr: Stdio) -> io::Result<Program> {
        let mut owned = Command::new(command.get_program());
        owned.args(command.get_args()).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => owned.env(name, value),
                None => owned.env_remove(name),
            };
        }
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

    /// Runs `ip` with these words here.
    ///
    /// # Errors
    /// It refuses.
    pub fn ip(&self, words: &str) -> Result<()> {
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
    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Kills it, and waits until it is gone.
    pub fn end(&mut self) {
        // Both fail only for a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
