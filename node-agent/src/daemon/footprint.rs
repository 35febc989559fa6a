//! Gives memory back that only starting, or a burst of work, needed.
//!
//! Most of what an idle agent has resident is its own program: the kernel maps 64 KiB around each page that runs once, and
//! starting runs through much of it. Pages of the program file that nothing wrote to can be dropped at any time: the next
//! use finds them in the page cache again, at the cost of a minor fault. Their sum was more than what the agent allocates.
//!
//! The rest is the heap. What is freed there goes back to the allocator, and glibc's gives to the kernel only what is at the
//! very end of a heap: of a thousand sessions that had ended all 90 MiB stayed resident for good, for the sake of a few small things that
//! were allocated between them and live on. Asked to, it gives back each page that nothing is in (malloc_trim(3)).

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
/// While something is open, the heap is looked at so often: it is busy with what is open, and what it gives back it may want again at once.
const BUSY_REST: Duration = Duration::from_secs(60);
/// And then only so much growth is worth it: what ended sessions held, not what a transfer has under way.
const BUSY_WORTH: u64 = 16 << 20;

/// Decides when; asked every second.
#[derive(Debug)]
pub(crate) struct Footprint {
    program: Part,
    heap: Part,
}

/// What is resident of one kind.
#[derive(Debug)]
struct Part {
    /// When it was last looked at, or was not to be because the agent was at work.
    looked: Instant,
    /// What was left after the last giving back, in bytes. Not what is there some time later: whatever an agent does only now and then
    /// would stay for good.
    left: u64,
}

impl Footprint {
    pub(crate) fn new() -> Self {
        let part = || Part { looked: Instant::now(), left: 0 };
        Self { program: part(), heap: part() }
    }

    /// `open` is how many connections are.
    pub(crate) fn look(&mut self, open: u64, now: Instant) {
        if open > 0 {
            self.program.looked = now;
        }
        self.program.look(now, QUIET, WORTH, file_pages, drop_program);
        let (rest, worth) = if open > 0 { (BUSY_REST, BUSY_WORTH) } else { (QUIET, WORTH) };
        self.heap.look(now, rest, worth, unused, trim_heap);
    }
}

impl Part {
    /// Gives it back, if it rested for so long and grew by more than what is worth it.
    fn look(
        &mut self,
        now: Instant,
        rest: Duration,
        worth: u64,
        resident: fn() -> io::Result<u64>,
        give_back: fn() -> io::Result<()>,
    ) {
        if now.duration_since(self.looked) < rest {
            return;
        }
        self.looked = now;
        let Some(before) = resident().ok().filter(|bytes| *bytes > self.left + worth) else { return };
        if let Err(error) = give_back() {
            tracing::debug!(%error, "cannot give memory back");
        }
        self.left = resident().unwrap_or(before);
        tracing::debug!(before, left = self.left, "gave memory back");
    }
}

/// How much of files this process has mapped and resident, in bytes.
fn file_pages() -> io::Result<u64> {
    pages().map(|[_, _, shared]| shared)
}

/// How much it has resident that no file backs, in bytes.
#[cfg(target_env = "gnu")]
fn own_pages() -> io::Result<u64> {
    pages().map(|[_, resident, shared]| resident.saturating_sub(shared))
}

/// How much of that nothing is in, in bytes. What is resident alone would not tell: it stays as it was when sessions end.
#[cfg(target_env = "gnu")]
fn unused() -> io::Result<u64> {
    // SAFETY: it reads the allocator's books, under the allocator's own locks.
    let books = unsafe { libc::mallinfo2() };
    let taken = books.uordblks.saturating_add(books.hblkhd);
    Ok(own_pages()?.saturating_sub(taken as u64))
}

/// Nothing that we could ask for.
#[cfg(not(target_env = "gnu"))]
fn unused() -> io::Result<u64> {
    Ok(0)
}

/// Its size, and what of it is resident and shared, in bytes (proc(5), `statm`).
fn pages() -> io::Result<[u64; 3]> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let page = rustix::param::page_size() as u64;
    let mut fields = statm.split_whitespace().map_while(|field| field.parse::<u64>().ok()).map(|pages| pages * page);
    let mut next = || fields.next().ok_or(io::ErrorKind::InvalidData);
    Ok([next()?, next()?, next()?])
}

/// Gives the kernel each page of the heap that nothing is in.
#[cfg(target_env = "gnu")]
fn trim_heap() -> io::Result<()> {
    // SAFETY: it takes nothing that anybody holds, and the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
    Ok(())
}

/// Other allocators give back by themselves, or cannot be asked to.
#[cfg(not(target_env = "gnu"))]
fn trim_heap() -> io::Result<()> {
    Ok(())
}

/// Drops all pages of the program's own file that nothing has written to.
fn drop_program() -> io::Result<()> {
    let program = fs::metadata("/proc/self/exe")?.ino();
    for range in untouched(BufReader::new(File::open("/proc/self/smaps")?), program)? {
        // SAFETY: the range is one private mapping of the program's file that is not writable and of which no page was ever
        // written to (`Anonymous` is 0, which leaves out relocated data), so what the next access reads from the file is
        // what is there. The program's own mappings stay what they are for as long as it runs.
        unsafe {
            madvise(std::ptr::with_exposed_provenance_mut::<c_void>(range.start), range.len(), Advice::LinuxDontNeed)
        }?;
    }
    Ok(())
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
        drop_program().expect("Linux does it");
        assert_eq!(before, SMAPS, "read from the file again");
    }

    #[test]
    fn nothing_of_the_program_is_given_back_while_there_is_work() {
        let mut footprint = Footprint::new();
        let mut now = footprint.program.looked;
        for _ in 0..60 {
            now += Duration::from_secs(1);
            footprint.look(1, now);
        }
        assert_eq!(footprint.program.left, 0);
        now += QUIET;
        footprint.look(0, now);
        assert!(footprint.program.left > 0, "a test program has more than {WORTH} bytes resident");
    }

    #[test]
    fn what_comes_back_is_given_back_again_after_the_next_quiet() {
        let mut footprint = Footprint::new();
        let start = footprint.program.looked;
        footprint.look(0, start + QUIET);
        // As if so little had been left that all of this came back since.
        footprint.program.left = 1;
        footprint.look(0, start + QUIET * 2);
        assert!(footprint.program.left > 1);
        let left = footprint.program.left;
        footprint.program.left = u64::MAX / 2;
        footprint.look(0, start + QUIET * 3);
        assert_eq!(footprint.program.left, u64::MAX / 2, "nothing came back since {left} bytes were left");
    }

    #[test]
    fn while_there_is_work_the_heap_is_looked_at_once_a_minute() {
        let mut footprint = Footprint::new();
        let mut now = footprint.heap.looked;
        let mut looks = 0;
        for _ in 0..180 {
            now += Duration::from_secs(1);
            footprint.look(1, now);
            looks += u32::from(footprint.heap.looked == now);
        }
        assert_eq!(looks, 3);
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn freed_memory_is_given_back_however_much_lives_on_between_it() {
        const PIECES: usize = 64 << 10;
        let mut pieces: Vec<Option<Box<[u8; 1024]>>> = (0..PIECES).map(|_| Some(Box::new([7; 1024]))).collect();
        pieces.iter_mut().enumerate().filter(|(index, _)| index % 64 != 0).for_each(|(_, piece)| *piece = None);
        let before = (own_pages().expect("Linux tells"), unused().expect("Linux tells"));
        trim_heap().expect("glibc does it");
        let left = (own_pages().expect("Linux tells"), unused().expect("Linux tells"));
        let fell = |before, left| left + (32 << 20) < before;
        assert!(
            fell(before.0, left.0) && fell(before.1, left.1),
            "of 64 MiB, of which 63 were freed: {before:?}, {left:?}"
        );
        assert!(pieces.iter().flatten().all(|piece| piece[1023] == 7));
    }
}
