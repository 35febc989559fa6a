//! A packet socket's receive ring: memory shared with the kernel, where frames lie until they are released.
//!
//! A socket's queue is bounded by net.core.rmem_max, which by default holds three full batches and which only real
//! root may exceed; a ring is bounded by what its maker asks for. It also saves the copy: a frame is rewritten and sent
//! on from where the kernel put it.
#![expect(unsafe_code, reason = "memory shared with the kernel; every block says why it is sound")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::packet::VNET_BYTES;

/// A frame's place: the kernel's header, then the largest batch (64 KiB) with its own headers. A multiple of 16, as the
/// kernel wants it.
const SLOT_BYTES: usize = 68 << 10;
/// A power of two, hence whole pages everywhere; what is left over in a block stays unused.
const BLOCK_BYTES: usize = 1 << 20;
const SLOTS_PER_BLOCK: usize = BLOCK_BYTES / SLOT_BYTES;
/// 480 frames: as many full batches are 5 ms at 50 Gb/s.
const BLOCKS: usize = 32;
const SLOTS: usize = SLOTS_PER_BLOCK * BLOCKS;

/// The ring of one socket. It outlives the socket's descriptor.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: NonNull<u8>,
    /// The slot that the kernel fills next, or has filled already.
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and is as valid on one thread as on another.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives a ring to a packet socket that is not bound yet and wants virtio-net headers.
    pub(crate) fn new(socket: &OwnedFd) -> io::Result<Self> {
        set_option(socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: SLOT_BYTES as u32,
            tp_frame_nr: SLOTS as u32,
        };
        set_option(socket, libc::PACKET_RX_RING, &request)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), RING_BYTES, access, libc::MAP_SHARED, socket.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, next: 0 })
    }

    /// The frames that have arrived, oldest first, at most `limit`. They stay until they are released.
    pub(crate) fn ready(&mut self, limit: usize) -> Vec<&mut [u8]> {
        let mut frames = Vec::with_capacity(limit);
        // Distinct slots, so that no two of the slices overlap.
        for n in 0..limit.min(SLOTS) {
            let slot = self.slot(self.next + n);
            // SAFETY: every slot begins with an aligned status word, which both sides access atomically.
            let status = unsafe { AtomicU32::from_ptr(slot.cast().as_ptr()) }.load(Ordering::Acquire);
            if status & libc::TP_STATUS_USER == 0 {
                break;
            }
            // SAFETY: the status says that the slot is ours and its header written.
            let header = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
            let start = usize::from(header.tp_mac).saturating_sub(VNET_BYTES);
            let length = (VNET_BYTES + header.tp_snaplen as usize).min(SLOT_BYTES.saturating_sub(start));
            // SAFETY: the range lies within the slot, which the kernel leaves alone until its status is handed back; that
            // takes `&mut self`, so the slice is gone by then.
            frames.push(unsafe { std::slice::from_raw_parts_mut(slot.add(start.min(SLOT_BYTES)).as_ptr(), length) });
        }
        frames
    }

    /// Hands the oldest `count` slots back to the kernel; they must have been ready.
    pub(crate) fn release(&mut self, count: usize) {
        for n in 0..count {
            let slot = self.slot(self.next + n);
            // SAFETY: as in `ready`.
            unsafe { AtomicU32::from_ptr(slot.cast().as_ptr()) }.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
        self.next = (self.next + count) % SLOTS;
    }

    fn slot(&self, number: usize) -> NonNull<u8> {
        let number = number % SLOTS;
        let offset = number / SLOTS_PER_BLOCK * BLOCK_BYTES + number % SLOTS_PER_BLOCK * SLOT_BYTES;
        // SAFETY: a slot's number is below SLOTS, so the offset lies within the mapping.
        unsafe { self.memory.add(offset) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping that `new` made, and no slice of it outlives this value.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), RING_BYTES) };
    }
}

const RING_BYTES: usize = BLOCKS * BLOCK_BYTES;

/// Sets an option of the packet level to a plain value.
pub(crate) fn set_option<T: Copy>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, name, std::ptr::from_ref(value).cast(), length)
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
