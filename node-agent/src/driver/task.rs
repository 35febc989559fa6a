//! The driver's loop.
//!
//! Each turn takes from one source and sends for a while. None of them can keep the others waiting: UDP lets another one go first
//! after each of its turns, what is due is looked at in every turn, and sending ends after some batches, so that the programs'
//! streams, which run beside this task, read and write meanwhile.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use peerage_engine::node::{Event, StreamKey, Transmit};
use peerage_engine::path::Link;
use peerage_model::relay::RelayInfo;
use peerage_model::stream::StreamStatus;
use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep_until};
use tracing::debug;

use super::event::DriverEvent;
use super::network::{Change, NetworkWatch};
use super::relay_stream::{RelayStreams, Report};
use super::shared::{Shared, now};
use super::socket::{Received, Sockets};
use super::untold::Untold;
use super::{addresses, stream};
use crate::portmap::PortMapper;
use crate::tunnel::Incoming;

/// Receive calls before sending gets its turn, so that acknowledgements are not held up by a flood.
const RECEIVES_A_TURN: usize = 8;
/// Batches sent before the others have their turn: with the largest ones some 2 MB, or a millisecond.
const SENDS_A_TURN: usize = 32;
/// How long the goodbyes may take.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Task {
    shared: Arc<Shared>,
    sockets: Sockets,
    streams: RelayStreams,
    events: mpsc::Sender<DriverEvent>,
    untold: Untold,
    incoming: mpsc::Sender<Incoming>,
    stopping: watch::Receiver<bool>,
    resolved: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    /// A batch that the socket had no room for.
    unsent: Option<Transmit>,
    buffer: Vec<u8>,
    received: Vec<Received>,
    mapper: Option<PortMapper>,
    /// Ends at the node's next deadline or before: one that is put off is not worth moving it, since most are, packet by packet.
    timer: Pin<Box<Sleep>>,
    /// There was no address at the last look: whatever comes is another network.
    offline: bool,
}

type Resolved = (RelayInfo, Vec<SocketAddr>);

/// Why the loop woke up.
enum Wake {
    Received,
    Writable,
    Nudged,
    Timeout,
    Resolved(Resolved),
    Network(Change),
    Stream(Report),
    Stop,
}

/// What a turn of sending left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing, or what the socket has no room for.
    Nothing,
    /// There may be more.
    More,
}

impl Task {
    pub(super) fn new(
        shared: Arc<Shared>,
        sockets: Sockets,
        streams: RelayStreams,
        events: mpsc::Sender<DriverEvent>,
        incoming: mpsc::Sender<Incoming>,
        stopping: watch::Receiver<bool>,
        mapper: Option<PortMapper>,
    ) -> Self {
        let resolved = mpsc::channel(16);
        let (unsent, buffer, received) = (None, Vec::new(), Vec::new());
        Self {
            shared,
            sockets,
            streams,
            events,
            untold: Untold::default(),
            incoming,
            stopping,
            resolved,
            unsent,
            buffer,
            received,
            mapper,
            timer: Box::pin(sleep_until(far().into())),
            offline: false,
        }
    }

    /// Runs until told to stop.
    pub(super) async fn run(mut self) {
        let mut network = NetworkWatch::new();
        let mut others_first = false;
        loop {
            let left = self.drain();
            let deadline = self.shared.lock().node.poll_timeout();
            let wake = self.wait(deadline, left, others_first, &mut network).await;
            others_first = matches!(wake, Wake::Received);
            match wake {
                Wake::Received => self.take_received(),
                Wake::Writable | Wake::Nudged | Wake::Timeout => {}
                Wake::Resolved((relay, found)) => self.shared.lock().node.relay_resolved(now(), &relay, &found),
                Wake::Network(change) => self.look_at_network(change),
                Wake::Stream(report) => self.take_report(report),
                Wake::Stop => break,
            }
            self.send_unsent();
            if deadline.is_some_and(|at| at <= Instant::now()) {
                self.shared.lock().node.handle_timeout(now());
            }
        }
        self.say_goodbye().await;
        if let Some(mapper) = self.mapper.take() {
            mapper.stop().await;
        }
    }

    async fn wait(
        &mut self,
        deadline: Option<Instant>,
        left: Left,
        others_first: bool,
        network: &mut NetworkWatch,
    ) -> Wake {
        set(self.timer.as_mut(), deadline);
        let Self { shared, sockets, streams, received, unsent, stopping, resolved, events, untold, timer, .. } = self;
        let io = poll_fn(|cx| poll_io(cx, sockets, received, unsent.as_ref(), timer.as_mut()));
        // The rarest first: what comes all the time must not hide it.
        let others = async {
            tokio::select! {
                biased;
                Some(found) = resolved.1.recv() => Wake::Resolved(found),
                change = network.changed() => Wake::Network(change),
                report = streams.report() => Wake::Stream(report),
                // There is room for another word, or nobody to hear it.
                _ = events.reserve(), if !untold.is_empty() => Wake::Nudged,
                () = shared.nudge.notified() => Wake::Nudged,
                // Not at once: the programs' streams have their turn first.
                () = yield_now(), if left == Left::More => Wake::Nudged,
            }
        };
        tokio::pin!(others);
        let stop = stopping.wait_for(|stop| *stop);
        match others_first {
            true => tokio::select! { biased; _ = stop => Wake::Stop, wake = others => wake, wake = io => wake },
            false => tokio::select! { biased; _ = stop => Wake::Stop, wake = io => wake, wake = others => wake },
        }
    }

    /// Sends and tells, until the node is quiet, the socket is full or the turn is over.
    fn drain(&mut self) -> Left {
        let mut turn = SENDS_A_TURN;
        // What is told may be answered at once (sockets that were wished for are open), and give more to send.
        while self.tell() | self.send_all(&mut turn) && self.unsent.is_none() && turn > 0 {}
        self.tell_daemon();
        if turn == 0 && self.unsent.is_none() { Left::More } else { Left::Nothing }
    }

    /// Tells the daemon as much as it takes.
    fn tell_daemon(&mut self) {
        while !self.untold.is_empty() {
            match self.events.try_reserve() {
                Ok(room) => {
                    if let Some(event) = self.untold.pop() {
                        room.send(event);
                    }
                }
                Err(mpsc::error::TrySendError::Full(())) => return,
                // Nobody listens any more while shutting down.
                Err(mpsc::error::TrySendError::Closed(())) => self.untold = Untold::default(),
            }
        }
    }

    /// Sends what there is, until the socket is full or so many batches went. Returns whether there was anything.
    fn send_all(&mut self, turn: &mut usize) -> bool {
        let mut any = false;
        while self.unsent.is_none() && *turn > 0 {
            let transmit = self.shared.lock().node.poll_transmit(now(), self.sockets.max_datagrams(), &mut self.buffer);
            let Some(transmit) = transmit else { break };
            any = true;
            *turn -= 1;
            self.unsent = Some(transmit);
            self.send_unsent();
        }
        any
    }

    fn send_unsent(&mut self) {
        let Some(transmit) = self.unsent.take() else { return };
        if let Link::RelayStream(stream) = transmit.link {
            self.streams.send(stream, &self.buffer[..transmit.size], transmit.segment_size);
            return;
        }
        let datagrams = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &self.buffer[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: None,
        };
        let sent = match transmit.hop_limit {
            None => self.sockets.try_send(transmit.link, &datagrams),
            Some(hops) => self.sockets.try_send_near(transmit.link, &datagrams, hops),
        };
        if sent.is_err() {
            self.unsent = Some(transmit);
        }
    }

    fn take_received(&mut self) {
        let mut inner = self.shared.lock();
        for batch in self.received.drain(..) {
            let ecn = batch.ecn.and_then(|ecn| peerage_engine::EcnCodepoint::from_bits(ecn as u8));
            inner.node.handle_datagrams(now(), batch.link, batch.from, ecn, batch.pieces, batch.stride);
        }
    }

    fn take_report(&mut self, report: Report) {
        let mut inner = self.shared.lock();
        match report {
            Report::Opened(stream) => inner.node.relay_stream_opened(now(), stream),
            Report::Frames(stream, frames) => inner.node.handle_relay_frames(now(), stream, frames),
            Report::Closed(stream, why) => {
                self.streams.close(stream);
                inner.node.relay_stream_closed(now(), stream, why);
            }
        }
    }

    /// Deals with the node's events. Returns whether there were any.
    fn tell(&mut self) -> bool {
        let mut inner = self.shared.lock();
        let mut any = false;
        while let Some(event) = inner.node.poll_event() {
            any = true;
            match event {
                Event::Readable(key) | Event::PacketReadable(key) => {
                    if let Some(waker) = inner.wakers.get_mut(&key).and_then(|w| w.read.take()) {
                        waker.wake();
                    }
                }
                Event::Writable(key) => {
                    if let Some(waker) = inner.wakers.get_mut(&key).and_then(|w| w.write.take()) {
                        waker.wake();
                    }
                }
                Event::Asked { ask, result } => {
                    if let Some(receipt) = inner.asking.remove(&ask) {
                        // Whoever asked may have gone away.
                        let _ = receipt.send(result);
                    }
                }
                Event::LookedUp { errand, found } => {
                    if let Some(waiting) = inner.looking.remove(&errand) {
                        let _ = waiting.send(found);
                    }
                }
                Event::MailPosted { errand, at } => {
                    if let Some(waiting) = inner.posting.remove(&errand) {
                        let _ = waiting.send(at);
                    }
                }
                Event::OpenRelayStream { stream, relay } => self.streams.open(stream, relay),
                Event::CloseRelayStream { stream } => self.streams.close(stream),
                Event::Resolve { relay } => resolve(relay, self.resolved.0.clone()),
                Event::OpenSockets { sockets } => {
                    let opened = self.sockets.open_extra(&sockets);
                    inner.node.sockets_opened(now(), &opened);
                }
                Event::CloseSockets { sockets } => self.sockets.close_extra(&sockets),
                Event::Incoming { stream, peer, header } => {
                    let incoming = offer(&self.shared, stream, peer, header);
                    if let Err(refused) = self.incoming.try_send(incoming) {
                        // Answered below, by the node itself: the lock is ours here.
                        drop(refused);
                        if inner.node.answer(stream, StreamStatus::Busy).is_err() {
                            inner.node.release(stream);
                        }
                    }
                }
                other => {
                    if let Some(event) = DriverEvent::from_engine(other) {
                        self.untold.push(event);
                    }
                }
            }
        }
        any
    }

    fn look_at_network(&mut self, change: Change) {
        let mut inner = self.shared.lock();
        let mut moved = change != Change::Perhaps;
        match addresses::local(&self.sockets) {
            Ok(addresses) => {
                moved |= self.offline && !addresses.is_empty();
                self.offline = addresses.is_empty();
                inner.node.set_local_addresses(now(), addresses);
            }
            // Not knowing is no reason to withdraw what peers were told.
            Err(error) => debug!(%error, "the host's addresses cannot be read"),
        }
        if moved {
            inner.node.network_changed(now());
        }
        drop(inner);
        if let Some(mapper) = &self.mapper {
            mapper.network_changed(moved);
        }
    }

    async fn say_goodbye(&mut self) {
        self.shared.lock().node.shutdown(now());
        let last = tokio::time::timeout(LAST_WORDS, async {
            loop {
                let left = self.drain();
                let Some(unsent) = self.unsent else {
                    match left {
                        Left::More => continue,
                        Left::Nothing => break,
                    }
                };
                poll_fn(|cx| self.sockets.poll_writable(cx, unsent.link, &unsent.destination)).await;
                self.send_unsent();
            }
            self.streams.flushed().await;
        });
        if last.await.is_err() {
            debug!("not every peer could be told");
        }
    }
}

/// As good as never.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Makes `timer` end at `deadline`, or before.
fn set(timer: Pin<&mut Sleep>, deadline: Option<Instant>) {
    let at = deadline.unwrap_or_else(far).into();
    if timer.is_elapsed() || at < timer.deadline() {
        timer.reset(at);
    }
}

/// One step of the sockets: what came, what may go, or what is due.
fn poll_io(
    cx: &mut Context<'_>,
    sockets: &mut Sockets,
    received: &mut Vec<Received>,
    unsent: Option<&Transmit>,
    timer: Pin<&mut Sleep>,
) -> Poll<Wake> {
    for _ in 0..RECEIVES_A_TURN {
        if sockets.poll_receive(cx, received).is_pending() {
            break;
        }
    }
    if !received.is_empty() {
        return Poll::Ready(Wake::Received);
    }
    if let Some(unsent) = unsent
        && sockets.poll_writable(cx, unsent.link, &unsent.destination).is_ready()
    {
        return Poll::Ready(Wake::Writable);
    }
    timer.poll(cx).map(|()| Wake::Timeout)
}

/// A stream that a peer opened, to be answered by whoever serves it.
fn offer(
    shared: &Arc<Shared>,
    key: StreamKey,
    peer: peerage_model::AgentId,
    header: peerage_model::stream::StreamHeader,
) -> Incoming {
    let shared = shared.clone();
    let opener = peer.clone();
    Incoming::new(peer, header, move |status| {
        // A stream that died meanwhile shows it at the first read.
        let _ = shared.with_node(|node| node.answer(key, status));
        stream::opened(&shared, key, opener, header)
    })
}

/// Looks a name up once; the node asks again if it still needs it.
fn resolve(relay: RelayInfo, found: mpsc::Sender<Resolved>) {
    tokio::spawn(async move {
        let addresses = match tokio::net::lookup_host((relay.host.as_str(), relay.port)).await {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                debug!(%error, "a relay's host name cannot be looked up");
                Vec::new()
            }
        };
        // The driver may have stopped.
        let _ = found.send((relay, addresses)).await;
    });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use peerage_engine::node::{Algorithm, Node, NodeConfig};
    use peerage_model::{AgreementSecret, Authority, Credential, UnixTime};
    use zeroize::Zeroizing;

    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// The task of an agent that knows nobody, and what would stop it.
    fn task() -> (Task, watch::Sender<bool>) {
        let authority = Authority::new(&Zeroizing::new([1; 96]), now().wall);
        let agent = authority.agent("alone".parse().expect("a name"));
        let instance = AgreementSecret::from_bytes([2; 32]);
        let passport = authority.issue(&agent, instance.public(), UnixTime(0), UnixTime(1));
        let credential = Credential::join(authority.record(), passport);
        let config = NodeConfig {
            agent,
            instance,
            credential,
            fixed: Vec::new(),
            memory: 0,
            congestion: Algorithm::default(),
            seed: [3; 32],
        };
        let shared = Arc::new(Shared::new(Node::new(config, now()).expect("a credential")));
        let sockets = Sockets::bind(&[LOOPBACK]).expect("loopback can be bound");
        let streams = RelayStreams::new(Default::default()).expect("TLS can be set up");
        let (stop, stopping) = watch::channel(false);
        let task = Task::new(shared, sockets, streams, mpsc::channel(1).0, mpsc::channel(1).0, stopping, None);
        (task, stop)
    }

    /// Fills the socket with more than the test takes, and waits until the runtime knows.
    async fn flood(task: &mut Task) {
        let to = SocketAddr::new(LOOPBACK.ip(), task.sockets.port_v4().expect("it is bound").get());
        let sender = std::net::UdpSocket::bind(LOOPBACK).expect("loopback can be bound");
        for _ in 0..500 {
            sender.send_to(&[255], to).expect("loopback takes it");
        }
        poll_fn(|cx| task.sockets.poll_receive(cx, &mut task.received)).await;
    }

    #[tokio::test]
    async fn a_flood_of_datagrams_leaves_every_second_turn_to_the_others() {
        let (mut task, _stop) = task();
        let mut network = NetworkWatch::new();
        flood(&mut task).await;
        for _ in 0..3 {
            task.shared.nudge.notify_one();
            let first = task.wait(None, Left::Nothing, false, &mut network).await;
            assert!(matches!(first, Wake::Received), "the sockets are full");
            task.received.clear();
            let second = task.wait(None, Left::Nothing, true, &mut network).await;
            assert!(matches!(second, Wake::Nudged | Wake::Network(_)));
        }
    }

    #[tokio::test]
    async fn what_is_left_to_send_waits_until_other_tasks_have_run() {
        let (mut task, _stop) = task();
        let mut network = NetworkWatch::new();
        let ran = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let other = tokio::spawn({
            let ran = Arc::clone(&ran);
            async move { ran.store(true, std::sync::atomic::Ordering::Relaxed) }
        });
        let wake = task.wait(None, Left::More, false, &mut network).await;
        assert!(matches!(wake, Wake::Nudged | Wake::Network(_)));
        assert!(ran.load(std::sync::atomic::Ordering::Relaxed));
        other.await.expect("it ran");
    }

    #[tokio::test]
    async fn the_timer_ends_no_later_than_the_deadline_however_that_moves() {
        let start = Instant::now();
        let [soon, later, last] = [1, 1_000_000, 2_000_000].map(|ms| Some(start + Duration::from_millis(ms)));
        let mut timer = Box::pin(sleep_until(far().into()));
        set(timer.as_mut(), soon);
        set(timer.as_mut(), last);
        assert_eq!(Some(timer.deadline().into_std()), soon, "put off, it is left where it is");
        timer.as_mut().await;
        set(timer.as_mut(), last);
        assert_eq!(Some(timer.deadline().into_std()), last);
        set(timer.as_mut(), later);
        assert_eq!(Some(timer.deadline().into_std()), later);
    }
}
