//! How long a connection takes to set up, over links that take time and through home NATs.
//!
//! The drivers run in this process, each on a runtime in its host's network, so that one clock times both ends. All of
//! the delay is on the two agents' links, none on the relay's: a round trip between the agents by relay is four times
//! one link's delay, and between an agent and the relay half of that.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_agent::driver::{self, DriverEvent, DriverHandle};
use peerage_agent::tunnel::{Dial, Incoming, Opened, TunnelStream};
use peerage_engine::path::PathKind;
use peerage_model::relay::RelayInfo;
use peerage_model::stream::{StreamHeader, StreamKind};
use peerage_netlab::{Host, HostConfig, Lab, LinkConfig, NatKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::Result;
use crate::agents::Relay;
use crate::network::Place;
use crate::people::{PORT, Person, snapshot};
use crate::report::Report;

/// One way over one agent's link.
const DELAY: Duration = Duration::from_millis(10);
/// Between the agents by relay: two links there, two back.
const ROUND_TRIP: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_secs(20);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n";

struct Stage {
    client: Runtime,
    server: Runtime,
    relay: RelayInfo,
}

/// A client and a server that nobody has heard of: the relay still knows the last ones, as it must for 90 s.
struct Couple {
    ann: Arc<Person>,
    bob: Arc<Person>,
}

/// A running driver.
struct Running {
    handle: DriverHandle,
    events: mpsc::Receiver<DriverEvent>,
    incoming: mpsc::Receiver<Incoming>,
}

/// One request: when it was made, when the server had all of it, when the answer was there.
struct Times {
    made: Instant,
    served: Instant,
    answered: Instant,
}

pub fn measure(peerage: &Path, rounds: u32, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::new()?;
    let address = [198, 51, 100, 1].into();
    let relay = Place::at(lab.host("relay", HostConfig::public(address))?, address);
    let relay = Relay::start(peerage, &relay, 3478, folder.path())?;
    let mut behind = |name, last| {
        let config = HostConfig::behind([10, 0, last, 2].into(), NatKind::home_router());
        lab.host(name, config.with_link(LinkConfig::with_delay(DELAY)))
    };
    let stage = Stage {
        client: runtime(&behind("client", 1)?)?,
        server: runtime(&behind("server", 2)?)?,
        relay: relay.info.parse().map_err(|error| format!("{error:?}"))?,
    };
    for _ in 0..rounds {
        stage.cold(report)?;
        stage.warm(report)?;
    }
    report.note(format!(
        "set-up: {} ms one way on each agent's link, so {} ms a round trip between agents by relay; both behind home NATs",
        DELAY.as_millis(),
        ROUND_TRIP.as_millis(),
    ));
    Ok(())
}

impl Stage {
    /// Nothing is up at the client: it has to find the relay, bind and dial. Then what follows in that session.
    fn cold(&self, report: &mut Report) -> Result<()> {
        let couple = Couple::new();
        let (server, mut served) = self.serve(&couple)?;
        let (relay, trust) = (self.relay.clone(), couple.ann.trust(&couple.bob, &self.relay)?);
        let (ann, bob) = (couple.ann, couple.bob.id.clone());
        let job = async move {
            let began = Instant::now();
            let mut client = Running::start(&ann, snapshot(&relay, vec![trust]))?;
            let first = request(&client.handle, &bob, &mut served).await?;
            let mut came_up = None;
            let (upgraded, path) = client
                .until(|event| match event {
                    DriverEvent::SessionUp { .. } => {
                        came_up = Some(Instant::now());
                        None
                    }
                    DriverEvent::PathChanged { to, .. } if *to != PathKind::Relayed => Some((Instant::now(), *to)),
                    _ => None,
                })
                .await?;
            // The first was told while the request was under way; what counts is the time between the two.
            let upgrade = upgraded.duration_since(came_up.ok_or("the path changed before the session was up")?);
            let next = request(&client.handle, &bob, &mut served).await?;
            client.handle.shutdown().await;
            Ok::<_, crate::Error>((first.served - began, upgrade, path, next))
        };
        let (cold, upgrade, path, next) = run(&self.client, job)?;
        report.setup("cold agent: request at the server", cold, Some(ROUND_TRIP));
        report.setup(format!("upgrade to {path} after the session is up"), upgrade, None);
        report.setup("warm session, direct: request at the server", next.served - next.made, None);
        report.setup("warm session, direct: answer at the client", next.answered - next.made, None);
        self.stop(server)
    }

    /// Both are bound at the relay and there is no session.
    fn warm(&self, report: &mut Report) -> Result<()> {
        let couple = Couple::new();
        let (server, mut served) = self.serve(&couple)?;
        let (relay, trust) = (self.relay.clone(), couple.ann.trust(&couple.bob, &self.relay)?);
        let (ann, bob) = (couple.ann, couple.bob.id.clone());
        let job = async move {
            let mut client = Running::start(&ann, snapshot(&relay, Vec::new()))?;
            client.until(relay_is_up).await?;
            // A moment for what the agents tell the relay and each other beside it.
            tokio::time::sleep(4 * ROUND_TRIP).await;
            // Learning whom to trust starts a dial by itself, so the stream is opened in the same breath.
            client.handle.apply_snapshot(snapshot(&relay, vec![trust]));
            let first = request(&client.handle, &bob, &mut served).await?;
            client.handle.shutdown().await;
            Ok::<_, crate::Error>(first)
        };
        let first = run(&self.client, job)?;
        report.setup("warm relay: request at the server", first.served - first.made, Some(ROUND_TRIP));
        report.setup("warm relay: answer at the client", first.answered - first.made, Some(ROUND_TRIP));
        self.stop(server)
    }

    /// Starts the server's driver, bound at the relay, and answers requests; says when each was there.
    fn serve(&self, couple: &Couple) -> Result<(DriverHandle, mpsc::UnboundedReceiver<Instant>)> {
        let allowlist = snapshot(&self.relay, vec![couple.bob.trust(&couple.ann, &self.relay)?]);
        let (bob, (say, served)) = (Arc::clone(&couple.bob), mpsc::unbounded_channel());
        let job = async move {
            let mut running = Running::start(&bob, allowlist)?;
            running.until(relay_is_up).await?;
            let handle = running.handle.clone();
            tokio::spawn(async move {
                while let Some(Opened::Stream(stream)) = running.incoming.recv().await.map(Incoming::accept) {
                    tokio::spawn(answer(stream, say.clone()));
                }
            });
            Ok::<_, crate::Error>(handle)
        };
        Ok((run(&self.server, job)?, served))
    }

    fn stop(&self, server: DriverHandle) -> Result<()> {
        run(&self.server, async move {
            server.shutdown().await;
            Ok(())
        })
    }
}

impl Couple {
    fn new() -> Self {
        Self { ann: Arc::new(Person::new("ann")), bob: Arc::new(Person::new("bob")) }
    }
}

impl Running {
    fn start(person: &Person, allowlist: peerage_model::Snapshot) -> Result<Self> {
        let (handle, events, incoming) = driver::start(person.config(allowlist))?;
        Ok(Self { handle, events, incoming })
    }

    async fn until<T>(&mut self, mut found: impl FnMut(&DriverEvent) -> Option<T>) -> Result<T> {
        let search = async {
            while let Some(event) = self.events.recv().await {
                if let Some(found) = found(&event) {
                    return Ok(found);
                }
            }
            Err("the driver ended".into())
        };
        tokio::time::timeout(PATIENCE, search).await?
    }
}

fn relay_is_up(event: &DriverEvent) -> Option<()> {
    matches!(event, DriverEvent::Relay { observed: Some(_), .. }).then_some(())
}

async fn request(
    client: &DriverHandle,
    peer: &peerage_model::AgentId,
    served: &mut mpsc::UnboundedReceiver<Instant>,
) -> Result<Times> {
    let made = Instant::now();
    let Opened::Stream(mut stream) = client.dial(peer, StreamHeader { kind: StreamKind::Tcp, port: PORT }).await?
    else {
        return Err("a stream was asked for".into());
    };
    stream.write_all(REQUEST).await?;
    let mut one = [0];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut one)).await??;
    let answered = Instant::now();
    let served = served.recv().await.ok_or("the server ended")?;
    Ok(Times { made, served, answered })
}

async fn answer(mut stream: TunnelStream, say: mpsc::UnboundedSender<Instant>) {
    let mut whole = vec![0; REQUEST.len()];
    if stream.read_exact(&mut whole).await.is_ok() {
        // Whoever asked may have given up.
        let _ = say.send(Instant::now());
        let _ = stream.write_all(b"!").await;
        let _ = stream.shutdown().await;
        let _ = stream.read_u8().await;
    }
}

/// A runtime whose threads live in the host's network.
fn runtime(host: &Host) -> Result<Runtime> {
    let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    Ok(host.run(build)??)
}

/// Runs `job` on a thread of the runtime, not on ours, which is in another network.
fn run<T: Send + 'static>(runtime: &Runtime, job: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    runtime.block_on(runtime.spawn(job))?
}
