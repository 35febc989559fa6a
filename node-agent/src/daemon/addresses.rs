//! Which address stands for which peer, kept from one run to the next.
//!
//! Where two ids hash alike, who came first has the address. A run that began with an empty book would ask in another order:
//! a trusted peer that searches for a name and a key whose hash is that of `db` (four million tries) would have `db`'s
//! address after our restart, and with it whatever programs, hosts files and rules still mean `db` by it.
//!
//! One line of text for each peer, `ADDRESS ID`. What was revoked stays: programs cache addresses longer than trust lasts.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use peerage_model::AgentId;

use crate::address::AddressBook;
use crate::state::{read_private, write_atomic};

/// The file in a state directory or memory volume.
pub(crate) const FILE: &str = "addresses";

/// Where addresses are kept.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    /// How many the file holds. A book only grows.
    written: usize,
}

impl Kept {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, written: 0 }
    }

    /// Puts what is kept into `book`.
    pub(super) fn restore(&mut self, book: &mut AddressBook) {
        match read_private(&self.path) {
            Ok(bytes) => {
                let text = bytes.unwrap_or_default();
                let lines: Vec<_> = String::from_utf8_lossy(&text).lines().filter_map(parse).collect();
                self.written = lines.len();
                book.restore(lines);
            }
            Err(error) => tracing::error!(%error, "which address stands for whom is not known; peers may get others"),
        }
    }

    /// Writes down what is new in `book`; before anybody is told of it.
    pub(super) fn keep(&mut self, book: &AddressBook) {
        let assigned = book.assigned();
        if assigned.len() <= self.written {
            return;
        }
        let text: String = assigned.iter().map(|(id, address)| format!("{address} {id}\n")).collect();
        match write_atomic(&self.path, text.as_bytes()) {
            Ok(()) => self.written = assigned.len(),
            Err(error) => tracing::error!(%error, "which address stands for whom cannot be kept for the next start"),
        }
    }
}

/// A line that says nothing costs its peer the address at most, and only where another one's hash is the same.
fn parse(line: &str) -> Option<(AgentId, Ipv4Addr)> {
    let (address, id) = line.split_once(' ')?;
    Some((id.parse().ok()?, address.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::Fingerprint;

    fn id(name: &str) -> AgentId {
        AgentId { authority: Fingerprint([7; 32]), name: name.parse().expect("a name") }
    }

    #[test]
    fn who_has_an_address_has_it_after_a_restart_whoever_else_came_meanwhile() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = Kept::at(dir.path().join(FILE));
        // As if `rival` hashed like `db`.
        let (db, rival) = (id("db"), id("rival"));
        let address = AddressBook::new().address_of(&rival);
        let mut book = AddressBook::new();
        book.restore([(db.clone(), address)]);
        kept.keep(&book);
        let mut again = AddressBook::new();
        Kept::at(dir.path().join(FILE)).restore(&mut again);
        assert_ne!(again.address_of(&rival), address, "it is asked first, and it is taken");
        assert_eq!(again.address_of(&db), address);
    }

    #[test]
    fn what_was_added_later_is_kept_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut kept, mut book) = (Kept::at(dir.path().join(FILE)), AddressBook::new());
        for name in ["one", "two"] {
            book.address_of(&id(name));
            kept.keep(&book);
        }
        let mut again = AddressBook::new();
        Kept::at(dir.path().join(FILE)).restore(&mut again);
        assert_eq!(again.assigned(), book.assigned());
    }

    #[test]
    fn a_damaged_line_costs_nobody_elses_address() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        let db = id("db");
        write_atomic(&path, format!("nonsense\n127.64.9.9 {db}\n127.64.9.8 db\n").as_bytes()).expect("it writes");
        let mut book = AddressBook::new();
        Kept::at(path).restore(&mut book);
        assert_eq!(*book.assigned(), [(db, Ipv4Addr::new(127, 64, 9, 9))].into());
    }
}
