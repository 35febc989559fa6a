//! Randomness from the operating system.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `bytes`.
///
/// # Errors
/// When the operating system has none.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(())
}
