//! One stream: Hello, who are you, and from then on what changes.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_model::operator::{
    Ack, ChannelBinding, GoAway, GoAwayCode, Hello, KEEPALIVE, Keepalive, MAX_FIRST, MAX_FRAME, PREFIX, Report,
    Revision, SILENCE, ToAgent, ToOperator, Update, frame_len,
};
use peerage_model::{AgreementSecret, AuthorityRecord, TrustId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Server;
use super::enrol::Admitted;
use super::feed::{Feed, View};
use super::lobby::Guest;
use crate::hub::{Notes, Owed, Progress, Seat};
use crate::index::Dirty;
use crate::metrics::Outcome;

/// How long the first frame may take.
const FIRST: Duration = Duration::from_secs(10);
/// How long one write may take before the agent counts as gone.
const WRITE: Duration = Duration::from_secs(20);

/// Acknowledgements that are timed; of an agent that owes more, the oldest are not.
const MAX_OWED: usize = 1024;
/// Records of other authorities that one stream may hand on between two ticks: each is a signature to verify.
const MAX_BROUGHT: usize = 256;

/// Why a stream ended.
enum End {
    /// The agent is told.
    GoAway(GoAway),
    /// The connection is gone.
    Io(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn malformed(text: impl std::fmt::Display) -> End {
    End::GoAway(GoAway::new(GoAwayCode::Malformed, &text.to_string(), None))
}

/// Serves one stream to its end. `guest` is its place until it has shown whose it is.
pub(super) async fn serve<T: AsyncRead + AsyncWrite + Send>(
    server: &Server,
    stream: T,
    binding: &ChannelBinding,
    guest: Option<Guest>,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let end = match first(server, &mut reader, &mut writer, binding).await {
        Ok((admitted, have)) => match server.place() {
            Some(_place) => {
                drop(guest);
                follow(server, admitted, have, reader, &mut writer).await
            }
            None => End::GoAway(GoAway::new(GoAwayCode::Busy, "this replica serves as many agents as it can", None)),
        },
        Err(end) => end,
    };
    match end {
        End::GoAway(goodbye) => {
            tracing::debug!(code = ?goodbye.code, "a stream ends");
            // Who does not read our goodbye is gone already.
            let _ = write(&mut writer, &ToAgent::GoAway(goodbye)).await;
            let _ = timeout(WRITE, writer.shutdown()).await;
        }
        End::Io(error) => tracing::debug!(%error, "a stream broke"),
    }
}

/// Hello, and the agent's answer to it: who was let in, and what it has been told already.
async fn first<T: AsyncRead + AsyncWrite>(
    server: &Server,
    reader: &mut ReadHalf<T>,
    writer: &mut WriteHalf<T>,
    binding: &ChannelBinding,
) -> Result<(Admitted, Option<Revision>), End> {
    let mut random = [0; 32];
    crate::random::fill(&mut random)?;
    let e = AgreementSecret::from_bytes(random);
    let hello = Hello::new(server.keys().active(), binding, e.public());
    write(writer, &ToAgent::Hello(hello)).await?;
    let message = timeout(FIRST, read(reader, MAX_FIRST)).await.map_err(io::Error::from)??;
    let (result, have) = match message {
        Some(ToOperator::Enrol(enrol)) => (server.enrol(&enrol, binding, &e).await, enrol.have),
        Some(ToOperator::Resume(resume)) => (server.resume(&resume, binding, &e).await, resume.have),
        Some(ToOperator::Renew(_) | ToOperator::Ack(_) | ToOperator::Report(_) | ToOperator::Keepalive(_)) | None => {
            return Err(malformed("Enrol or Resume comes first"));
        }
    };
    let outcome = result.as_ref().map_or_else(|goodbye| format!("{:?}", goodbye.code), |_| "Ok".to_owned());
    server.cluster.metrics.enrolments.get_or_create(&Outcome { outcome }).inc();
    result.map(|admitted| (admitted, have)).map_err(End::GoAway)
}

/// A stream that was let in.
struct Session<'a, T> {
    server: &'a Server,
    admitted: Admitted,
    seat: Seat,
    feed: Feed,
    writer: &'a mut WriteHalf<T>,
    said: Instant,
    /// What the agent has from other replicas, while we may not have seen all of that: it takes nothing new from us before we
    /// say that we have.
    ahead: Option<Revision>,
    /// Updates that wait for their acknowledgement: the last part's number, since when, and whether something was
    /// deleted.
    owed: VecDeque<(u64, Instant, bool)>,
    /// How many records it may still hand on before the next tick.
    brings: usize,
}

async fn follow<T: AsyncRead + AsyncWrite>(
    server: &Server,
    admitted: Admitted,
    ahead: Option<Revision>,
    reader: ReadHalf<T>,
    writer: &mut WriteHalf<T>,
) -> End {
    let holder = &admitted.holder;
    let seat = server.cluster.hub.join(holder.peer.clone(), holder.instance, holder.pod.clone());
    // Who sits there is told of changes from here on; what changed before that shows at once.
    if let Err(goodbye) = server.still(&admitted) {
        return End::GoAway(goodbye);
    }
    let feed = Feed::new(holder.peer.clone());
    let gauge = &server.cluster.metrics.streams;
    gauge.inc();
    let (said, owed) = (Instant::now(), VecDeque::new());
    let brings = MAX_BROUGHT;
    let mut session = Session { server, admitted, seat, feed, writer, said, ahead, owed, brings };
    let end = session.run(reader).await;
    gauge.dec();
    session.judge();
    match end {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // Whoever could say it is gone with the process.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Nothing: a session ends only by an error or a goodbye.
enum Never {}

impl<T: AsyncRead + AsyncWrite> Session<'_, T> {
    async fn run(&mut self, mut reader: ReadHalf<T>) -> Result<Never, End> {
        let passport = self.server.issue(&self.admitted);
        self.say(&ToAgent::Passport(passport)).await?;
        let full = self.look(|feed, view, progress| feed.full(view, progress));
        self.tell(full, Instant::now(), false).await?;
        self.judge();
        let (mut keyring, mut stopping) = (self.server.keyring.clone(), self.server.stopping.clone());
        let stream = Arc::clone(&self.seat.stream);
        let mut heard = Instant::now();
        let mut frames = Frames::default();
        let mut tick = tokio::time::interval(KEEPALIVE / 3);
        loop {
            tokio::select! {
                notes = stream.notes() => self.on_notes(notes).await?,
                message = frames.next(&mut reader, MAX_FRAME) => {
                    heard = Instant::now();
                    if let Some(message) = message? {
                        self.on_message(message).await?;
                    }
                }
                _ = tick.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                    }
                    self.on_tick().await?;
                }
                changed = keyring.changed() => {
                    if changed.is_ok() {
                        self.on_keys().await?;
                    }
                }
                () = stopped(&mut stopping) => {
                    return Err(End::GoAway(GoAway::new(GoAwayCode::Closing, "this replica stops", None)));
                }
            }
        }
    }

    /// What is looked at from time to time.
    async fn on_tick(&mut self) -> Result<(), End> {
        if self.said.elapsed() >= KEEPALIVE * 2 / 3 {
            self.say(&ToAgent::Keepalive(Keepalive {})).await?;
        }
        self.catch_up().await?;
        self.pass_on_reports();
        self.brings = MAX_BROUGHT;
        match self.server.cluster.stale() {
            None => Ok(()),
            Some(kind) => {
                let text = format!("this replica has lost its watch of {kind}");
                Err(End::GoAway(GoAway::new(GoAwayCode::NotReady, &text, Some(1))))
            }
        }
    }

    /// The authority has other keys: the passport is signed anew, and secrets of pairs follow.
    async fn on_keys(&mut self) -> Result<(), End> {
        let passport = self.server.renew(&mut self.admitted).map_err(End::GoAway)?;
        self.say(&ToAgent::Passport(passport)).await?;
        self.on_notes(Notes { all: true, ..Notes::default() }).await
    }

    async fn on_notes(&mut self, notes: Notes) -> Result<(), End> {
        if notes.replaced {
            return Err(End::GoAway(GoAway::new(
                GoAwayCode::Replaced,
                "another connection of this instance took over",
                None,
            )));
        }
        if notes.pod || notes.withdrawn {
            self.server.still(&self.admitted).map_err(End::GoAway)?;
        }
        let updates = self.look(|feed, view, progress| feed.changes(view, &notes, progress));
        if updates.is_empty() {
            // Nobody will acknowledge what changed nothing for the agent: it counts from here on.
            let about = self.seat.stream.progress().about_any(&notes.pairs);
            self.judge_trusts(&about, false);
        }
        self.tell(updates, notes.told.unwrap_or_else(Instant::now), !notes.gone.is_empty()).await
    }

    /// Says so, if the agent waits for us to have seen what it has, and we have.
    async fn catch_up(&mut self) -> Result<(), End> {
        let revision = self.server.cluster.revision();
        if self.ahead.take_if(|ahead| revision.covers(ahead)).is_none() {
            return Ok(());
        }
        let mark = self.look(|feed, view, progress| feed.mark(view, progress));
        self.tell(mark, Instant::now(), false).await
    }

    /// Compares what the agent was told with what is, holding the cluster still meanwhile.
    fn look<R>(&mut self, compare: impl FnOnce(&mut Feed, View<'_>, &mut Progress) -> R) -> R {
        let keys = self.server.keys().agreements();
        // Before the state is read: what is seen later is newer, and a revision must never claim too much.
        let revision = self.server.cluster.revision();
        let state = self.server.cluster.read();
        let shown = self.server.cluster.shown();
        let view = View { index: &state.index, roll: &state.roll, keys: &keys, revision: &revision, shown: &shown };
        compare(&mut self.feed, view, &mut self.seat.stream.progress())
    }

    /// Tells the agent what follows from a change that this replica was told at `since`.
    async fn tell(&mut self, updates: Vec<Update>, since: Instant, deletion: bool) -> Result<(), End> {
        let Some(last) = updates.last().map(|update| update.sequence) else { return Ok(()) };
        self.owed.push_back((last, since, deletion));
        if self.owed.len() > MAX_OWED {
            self.owed.pop_front(); // who never acknowledges must not fill our memory
        }
        for update in updates {
            self.say(&ToAgent::Update(Box::new(update))).await?;
        }
        Ok(())
    }

    async fn say(&mut self, message: &ToAgent) -> Result<(), End> {
        let bytes = write(self.writer, message).await?;
        if matches!(message, ToAgent::Update(_)) {
            self.server.cluster.metrics.update_bytes.inc_by(bytes as u64);
        }
        self.said = Instant::now();
        Ok(())
    }

    async fn on_message(&mut self, message: ToOperator) -> Result<(), End> {
        match message {
            ToOperator::Keepalive(_) => Ok(()),
            ToOperator::Ack(ack) => self.on_ack(ack),
            ToOperator::Report(report) => {
                self.bring(&report);
                self.seat.stream.progress().report(report);
                Ok(())
            }
            ToOperator::Renew(_) => {
                let passport = self.server.renew(&mut self.admitted).map_err(End::GoAway)?;
                self.say(&ToAgent::Passport(passport)).await
            }
            ToOperator::Enrol(_) | ToOperator::Resume(_) => Err(malformed("this stream is enrolled already")),
        }
    }

    /// Takes the keys of other authorities that the agent's peers showed. What is signed by a link's root may come by anybody.
    fn bring(&mut self, report: &Report) {
        let now = crate::clock::now();
        for record in report.records.iter().take(self.brings) {
            match AuthorityRecord::verify(&record.0, now) {
                Ok(record) => self.server.cluster.bring(record),
                Err(error) => tracing::debug!(%error, "an agent hands on keys that are nobody's"),
            }
        }
        self.brings = self.brings.saturating_sub(report.records.len());
    }

    fn on_ack(&mut self, ack: Ack) -> Result<(), End> {
        if ack.sequence > self.feed.sequence() {
            return Err(malformed("an acknowledgement of what was never sent"));
        }
        if ack.refused > 0 {
            return Ok(()); // what it does not act on is not in force, and it does not say which
        }
        let metrics = &self.server.cluster.metrics;
        while let Some((_, since, deletion)) = self.owed.pop_front_if(|(sequence, ..)| *sequence <= ack.sequence) {
            metrics.propagation.observe(since.elapsed().as_secs_f64());
            if deletion {
                metrics.revocation.observe(since.elapsed().as_secs_f64());
            }
        }
        let settled: Vec<_> = {
            let mut progress = self.seat.stream.progress();
            let before = progress.acknowledged;
            progress.acknowledged = before.max(ack.sequence);
            let newly = |owed: &Owed| owed.update > before && owed.update <= ack.sequence;
            progress.owed.iter().filter(|(_, owed)| newly(owed)).map(|(trust, _)| *trust).collect()
        };
        self.judge_trusts(&settled, false);
        Ok(())
    }

    /// Passes on what was reported since the last time: not with each report, for an agent may send as many as it likes, and
    /// what it says ends in etcd.
    fn pass_on_reports(&self) {
        let (trusts, nat) = self.seat.stream.progress().news();
        self.judge_trusts(&trusts, nat);
    }

    /// Conditions of these AgentTrusts of the agent, and of the agent itself if `own`.
    fn judge_trusts(&self, trusts: &[TrustId], own: bool) {
        let agent = self.seat.stream.agent.clone();
        let trusts = self.server.cluster.read().index.trusts_with(&agent, trusts);
        let mut dirty = Dirty { trusts, ..Dirty::default() };
        if own || !dirty.trusts.is_empty() {
            dirty.judged.insert(agent); // its path is that of all its peers
            self.server.cluster.judge(dirty);
        }
    }

    /// Streams came or went: the conditions of the agent and of all its trusts count them.
    fn judge(&self) {
        let agent = self.seat.stream.agent.clone();
        let mut dirty = Dirty { trusts: self.server.cluster.read().index.trusts_of(&agent), ..Dirty::default() };
        dirty.judged.insert(agent);
        self.server.cluster.judge(dirty);
    }
}

/// Reads frames in pieces that may be interrupted: `select!` drops what it does not need, and half a frame must not be
/// lost with it.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// The next message; none for one of a kind that we do not know.
    async fn next<T: AsyncRead>(&mut self, reader: &mut ReadHalf<T>, max: usize) -> Result<Option<ToOperator>, End> {
        loop {
            if let Some(prefix) = self.bytes.first_chunk::<PREFIX>() {
                let length = frame_len(*prefix, max).map_err(malformed)?;
                if self.bytes.len() >= PREFIX + length {
                    let rest = self.bytes.split_off(PREFIX + length);
                    let frame = std::mem::replace(&mut self.bytes, rest);
                    return ToOperator::decode(&frame[PREFIX..]).map_err(malformed);
                }
            }
            if reader.read_buf(&mut self.bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

/// The first frame, before which nothing else may come.
async fn read<T: AsyncRead>(reader: &mut ReadHalf<T>, max: usize) -> Result<Option<ToOperator>, End> {
    let mut prefix = [0; PREFIX];
    reader.read_exact(&mut prefix).await?;
    let length = frame_len(prefix, max).map_err(malformed)?;
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame).await?;
    ToOperator::decode(&frame).map_err(malformed)
}

async fn write<T: AsyncWrite>(writer: &mut WriteHalf<T>, message: &ToAgent) -> io::Result<usize> {
    let frame = message.encode();
    timeout(WRITE, async {
        writer.write_all(&frame).await?;
        writer.flush().await
    })
    .await??;
    Ok(frame.len())
}

#[cfg(test)]
mod tests {
    use peerage_model::passport::LIFETIME;
    use peerage_model::{AgreementSecret, InstanceId};
    use tokio::sync::mpsc;
    use zeroize::Zeroizing;

    use super::*;
    use crate::authority::Stored;
    use crate::clock;
    use crate::cluster::Cluster;
    use crate::index::Index;
    use crate::key::ObjectKey;
    use crate::metrics::Metrics;
    use crate::replicas::Others;
    use crate::roll::Holder;

    #[tokio::test]
    async fn who_lost_its_pod_between_its_passport_and_its_place_is_told_so_and_nothing_else() {
        let now = clock::now();
        let stored = Stored::mint(&Zeroizing::new([7; 96]), now);
        let (news, _heard) = mpsc::unbounded_channel();
        let index = Index::new(stored.fingerprint(), now); // without the pod
        let cluster = Arc::new(Cluster::new(index, 1, Vec::new(), Arc::new(Metrics::default()), news));
        let (_keys, keyring) = watch::channel(Arc::new(stored.keyring(now)));
        let (_stop, stopping) = watch::channel(false);
        let nowhere = kube::Config::new("http://127.0.0.1:9".parse().expect("an address"));
        let client = kube::Client::try_from(nowhere).expect("it connects when it is used");
        let others = Arc::new(Others::default());
        let server = Server::new(Arc::clone(&cluster), stored.fingerprint(), keyring, client, others, stopping);
        let (key, peer) = (AgreementSecret::from_bytes([3; 32]).public(), ObjectKey::new("tools", "db"));
        let holder = Holder {
            agent: peer.agent(stored.fingerprint()).expect("a name"),
            peer,
            instance: InstanceId::of_key(&key),
            pod: ObjectKey::new("tools", "db-1"),
            service_account: "db".into(),
            issued: now,
            until: now.plus(LIFETIME),
        };
        let (here, mut there) = tokio::io::duplex(4096);
        let (reader, mut writer) = tokio::io::split(here);
        let end = follow(&server, Admitted { uid: [7; 16], holder, key }, None, reader, &mut writer).await;
        assert!(matches!(end, End::GoAway(goodbye) if goodbye.code == GoAwayCode::PodGone));
        drop(writer);
        let mut said = Vec::new();
        there.read_to_end(&mut said).await.expect("it is closed");
        assert!(said.is_empty() && cluster.hub.is_empty(), "no passport, no peers, no place");
    }
}
