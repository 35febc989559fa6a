//! The smallest driver that is not unfair: one socket, one endpoint, one loop; batches in, segments out.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{Connection, ConnectionHandle, DatagramEvent, Endpoint, Event};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::flavor::Flavor;

/// Segments in one send; more than 40 brought nothing.
const SEGMENTS: usize = 40;
const BATCH: usize = 8;
const BUFFER: usize = 65_536;
/// Loopback drops what a socket's buffer cannot hold; the kernel's own limit applies.
const SOCKET_BUFFER: usize = 8 << 20;

/// One end, with its socket.
#[derive(Debug)]
pub struct Peer<'a> {
    flavor: &'a Flavor,
    endpoint: Endpoint,
    connections: BTreeMap<usize, Connection>,
    /// What the connections told.
    pub events: Vec<Event>,
    socket: UdpSocket,
    state: UdpSocketState,
    received: Vec<u8>,
    out: Vec<u8>,
    segments: usize,
}

impl<'a> Peer<'a> {
    /// Binds `at`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(flavor: &'a Flavor, at: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(at)?;
        let state = UdpSocketState::new((&socket).into())?;
        state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER)?;
        state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER)?;
        Ok(Self {
            flavor,
            endpoint: flavor.endpoint(),
            connections: BTreeMap::new(),
            events: Vec::new(),
            segments: state.max_gso_segments().min(SEGMENTS),
            socket,
            state,
            received: vec![0; BATCH * BUFFER],
            out: Vec::with_capacity(BUFFER),
        })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Starts a connection.
    ///
    /// # Panics
    /// When `to` cannot be dialled, such as port zero.
    pub fn dial(&mut self, to: SocketAddr) -> usize {
        let config = self.flavor.dial();
        let dialed = self.endpoint.connect(Instant::now(), config, to, "server");
        let (handle, connection) = dialed.expect("a valid dial");
        self.connections.insert(handle.0, connection);
        handle.0
    }

    /// Receives once, fires timers, lets `app` work, sends all; waits for the socket where there was nothing to do.
    ///
    /// # Errors
    /// The socket's.
    pub fn turn(&mut self, mut app: impl FnMut(&mut Connection)) -> io::Result<()> {
        let received = self.receive()?;
        let now = Instant::now();
        let mut sent = false;
        let handles: Vec<usize> = self.connections.keys().copied().collect();
        for handle in handles {
            self.service(handle, now);
            if let Some(connection) = self.connections.get_mut(&handle) {
                app(connection);
                sent |= self.transmit(handle, now)?;
            }
        }
        if received || sent { Ok(()) } else { self.wait() }
    }

    fn receive(&mut self) -> io::Result<bool> {
        let mut meta = [RecvMeta::default(); BATCH];
        let mut received = std::mem::take(&mut self.received);
        let count = {
            let mut slices: Vec<IoSliceMut<'_>> = received.chunks_mut(BUFFER).map(IoSliceMut::new).collect();
            match self.state.recv((&self.socket).into(), &mut slices, &mut meta) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            }
        };
        let now = Instant::now();
        for (buffer, meta) in received.chunks(BUFFER).zip(&meta[..count]) {
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                self.handle(now, meta.addr, datagram);
            }
        }
        self.received = received;
        Ok(count > 0)
    }

    fn handle(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let event = self.endpoint.handle(now, from, None, None, BytesMut::from(datagram), &mut Vec::new());
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(connection) = self.connections.get_mut(&handle.0) {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                if let Some((handle, connection)) = self.flavor.accept(&mut self.endpoint, incoming, now) {
                    self.connections.insert(handle.0, connection);
                }
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn service(&mut self, handle: usize, now: Instant) {
        let Some(connection) = self.connections.get_mut(&handle) else {
            return;
        };
        if connection.poll_timeout().is_some_and(|at| at <= now) {
            connection.handle_timeout(now);
        }
        let mut drained = false;
        while let Some(event) = connection.poll_endpoint_events() {
            drained |= event.is_drained();
            if let Some(event) = self.endpoint.handle_event(ConnectionHandle(handle), event) {
                connection.handle_event(event);
            }
        }
        self.events.extend(std::iter::from_fn(|| connection.poll()));
        if drained {
            self.connections.remove(&handle);
        }
    }

    fn transmit(&mut self, handle: usize, now: Instant) -> io::Result<bool> {
        let Some(connection) = self.connections.get_mut(&handle) else {
            return Ok(false);
        };
        // A few batches, then acknowledgements must be looked at.
        for sent in 0..4 {
            self.out.clear();
            let Some(transmit) = connection.poll_transmit(now, self.segments, &mut self.out) else {
                return Ok(sent > 0);
            };
            let transmit = Transmit {
                destination: transmit.destination,
                ecn: None,
                contents: &self.out[..transmit.size],
                segment_size: transmit.segment_size,
                src_ip: None,
            };
            while let Err(error) = self.state.try_send((&self.socket).into(), &transmit) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                }
                poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], None)?;
            }
        }
        Ok(true)
    }

    fn wait(&mut self) -> io::Result<()> {
        let next = self.connections.values_mut().filter_map(Connection::poll_timeout).min();
        // Also wakes up without a timer, so that another thread's wish to end is seen.
        let longest = Duration::from_millis(20);
        let wait = next.map_or(longest, |at| at.saturating_duration_since(Instant::now()).min(longest));
        let wait = Timespec::try_from(wait).expect("at most 20 ms");
        poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait))?;
        Ok(())
    }
}
