//! What waits to go into streams: a queue for each, which drops its oldest packets, and one budget for all.
//!
//! A tunnel's congestion control wants to see loss at once, not delay that grows for seconds. And a client that does not
//! read must cost nobody else anything: not the worker that forwards to it, which never waits here, and not the relay's
//! memory, which is bounded for all queues together.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use peerage_model::relay::stream::{PREFIX, prefix};
use peerage_relay_proto::StreamId;
use tokio::sync::Notify;

/// Most bytes in one queue: 20 ms at 100 Mb/s.
const QUEUE: usize = 256 << 10;
/// Most bytes in all queues together; beyond, each keeps [`FLOOR`].
const ALL_QUEUES: usize = 64 << 20;
/// What one queue may hold however full the others are.
const FLOOR: usize = 16 << 10;
/// What a frame costs besides its bytes: its place in the queue and in the allocator. Without it a flood of packets of one byte would
/// take fifty times what the limits say.
const OVERHEAD: usize = 48;

/// The streams that can be sent to.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: RwLock<HashMap<StreamId, Arc<Queue>>>,
    budget: Arc<Budget>,
}

/// Counts over all queues.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    waiting: AtomicUsize,
    dropped: AtomicU64,
}

/// What waits for one stream.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    budget: Arc<Budget>,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Streams {
    /// Makes a stream reachable until the guard is dropped.
    pub(crate) fn open(self: &Arc<Self>, id: StreamId) -> Opened {
        let queue = Arc::new(Queue::new(Arc::clone(&self.budget)));
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&queue));
        Opened { id, queue, streams: Arc::clone(self) }
    }

    /// Queues frames of `segment` bytes each (the last may be shorter) for a stream; one that is gone takes nothing.
    pub(crate) fn push(&self, id: StreamId, frames: &[u8], segment: usize) {
        let queue = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        if let Some(queue) = queue {
            queue.push(frames, segment);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Bytes that wait in all queues.
    pub(crate) fn waiting(&self) -> usize {
        self.budget.waiting.load(Ordering::Relaxed)
    }

    /// Packets that slow streams did not take.
    pub(crate) fn dropped(&self) -> u64 {
        self.budget.dropped.load(Ordering::Relaxed)
    }
}

/// A stream that can be sent to, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Opened {
    id: StreamId,
    pub(crate) queue: Arc<Queue>,
    streams: Arc<Streams>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.streams.open.write().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Queue {
    fn new(budget: Arc<Budget>) -> Self {
        Self { waiting: Mutex::default(), filled: Notify::new(), budget }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, frames: &[u8], segment: usize) {
        let mut waiting = self.waiting();
        for frame in frames.chunks(segment.max(1)) {
            waiting.frames.push_back(frame.into());
            waiting.bytes += cost(frame);
            let all = self.budget.waiting.fetch_add(cost(frame), Ordering::Relaxed) + cost(frame);
            let most = if all > ALL_QUEUES { FLOOR } else { QUEUE };
            while waiting.bytes > most
                && let Some(oldest) = waiting.pop()
            {
                self.budget.waiting.fetch_sub(cost(&oldest), Ordering::Relaxed);
                self.budget.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Moves the oldest frames, each behind its length, to the end of `out`, while they fit `most` bytes; at least one if
    /// there is one. Waits for the first.
    pub(crate) async fn take(&self, out: &mut Vec<u8>, most: usize) {
        while !self.take_now(out, most) {
            self.filled.notified().await;
        }
    }

    fn take_now(&self, out: &mut Vec<u8>, most: usize) -> bool {
        let mut waiting = self.waiting();
        let before = out.len();
        while let Some(next) = waiting.frames.front()
            && (out.len() == before || out.len() + PREFIX + next.len() <= before + most)
            && let Some(frame) = waiting.pop()
        {
            self.budget.waiting.fetch_sub(cost(&frame), Ordering::Relaxed);
            out.extend_from_slice(&prefix(frame.len()));
            out.extend_from_slice(&frame);
        }
        if waiting.frames.is_empty() {
            waiting.frames = VecDeque::new(); // an idle stream holds no memory here
        }
        out.len() > before
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Box<[u8]>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= cost(&frame);
        Some(frame)
    }
}

fn cost(frame: &[u8]) -> usize {
    frame.len() + OVERHEAD
}

impl Drop for Queue {
    fn drop(&mut self) {
        let left = self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner).bytes;
        self.budget.waiting.fetch_sub(left, Ordering::Relaxed);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.waiting();
        write!(f, "Queue({} frames, {} bytes)", waiting.frames.len(), waiting.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(1);

    fn frame(number: u16) -> Vec<u8> {
        let mut frame = vec![0; 1200];
        frame[..2].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn numbers(taken: &[u8]) -> Vec<u16> {
        let numbers = taken.chunks(PREFIX + 1200).map(|chunk| u16::from_be_bytes([chunk[2], chunk[3]]));
        numbers.collect()
    }

    #[test]
    fn a_full_queue_drops_its_oldest_packets_whole() {
        let streams = Arc::new(Streams::default());
        let opened = streams.open(STREAM);
        let fits = u16::try_from(QUEUE / cost(&frame(0))).expect("some hundred");
        for number in 0..fits + 10 {
            streams.push(STREAM, &frame(number), 1200);
        }
        let mut taken = Vec::new();
        assert!(opened.queue.take_now(&mut taken, usize::MAX / 2));
        assert_eq!(numbers(&taken), (10..fits + 10).collect::<Vec<_>>());
        assert_eq!((streams.dropped(), streams.waiting()), (10, 0));
    }

    #[test]
    fn frames_are_taken_whole_and_in_order() {
        let streams = Arc::new(Streams::default());
        let opened = streams.open(STREAM);
        streams.push(STREAM, &[frame(1), frame(2), frame(3)].concat(), 1200);
        let mut taken = Vec::new();
        assert!(opened.queue.take_now(&mut taken, 2 * (PREFIX + 1200) + 5));
        assert_eq!(numbers(&taken), [1, 2]);
        assert_eq!(taken[..PREFIX], 1200_u16.to_be_bytes());
        taken.clear();
        assert!(opened.queue.take_now(&mut taken, 10), "one goes out however long it is");
        assert_eq!(numbers(&taken), [3]);
        assert!(!opened.queue.take_now(&mut taken, 10));
    }

    #[test]
    fn when_all_queues_together_are_full_each_keeps_its_floor() {
        let streams = Arc::new(Streams::default());
        let count = u64::try_from(ALL_QUEUES / QUEUE).expect("a few hundred") + 2;
        let opened: Vec<_> = (0..count).map(|number| streams.open(StreamId(number))).collect();
        for stream in 0..count {
            for number in 0..220 {
                streams.push(StreamId(stream), &frame(number), 1200);
            }
        }
        assert!(streams.waiting() <= ALL_QUEUES + opened.len() * FLOOR, "{}", streams.waiting());
        let last = opened.last().expect("there are some");
        let mut taken = Vec::new();
        assert!(last.queue.take_now(&mut taken, usize::MAX / 2));
        assert_eq!(numbers(&taken).len(), FLOOR / cost(&frame(0)), "and no less");
    }

    #[test]
    fn a_flood_of_tiny_packets_takes_no_more_memory_than_the_limit_says() {
        let streams = Arc::new(Streams::default());
        let opened = streams.open(STREAM);
        streams.push(STREAM, &vec![7; QUEUE], 1);
        let held = opened.queue.waiting().frames.len() * (size_of::<Box<[u8]>>() + 32);
        assert!(held <= QUEUE, "{held} bytes, with the 32 of the smallest allocation");
    }

    #[test]
    fn what_waits_for_a_stream_that_ends_is_given_back() {
        let streams = Arc::new(Streams::default());
        let opened = streams.open(STREAM);
        streams.push(STREAM, &frame(1), 1200);
        assert_eq!((streams.waiting(), streams.count()), (cost(&frame(1)), 1));
        drop(opened);
        assert_eq!((streams.waiting(), streams.count()), (0, 0));
        streams.push(STREAM, &frame(2), 1200);
        assert_eq!(streams.waiting(), 0, "nobody is there");
    }
}
