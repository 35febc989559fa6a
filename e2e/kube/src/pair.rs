//! Two agents as a user has them: each a process in a network of its own behind a NAT of the kernel's, a relay between
//! them, programs that know nothing of Peerage. Their cluster is the one of the tests.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use peerage_netlab::kernel::{KernelLab, Network, Site, SiteConfig};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::json;
use tempfile::TempDir;

use crate::agent::{self, Agent, Start};
use crate::cluster::{PATIENCE, until};
use crate::failed::{Failed, Trying, ensure};
use crate::process::Process;
use crate::relay::Relay;
use crate::tests::{Stage, object};

/// Where the relay is.
pub const RELAY: Ipv4Addr = Ipv4Addr::new(198, 18, 201, 1);
/// The namespaces of the two, and where their AgentTrusts are.
const TOOLS: &str = "tools";
const REPORTS: &str = "reports";
/// What `/etc/resolv.conf` says in a pod.
pub const RESOLVER: &str = "nameserver 127.64.0.1\nsearch peer.internal\n";
/// Between two lines of a stream that does not end.
const DRIP: Duration = Duration::from_millis(20);
/// A stream that says nothing for so long has ended without a word.
const SILENT: Duration = Duration::from_secs(10);

/// Agent `db` in namespace `tools`, agent `reporter` in `reports`. Dropping it ends both.
#[derive(Debug)]
pub struct Pair {
    /// The server's side.
    pub db: Place,
    /// The client's side.
    pub reporter: Place,
    _relay: Relay,
    _folder: TempDir,
}

/// One of them.
#[derive(Debug)]
pub struct Place {
    /// Its process.
    pub agent: Agent,
    /// Its network.
    pub site: Site,
}

/// A download that does not end by itself.
#[derive(Debug)]
pub struct Stream {
    _curl: Process,
    heard: Receiver<Instant>,
}

impl Pair {
    /// Starts relay and agents, and declares everything but the AgentTrusts.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(stage: &Stage, lab: &mut KernelLab) -> Result<Self, Failed> {
        let folder = tempfile::tempdir().trying("make a folder")?;
        let resolver = folder.path().join("resolv.conf");
        fs::write(&resolver, RESOLVER).trying("write a resolv.conf")?;
        let relay = start_relay(stage)?;
        for (namespace, name) in [(TOOLS, "db"), (REPORTS, "reporter")] {
            stage.namespace(namespace)?;
            stage.cluster.kubectl(&format!("create serviceaccount {name} -n {namespace}"))?;
            let ports = if name == "db" { json!([{"name": "mcp", "port": 80, "targetPort": 8080}]) } else { json!([]) };
            let selector = json!({"matchLabels": {"app": name}});
            let spec = json!({"selector": selector, "serviceAccountName": name, "ports": ports});
            stage.cluster.apply(&object("AgentPeer", name, Some(namespace), &spec))?;
            stage.pod_as(&format!("{name}-0"), namespace, name, name)?;
        }
        let mut place = |namespace: &str, name: &str| {
            let site = Place::prepare(lab, name, &resolver)?;
            let how = start(stage, namespace, name)?;
            let agent = Agent::start_by(&how, |command| site.host().spawn(command))?;
            Ok::<_, Failed>(Place { agent, site })
        };
        let (db, reporter) = (place(TOOLS, "db")?, place(REPORTS, "reporter")?);
        serve(&db.site)?;
        Ok(Self { db, reporter, _relay: relay, _folder: folder })
    }

    /// Fetches from `http://NAME/` as an unmodified program at the reporter's; what it got.
    ///
    /// # Errors
    /// curl's own, when it got nothing.
    pub fn fetch(&self, name: &str) -> Result<String, Failed> {
        self.reporter.fetch(name)
    }

    /// Waits until `http://NAME/` answers; how long that took.
    ///
    /// # Errors
    /// It does not within [`PATIENCE`].
    pub fn until_answered(&self, name: &str) -> Result<Duration, Failed> {
        let begun = Instant::now();
        let mut last = String::new();
        let found = until(|| match self.fetch(name) {
            Ok(body) => Ok(body == "hello"),
            Err(failed) => {
                last = failed.to_string();
                Ok(false)
            }
        })?;
        ensure(found, || {
            format!("http://{name}/: {last}\ndb: {}\nreporter: {}", self.db.agent.log(), self.reporter.agent.log())
        })?;
        Ok(begun.elapsed())
    }

    /// Opens a stream that goes on until somebody resets it, and waits until it flows.
    ///
    /// # Errors
    /// It does not begin.
    pub fn open_stream(&self, name: &str) -> Result<Stream, Failed> {
        self.reporter.open_stream(name)
    }

    /// Kills the reporter's agent, as a container dies, and starts another one on the same memory volume.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart_reporter(&mut self, stage: &Stage) -> Result<(), Failed> {
        let how = start(stage, REPORTS, "reporter")?;
        let host = self.reporter.site.host().clone();
        self.reporter.agent.restart_by(&how, |command| host.spawn(command))
    }
}

impl Place {
    /// A network of its own behind a NAT, where names are asked of the agent that will be there. What starts on its host
    /// from here on has no privilege.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn prepare(lab: &mut KernelLab, name: &str, resolver: &Path) -> Result<Site, Failed> {
        let site = lab.site(name, &SiteConfig::new(Network::PortRestricted)).trying("make a network")?;
        lab.put_file(site.host(), resolver, "/etc/resolv.conf".as_ref()).trying("write a resolv.conf")?;
        lab.allow_low_ports(site.host()).trying("allow low ports")?;
        site.host().run(give_up_privileges).trying("reach a host")?.trying("give up privileges")?;
        Ok(site)
    }

    /// Fetches from `http://NAME/` as an unmodified program there; what it got.
    ///
    /// # Errors
    /// curl's own, when it got nothing.
    pub fn fetch(&self, name: &str) -> Result<String, Failed> {
        fetch(&self.site, name)
    }

    /// Opens a stream that goes on until somebody resets it, and waits until it flows.
    ///
    /// # Errors
    /// It does not begin.
    pub fn open_stream(&self, name: &str) -> Result<Stream, Failed> {
        let mut command = curl(&format!("http://{name}/drip"));
        command.arg("--no-buffer").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut curl = Process(self.site.host().spawn(command).trying("start curl")?);
        let stdout = curl.0.stdout.take().ok_or_else(|| Failed::new("curl has no output"))?;
        let (tell, heard) = channel();
        std::thread::spawn(move || {
            // Its end is curl's end: curl writes nothing after a reset.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line == "drip" && tell.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        heard.recv_timeout(PATIENCE).trying("open a stream")?;
        Ok(Stream { _curl: curl, heard })
    }
}

impl Stream {
    /// Whether it still flows: a line that was not there before comes.
    ///
    /// # Errors
    /// It has ended, or says nothing.
    pub fn flows(&self) -> Result<(), Failed> {
        while self.heard.try_recv().is_ok() {}
        self.heard.recv_timeout(SILENT).trying("go on with a stream").map(drop)
    }

    /// When it was reset.
    ///
    /// # Errors
    /// It was not within `patience`.
    pub fn ended(&self, patience: Duration) -> Result<Instant, Failed> {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            match self.heard.recv_timeout(SILENT) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Instant::now()),
                Err(RecvTimeoutError::Timeout) => return Err(Failed::new("a stream fell silent and was not reset")),
            }
        }
        Err(Failed::new(format!("a stream goes on {patience:?} later")))
    }
}

/// Fetches from `http://NAME/` as an unmodified program on this site's host; what it got.
///
/// # Errors
/// curl's own, when it got nothing.
pub fn fetch(site: &Site, name: &str) -> Result<String, Failed> {
    let mut command = curl(&format!("http://{name}/"));
    command.args(["--max-time", "5"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = site.host().spawn(command).trying("start curl")?;
    let said = child.wait_with_output().trying("wait for curl")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure(said.status.success(), || format!("curl: {}", text(&said.stderr)))?;
    Ok(text(&said.stdout))
}

/// The owner's consent on the client's side, by which the server is called `db`.
#[must_use]
pub fn reporters_consent() -> serde_json::Value {
    let spec = json!({"agentRef": {"name": "reporter"}, "peer": {"name": "db", "namespace": TOOLS}});
    object("AgentTrust", "uses-db", Some(REPORTS), &spec)
}

/// The owner's consent on the server's side, which opens port `mcp`.
#[must_use]
pub fn dbs_consent() -> serde_json::Value {
    let peer = json!({"name": "reporter", "namespace": REPORTS});
    let spec = json!({"agentRef": {"name": "db"}, "peer": peer, "inbound": [{"portName": "mcp"}]});
    object("AgentTrust", "serves-reporter", Some(TOOLS), &spec)
}

fn start<'a>(stage: &'a Stage, namespace: &str, name: &str) -> Result<Start<'a>, Failed> {
    let authority = stage.authority()?;
    let audience = format!("peerage.dev/{authority}");
    let token = agent::token(&stage.cluster, namespace, &format!("{name}-0"), &audience)?;
    Ok(Start { program: &stage.programs.agent, operators: stage.addresses(), authority, token })
}

fn start_relay(stage: &Stage) -> Result<Relay, Failed> {
    let relay = Relay::start(&stage.programs.relay, RELAY)?;
    let spec = json!({"address": relay.address, "allowedNamespaces": {"from": "All"}});
    stage.cluster.apply(&object("AgentRelay", "main", None, &spec))?;
    Ok(relay)
}

fn curl(url: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", url]).stdin(Stdio::null());
    command
}

/// What starts on this host from here on has no capability, as in a pod of PodSecurity `restricted`.
fn give_up_privileges() -> rustix::io::Result<()> {
    CapabilitySet::all().iter().try_for_each(|capability| match remove_capability_from_bounding_set(capability) {
        // A kernel older than that capability.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error),
    })
}

/// The program in the pod: `/drip` is a line each 20 ms without end, anything else `hello`.
fn serve(site: &Site) -> Result<(), Failed> {
    let listen = || TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
    let listener = site.host().run(listen).trying("reach a host")?.trying("listen")?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is its own affair.
            std::thread::spawn(move || answer(stream));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    if !request.starts_with(b"GET /drip ") {
        return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
    loop {
        stream.write_all(b"drip\n")?;
        std::thread::sleep(DRIP);
    }
}
