//! The three files that decide how a program finds names, as the program shall see them.
//!
//! Each is the original with as little added as makes a peer's name come first. They are made
//! anew at every open, so a name that changes while the program runs is in the next look-up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::Names;

/// Where programs that speak DNS themselves find the agent; the redirect sends it to the real listener.
pub(crate) const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);

/// A file that a resolver reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResolverFile {
    Hosts,
    Resolv,
    Nsswitch,
}

/// One byte more than the longest path we know, so that a longer path is seen to be longer.
pub(crate) const LONGEST_PATH: usize = "/etc/nsswitch.conf\0".len();

impl ResolverFile {
    /// The file a path names, if it is one of ours. `bytes` is what stands in the program's
    /// memory: the path, its NUL and whatever follows.
    pub(crate) fn from_memory(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        match &bytes[..end] {
            b"/etc/hosts" => Some(Self::Hosts),
            b"/etc/resolv.conf" => Some(Self::Resolv),
            b"/etc/nsswitch.conf" => Some(Self::Nsswitch),
            _ => None,
        }
    }

    /// Relative to the program's root directory.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Hosts => "etc/hosts",
            Self::Resolv => "etc/resolv.conf",
            Self::Nsswitch => "etc/nsswitch.conf",
        }
    }
}

/// `/etc/hosts`: our names first, because the first match wins in every resolver, then the original. A name that the original
/// has keeps its meaning: `localhost`, the machine's own, and whatever else its owner wrote down.
#[must_use]
pub fn hosts(original: &[u8], names: &Names) -> Vec<u8> {
    let mut text = Vec::with_capacity(original.len() + 48 * names.hosts.len());
    let known = names_in(original);
    for (name, address) in &names.hosts {
        // A name with a space or a line break would write entries of its own.
        if is_host_name(name) && !known.contains(&name.to_ascii_lowercase().into_bytes()) {
            text.extend_from_slice(format!("{address}\t{name}\n").as_bytes());
        }
    }
    text.extend_from_slice(original);
    text
}

/// `/etc/resolv.conf`: the agent's DNS is asked first, the original servers after it.
///
/// Without any server a resolver asks 127.0.0.1 (resolv.conf(5)), so that one is then written out.
#[must_use]
pub fn resolv(original: &[u8]) -> Vec<u8> {
    let mut text = format!("nameserver {DNS_ADDRESS}\n").into_bytes();
    let has_server = lines(original).any(|line| first_word(line) == b"nameserver");
    if !has_server {
        text.extend_from_slice(format!("nameserver {}\n", IpAddr::from(Ipv4Addr::LOCALHOST)).as_bytes());
    }
    text.extend_from_slice(original);
    text
}

/// `/etc/nsswitch.conf`: `files` answers first for hosts; the other sources keep their order and conditions.
///
/// Distributions differ here: some ask systemd-resolved first and stop at its "no such host".
#[must_use]
pub fn nsswitch(original: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(original.len() + 32);
    let mut seen = false;
    for line in lines(original) {
        match line.trim_ascii_start().strip_prefix(b"hosts:") {
            Some(sources) => {
                seen = true;
                text.extend_from_slice(b"hosts: files");
                text.extend_from_slice(&without_files(sources));
            }
            None => text.extend_from_slice(line),
        }
        text.push(b'\n');
    }
    if !seen {
        text.extend_from_slice(b"hosts: files dns\n");
    }
    text
}

/// The sources of a `hosts:` line without `files` and the `[condition]` that belongs to it.
fn without_files(sources: &[u8]) -> Vec<u8> {
    let sources = sources.split(|byte| *byte == b'#').next().unwrap_or_default();
    let mut kept = Vec::new();
    let (mut in_condition, mut dropping) = (false, false);
    for word in sources.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
        if !in_condition && word[0] != b'[' {
            dropping = word == b"files";
        }
        in_condition = (in_condition || word[0] == b'[') && word.last() != Some(&b']');
        if !dropping {
            kept.push(b' ');
            kept.extend_from_slice(word);
        }
    }
    kept
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.strip_suffix(b"\n").unwrap_or(text).split(|byte| *byte == b'\n')
}

/// All names of a hosts file, in lower case.
fn names_in(hosts: &[u8]) -> BTreeSet<Vec<u8>> {
    let entries = lines(hosts).map(|line| line.split(|byte| *byte == b'#').next().unwrap_or_default());
    let names = entries.flat_map(|entry| {
        let words = entry.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.skip(1).map(<[u8]>::to_ascii_lowercase)
    });
    names.collect()
}

fn first_word(line: &[u8]) -> &[u8] {
    line.split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// Letters, digits, `-`, `_` and `.`: what RFC 1123 allows, and the underscore that DNS labels use.
fn is_host_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_paths_are_ours() {
        assert_eq!(ResolverFile::from_memory(b"/etc/hosts\0junk"), Some(ResolverFile::Hosts));
        assert_eq!(ResolverFile::from_memory(b"/etc/resolv.conf\0"), Some(ResolverFile::Resolv));
        assert_eq!(ResolverFile::from_memory(b"/etc/nsswitch.conf\0"), Some(ResolverFile::Nsswitch));
        for other in [&b"/etc/hosts.allow\0"[..], b"/etc/host\0", b"", b"/etc/hosts", b"etc/hosts\0"] {
            assert_eq!(ResolverFile::from_memory(other), None);
        }
    }

    #[test]
    fn our_names_stand_before_the_original() {
        let names = Names { hosts: vec![("db".to_owned(), IpAddr::from([127, 64, 3, 7]))] };
        assert_eq!(hosts(b"127.0.0.1 localhost\n", &names), b"127.64.3.7\tdb\n127.0.0.1 localhost\n");
    }

    #[test]
    fn a_peer_cannot_take_a_name_that_the_machine_gives_a_meaning() {
        let original = b"127.0.0.1 Localhost # db\n127.0.1.1\tlaptop.home laptop\n";
        let address = IpAddr::from([127, 64, 3, 7]);
        let named = |name: &str| (name.to_owned(), address);
        let names = Names { hosts: vec![named("localhost"), named("LAPTOP"), named("laptop.home"), named("db")] };
        let expected = [&b"127.64.3.7\tdb\n"[..], original].concat();
        assert_eq!(hosts(original, &names), expected, "a comment gives no meaning");
    }

    #[test]
    fn a_name_cannot_smuggle_in_a_second_entry() {
        let names = Names { hosts: vec![("x\n10.0.0.1 bank.example".to_owned(), IpAddr::from([127, 64, 3, 7]))] };
        assert_eq!(hosts(b"", &names), b"");
    }

    #[test]
    fn resolv_conf_keeps_its_searches_and_servers() {
        assert_eq!(
            resolv(b"search corp.example\nnameserver 10.0.0.53\n"),
            b"nameserver 127.64.0.1\nsearch corp.example\nnameserver 10.0.0.53\n"
        );
    }

    #[test]
    fn resolv_conf_without_a_server_keeps_the_servers_default() {
        assert_eq!(resolv(b"search a\n"), b"nameserver 127.64.0.1\nnameserver 127.0.0.1\nsearch a\n");
    }

    #[test]
    fn files_come_first_and_other_sources_keep_their_conditions() {
        let original =
            b"passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns # note\n";
        assert_eq!(
            nsswitch(original),
            b"passwd: files systemd\nhosts: files mymachines resolve [!UNAVAIL=return] myhostname dns\n"
        );
    }

    #[test]
    fn the_condition_of_files_goes_with_it() {
        assert_eq!(nsswitch(b"hosts:\tfiles [ NOTFOUND=return ] dns\n"), b"hosts: files dns\n");
    }

    #[test]
    fn a_missing_hosts_line_becomes_files_then_dns() {
        assert_eq!(nsswitch(b"passwd: files\n"), b"passwd: files\nhosts: files dns\n");
    }
}
