//! Clients of a relay by UDP, thousands of them, all driven by one thread.
//!
//! Each is the state machine that agents use (`RelayClient`), with its own key, name and address, its timers and its chances.
//! What an agent has around it, sockets apart, is left out: thousands of processes would measure the machine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use peerage_bench::people::random;
use peerage_bench::{Error, Result};
use peerage_engine::relay::{ClientConfig, Delivered, Destination, RelayClient, RelayEvent};
use peerage_model::relay::frame::EndpointId;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{Timespec, epoll};

/// The most that the kernel joins.
const BUFFER: usize = 65_536;
/// Sockets that one look at them tells about.
const EVENTS: usize = 256;

/// Clients, by number.
pub struct Crowd {
    to: SocketAddr,
    epoll: OwnedFd,
    sockets: Vec<(UdpSocket, UdpSocketState)>,
    clients: Vec<Client>,
    by_place: HashMap<(usize, IpAddr), usize>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    memory: Vec<u8>,
    /// When each client that is bound became so, since [`Crowd::forget`].
    bound: Vec<Instant>,
}

struct Client {
    relay: RelayClient,
    socket: usize,
    /// Its address, which tells it from others at the same socket.
    from: IpAddr,
    due: Option<Instant>,
    is_bound: bool,
}

/// A packet that came to a client.
pub struct Arrived<'a> {
    pub client: usize,
    pub from: EndpointId,
    pub packet: &'a [u8],
}

impl Crowd {
    /// Nobody yet, of the relay at this address.
    pub fn new(to: SocketAddr) -> Result<Self> {
        Ok(Self {
            to,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: Vec::new(),
            clients: Vec::new(),
            by_place: HashMap::new(),
            due: BinaryHeap::new(),
            memory: vec![0; BATCH_SIZE * BUFFER],
            bound: Vec::new(),
        })
    }

    /// Another socket, for clients at this address, or at as many as they like if it is unspecified.
    pub fn open(&mut self, at: Ipv4Addr) -> Result<usize> {
        let socket = UdpSocket::bind((at, 0))?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // As much as the kernel gives: who shares a socket shares what waits there.
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), 8 << 20);
        let number = self.sockets.len();
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
        self.sockets.push((socket, state));
        Ok(number)
    }

    /// Another client; it says HELLO at once.
    pub fn join(&mut self, config: ClientConfig, socket: usize, from: Ipv4Addr) -> Result<usize> {
        let (number, from) = (self.clients.len(), IpAddr::V4(from));
        let relay = RelayClient::new(config, random(), Instant::now());
        self.clients.push(Client { relay, socket, from, due: None, is_bound: false });
        self.by_place.insert((socket, from), number);
        self.see_to(number)?;
        Ok(number)
    }

    /// How many are bound, since the last [`Self::forget`].
    pub fn bound(&self) -> &[Instant] {
        &self.bound
    }

    /// From here on only who is bound anew counts.
    pub fn forget(&mut self) {
        self.bound.clear();
        self.clients.iter_mut().for_each(|client| client.is_bound = false);
    }

    /// Who a client is to others.
    pub fn id(&self, client: usize) -> Result<EndpointId> {
        let identity = self.clients[client].relay.identity();
        identity.map(|(id, _)| id).ok_or_else(|| "a client is not bound".into())
    }

    /// A frame that carries `packet` from a client to another.
    pub fn frame(&mut self, client: usize, to: EndpointId, packet: &[u8]) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        let relay = &mut self.clients[client].relay;
        relay
            .wrap(Instant::now(), Destination::Endpoint(to), packet, None, &mut frame)
            .ok_or("a client is not bound")?;
        Ok(frame)
    }

    /// Sends such a frame, or drops it if the kernel has no room.
    pub fn send(&mut self, client: usize, frame: &[u8]) -> Result<()> {
        let Client { socket, from, .. } = self.clients[client];
        let (socket, state) = &self.sockets[socket];
        let transmit =
            Transmit { destination: self.to, ecn: None, contents: frame, segment_size: None, src_ip: Some(from) };
        match state.try_send(UdpSockRef::from(socket), &transmit) {
            Ok(()) => Ok(()),
            // Whoever waits for an answer asks again; refused is what a port without a relay answers.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a socket no longer: who takes no part in what is measured shall not take time from it.
    pub fn ignore(&self, socket: usize) -> Result<()> {
        Ok(epoll::delete(&self.epoll, &self.sockets[socket].0)?)
    }

    /// Another handle of the socket, for threads that do nothing but send or receive.
    pub fn socket(&self, socket: usize) -> Result<UdpSocket> {
        Ok(self.sockets[socket].0.try_clone()?)
    }

    /// Where the relay is.
    pub fn relay(&self) -> SocketAddr {
        self.to
    }

    /// Where a client is.
    pub fn address(&self, client: usize) -> IpAddr {
        self.clients[client].from
    }

    /// Waits for something to happen, no longer than this, and deals with it.
    pub fn turn(&mut self, at_most: Duration, arrived: &mut dyn FnMut(Arrived<'_>)) -> Result<()> {
        let now = Instant::now();
        let timer = self.due.peek().map(|Reverse((at, _))| at.saturating_duration_since(now));
        let wait = timer.map_or(at_most, |timer| timer.min(at_most));
        let wait = Timespec { tv_sec: i64::try_from(wait.as_secs())?, tv_nsec: wait.subsec_nanos().into() };
        let mut events = Vec::with_capacity(EVENTS);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            self.receive(usize::try_from(event.data.u64())?, arrived)?;
        }
        let now = Instant::now();
        while let Some(Reverse((at, number))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            if self.clients[number].due == Some(at) {
                self.clients[number].due = None;
                self.clients[number].relay.handle_timeout(now);
                self.see_to(number)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, number: usize, arrived: &mut dyn FnMut(Arrived<'_>)) -> Result<()> {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut memory = std::mem::take(&mut self.memory);
        let (socket, state) = &self.sockets[number];
        let mut slices: Vec<_> = memory.chunks_exact_mut(BUFFER).map(IoSliceMut::new).collect();
        let received = match state.recv(UdpSockRef::from(socket), &mut slices, &mut meta) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => 0,
            Err(error) => return Err(error.into()),
        };
        for (buffer, meta) in memory.chunks_exact(BUFFER).zip(&meta[..received]) {
            let own = meta.dst_ip.and_then(|ip| self.by_place.get(&(number, ip)).copied());
            let Some(client) = own else { continue };
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                let delivered = self.clients[client].relay.handle_datagram(Instant::now(), datagram);
                if let Some(Delivered { from, packet_at }) = delivered {
                    arrived(Arrived { client, from, packet: &datagram[packet_at..] });
                }
            }
            self.see_to(client)?;
        }
        self.memory = memory;
        Ok(())
    }

    /// Sends what a client says, notes what happened to it, and when it wants to be woken.
    fn see_to(&mut self, number: usize) -> Result<()> {
        while let Some(datagram) = self.clients[number].relay.poll_transmit() {
            self.send(number, &datagram)?;
        }
        let client = &mut self.clients[number];
        while let Some(event) = client.relay.poll_event() {
            match event {
                RelayEvent::Ready { .. } if !client.is_bound => {
                    client.is_bound = true;
                    self.bound.push(Instant::now());
                }
                RelayEvent::Refused(reason) => {
                    return Err(Error::from(format!("the relay refuses client {number}: {reason}")));
                }
                RelayEvent::Ready { .. }
                | RelayEvent::Lost
                | RelayEvent::Silent
                | RelayEvent::Draining { .. }
                | RelayEvent::Others => {}
            }
        }
        let wanted = client.relay.poll_timeout();
        if let Some(at) = wanted.filter(|at| client.due != Some(*at)) {
            client.due = Some(at);
            self.due.push(Reverse((at, number)));
        }
        Ok(())
    }
}
