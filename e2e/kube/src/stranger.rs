//! Another cluster's operator in the hands of somebody else: a real authority with its root, a real agent of its own, real
//! tunnels through the real relay. What goes through them is up to the test, which is why it is no operator of ours: ours
//! cannot be made to lie.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use peerage_agent::driver::{self, DriverConfig, DriverHandle, ProxySettings, RequestError};
use peerage_agent::portmap;
use peerage_agent::tunnel::{Dial as _, Incoming, Opened, TunnelStream};
use peerage_model::control::TrustRequest;
use peerage_model::linking::{Heard, Hello, MAX_FRAME, OPERATOR, PORT, PORT_NAME, RecordBytes, Tell};
use peerage_model::operator::split_frame;
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{BirthdayMode, PathMode, Peer, Port, Protocol};
use peerage_model::stream::{StreamHeader, StreamKind};
use peerage_model::{
    AgentId, AgreementSecret, Authority, Credential, PairSecret, Snapshot, Ticket, TrustId, UnixTime, passport,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use crate::failed::{Failed, Trying, ensure};

/// Far above what anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to open a stream, of which one is let in each second.
const AGAIN: Duration = Duration::from_millis(200);

/// An authority that nobody here chose.
///
/// # Errors
/// The kernel has no randomness.
pub fn authority() -> Result<Authority, Failed> {
    let mut random = Zeroizing::new([0; 96]);
    fill(&mut random[..])?;
    Ok(Authority::new(&random, now()))
}

/// The time of day.
#[must_use]
pub fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// An agent of an authority of its own, which shares a pair with another cluster's operator.
#[derive(Debug)]
pub struct Stranger {
    /// Whom it talks to.
    operator: AgentId,
    /// What it says of itself when it says what is so.
    pub hello: Hello,
    tunnel: DriverHandle,
    listens: AbortHandle,
    /// What is added to each count with which it answers; anything but 0 is a lie.
    pub too_many: Arc<AtomicU64>,
}

impl Stranger {
    /// Starts an instance of `name`, of this authority, who knows of the other cluster what its ticket says.
    ///
    /// # Errors
    /// It has no socket, or no randomness.
    pub async fn start(authority: &Authority, name: &str, ticket: &Ticket) -> Result<Self, Failed> {
        let us = authority.agent(name.parse().trying("read a name")?);
        let mut bytes = Zeroizing::new([0; 32]);
        fill(&mut bytes[..])?;
        let key = AgreementSecret::from_bytes(*bytes);
        let (from, until) = (now().minus(passport::BACKDATED), now().plus(passport::LIFETIME));
        let passport = authority.issue(&us, key.public(), from, until);
        let mut seed = [0; 32];
        fill(&mut seed)?;
        let config = DriverConfig {
            credential: Credential::join(authority.record(), passport),
            snapshot: knowing(authority, &us, ticket)?,
            agent: us,
            instance: key,
            bind: Vec::new(),
            fixed_endpoints: Vec::new(),
            port_mapping: portmap::Mode::Off,
            proxy: ProxySettings::from_env(|_| None),
            memory: "64Mi".parse().trying("read an amount of memory")?,
            seed,
        };
        let (tunnel, mut events, mut incoming) = driver::start(config).trying("start a tunnel")?;
        let too_many = Arc::new(AtomicU64::new(0));
        let added = Arc::clone(&too_many);
        let listens = tokio::spawn(async move {
            loop {
                tokio::select! {
                    event = events.recv() => if event.is_none() { return },
                    stream = incoming.recv() => match stream {
                        Some(stream) => drop(tokio::spawn(hear(stream, Arc::clone(&added)))),
                        None => return,
                    },
                }
            }
        });
        let record = RecordBytes(authority.record().as_bytes().to_vec());
        let hello = Hello { version: Some("0.0.0".into()), records: vec![record], relays: ticket.relays.clone() };
        Ok(Self { operator: ticket.inviter(), hello, tunnel, listens: listens.abort_handle(), too_many })
    }

    /// Shows a ticket.
    ///
    /// # Errors
    /// How it was refused.
    pub async fn show(&self, ticket: &Ticket, reason: &str, relays: &[RelayInfo]) -> Result<(), RequestError> {
        let request = TrustRequest { reason: reason.to_owned(), relays: relays.to_vec() };
        self.tunnel.request_trust(ticket, request).await
    }

    /// Opens a stream on which the other operator hears us, as soon as it lets one in.
    ///
    /// # Errors
    /// It lets none in.
    pub async fn open(&self) -> Result<Channel, Failed> {
        let begun = Instant::now();
        loop {
            let Opened::Stream(stream) = self.dial(StreamKind::Tcp, PORT).await? else {
                return Err(Failed::new("a flow was opened in place of a stream"));
            };
            let mut channel = Channel::new(stream);
            match channel.tell(&[Tell::Hello(self.hello.clone())]).await {
                Ok(()) => return Ok(channel),
                Err(failed) => ensure(begun.elapsed() < PATIENCE, || format!("no stream is let in: {failed}"))?,
            }
            sleep(AGAIN).await;
        }
    }

    /// Leaves, and says so.
    pub async fn leave(&self) {
        self.tunnel.shutdown().await;
    }

    /// Asks for a stream or a flow at any port. Whether it is let in, its first read tells.
    ///
    /// # Errors
    /// The tunnel does not know the operator.
    pub async fn dial(&self, kind: StreamKind, port: u16) -> Result<Opened, Failed> {
        self.tunnel.dial(&self.operator, StreamHeader { kind, port }).await.trying("call the operator")
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.listens.abort();
    }
}

/// What an agent must know to call an operator.
fn knowing(authority: &Authority, us: &AgentId, ticket: &Ticket) -> Result<Snapshot, Failed> {
    let id = ticket.inviter();
    let secret = PairSecret::between(authority.agreement(), ticket.record.agreement_key(), us, &id);
    let name = PORT_NAME.parse().trying("read a port's name")?;
    let peer = Peer {
        trust: TrustId([7; 16]),
        secrets: vec![secret.trying("share a secret")?],
        id,
        alias: OPERATOR.parse().trying("read a name")?,
        inbound: vec![PORT_NAME.parse().trying("read a port's name")?],
        ports: Vec::new(),
        relays: ticket.relays.clone(),
        expires: None,
        path: PathMode::RelayOnly,
        birthday: BirthdayMode::Disabled,
    };
    Ok(Snapshot {
        peers: vec![peer],
        ports: vec![Port { name, number: PORT, protocol: Protocol::Tcp }],
        relays: ticket.relays.clone(),
        denied: Vec::new(),
        invites: Vec::new(),
    })
}

/// Hears what the other operator tells, and says how much that was.
async fn hear(incoming: Incoming, added: Arc<AtomicU64>) {
    let Opened::Stream(stream) = incoming.accept() else { return };
    let mut channel = Channel::new(stream);
    let mut count = 0;
    while let Ok(Some(_)) = channel.reader.frame().await {
        count += 1;
        let answer = Heard { count: count + added.load(Ordering::Relaxed) };
        if channel.write(&answer.encode()).await.is_err() {
            return;
        }
    }
}

/// A stream to another operator.
pub struct Channel {
    reader: Reader,
    writer: WriteHalf<TunnelStream>,
    /// Frames that it owes an answer for.
    told: u64,
}

struct Reader {
    stream: ReadHalf<TunnelStream>,
    buffer: Vec<u8>,
}

impl Channel {
    fn new(stream: TunnelStream) -> Self {
        let (stream, writer) = tokio::io::split(stream);
        Self { reader: Reader { stream, buffer: Vec::new() }, writer, told: 0 }
    }

    /// Tells all of it, and waits until it was heard.
    ///
    /// # Errors
    /// The stream ends before.
    pub async fn tell(&mut self, tells: &[Tell]) -> Result<(), Failed> {
        let frames: Vec<_> = tells.iter().map(Tell::encode).collect();
        self.say(&frames).await
    }

    /// Says frames as they are, and waits until they were heard.
    ///
    /// # Errors
    /// As [`Self::tell`].
    pub async fn say(&mut self, frames: &[Vec<u8>]) -> Result<(), Failed> {
        self.told += u64::try_from(frames.len()).trying("count frames")?;
        let (reader, writer, told) = (&mut self.reader, &mut self.writer, self.told);
        let said = async {
            for frame in frames {
                writer.write_all(frame).await?;
            }
            writer.flush().await
        };
        let heard = async {
            while let Some(frame) = reader.frame().await? {
                let count = Heard::decode(&frame).map_err(io::Error::other)?.map_or(0, |heard| heard.count);
                if count >= told {
                    return Ok(());
                }
            }
            Err(io::ErrorKind::UnexpectedEof.into())
        };
        tokio::try_join!(said, heard).trying("tell another operator").map(drop)
    }

    /// Says a frame that ends the stream.
    ///
    /// # Errors
    /// It is heard, or the stream goes on.
    pub async fn ends_by(mut self, frame: &[u8]) -> Result<(), Failed> {
        self.write(frame).await.trying("say a frame")?;
        match timeout(PATIENCE, self.reader.frame()).await {
            Ok(Ok(Some(_))) => Err(Failed::new("it was heard")),
            Ok(Ok(None) | Err(_)) => Ok(()),
            Err(_) => Err(Failed::new("the stream goes on")),
        }
    }

    async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.writer.write_all(frame).await?;
        self.writer.flush().await
    }
}

impl Reader {
    /// The next frame without its length; none at the end.
    async fn frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let split = split_frame(&self.buffer, MAX_FRAME).map_err(io::Error::other)?;
            if let Some((frame, rest)) = split {
                let frame = frame.to_vec();
                self.buffer = rest.to_vec();
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

fn fill(mut bytes: &mut [u8]) -> Result<(), Failed> {
    while !bytes.is_empty() {
        let filled = getrandom(&mut *bytes, GetRandomFlags::empty()).trying("get randomness")?;
        bytes = &mut bytes[filled..];
    }
    Ok(())
}
