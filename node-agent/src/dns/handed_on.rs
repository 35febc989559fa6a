//! What one agent's process leaves to the next: the socket at which programs ask, and the questions that wait for an upstream.
//!
//! A resolver waits five seconds (glibc; musl half of that) before it asks again, so a question that a dying agent took
//! with it is felt that long, and one that finds no agent at all fails. The process that keeps the agent
//! ([`keep`](crate::keep)) holds the socket, in which questions wait for the next agent, and a memory file in which
//! the agent notes those that it has forwarded and not answered. It hands both on as standard input and output, for which an agent
//! has no other use.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::sockopt::socket_type;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// The size of a note: its head and a question. A divisor of a page, because the kernel writes within one in one go, also for
/// a process that is being killed.
const NOTE: usize = 512;
/// The length of the question, 0 where there is no note; address and port of who asked.
const HEAD: usize = 8;

/// The socket and the memory file.
#[derive(Debug)]
pub struct HandedOn {
    socket: UdpSocket,
    notes: File,
}

impl HandedOn {
    /// For the first agent: a socket that is bound nowhere, and an empty file.
    ///
    /// # Errors
    /// The kernel has neither to give.
    pub fn new() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let notes = memfd_create(c"peerage-questions", MemfdFlags::CLOEXEC)?;
        Ok(Self { socket: socket.into(), notes: notes.into() })
    }

    /// Gives both to a program that is about to be started, or neither.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn hand_to(&self, command: &mut Command) -> io::Result<()> {
        let (socket, notes) = (self.socket.try_clone()?, self.notes.try_clone()?);
        command.stdin(OwnedFd::from(socket)).stdout(notes);
        Ok(())
    }

    /// What this process was given; none if nobody keeps it. No shell and no container engine makes standard input a datagram socket.
    #[must_use]
    pub fn received() -> Option<Self> {
        let (input, output) = (io::stdin(), io::stdout());
        if socket_type(&input) != Ok(SocketType::DGRAM) {
            return None;
        }
        let ours = |end: &dyn AsFd| end.as_fd().try_clone_to_owned().ok();
        Some(Self { socket: ours(&input)?.into(), notes: ours(&output)?.into() })
    }

    /// Whether an agent before us has bound the socket there, so that questions wait in it.
    pub(super) fn is_bound_to(&self, place: SocketAddr) -> bool {
        self.socket.local_addr().is_ok_and(|there| there == place)
    }

    /// The socket, bound to `wanted` by us or by the agent before us.
    pub(super) fn bound(&self, wanted: SocketAddr) -> io::Result<UdpSocket> {
        let there = self.socket.local_addr()?;
        if there.port() == 0 {
            bind(&self.socket, &wanted)?;
        } else if there != wanted {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.socket.set_nonblocking(true)?;
        self.socket.try_clone()
    }

    /// Where to note up to `most` questions, and those that the agent before us has left. Each is found once: a question
    /// that kills who takes it must not do so for ever.
    pub(super) fn notes(&self, most: usize) -> io::Result<(Arc<Notes>, Vec<Waiting>)> {
        let file = self.notes.try_clone()?;
        let mut there = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut there, 0)?;
        file.set_len(0)?;
        let left = there.chunks(NOTE).filter_map(Waiting::read).collect();
        Ok((Arc::new(Notes { file, free: Mutex::new((0..most).collect()) }), left))
    }
}

/// A question that nobody has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) client: SocketAddr,
    pub(super) question: Vec<u8>,
}

impl Waiting {
    fn read(note: &[u8]) -> Option<Self> {
        let (head, rest) = note.split_first_chunk::<HEAD>()?;
        let [high, low, a, b, c, d, port @ ..] = *head;
        let question = rest.get(..u16::from_be_bytes([high, low]).into()).filter(|question| !question.is_empty())?;
        let client = SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes(port));
        Some(Self { client: client.into(), question: question.to_vec() })
    }
}

/// Where questions are noted.
#[derive(Debug)]
pub(super) struct Notes {
    file: File,
    /// Places without a note. The lowest is taken first, so the file stays as small as few questions at a time need it.
    free: Mutex<BTreeSet<usize>>,
}

impl Notes {
    /// Notes a question until what this returns is dropped. A long one, or one too many, is not noted: it is asked again by whoever
    /// has it, as without us.
    pub(super) fn note(self: &Arc<Self>, client: SocketAddr, question: &[u8]) -> Option<Noted> {
        let SocketAddr::V4(client) = client else { return None };
        let length = u16::try_from(question.len()).ok().filter(|length| usize::from(*length) <= NOTE - HEAD)?;
        let place = self.free().pop_first()?;
        let noted = Noted { notes: Arc::clone(self), place };
        let ip = client.ip().octets();
        let note = [&length.to_be_bytes()[..], &ip[..], &client.port().to_be_bytes()[..], question].concat();
        self.file.write_all_at(&note, noted.at()).ok()?;
        Some(noted)
    }

    fn free(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A note; dropping it says that the question was answered.
#[derive(Debug)]
pub(super) struct Noted {
    notes: Arc<Notes>,
    place: usize,
}

impl Noted {
    fn at(&self) -> u64 {
        (self.place * NOTE) as u64
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        match self.notes.file.write_all_at(&[0; 2], self.at()) {
            Ok(()) => drop(self.notes.free().insert(self.place)),
            // The place is lost rather than its note taken for another's.
            Err(error) => tracing::debug!(%error, "a note of a question stays"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 9), port).into()
    }

    /// What the next agent finds.
    fn left(handed_on: &HandedOn) -> Vec<Waiting> {
        handed_on.notes(4).expect("it can be read").1
    }

    #[test]
    fn what_was_not_answered_is_found_by_the_next_agent_and_by_no_other() {
        let handed_on = HandedOn::new().expect("there is one");
        let (notes, before) = handed_on.notes(4).expect("it is empty");
        assert_eq!(before, []);
        let answered = notes.note(client(1), b"answered");
        let waiting = notes.note(client(2), b"waiting");
        drop(answered);
        let found = left(&handed_on);
        assert_eq!(found, [Waiting { client: client(2), question: b"waiting".to_vec() }]);
        assert_eq!(left(&handed_on), [], "what kills an agent kills one");
        drop(waiting);
    }

    #[test]
    fn places_are_used_again_and_more_than_there_are_is_not_noted() {
        let handed_on = HandedOn::new().expect("there is one");
        let (notes, _) = handed_on.notes(2).expect("it is empty");
        for port in 0..1000 {
            assert!(notes.note(client(port), b"question").is_some(), "question {port}");
        }
        let held = [notes.note(client(1), b"one"), notes.note(client(2), b"two")];
        assert!(held.iter().all(Option::is_some) && notes.note(client(3), b"three").is_none());
        assert_eq!(left(&handed_on).len(), 2);
    }

    #[test]
    fn a_question_that_is_longer_than_a_note_touches_no_other() {
        let handed_on = HandedOn::new().expect("there is one");
        let (notes, _) = handed_on.notes(2).expect("it is empty");
        let _first = notes.note(client(1), &[1; NOTE - HEAD]).expect("it fits");
        assert!(notes.note(client(2), &[2; NOTE - HEAD + 1]).is_none());
        assert_eq!(left(&handed_on), [Waiting { client: client(1), question: vec![1; NOTE - HEAD] }]);
    }

    #[test]
    fn the_socket_stays_where_the_first_agent_has_bound_it() {
        let handed_on = HandedOn::new().expect("there is one");
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port is free");
        handed_on.bound(free).expect("it is free");
        assert_eq!(handed_on.bound(free).expect("it is ours").local_addr().expect("bound"), free);
        let other = SocketAddr::new(free.ip(), free.port().wrapping_add(1).max(1));
        assert!(handed_on.bound(other).is_err(), "questions wait at the first one");
    }
}
