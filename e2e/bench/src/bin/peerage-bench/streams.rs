//! A relay with ten thousand clients that reach it by TLS and say nothing but that they are there, as where UDP is blocked.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_engine::relay::{ClientConfig, RelayClient, RelayEvent, Role};
use peerage_model::AgreementSecret;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::stream::{ChannelBinding, EXPORTER_LABEL, PREFIX, frame_len, open, prefix, proves};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use zeroize::Zeroizing;

use crate::Result;
use crate::agents::Relay;
use crate::network::Network;
use crate::people::{Person, random};
use crate::process::{Resident, processor_time, resident};
use crate::report::Report;

/// As many as a relay takes by default.
const CLIENTS: u16 = 10_000;
/// Clients of one /24: below the relay's quota for streams that are not of use yet.
const PER_NETWORK: u16 = 100;
/// Longer than a relay remembers somebody who says nothing.
const IDLE: Duration = Duration::from_secs(100);
/// After so many new clients the others are looked after.
const SOME: usize = 200;
const PATIENCE: Duration = Duration::from_secs(20);

/// What was found.
struct Found {
    /// From the first client to the last.
    took: Duration,
    before: Resident,
    after: Resident,
    /// Processor time of the relay in [`IDLE`].
    processor: Duration,
}

pub fn measure(peerage: &Path, network: &Network, report: &mut Report) -> Result<()> {
    allow_files()?;
    let folder = tempfile::tempdir()?;
    let place = network.relay.loopback();
    let relay = Relay::start(peerage, &place, 0, folder.path())?;
    let info: RelayInfo = relay.info.parse().map_err(|error| format!("{error:?}"))?;
    let process = relay.program.id();
    let found = place.thread(move || idle(&info, process))?.join().map_err(|_| "a client panicked")??;
    report.memory("relay, 10,000 idle clients by TLS", found.after);
    report.memory_each("relay, each of them", (found.after.total - found.before.total) / f64::from(CLIENTS));
    report.note(format!(
        "{CLIENTS} clients by TLS bound in {:.0} s; in the {} s after that all stayed, and the relay took {:.1} s of a processor",
        found.took.as_secs_f64(),
        IDLE.as_secs(),
        found.processor.as_secs_f64()
    ));
    Ok(())
}

/// A descriptor each, here and in the relay, which sees to its own.
fn allow_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::from(CLIENTS) + 1_000;
    if limit.maximum.is_some_and(|most| most < wanted) {
        return Err(format!("this needs {wanted} open files: ulimit -Hn").into());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })?;
    Ok(())
}

fn idle(info: &RelayInfo, process: u32) -> Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (person, tls) = (Person::new("idle"), peerage_tls::client()?);
    let connect = |number| Client::connect(&runtime, &person, info, &tls, number);
    // The first few make what all share.
    let mut clients: Vec<Client> = (0..8).map(&connect).collect::<Result<_>>()?;
    let (before, begun) = (resident(process)?, Instant::now());
    for number in 8..8 + CLIENTS {
        clients.push(connect(number)?);
        if clients.len().is_multiple_of(SOME) {
            clients.iter_mut().try_for_each(Client::look_after)?;
        }
    }
    let (took, used) = (begun.elapsed(), processor_time(process)?);
    let end = Instant::now() + IDLE;
    while Instant::now() < end {
        clients.iter_mut().try_for_each(Client::look_after)?;
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(Found { took, before, after: resident(process)?, processor: processor_time(process)? - used })
}

/// One client: a stream, TLS in it, and the state of a client.
struct Client {
    socket: TcpStream,
    tls: ClientConnection,
    relay: RelayClient,
    received: Vec<u8>,
}

impl Client {
    /// Connects, has the relay prove its key, and binds.
    fn connect(
        runtime: &tokio::runtime::Runtime,
        person: &Person,
        info: &RelayInfo,
        tls: &Arc<rustls::ClientConfig>,
        number: u16,
    ) -> Result<Self> {
        let from = SocketAddr::from(([127, 1, u8::try_from(number / PER_NETWORK)?, 1], 0));
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, info.tls_port()));
        let socket = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind(from)?;
            socket.connect(to).await
        })?;
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let tls = ClientConnection::new(Arc::clone(tls), ServerName::IpAddress(to.ip().into()))?;
        let (secret, credential) = person.instance();
        let config = ClientConfig::new(info.key, Role::Bind { secret, credential });
        let relay = RelayClient::new(config, random(), Instant::now());
        let mut client = Self { socket, tls, relay, received: Vec::new() };
        client.prove(info)?;
        let started = Instant::now();
        while !client.step()? {
            if started.elapsed() > PATIENCE {
                return Err(format!("the relay did not take client {number}").into());
            }
            client.read()?;
        }
        client.socket.set_nonblocking(true)?;
        Ok(client)
    }

    /// TLS, then OPEN and PROOF.
    fn prove(&mut self, info: &RelayInfo) -> Result<()> {
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.socket)?;
        }
        let exported = self.tls.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[]))?;
        let e = AgreementSecret::from_bytes(random());
        self.write(&open(&e.public()))?;
        let proof = loop {
            match self.take_frame()? {
                Some(frame) => break frame,
                None => self.read()?,
            }
        };
        match proves(&proof, &ChannelBinding::new(Zeroizing::new(exported)), &info.key, &e) {
            true => Ok(()),
            false => Err("that is not the relay".into()),
        }
    }

    /// Says what is due, and hears what has come; fails when the relay is lost.
    fn look_after(&mut self) -> Result<()> {
        if self.relay.poll_timeout().is_some_and(|at| at <= Instant::now()) {
            self.relay.handle_timeout(Instant::now());
        }
        match self.read() {
            Ok(()) => {}
            Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::WouldBlock) => {
            }
            Err(error) => return Err(error),
        }
        self.step().map(drop)
    }

    /// Carries frames between the stream and the client; whether the relay took us in.
    fn step(&mut self) -> Result<bool> {
        while let Some(frame) = self.take_frame()? {
            self.relay.handle_datagram(Instant::now(), &frame);
        }
        while let Some(frame) = self.relay.poll_transmit() {
            self.write(&frame)?;
        }
        match self.relay.poll_event() {
            Some(RelayEvent::Ready { .. }) => Ok(true),
            None => Ok(false),
            Some(other) => Err(format!("the relay is lost: {other:?}").into()),
        }
    }

    fn write(&mut self, frame: &[u8]) -> Result<()> {
        self.tls.writer().write_all(&[&prefix(frame.len())[..], frame].concat())?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        if self.tls.read_tls(&mut self.socket)? == 0 {
            return Err("the relay has closed the stream".into());
        }
        self.tls.process_new_packets()?;
        let mut buffer = [0; 4096];
        loop {
            match self.tls.reader().read(&mut buffer) {
                Ok(0) => return Err("the relay has closed the stream".into()),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(len) = frame_len(&self.received)? else { return Ok(None) };
        if self.received.len() < PREFIX + len {
            return Ok(None);
        }
        let frame = self.received[PREFIX..PREFIX + len].to_vec();
        self.received.drain(..PREFIX + len);
        Ok(Some(frame))
    }
}
