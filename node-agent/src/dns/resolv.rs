//! Where other names are asked: a fixed list, or the `nameserver` lines of a resolv.conf, read again when it changes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How many `nameserver` lines count; glibc's MAXNS.
const MAX_SERVERS: usize = 3;
/// How often the file's time of change is looked at: a laptop that changes networks resolves again within this.
const RECHECK: Duration = Duration::from_secs(2);

/// The part of a resolv.conf(5) that we use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// In order of preference, at most three.
    pub nameservers: Vec<IpAddr>,
    /// Search domains of the last `search` or `domain` line.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a resolv.conf. Lines that say nothing to us are skipped, as resolvers do.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    let room = conf.nameservers.len() < MAX_SERVERS;
                    conf.nameservers.extend(address.filter(|_| room));
                }
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some(_) | None => {}
            }
        }
        conf
    }
}

/// The servers that names not ours are asked of.
#[derive(Debug)]
pub struct Upstreams(Source);

#[derive(Debug)]
enum Source {
    Fixed(Arc<[SocketAddr]>),
    File { path: PathBuf, seen: Mutex<Seen> },
}

#[derive(Debug)]
struct Seen {
    checked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Arc<[SocketAddr]>,
}

impl Upstreams {
    /// These, in this order. None: every foreign name is answered with SERVFAIL.
    #[must_use]
    pub fn fixed(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(Source::Fixed(servers.into_iter().collect()))
    }

    /// Those of the resolv.conf at `path`, at port 53. A missing file means none until it appears.
    #[must_use]
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        let seen = Seen { checked: None, modified: None, servers: Arc::default() };
        Self(Source::File { path: path.into(), seen: Mutex::new(seen) })
    }

    /// The servers at the moment, without `own`: forwarding to ourselves would loop.
    pub(super) fn current(&self, own: SocketAddr) -> Vec<SocketAddr> {
        let servers = match &self.0 {
            Source::Fixed(servers) => servers.clone(),
            Source::File { path, seen } => seen.lock().unwrap_or_else(PoisonError::into_inner).refresh(path),
        };
        servers.iter().copied().filter(|server| *server != own).collect()
    }
}

impl Seen {
    fn refresh(&mut self, path: &PathBuf) -> Arc<[SocketAddr]> {
        let now = Instant::now();
        if self.checked.is_none_or(|at| now.duration_since(at) >= RECHECK) {
            self.checked = Some(now);
            let modified = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
            if self.modified != modified || modified.is_none() {
                self.modified = modified;
                let text = std::fs::read_to_string(path).unwrap_or_default();
                let found = ResolvConf::parse(&text).nameservers;
                self.servers = found.into_iter().map(|ip| SocketAddr::new(ip, 53)).collect();
            }
        }
        self.servers.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};

    #[test]
    fn nameservers_and_search_are_read_and_the_rest_is_skipped() {
        let conf = ResolvConf::parse(
            "# made by hand\nnameserver 10.0.0.1 ; first\n nameserver\t2001:db8::1\nnameserver nonsense\n\
             domain old\nsearch a.example b.example\noptions ndots:5\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n",
        );
        let expected: Vec<IpAddr> =
            ["10.0.0.1", "2001:db8::1", "10.0.0.2"].iter().map(|ip| ip.parse().expect("an address")).collect();
        assert_eq!(conf.nameservers, expected);
        assert_eq!(conf.search, ["a.example", "b.example"]);
    }

    #[test]
    fn our_own_address_is_never_an_upstream() {
        let own: SocketAddr = "127.64.0.1:53".parse().expect("an address");
        let other: SocketAddr = "10.0.0.1:53".parse().expect("an address");
        assert_eq!(Upstreams::fixed([own, other]).current(own), [other]);
    }

    #[test]
    fn a_missing_file_means_no_upstream() {
        let own: SocketAddr = "127.64.0.1:53".parse().expect("an address");
        assert!(Upstreams::from_file("/nonexistent/resolv.conf").current(own).is_empty());
    }

    proptest! {
        #[test]
        fn text_of_any_content_never_panics(text in ".{0,200}") {
            let conf = ResolvConf::parse(&text);
            prop_assert!(conf.nameservers.len() <= MAX_SERVERS);
        }
    }
}
