//! Streams to relays, for networks that let no UDP out: TCP, perhaps through an HTTP proxy, TLS 1.3, and the proof that the
//! other end is the relay (docs/spec/relay.md section 10).
//!
//! The engine says when a stream is to be opened or closed. Each has a task of its own; the driver never waits for one.
//! What goes out waits in a queue that drops its oldest packets, what comes in holds the stream up while the driver is
//! busy, and the relay's queue then drops.

mod connect;
mod proxy;
mod queue;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use peerage_engine::path::RelayStream;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::stream::{NoFrame, PREFIX, frame_len};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::proxy::ProxySettings;
use self::queue::Queue;

/// How long it may take until the relay has proven itself: several round trips, and a proxy's own connection.
const OPENING: Duration = Duration::from_secs(15);
/// Reads that the driver has not taken yet, over all streams; each is at most [`READ`] bytes.
const REPORTS: usize = 32;
/// What one read takes: a TLS record (RFC 8446 section 5.1).
const READ: usize = 16 << 10;
/// What one write gives.
const WRITE: usize = 16 << 10;

/// What happened on a stream.
#[derive(Debug)]
pub(super) enum Report {
    /// Frames may be sent.
    Opened(RelayStream),
    /// Frames came.
    Frames(RelayStream, Vec<BytesMut>),
    /// It could not be opened, or ended.
    Closed(RelayStream, String),
}

/// All streams of a driver.
pub(super) struct RelayStreams {
    open: BTreeMap<RelayStream, Open>,
    tls: Arc<ClientConfig>,
    proxy: Arc<ProxySettings>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
}

struct Open {
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RelayStreams {
    /// None yet.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(super) fn new(proxy: ProxySettings) -> io::Result<Self> {
        let tls = peerage_tls::client().map_err(io::Error::other)?;
        Ok(Self { open: BTreeMap::new(), tls, proxy: Arc::new(proxy), reports: mpsc::channel(REPORTS) })
    }

    /// Begins to open a stream.
    pub(super) fn open(&mut self, stream: RelayStream, relay: RelayInfo) {
        let queue = Arc::new(Queue::default());
        let work = Work {
            stream,
            relay,
            tls: Arc::clone(&self.tls),
            proxy: Arc::clone(&self.proxy),
            queue: Arc::clone(&queue),
            reports: self.reports.0.clone(),
        };
        self.open.insert(stream, Open { queue, task: tokio::spawn(work.run()) });
    }

    /// Ends a stream; what waits for it is gone.
    pub(super) fn close(&mut self, stream: RelayStream) {
        self.open.remove(&stream);
    }

    /// Queues frames of `segment` bytes each (the last may be shorter). A stream that is gone takes nothing.
    pub(super) fn send(&self, stream: RelayStream, frames: &[u8], segment: Option<usize>) {
        if let Some(open) = self.open.get(&stream) {
            open.queue.push(frames, segment.unwrap_or(frames.len()));
        }
    }

    /// The next report.
    pub(super) async fn report(&mut self) -> Report {
        loop {
            // The sender half is ours, so there is no end.
            if let Some(report) = self.reports.1.recv().await {
                return report;
            }
        }
    }

    /// Waits until all that was queued is written.
    pub(super) async fn flushed(&self) {
        for open in self.open.values() {
            open.queue.empty().await;
        }
    }
}

/// One stream's task.
struct Work {
    stream: RelayStream,
    relay: RelayInfo,
    tls: Arc<ClientConfig>,
    proxy: Arc<ProxySettings>,
    queue: Arc<Queue>,
    reports: mpsc::Sender<Report>,
}

impl Work {
    async fn run(self) {
        let why = match self.live().await {
            Ok(()) => "the relay closed the stream".to_owned(),
            Err(why) => why,
        };
        tracing::debug!(stream = ?self.stream, why, "relay stream");
        self.report(Report::Closed(self.stream, why)).await;
    }

    async fn live(&self) -> Result<(), String> {
        let connecting = timeout(OPENING, connect::connect(&self.relay, &self.proxy, &self.tls));
        let unproven = connecting.await.map_err(|_| "nothing answered in time".to_owned())?.map_err(|e| words(&e))?;
        // Frames may follow at once; nothing that comes in is believed before the proof.
        self.report(Report::Opened(self.stream)).await;
        let (reader, mut writer) = tokio::io::split(unproven.tls);
        let receiving = async {
            let mut reader = reader;
            let mut received = BytesMut::new();
            let proof = timeout(OPENING, next_frame(&mut reader, &mut received)).await;
            let frame = proof.map_err(|_| "the relay proved nothing in time".to_owned())?.map_err(|e| words(&e))?;
            unproven.question.check(&frame, &self.relay).map_err(|e| words(&e))?;
            self.receive(reader, received).await.map_err(|e| words(&e))
        };
        tokio::select! {
            ended = receiving => ended,
            ended = send(&mut writer, &self.queue) => ended.map_err(|e| words(&e)),
        }
    }

    async fn receive(&self, mut reader: impl AsyncRead + Unpin, mut received: BytesMut) -> io::Result<()> {
        loop {
            let frames = whole_frames(&mut received).map_err(invalid)?;
            if !frames.is_empty() {
                self.report(Report::Frames(self.stream, frames)).await;
            }
            received.reserve(READ);
            if reader.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn report(&self, report: Report) {
        // The driver may have stopped.
        let _ = self.reports.send(report).await;
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), queue: &Queue) -> io::Result<()> {
    let mut record = Vec::with_capacity(WRITE);
    loop {
        queue.take(&mut record, WRITE).await;
        writer.write_all(&record).await?;
        writer.flush().await?;
        record.clear();
        queue.written();
    }
}

async fn next_frame(reader: &mut (impl AsyncRead + Unpin), received: &mut BytesMut) -> io::Result<BytesMut> {
    loop {
        if let Some(frame) = split_frame(received).map_err(invalid)? {
            return Ok(frame);
        }
        if reader.read_buf(received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn whole_frames(received: &mut BytesMut) -> Result<Vec<BytesMut>, NoFrame> {
    let mut frames = Vec::new();
    while let Some(frame) = split_frame(received)? {
        frames.push(frame);
    }
    Ok(frames)
}

fn split_frame(received: &mut BytesMut) -> Result<Option<BytesMut>, NoFrame> {
    match frame_len(received)? {
        Some(len) if received.len() >= PREFIX + len => Ok(Some(received.split_to(PREFIX + len).split_off(PREFIX))),
        Some(_) | None => Ok(None),
    }
}

fn invalid(error: NoFrame) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// An error with its causes, for a person.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Some libraries repeat the cause in the error's own words.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
