//! Where other names are asked: a fixed list, or the `nameserver` lines of a resolv.conf, read again when it changes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How many `nameserver` lines count; glibc's MAXNS.
const MAX_SERVERS: usize = 3;
/// Where systemd-resolved answers, for programs that only read resolv.conf. It asks us in turn, where `peerage install` was run,
/// so asking it would go round in circles.
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];
/// Where it says whom it asks itself.
const UPLINKS: &str = "/run/systemd/resolve/resolv.conf";
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
    File { path: PathBuf, uplinks: PathBuf, seen: Mutex<Seen> },
}

#[derive(Debug)]
struct Seen {
    checked: Option<Instant>,
    modified: [Option<SystemTime>; 2],
    servers: Arc<[SocketAddr]>,
}

impl Upstreams {
    /// These, in this order. None: every foreign name is answered with SERVFAIL.
    #[must_use]
    pub fn fixed(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(Source::Fixed(servers.into_iter().collect()))
    }

    /// Those of the resolv.conf at `path`, at port 53; where it leads to systemd-resolved, those that this asks. A missing file
    /// means none until it appears.
    #[must_use]
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self::from_files(path.into(), UPLINKS.into())
    }

    fn from_files(path: PathBuf, uplinks: PathBuf) -> Self {
        let seen = Seen { checked: None, modified: [None; 2], servers: Arc::default() };
        Self(Source::File { path, uplinks, seen: Mutex::new(seen) })
    }

    /// The servers at the moment, without `own`: forwarding to ourselves would loop.
    pub(super) fn current(&self, own: SocketAddr) -> Vec<SocketAddr> {
        let servers = match &self.0 {
            Source::Fixed(servers) => servers.clone(),
            Source::File { path, uplinks, seen } => {
                seen.lock().unwrap_or_else(PoisonError::into_inner).refresh(path, uplinks)
            }
        };
        servers.iter().copied().filter(|server| *server != own).collect()
    }
}

impl Seen {
    fn refresh(&mut self, path: &Path, uplinks: &Path) -> Arc<[SocketAddr]> {
        let now = Instant::now();
        if self.checked.is_none_or(|at| now.duration_since(at) >= RECHECK) {
            self.checked = Some(now);
            let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
            let modified = [modified(path), modified(uplinks)];
            if self.modified != modified || modified[0].is_none() {
                self.modified = modified;
                let servers =
                    |path: &Path| ResolvConf::parse(&std::fs::read_to_string(path).unwrap_or_default()).nameservers;
                let mut found = servers(path);
                if found.iter().any(|server| STUBS.contains(server)) {
                    found = servers(uplinks);
                }
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
    fn behind_systemd_resolved_its_own_servers_are_asked_and_not_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, uplinks) = (dir.path().join("resolv.conf"), dir.path().join("uplinks"));
        std::fs::write(&path, "nameserver 127.0.0.53\noptions edns0 trust-ad\n").expect("it writes");
        std::fs::write(&uplinks, "nameserver 127.64.0.1\nnameserver 10.0.0.1\n").expect("it writes");
        let own: SocketAddr = "127.64.0.1:53".parse().expect("an address");
        let other: SocketAddr = "10.0.0.1:53".parse().expect("an address");
        assert_eq!(Upstreams::from_files(path, uplinks).current(own), [other]);
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
