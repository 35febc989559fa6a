//! The connection between a follower and the leader.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::AuthorityRecord;
use peerage_model::operator::{EXPORTER_LABEL, SILENCE};
use peerage_model::pair::hkdf;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{Admitted, Counts, Desk, Message, Others, PeerRow, TrustRow};
use crate::authority::Keyring;
use crate::cluster::Cluster;
use crate::heap::Heap;
use crate::hub::{AgentTold, TrustCount};
use crate::index::Dirty;
use crate::key::ObjectKey;
use crate::leader::Leadership;

/// Where replicas meet.
pub const HTTP_PATH: &str = "/v1/replica";
/// And what they speak there.
pub const UPGRADE: &str = "peerage-replica/1";
/// Longest message.
const MAX_MESSAGE: usize = 1 << 20;
/// Passports, numbers or keys in one message.
const CHUNK: usize = 500;
/// For how long numbers are gathered.
const GATHER: Duration = Duration::from_millis(250);
/// How often there is a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long meeting may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which end proves; a proof of one end is none of the other.
#[derive(Clone, Copy)]
enum End {
    Follower,
    Leader,
}

fn proofs(keys: &Keyring, binding: &[u8; 32], end: End) -> Vec<[u8; 32]> {
    let end: &[u8] = match end {
        End::Follower => b"follower",
        End::Leader => b"leader",
    };
    let proof = |secret: &peerage_model::AgreementSecret| {
        *hkdf(binding, secret.expose(), &[b"peerage replica v1".as_slice(), end])
    };
    keys.agreements().iter().map(proof).collect()
}

/// One key in common is enough: replicas read a rotated Secret at different times.
fn is_proven(shown: &Message, keys: &Keyring, binding: &[u8; 32], end: End) -> bool {
    let Message::Proof(shown) = shown else { return false };
    proofs(keys, binding, end).iter().any(|ours| shown.contains(ours))
}

fn refused(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

struct Reader<T>(ReadHalf<T>, Vec<u8>);
struct Writer<T>(WriteHalf<T>);

impl<T: AsyncRead> Reader<T> {
    /// May be dropped at any await and called again.
    async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(prefix) = self.1.first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
                if length > MAX_MESSAGE {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if self.1.len() >= 4 + length {
                    let rest = self.1.split_off(4 + length);
                    let frame = std::mem::replace(&mut self.1, rest);
                    return serde_json::from_slice(&frame[4..]).map_err(io::Error::other);
                }
            }
            if self.0.read_buf(&mut self.1).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<T: AsyncWrite> Writer<T> {
    async fn say(&mut self, message: &Message) -> io::Result<()> {
        let body = serde_json::to_vec(message).map_err(io::Error::other)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        timeout(PATIENCE, async {
            self.0.write_all(&length.to_be_bytes()).await?;
            self.0.write_all(&body).await?;
            self.0.flush().await
        })
        .await?
    }

    /// Everybody who holds a passport here.
    async fn say_holders(&mut self, cluster: &Cluster) -> io::Result<()> {
        let all: Vec<_> = cluster.read().roll.holders().map(|(uid, holder)| Admitted::new(*uid, holder)).collect();
        for chunk in all.chunks(CHUNK) {
            self.say(&Message::Admitted(chunk.to_vec())).await?;
        }
        Ok(())
    }
}

/// The leader's end: takes numbers and enrolments, passes enrolments of others on. A replica that does not lead serves it
/// too, since the caller may know of its election before it does.
pub async fn lead<T: AsyncRead + AsyncWrite>(
    stream: T,
    binding: &[u8; 32],
    cluster: &Cluster,
    keys: &Keyring,
    others: &Arc<Others>,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (Reader(reader, Vec::new()), Writer(writer));
    let shown = timeout(PATIENCE, reader.next()).await??;
    if !is_proven(&shown, keys, binding, End::Follower) {
        return Err(refused("the caller is no replica of ours"));
    }
    writer.say(&Message::Proof(proofs(keys, binding, End::Leader))).await?;
    let desk = others.open_desk();
    // Side by side: both ends begin by telling all that they know, and neither may wait for the other to have read it.
    tokio::select! {
        ended = hear_follower(&mut reader, &desk, cluster, others) => ended,
        ended = tell_follower(&mut writer, desk.serial, cluster, others) => ended,
    }
}

async fn hear_follower<T: AsyncRead>(
    reader: &mut Reader<T>,
    desk: &Desk,
    cluster: &Cluster,
    others: &Others,
) -> io::Result<()> {
    loop {
        match timeout(SILENCE, reader.next()).await?? {
            Message::Counts(Counts { trusts, peers, gone, records }) => {
                let mut dirty = Dirty::default();
                dirty.trusts.extend(trusts.iter().map(|row| row.key.clone().into()));
                dirty.judged.extend(peers.iter().map(|row| row.key.clone().into()));
                desk.file(trusts, peers, &gone);
                cluster.judge(dirty);
                let now = crate::clock::now();
                let records = records.iter().filter_map(|text| AuthorityRecord::from_text(text, now).ok());
                records.for_each(|record| cluster.bring(record));
            }
            Message::Admitted(all) => {
                for admitted in all {
                    take(admitted.clone(), cluster);
                    let _ = others.admitted.send(Arc::new((desk.serial, admitted)));
                }
            }
            Message::Keepalive => {}
            Message::Proof(_) => return Err(refused("a proof comes once")),
        }
    }
}

async fn tell_follower<T: AsyncWrite>(
    writer: &mut Writer<T>,
    desk: u64,
    cluster: &Cluster,
    others: &Others,
) -> io::Result<()> {
    let mut announced = others.admitted.subscribe();
    writer.say_holders(cluster).await?;
    let mut tick = tokio::time::interval(KEEPALIVE);
    loop {
        tokio::select! {
            admitted = announced.recv() => match admitted {
                Ok(said) if said.0 == desk => {} // it told us itself
                Ok(said) => writer.say(&Message::Admitted(vec![said.1.clone()])).await?,
                Err(RecvError::Lagged(_)) => writer.say_holders(cluster).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = tick.tick() => writer.say(&Message::Keepalive).await?,
        }
    }
}

fn take(admitted: Admitted, cluster: &Cluster) {
    if let Some((uid, holder)) = admitted.read() {
        // What was denied meanwhile stays so, and the replica that let it in hears of that as we did.
        let _ = cluster.admit(uid, holder, false);
    }
}

/// A replica that does not lead.
#[derive(Debug)]
pub struct Follower {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The keys to prove with.
    pub keyring: watch::Receiver<Arc<Keyring>>,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
}

impl Follower {
    /// Calls whoever leads, for ever. `counted`: what changed, as the status writer hears it; `admitted`: enrolments of
    /// this replica.
    pub async fn run(mut self, counted: Arc<Heap>, mut admitted: mpsc::UnboundedReceiver<Admitted>) {
        loop {
            let leadership = self.leadership.borrow_and_update().clone();
            let ended: io::Result<()> = match leadership {
                Leadership::Theirs { address } => {
                    let mut changes = self.leadership.clone();
                    tokio::select! {
                        ended = self.call(&address, &counted, &mut admitted) => ended,
                        changed = changes.changed() => changed.map_err(|_| io::ErrorKind::BrokenPipe.into()),
                    }
                }
                Leadership::Ours | Leadership::Nobody => loop {
                    // Whoever leads next is told everything, so what changes meanwhile can be forgotten.
                    tokio::select! {
                        changed = self.leadership.changed() => break changed.map_err(|_| io::ErrorKind::BrokenPipe.into()),
                        () = counted.grown() => drop(counted.take()),
                        Some(_) = admitted.recv() => {}
                    }
                },
            };
            match ended {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe && self.leadership.has_changed().is_err() => {
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the leader is not reached");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn call(
        &self,
        address: &str,
        counted: &Heap,
        admitted: &mut mpsc::UnboundedReceiver<Admitted>,
    ) -> io::Result<()> {
        let (stream, binding) = timeout(PATIENCE, connect(address)).await??;
        let (reader, writer) = tokio::io::split(stream);
        let (mut reader, mut writer) = (Reader(reader, Vec::new()), Writer(writer));
        let keys = Arc::clone(&self.keyring.borrow());
        writer.say(&Message::Proof(proofs(&keys, &binding, End::Follower))).await?;
        let shown = timeout(PATIENCE, reader.next()).await??;
        if !is_proven(&shown, &keys, &binding, End::Leader) {
            return Err(refused("who answers at the leader's address is no replica of ours"));
        }
        // Side by side, as at the other end.
        tokio::select! {
            ended = self.hear(&mut reader) => ended,
            ended = self.tell(&mut writer, counted, admitted) => ended,
        }
    }

    async fn hear<T: AsyncRead>(&self, reader: &mut Reader<T>) -> io::Result<()> {
        loop {
            if let Message::Admitted(all) = timeout(SILENCE, reader.next()).await?? {
                all.into_iter().for_each(|admitted| take(admitted, &self.cluster));
            }
        }
    }

    async fn tell<T: AsyncWrite>(
        &self,
        writer: &mut Writer<T>,
        counted: &Heap,
        admitted: &mut mpsc::UnboundedReceiver<Admitted>,
    ) -> io::Result<()> {
        writer.say_holders(&self.cluster).await?;
        let mut told = BTreeSet::new();
        let everything = Dirty { all: true, ..Dirty::default() };
        self.say_counts(&everything, &mut told, writer).await?;
        let mut brought = Vec::new();
        let mut tick = tokio::time::interval(KEEPALIVE);
        loop {
            tokio::select! {
                () = counted.grown() => {
                    tokio::time::sleep(GATHER).await;
                    self.say_counts(&counted.take(), &mut told, writer).await?;
                }
                Some(first) = admitted.recv() => {
                    let mut all = vec![first];
                    while all.len() < CHUNK && let Ok(more) = admitted.try_recv() {
                        all.push(more);
                    }
                    writer.say(&Message::Admitted(all)).await?;
                }
                _ = tick.tick() => {
                    self.say_brought(&mut brought, writer).await?;
                    writer.say(&Message::Keepalive).await?;
                }
            }
        }
    }

    /// Keys of other authorities, if they are others than when we told last.
    async fn say_brought<T: AsyncWrite>(
        &self,
        told: &mut Vec<AuthorityRecord>,
        writer: &mut Writer<T>,
    ) -> io::Result<()> {
        let latest = self.cluster.brought.latest();
        if *told == latest {
            return Ok(());
        }
        let records: Vec<_> = latest.iter().map(AuthorityRecord::to_text).collect();
        say_rows(&records, |records| Counts { records, ..Counts::default() }, writer).await?;
        *told = latest;
        Ok(())
    }

    /// Numbers of what changed, of agents that have streams here or had some when we told last.
    async fn say_counts<T: AsyncWrite>(
        &self,
        dirty: &Dirty,
        told: &mut BTreeSet<ObjectKey>,
        writer: &mut Writer<T>,
    ) -> io::Result<()> {
        let Counts { trusts, peers, gone, .. } = self.counts(dirty, told);
        say_rows(&trusts, |trusts| Counts { trusts, ..Counts::default() }, writer).await?;
        say_rows(&peers, |peers| Counts { peers, ..Counts::default() }, writer).await?;
        say_rows(&gone, |gone| Counts { gone, ..Counts::default() }, writer).await
    }

    fn counts(&self, dirty: &Dirty, told: &mut BTreeSet<ObjectKey>) -> Counts {
        let hub = &self.cluster.hub;
        // Before an agent's numbers are looked at: one that leaves meanwhile is told of once more.
        let mut left = BTreeSet::new();
        let mut concerns = |agent: &ObjectKey| {
            if hub.has(agent) {
                told.insert(agent.clone());
            } else if told.contains(agent) {
                left.insert(agent.clone());
            }
            told.contains(agent)
        };
        let state = self.cluster.read();
        let mut agents: BTreeSet<_> = dirty.judged.union(&dirty.agents).cloned().collect();
        if dirty.all {
            agents.extend(hub.agents());
        }
        let mut keys = dirty.trusts.clone();
        keys.extend(agents.iter().flat_map(|agent| state.index.trusts_of(agent)));
        let mut trusts = Vec::new();
        for key in keys {
            let Some(facts) = state.index.trust(&key) else { continue };
            if concerns(&facts.agent) {
                let (uid, generation) = (facts.uid.0, facts.generation);
                let TrustCount { expected, acknowledged, path, failing, conflict } =
                    hub.count(&facts.agent, &facts.uid, generation);
                let key = key.into();
                trusts.push(TrustRow { key, uid, generation, expected, acknowledged, path, failing, conflict });
            }
        }
        let mut peers = Vec::new();
        for agent in agents.into_iter().filter(|agent| concerns(agent)) {
            let AgentTold { path, nat, conflict } = hub.told(&agent);
            peers.push(PeerRow { streams: hub.of(&agent).len(), key: agent.into(), path, nat, conflict });
        }
        told.retain(|agent| !left.contains(agent));
        let gone = dirty.gone.keys().map(|uid| uid.0).collect();
        Counts { trusts, peers, gone, ..Counts::default() }
    }
}

/// Says rows of one kind, in as many messages as they need.
async fn say_rows<R: Clone, T: AsyncWrite>(
    rows: &[R],
    counts: impl Fn(Vec<R>) -> Counts,
    writer: &mut Writer<T>,
) -> io::Result<()> {
    for chunk in rows.chunks(CHUNK) {
        writer.say(&Message::Counts(counts(chunk.to_vec()))).await?;
    }
    Ok(())
}

type Binding = Zeroizing<[u8; 32]>;

async fn connect(address: &str) -> io::Result<(tokio_rustls::client::TlsStream<TcpStream>, Binding)> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("operator.invalid").map_err(io::Error::other)?;
    let config = peerage_tls::client().map_err(io::Error::other)?;
    let mut stream = TlsConnector::from(config).connect(name, tcp).await?;
    let mut binding = Zeroizing::new([0; 32]);
    stream.get_ref().1.export_keying_material(&mut binding[..], EXPORTER_LABEL, Some(&[])).map_err(io::Error::other)?;
    let request =
        format!("GET {HTTP_PATH} HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\nupgrade: {UPGRADE}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte, so that nothing of what follows is swallowed; it is one short answer in the life of a connection.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 4096 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(stream.read_u8().await?);
    }
    match head.starts_with(b"HTTP/1.1 101 ") {
        true => Ok((stream, binding)),
        false => Err(refused("the leader did not upgrade the connection")),
    }
}

#[cfg(test)]
mod tests {
    use peerage_model::InstanceId;

    use super::*;
    use crate::authority::Stored;
    use crate::brought::tests::{linked_with, rotating};
    use crate::index::Index;
    use crate::metrics::Metrics;
    use crate::roll::Holder;

    /// More than any buffer between the two ends holds.
    const MANY: u32 = 3000;

    fn cluster(stored: &Stored) -> Cluster {
        let now = crate::clock::now();
        let (news, _) = mpsc::unbounded_channel();
        let index = Index::new(stored.fingerprint(), now);
        let cluster = Cluster::new(index, 1, Vec::new(), Arc::new(Metrics::default()), news);
        for number in 0..MANY {
            let peer = ObjectKey::new("tools", "db");
            let mut uid = [0; 16];
            uid[..4].copy_from_slice(&number.to_be_bytes());
            let holder = Holder {
                agent: peer.agent(stored.fingerprint()).expect("a name"),
                peer,
                instance: InstanceId(u64::from(number).to_be_bytes()),
                pod: ObjectKey::new("tools", format!("db-{number}")),
                service_account: "db".into(),
                issued: now,
                until: now.plus(Duration::from_secs(60)),
            };
            cluster.admit(uid, holder, false).expect("it is admitted");
        }
        cluster
    }

    #[tokio::test]
    async fn two_replicas_that_both_have_much_to_tell_do_not_wait_for_each_other() {
        let stored = Stored::mint(&Zeroizing::new([7; 96]), crate::clock::now());
        let keys = stored.keyring(crate::clock::now());
        let (leader, follower) = (cluster(&stored), cluster(&stored));
        let others = Arc::new(Others::default());
        let (here, there) = tokio::io::duplex(4096);
        let leads = lead(there, &[5; 32], &leader, &keys, &others);
        let follows = async {
            let (reader, writer) = tokio::io::split(here);
            let (mut reader, mut writer) = (Reader(reader, Vec::new()), Writer(writer));
            writer.say(&Message::Proof(proofs(&keys, &[5; 32], End::Follower))).await?;
            assert!(is_proven(&reader.next().await?, &keys, &[5; 32], End::Leader));
            writer.say_holders(&follower).await?;
            let mut heard = 0;
            while heard < MANY as usize {
                if let Message::Admitted(all) = reader.next().await? {
                    heard += all.len();
                }
            }
            io::Result::Ok(())
        };
        tokio::select! {
            ended = leads => panic!("the leader gave up: {ended:?}"),
            told = follows => told.expect("each heard all that the other had to tell"),
        }
    }

    #[tokio::test]
    async fn keys_that_were_brought_to_a_follower_come_to_the_leader_once() {
        let (stored, theirs) = (Stored::mint(&Zeroizing::new([7; 96]), crate::clock::now()), rotating(2));
        let linked = || {
            let (news, _) = mpsc::unbounded_channel();
            Arc::new(Cluster::new(linked_with(&theirs[0]), 1, Vec::new(), Arc::default(), news))
        };
        let (leader, cluster, others) = (linked(), linked(), Arc::new(Others::default()));
        cluster.bring(theirs[1].record().clone());
        let keyring = watch::channel(Arc::new(stored.keyring(crate::clock::now()))).1;
        let follower = Follower { cluster, keyring, leadership: watch::channel(Leadership::Nobody).1 };
        let (here, there) = tokio::io::duplex(4096);
        let (mut writer, mut told) = (Writer(tokio::io::split(here).1), Vec::new());
        for _ in 0..2 {
            follower.say_brought(&mut told, &mut writer).await.expect("it has room for one");
        }
        drop(writer);
        let mut reader = Reader(tokio::io::split(there).0, Vec::new());
        let first = reader.next().await.expect("it was told");
        let Message::Counts(counts) = &first else { panic!("{first:?}") };
        assert_eq!(counts.records, [theirs[1].record().to_text()]);
        reader.next().await.expect_err("and only once");
        let (here, there) = tokio::io::duplex(4096);
        Writer(tokio::io::split(here).1).say(&first).await.expect("it has room for one");
        let (mut reader, desk) = (Reader(tokio::io::split(there).0, Vec::new()), others.open_desk());
        let heard = hear_follower(&mut reader, &desk, &leader, &others);
        heard.await.expect_err("the follower has gone");
        assert_eq!(leader.brought.latest(), [theirs[1].record().clone()]);
    }
}
