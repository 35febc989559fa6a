//! One loopback address per peer, and the directory of names that programs on this machine may use.
//!
//! A program connects to `db:80`; the name leads to an address in 127.64.0.0/10 that stands for that one peer, so the
//! listener behind it knows whom to dial, and the peer's own connections come *from* that address. An address is a hash
//! of the peer's id; where two ids hash alike, the later one asked for moves on. It is never given to another peer, because
//! programs cache addresses longer than trust lasts: the daemon keeps the book from one run to the next. [`Directory`] holds no key: DNS, listeners and proxies get it instead of the snapshot, and so cannot leak one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use peerage_model::id::sha256;
use peerage_model::snapshot::{Port, Protocol};
use peerage_model::{AgentId, Label};

/// The zone that all full names end in; nothing under it is ever asked of another DNS server.
pub const ZONE: &str = "peer.internal";

/// The first address of 127.64.0.0/10; ours reach up to 127.127.255.255.
pub const NETWORK: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);

/// Where the agent's DNS server listens. All of 127.64.0.0/24 is kept for the agent itself; no peer lives there.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);

/// Host bits of a /10.
const HOST_MASK: u32 = (1 << 22) - 1;

/// Whether `address` lies in the network that stands for peers.
#[must_use]
pub fn is_peer_network(address: Ipv4Addr) -> bool {
    address.to_bits() & !HOST_MASK == NETWORK.to_bits()
}

/// Gives each peer its address, once.
#[derive(Debug, Default)]
pub struct AddressBook {
    assigned: BTreeMap<AgentId, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
}

/// What the directory is made from: one trusted peer, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Who it is.
    pub id: AgentId,
    /// What programs here call it.
    pub alias: Label,
    /// Which of its ports are known.
    pub ports: Vec<Port>,
    /// What this cluster calls the cluster that it is in; `None`: it is in ours, or nobody speaks of clusters.
    pub link: Option<Label>,
    /// Which of its ports have another number here.
    pub here: BTreeMap<(Protocol, u16), u16>,
}

impl Listed {
    /// A peer whose ports have their own numbers, and whose name needs no cluster.
    #[must_use]
    pub fn new(id: AgentId, alias: Label, ports: Vec<Port>) -> Self {
        Self { id, alias, ports, link: None, here: BTreeMap::new() }
    }
}

/// One trusted peer as programs see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who it is.
    pub id: AgentId,
    /// What programs here call it.
    pub alias: Label,
    /// The address that stands for it.
    pub address: Ipv4Addr,
    /// What this cluster calls the cluster that it is in, if that is another.
    pub link: Option<Label>,
    /// Which of its ports are known: (transport, number here), and its own number.
    pub ports: BTreeMap<(Protocol, u16), u16>,
}

/// All trusted peers as programs see them. The default is empty: it knows nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    entries: BTreeMap<AgentId, Entry>,
    by_name: BTreeMap<String, AgentId>,
    by_address: BTreeMap<Ipv4Addr, AgentId>,
    ambiguous: BTreeSet<String>,
    reserved: BTreeSet<(Protocol, u16)>,
}

impl AddressBook {
    /// An empty book.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The address of `id`: the one it has, or the first free one of those its id hashes to.
    pub fn address_of(&mut self, id: &AgentId) -> Ipv4Addr {
        if let Some(address) = self.assigned.get(id) {
            return *address;
        }
        let address = (0..)
            .map(|attempt| candidate(id, attempt))
            .find(|address| is_usable(*address) && !self.taken.contains(address))
            .expect("4 million addresses do not run out before the memory for the peers does");
        self.put(id.clone(), address);
        address
    }

    /// Takes over what an earlier process gave out. Entries outside our network, or in conflict with what this book
    /// already holds, are left out.
    pub fn restore(&mut self, assigned: impl IntoIterator<Item = (AgentId, Ipv4Addr)>) {
        for (id, address) in assigned {
            if is_usable(address) && !self.taken.contains(&address) && !self.assigned.contains_key(&id) {
                self.put(id, address);
            }
        }
    }

    /// Everything given out so far, for keeping.
    #[must_use]
    pub fn assigned(&self) -> &BTreeMap<AgentId, Ipv4Addr> {
        &self.assigned
    }

    /// The directory of `peers`. The same peers give the same directory, in whatever order they come.
    pub fn directory(&mut self, peers: impl IntoIterator<Item = Listed>) -> Directory {
        let peers: BTreeMap<AgentId, Listed> = peers.into_iter().map(|peer| (peer.id.clone(), peer)).collect();
        let mut directory = Directory::default();
        for (id, peer) in peers {
            let address = self.address_of(&id);
            let here = |port: &Port| {
                let theirs = (port.protocol, port.number);
                ((port.protocol, peer.here.get(&theirs).copied().unwrap_or(port.number)), port.number)
            };
            let ports = peer.ports.iter().map(here).collect();
            directory.by_address.insert(address, id.clone());
            directory.entries.insert(id.clone(), Entry { id, alias: peer.alias, address, link: peer.link, ports });
        }
        directory.name_all();
        directory
    }

    fn put(&mut self, id: AgentId, address: Ipv4Addr) {
        self.taken.insert(address);
        self.assigned.insert(id, address);
    }
}

fn candidate(id: &AgentId, attempt: u32) -> Ipv4Addr {
    let hash = sha256(&[b"peerage address v1", &id.binding(), &attempt.to_be_bytes()]);
    let bits = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    Ipv4Addr::from_bits(NETWORK.to_bits() | (bits & HOST_MASK))
}

/// Not the agent's own /24, and not an address that looks like a network or a broadcast to a program or its author.
fn is_usable(address: Ipv4Addr) -> bool {
    let [_, b, c, d] = address.octets();
    is_peer_network(address) && (b, c) != (64, 0) && d != 0 && d != 255
}

impl Directory {
    /// The same, with ports that programs here listen on themselves, on all addresses: nothing of ours may be there.
    #[must_use]
    pub fn keeping_off(self, reserved: BTreeSet<(Protocol, u16)>) -> Self {
        Self { reserved, ..self }
    }

    /// See [`Self::keeping_off`].
    #[must_use]
    pub fn reserved(&self) -> &BTreeSet<(Protocol, u16)> {
        &self.reserved
    }

    /// The entry of a peer.
    #[must_use]
    pub fn get(&self, id: &AgentId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// All entries, by id.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Who lives at `address`.
    #[must_use]
    pub fn by_address(&self, address: Ipv4Addr) -> Option<&Entry> {
        self.entries.get(self.by_address.get(&address)?)
    }

    /// Who is called `name`: an alias, bare or under [`ZONE`], or an agent's own name under [`ZONE`]; in any case, with
    /// or without the final dot.
    ///
    /// An agent's own name counts under the zone only: a peer that calls itself `example.com` must not get what is
    /// meant for that.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Entry> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let Some(inner) = strip_zone(&name) else {
            return self.by_inner_name(&name).filter(|entry| entry.alias.as_str() == name);
        };
        self.by_inner_name(inner)
    }

    /// Who is called `name`.peer.internal; `name` is lower case.
    #[must_use]
    pub fn by_inner_name(&self, name: &str) -> Option<&Entry> {
        self.entries.get(self.by_name.get(name)?)
    }

    /// Whether some known name lies below `name`, which then exists but has no records (RFC 8020). `name` is bare
    /// (without [`ZONE`]) and lower case.
    #[must_use]
    pub fn has_names_below(&self, name: &str) -> bool {
        self.by_name.keys().any(|known| known.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
    }

    /// Names that more than one peer answers to. They lead nowhere, so that a program never talks to the wrong one.
    #[must_use]
    pub fn ambiguous(&self) -> &BTreeSet<String> {
        &self.ambiguous
    }

    /// An alias is its owner's choice here, so it goes before any agent's own name: a peer cannot take over `db` by
    /// calling itself that.
    fn name_all(&mut self) {
        let aliases: Vec<_> = self.entries.values().map(|e| (e.alias.as_str().to_owned(), e.id.clone())).collect();
        // What a program calls its own machine leads to no peer, wherever the alias comes from.
        let aliases: Vec<_> = aliases.into_iter().filter(|(name, _)| name != "localhost").collect();
        let chosen: BTreeSet<String> = aliases.iter().map(|(name, _)| name.clone()).collect();
        let own: Vec<_> = self
            .entries
            .values()
            .map(|e| (e.own_name(), e.id.clone()))
            .filter(|(name, _)| !chosen.contains(name))
            .collect();
        for (name, id) in aliases.into_iter().chain(own) {
            let first = self.by_name.entry(name.clone()).or_insert_with(|| id.clone());
            if *first != id {
                self.ambiguous.insert(name);
            }
        }
        self.by_name.retain(|name, _| !self.ambiguous.contains(name));
    }
}

impl Entry {
    /// `<agent name>.peer.internal`, or `<agent name>.<link>.peer.internal` for a peer in another cluster: what the address
    /// resolves back to, and the name that no alias changes.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}.{ZONE}", self.own_name())
    }

    fn own_name(&self) -> String {
        match &self.link {
            None => self.id.name.to_string(),
            Some(link) => format!("{}.{link}", self.id.name),
        }
    }

    /// `<alias>.peer.internal`.
    #[must_use]
    pub fn alias_name(&self) -> String {
        format!("{}.{ZONE}", self.alias)
    }
}

/// `name` without `.peer.internal`, if it is below it. Lower case, without the final dot.
#[must_use]
pub fn strip_zone(name: &str) -> Option<&str> {
    name.strip_suffix(ZONE)?.strip_suffix('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::Fingerprint;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn id(authority: u8, name: &str) -> AgentId {
        AgentId { authority: Fingerprint([authority; 32]), name: name.parse().expect("a valid name") }
    }

    fn listed(authority: u8, name: &str, alias: &str) -> Listed {
        Listed::new(id(authority, name), alias.parse().expect("a valid alias"), Vec::new())
    }

    #[test]
    fn an_address_depends_on_the_id_alone() {
        let first = AddressBook::new().address_of(&id(1, "db"));
        let mut other = AddressBook::new();
        other.address_of(&id(2, "cache"));
        assert_eq!(other.address_of(&id(1, "db")), first);
    }

    #[test]
    fn two_ids_that_hash_alike_get_two_addresses_that_stay() {
        let (a, b) = (id(1, "a"), id(1, "b"));
        let mut book = AddressBook::new();
        book.restore([(b.clone(), candidate(&a, 0))]);
        let moved = book.address_of(&a);
        assert_ne!(moved, candidate(&a, 0), "that one is taken");
        assert_eq!(book.address_of(&b), candidate(&a, 0));
        assert_eq!(book.address_of(&a), moved);
    }

    #[test]
    fn an_address_is_not_reused_after_its_peer_has_left() {
        let mut book = AddressBook::new();
        let before = book.directory([listed(1, "a", "a")]);
        let gone = book.directory([]);
        let after = book.directory([listed(1, "a", "a")]);
        assert_eq!(gone.entries().count(), 0);
        assert_eq!(before, after);
        assert_eq!(book.assigned().len(), 1, "the book remembers");
    }

    #[test]
    fn a_peer_answers_to_alias_and_name_bare_and_full_in_any_case() {
        let directory = AddressBook::new().directory([listed(1, "db-tool-server.tools", "db")]);
        for name in ["db", "DB.Peer.Internal", "db.peer.internal.", "db-tool-server.tools.peer.internal"] {
            assert_eq!(directory.by_name(name).map(|e| e.alias.as_str()), Some("db"), "{name}");
        }
        for name in ["", ".", "peer.internal", "x.db", "db.peer.internal.example", "tools.peer.internal"] {
            assert_eq!(directory.by_name(name), None, "{name}");
        }
        assert!(directory.has_names_below("tools"));
        assert!(!directory.has_names_below("ools"));
    }

    #[test]
    fn a_peer_cannot_take_over_an_alias_by_its_own_name() {
        let directory = AddressBook::new().directory([listed(2, "db.prod", "db"), listed(1, "db", "other")]);
        assert_eq!(directory.by_name("db").map(|e| &e.id), Some(&id(2, "db.prod")));
    }

    #[test]
    fn localhost_is_nobody_elses_name() {
        let directory = AddressBook::new().directory([listed(1, "db", "localhost")]);
        assert_eq!(directory.by_name("localhost"), None);
        assert!(directory.by_name("db.peer.internal").is_some(), "its own name still finds it");
    }

    #[test]
    fn a_peer_cannot_capture_a_public_name() {
        let directory = AddressBook::new().directory([listed(1, "example.com", "shop"), listed(2, "com", "top")]);
        assert_eq!(directory.by_name("example.com"), None);
        assert_eq!(directory.by_name("com"), None);
        assert!(directory.by_name("example.com.peer.internal").is_some());
    }

    #[test]
    fn a_name_that_two_peers_share_leads_to_neither() {
        let directory = AddressBook::new().directory([listed(1, "db", "one"), listed(2, "db", "two")]);
        assert_eq!(directory.by_name("db"), None);
        assert!(directory.ambiguous().contains("db"));
        assert_eq!(directory.by_name("two").map(|e| &e.id), Some(&id(2, "db")));
    }

    #[test]
    fn a_peer_of_another_cluster_has_that_clusters_name_in_its_own() {
        let link = Some("cluster-b".parse().expect("a label"));
        let there = Listed { link, ..listed(2, "db.tools", "far") };
        let directory = AddressBook::new().directory([there, listed(1, "db.tools", "near")]);
        let of = |name: &str| directory.by_name(name).map(|entry| entry.alias.to_string());
        assert_eq!(of("db.tools.cluster-b.peer.internal").as_deref(), Some("far"));
        assert_eq!(of("db.tools.peer.internal").as_deref(), Some("near"), "without a cluster it is ours");
        assert_eq!(directory.by_name("far").map(Entry::full_name).as_deref(), Some("db.tools.cluster-b.peer.internal"));
        assert!(directory.has_names_below("cluster-b") && directory.has_names_below("tools.cluster-b"));
    }

    #[test]
    fn a_port_with_another_number_here_still_leads_to_its_own() {
        let port = |number| Port { name: "p".parse().expect("a label"), number, protocol: Protocol::Tcp };
        let peer = Listed {
            ports: vec![port(80), port(81)],
            here: [((Protocol::Tcp, 80), 8080)].into(),
            ..listed(1, "db", "db")
        };
        let directory = AddressBook::new().directory([peer]);
        let ports = &directory.by_name("db").expect("it is known").ports;
        assert_eq!(*ports, [((Protocol::Tcp, 8080), 80), ((Protocol::Tcp, 81), 81)].into());
    }

    proptest! {
        #[test]
        fn every_address_is_usable_and_found_again(authority in any::<[u8; 32]>(), name in "[a-z]{1,20}") {
            let id = AgentId { authority: Fingerprint(authority), name: name.parse().expect("letters are a name") };
            let address = AddressBook::new().address_of(&id);
            prop_assert!(is_usable(address), "{address}");
            prop_assert!(address.is_loopback());
            let alias = name.parse().expect("letters are a label");
            let directory = AddressBook::new().directory([Listed::new(id.clone(), alias, Vec::new())]);
            prop_assert_eq!(directory.by_address(address).map(|e| &e.id), Some(&id));
        }
    }
}
