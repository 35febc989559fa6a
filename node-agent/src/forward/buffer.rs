//! Large buffers that exist only while bytes are in them.
//!
//! A read borrows a buffer and, if nothing has come, gives it back before the task sleeps; so a thousand idle
//! connections hold none. A few are kept per thread, because a fresh one costs page faults for each use.

use std::cell::RefCell;

/// Bytes moved at a time; no UDP packet is larger. 64, 128 and 256 KiB moved 6.8, 6.9 and 7.2 Gb/s through both edges on
/// two busy cores (`throughput.rs` of the tests), which is noise, so the smallest.
pub const CHUNK: usize = 64 * 1024;
/// Buffers kept per thread: one being filled and one held back by a slow writer, in the usual case.
const KEPT: usize = 2;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`CHUNK`] bytes with any content; goes back to the thread it is dropped on.
#[derive(Debug)]
pub(super) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(super) fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()))
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // The thread may be ending and its spares gone; then the buffer is freed.
        let _kept = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < KEPT {
                spare.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_spares_are_kept() {
        let many: Vec<_> = (0..10).map(|_| Buffer::take()).collect();
        drop(many);
        assert_eq!(SPARE.with_borrow(Vec::len), KEPT);
    }
}
