//! Gives memory back that only starting, or a burst of work, needed.
//!
//! Most of what an idle agent has resident is its own program: the kernel maps 64 KiB around each page that runs once, and
//! starting runs through much of it. Pages of the program file that nothing wrote to can be dropped at any time: the next
//! use finds them in the page cache again, at the cost of a minor fault. Their sum was more than what the agent allocates.

use std::ffi::c_void;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::mm::{Advice, madvise};
use tokio::time::Instant;

/// How long nothing must have been open before anything is given back.
const QUIET: Duration = Duration::from_secs(10);
/// Growth that is worth a look, in bytes; less comes and goes with the keepalives.
const WORTH: u64 = 512 * 1024;

/// Decides when; asked every second.
#[derive(Debug)]
pub(crate) struct Footprint {
    /// When the agent was last seen at work.
    busy: Instant,
    /// What was left after the last giving back, in bytes. Not what is there some time later: whatever an agent does only now and then
    /// would stay for good.
    left: u64,
}

impl Footprint {
    pub(crate) fn new() -> Self {
        Self { busy: Instant::now(), left: 0 }
    }

    /// `open` is how many connections are.
    pub(crate) fn look(&mut self, open: u64, now: Instant) {
        if open > 0 {
            self.busy = now;
        }
        if now.duration_since(self.busy) < QUIET {
            return;
        }
        self.busy = now;
        if !file_pages().is_ok_and(|mapped| mapped > self.left + WORTH) {
            return;
        }
        match give_back() {
            Ok(bytes) => tracing::debug!(bytes, "gave pages of the program back"),
            Err(error) => tracing::debug!(%error, "cannot give pages of the program back"),
        }
        self.left = file_pages().unwrap_or(self.left);
    }
}

/// How much of files this process has mapped and resident, in bytes (proc(5), `statm`).
fn file_pages() -> io::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(2).and_then(|field| field.parse::<u64>().ok());
    let page = rustix::param::page_size() as u64;
    pages.map(|pages| pages * page).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Drops all pages of the program's own file that nothing has written to; how many bytes of addresses that covers.
fn give_back() -> io::Result<usize> {
    let program = fs::metadata("/proc/self/exe")?.ino();
    let mut given = 0;
    for range in untouched(BufReader::new(File::open("/proc/self/smaps")?), program)? {
        // SAFETY: the range is one private mapping of the program's file that is not writable and of which no page was ever
        // written to (`Anonymous` is 0, which leaves out relocated data), so what the next access reads from the file is
        // what is there. The program's own mappings stay what they are for as long as it runs.
        unsafe {
            madvise(std::ptr::with_exposed_provenance_mut::<c_void>(range.start), range.len(), Advice::LinuxDontNeed)
        }?;
        given += range.len();
    }
    Ok(given)
}

/// Mappings in `smaps` (proc(5)) of the file with inode `program` that nobody can write to and nobody has.
fn untouched(smaps: impl BufRead, program: u64) -> io::Result<Vec<Range<usize>>> {
    let (mut found, mut candidate) = (Vec::new(), None);
    for line in smaps.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(candidate.take()),
            (Some(name), Some(_)) if name.ends_with(':') => {}
            // `start-end perms offset device inode path`
            (Some(addresses), Some(permissions)) => {
                let ours = words.nth(2).and_then(|inode| inode.parse().ok()) == Some(program);
                let fixed = matches!(permissions, "r-xp" | "r--p");
                candidate = if ours && fixed { range(addresses) } else { None };
            }
            _ => {}
        }
    }
    Ok(found)
}

fn range(addresses: &str) -> Option<Range<usize>> {
    let (start, end) = addresses.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0-55e0 r--p 00000000 08:01 42 /bin/agent\nSize: 64 kB\nAnonymous: 0 kB\nVmFlags: rd mr\n\
55e0-55f0 r-xp 00010000 08:01 42 /bin/agent\nAnonymous: 0 kB\n\
55f0-5600 r--p 00020000 08:01 42 /bin/agent\nAnonymous: 12 kB\n\
5600-5610 rw-p 00030000 08:01 42 /bin/agent\nAnonymous: 0 kB\n\
5610-5620 rw-p 00000000 00:00 0 [heap]\nAnonymous: 0 kB\n\
7f00-7f10 r-xp 00000000 08:01 43 /lib/libc.so.6\nAnonymous: 0 kB\n";

    #[test]
    fn only_what_the_program_file_still_holds_is_given_back() {
        let found = untouched(SMAPS.as_bytes(), 42).expect("it reads");
        assert_eq!(found, [0x55d0..0x55e0, 0x55e0..0x55f0], "neither relocated nor writable data, nor other files");
    }

    #[test]
    fn what_was_given_back_is_there_again_when_used() {
        let before = SMAPS.to_owned();
        assert!(give_back().expect("Linux does it") > 0);
        assert_eq!(before, SMAPS, "read from the file again");
    }

    #[test]
    fn nothing_is_given_back_while_there_is_work() {
        let mut footprint = Footprint::new();
        let mut now = footprint.busy;
        for _ in 0..60 {
            now += Duration::from_secs(1);
            footprint.look(1, now);
        }
        assert_eq!(footprint.left, 0);
        now += QUIET;
        footprint.look(0, now);
        assert!(footprint.left > 0, "a test program has more than {WORTH} bytes resident");
    }

    #[test]
    fn what_comes_back_is_given_back_again_after_the_next_quiet() {
        let mut footprint = Footprint::new();
        footprint.look(0, footprint.busy + QUIET);
        // As if so little had been left that all of this came back since.
        footprint.left = 1;
        footprint.look(0, footprint.busy + QUIET);
        assert!(footprint.left > 1);
        let left = footprint.left;
        footprint.left = u64::MAX / 2;
        footprint.look(0, footprint.busy + QUIET);
        assert_eq!(footprint.left, u64::MAX / 2, "nothing came back since {left} bytes were left");
    }
}
