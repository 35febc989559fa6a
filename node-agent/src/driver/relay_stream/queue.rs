//! What waits to go into one stream. When it is full the oldest packets are dropped, whole ones: the tunnel's congestion
//! control wants to see loss at once, not delay that grows for seconds.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use peerage_model::relay::stream::{PREFIX, prefix};
use tokio::sync::Notify;

/// Most bytes that wait: 20 ms at 100 Mb/s, as at the relay.
const MOST: usize = 256 << 10;
/// What a frame costs besides its bytes, as at the relay.
const OVERHEAD: usize = 48;

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Something was taken and is not written yet.
    writing: bool,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds frames of `segment` bytes each; the last may be shorter.
    pub(super) fn push(&self, frames: &[u8], segment: usize) {
        let mut waiting = self.waiting();
        for frame in frames.chunks(segment.max(1)) {
            waiting.frames.push_back(frame.into());
            waiting.bytes += frame.len() + OVERHEAD;
            while waiting.bytes > MOST && waiting.pop().is_some() {}
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Waits for frames and moves the oldest, each behind its length, to `out`, while they fit `most` bytes; at least one.
    pub(super) async fn take(&self, out: &mut Vec<u8>, most: usize) {
        while !self.take_now(out, most) {
            self.filled.notified().await;
        }
    }

    fn take_now(&self, out: &mut Vec<u8>, most: usize) -> bool {
        let mut waiting = self.waiting();
        while let Some(next) = waiting.frames.front()
            && (out.is_empty() || out.len() + PREFIX + next.len() <= most)
            && let Some(frame) = waiting.pop()
        {
            out.extend_from_slice(&prefix(frame.len()));
            out.extend_from_slice(&frame);
        }
        waiting.writing = !out.is_empty();
        waiting.writing
    }

    /// What was taken is written.
    pub(super) fn written(&self) {
        self.waiting().writing = false;
        self.emptied.notify_waiters();
    }

    /// Waits until nothing waits and all is written.
    pub(super) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn is_empty(&self) -> bool {
        let waiting = self.waiting();
        waiting.frames.is_empty() && !waiting.writing
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Box<[u8]>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len() + OVERHEAD;
        Some(frame)
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

    #[tokio::test]
    async fn a_full_queue_drops_its_oldest_packets_whole_and_keeps_the_order() {
        let queue = Queue::default();
        let count = MOST / (1000 + OVERHEAD) + 5;
        for number in 0..count {
            let mut frame = [0; 1000];
            frame[..8].copy_from_slice(&u64::try_from(number).expect("small").to_be_bytes());
            queue.push(&frame, 1000);
        }
        let mut out = Vec::new();
        queue.take(&mut out, usize::MAX).await;
        let read = |chunk: &[u8]| u64::from_be_bytes(chunk[2..10].try_into().expect("eight bytes"));
        let numbers: Vec<_> = out.chunks(1002).map(read).collect();
        let expected: Vec<_> = (5..u64::try_from(count).expect("small")).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn tiny_packets_take_no_more_memory_than_large_ones() {
        let queue = Queue::default();
        queue.push(&vec![7; MOST], 1);
        let held = queue.waiting().frames.len() * (size_of::<Box<[u8]>>() + 32);
        assert!(held <= MOST, "{held} bytes, with the 32 of the smallest allocation");
    }

    #[tokio::test]
    async fn a_queue_is_empty_when_what_was_taken_is_written() {
        let queue = Queue::default();
        queue.empty().await;
        queue.push(&[7; 100], 40);
        let mut out = Vec::new();
        queue.take(&mut out, 1 << 14).await;
        assert_eq!(out.len(), 100 + 3 * PREFIX);
        assert!(!queue.is_empty(), "it is on its way");
        queue.written();
        queue.empty().await;
    }
}
