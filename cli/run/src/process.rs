//! What /proc says about the program's processes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Pid;

/// The thread group leader of `thread`: the number that the rest of the world knows it by.
pub(crate) fn leader_of(thread: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", thread.as_raw_nonzero())).ok()?;
    Pid::from_raw(field(&status, "Tgid:")?.parse().ok()?)
}

/// Whether a signal waits that `thread` would handle: a blocking call would end with `EINTR` for it.
pub(crate) fn has_caught_signal(thread: Pid) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{}/status", thread.as_raw_nonzero())) else {
        return false;
    };
    let mask = |name| field(&status, name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & mask("SigCgt:") != 0
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Opens a file below the root directory that `thread` has; links are followed inside that root.
pub(crate) fn open_in_root(thread: Pid, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = format!("/proc/{}/root", thread.as_raw_nonzero());
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    rustix::fs::openat2(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Every process below `ancestor`, children before their children.
pub(crate) fn descendants(ancestor: Pid) -> io::Result<Vec<Pid>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // It may have ended since the directory was read.
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else {
            continue;
        };
        if let Some(parent) = parent_in(&stat) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = Vec::new();
    let mut queue = vec![ancestor.as_raw_nonzero().get()];
    while let Some(process) = queue.pop() {
        for child in children.remove(&process).unwrap_or_default() {
            found.extend(Pid::from_raw(child));
            queue.push(child);
        }
    }
    Ok(found)
}

/// The parent in a line of /proc/PID/stat. The name before it stands in brackets and may hold any byte.
fn parent_in(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_forge_its_parent() {
        assert_eq!(parent_in("12 (evil) S 1 (x) S 77 12 12 0"), Some(77));
    }

    #[test]
    fn a_thread_belongs_to_this_process() {
        let thread = std::thread::spawn(rustix::thread::gettid).join().expect("a thread");
        assert!(leader_of(thread).is_none(), "it has ended");
        assert_eq!(leader_of(rustix::thread::gettid()), Some(rustix::process::getpid()));
    }

    #[test]
    fn the_root_of_this_process_holds_its_files() {
        assert!(open_in_root(rustix::process::getpid(), "etc/passwd").is_ok());
        assert_eq!(open_in_root(rustix::process::getpid(), "etc/no-such-file").err(), Some(Errno::NOENT));
    }
}
