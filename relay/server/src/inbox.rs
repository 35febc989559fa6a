//! Memory for what a worker has received: a place for each datagram, or batch of them that the kernel has joined.
//!
//! There are more places than one look at the socket fills, for what waits while the worker is behind. Those beyond are touched only then.

use std::io::{self, IoSliceMut};

use quinn_udp::{BATCH_SIZE, RecvMeta};

use crate::socket::BatchSocket;

/// The most that GRO joins.
pub(crate) const BUFFER: usize = 65_536;
/// From one place to the next: at multiples of 64 KiB, the beginnings of all would share the same few lines of the processor's caches.
pub(crate) const STRIDE: usize = BUFFER + 21 * 64;
/// 32 MiB of addresses, of which single packets touch 512 × 4 KiB.
const SLOTS: usize = 16 * BATCH_SIZE;
/// With so many bytes there is no room for more: 6 MiB with the last look's. What waits for longer has left the processor's caches.
const FULL: usize = 4 << 20;

/// Numbered places.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// All places, one behind the other.
    pub(crate) memory: Vec<u8>,
    meta: Vec<RecvMeta>,
    is_free: Vec<bool>,
    free: usize,
    /// Bytes in all places that are not.
    held: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            memory: vec![0; SLOTS * STRIDE],
            meta: vec![RecvMeta::default(); SLOTS],
            is_free: vec![true; SLOTS],
            free: SLOTS,
            held: 0,
        }
    }

    /// Whether the next look finds a place for all that it may bring.
    pub(crate) fn has_room(&self) -> bool {
        self.free >= BATCH_SIZE && self.held < FULL
    }

    /// Waits for datagrams; `arrived` is told their places, in the order in which they came.
    pub(crate) async fn wait(&mut self, socket: &BatchSocket, arrived: &mut Vec<usize>) -> io::Result<()> {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let (mut slices, slots) = self.places();
        let received = socket.recv(&mut slices, &mut meta).await?;
        self.take(&slots[..received], &meta, arrived);
        Ok(())
    }

    /// The same for what is there already.
    pub(crate) fn look(&mut self, socket: &BatchSocket, arrived: &mut Vec<usize>) -> io::Result<()> {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let (mut slices, slots) = self.places();
        let received = socket.recv_now(&mut slices, &mut meta)?;
        self.take(&slots[..received], &meta, arrived);
        Ok(())
    }

    /// What is in a place.
    pub(crate) fn get(&mut self, slot: usize) -> (&mut [u8], RecvMeta) {
        let meta = self.meta[slot];
        (&mut self.memory[slot * STRIDE..][..meta.len], meta)
    }

    /// Who sent what is in a place, and how many datagrams it is.
    pub(crate) fn meta(&self, slot: usize) -> &RecvMeta {
        &self.meta[slot]
    }

    /// It is dealt with.
    pub(crate) fn release(&mut self, slot: usize) {
        self.is_free[slot] = true;
        self.free += 1;
        self.held -= self.meta[slot].len;
    }

    fn places(&mut self) -> ([IoSliceMut<'_>; BATCH_SIZE], [usize; BATCH_SIZE]) {
        let mut slots = [0; BATCH_SIZE];
        let places = self.memory.chunks_exact_mut(STRIDE).zip(&self.is_free).enumerate();
        let mut free = places.filter(|(_, (_, is_free))| **is_free);
        let slices = std::array::from_fn(|number| {
            let (slot, (place, _)) = free.next().expect("who looks has made room");
            slots[number] = slot;
            IoSliceMut::new(&mut place[..BUFFER])
        });
        (slices, slots)
    }

    fn take(&mut self, slots: &[usize], meta: &[RecvMeta], arrived: &mut Vec<usize>) {
        arrived.extend_from_slice(slots);
        for (slot, meta) in slots.iter().zip(meta) {
            self.meta[*slot] = *meta;
            self.is_free[*slot] = false;
            self.held += meta.len;
        }
        self.free -= slots.len();
    }
}
