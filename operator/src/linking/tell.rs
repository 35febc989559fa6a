//! Our side of a link's channel: a stream on which we tell the other operator what we have, for as long as the link is there.
//!
//! What there is to tell is a value; what was told on this stream is another, and the difference goes out. So a stream that
//! broke needs no memory: the next one begins with everything.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use peerage_agent::driver::DriverHandle;
use peerage_agent::tunnel::{Dial, Opened};
use peerage_model::AgentId;
use peerage_model::linking::{self, Denied, Heard, KEEPALIVE, SILENCE, Tell, Told, WINDOW, Withdrawn};
use peerage_model::operator::Keepalive;
use peerage_model::stream::{StreamHeader, StreamKind};
use tokio::sync::watch;
use tokio::time::Instant;

use super::frames::{self, Ended};
use super::outgoing::Outgoing;

/// Waiting times between two calls: from the first to the last they double.
const AGAIN: Duration = Duration::from_secs(1);
/// See [`AGAIN`].
const AGAIN_AT_MOST: Duration = Duration::from_secs(15);

/// How it goes, for the link's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Going {
    /// The other operator hears us.
    Heard,
    /// It does not.
    Lost(String),
}

/// Calls the other operator and tells it what is in `outgoing`, until that ends.
pub(super) async fn run(
    tunnel: DriverHandle,
    peer: AgentId,
    mut outgoing: watch::Receiver<Arc<Outgoing>>,
    report: impl Fn(Going) + Send + Sync,
) {
    let mut wait = AGAIN;
    loop {
        let ended = call(&tunnel, &peer, &mut outgoing, &|| report(Going::Heard), &mut wait).await;
        let Some(ended) = ended else { return };
        tracing::debug!(%ended, "a stream to another operator ended");
        report(Going::Lost(format!(
            "the other operator does not answer ({ended}); see whether its cluster has a link to this one, and `kubectl peerage doctor` \
             on both sides. If this link leads to a machine on its own (`peerage up`), it has none, and AgentTrusts work all the same"
        )));
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN_AT_MOST);
    }
}

/// One stream; `None` when there is nothing to tell any more.
async fn call(
    tunnel: &DriverHandle,
    peer: &AgentId,
    outgoing: &mut watch::Receiver<Arc<Outgoing>>,
    heard: &(impl Fn() + Send + Sync),
    wait: &mut Duration,
) -> Option<Ended> {
    let header = StreamHeader { kind: StreamKind::Tcp, port: linking::PORT };
    let stream = match tunnel.dial(peer, header).await {
        Ok(Opened::Stream(stream)) => stream,
        Ok(Opened::Flow(_)) => return Some(Ended::Malformed),
        Err(error) => return Some(Ended::Broken(std::io::Error::other(error))),
    };
    let (mut reader, mut writer) = frames::split(stream);
    let (mut told, mut queue) = (None, VecDeque::new());
    let mut flow = Flow::begin(Instant::now());
    loop {
        if queue.is_empty() {
            let new = Arc::clone(&outgoing.borrow_and_update());
            queue.extend(difference(told.as_deref(), &new));
            told = Some(new);
        }
        while flow.has_room()
            && let Some(tell) = queue.pop_front()
        {
            if let Err(ended) = writer.send(&tell.encode()).await {
                return Some(ended);
            }
            flow.sent(Instant::now());
        }
        tokio::select! {
            frame = reader.next() => match frame.and_then(|frame| flow.take(&frame, Instant::now())) {
                Ok(true) => {
                    *wait = AGAIN;
                    heard();
                }
                Ok(false) => {}
                Err(ended) => return Some(ended),
            },
            changed = outgoing.changed(), if queue.is_empty() => if changed.is_err() { return None },
            // What cannot be sent is not queued either: a hearer that acknowledges nothing must not fill our memory.
            () = tokio::time::sleep_until(flow.last_sent + KEEPALIVE), if flow.has_room() => {
                queue.push_back(Tell::Keepalive(Keepalive {}));
            }
            () = tokio::time::sleep_until(flow.last_heard + SILENCE) => return Some(Ended::Silent),
        }
    }
}

/// What is on its way on one stream, and when something went either way last.
struct Flow {
    sent: u64,
    acknowledged: u64,
    last_sent: Instant,
    last_heard: Instant,
}

impl Flow {
    fn begin(now: Instant) -> Self {
        Self { sent: 0, acknowledged: 0, last_sent: now, last_heard: now }
    }

    /// Whether the hearer has acknowledged enough for another frame.
    fn has_room(&self) -> bool {
        self.sent - self.acknowledged < WINDOW
    }

    fn sent(&mut self, now: Instant) {
        self.sent += 1;
        self.last_sent = now;
    }

    /// Takes what came back. Whether that acknowledges something.
    fn take(&mut self, frame: &[u8], now: Instant) -> Result<bool, Ended> {
        match Heard::decode(frame).map_err(|_| Ended::Malformed)? {
            Some(answer) => self.heard(answer.count, now),
            None => Ok(false),
        }
    }

    /// Takes a count; whether it says anything new. Who repeats an old one for ever has fallen silent.
    fn heard(&mut self, count: u64, now: Instant) -> Result<bool, Ended> {
        if count > self.sent {
            return Err(Ended::Malformed); // more than we said is no answer to us
        }
        let is_news = count > self.acknowledged;
        if is_news {
            (self.acknowledged, self.last_heard) = (count, now);
        }
        Ok(is_news)
    }
}

/// What is to be said to who was told `before`; everything, and that it was everything, to who was told nothing.
fn difference(before: Option<&Outgoing>, after: &Outgoing) -> Vec<Tell> {
    let empty = Outgoing::default();
    let known = before.unwrap_or(&empty);
    let mut all = Vec::new();
    if before.is_none() || known.hello != after.hello {
        all.push(Tell::Hello(after.hello.clone()));
    }
    // What was taken back goes first: it must not wait behind a thousand wishes.
    let gone = known.wishes.keys().filter(|id| !after.wishes.contains_key(id));
    all.extend(gone.map(|id| Tell::Withdrawn(Withdrawn { id: *id })));
    let denied = after.denied.iter().filter(|(key, _)| !known.denied.contains_key(key));
    all.extend(denied.map(|((agent, instance), until)| {
        Tell::Denied(Denied { agent: agent.clone(), instance: *instance, until: *until })
    }));
    let wishes = after.wishes.iter().filter(|(id, wish)| known.wishes.get(id) != Some(wish));
    all.extend(wishes.map(|(_, wish)| Tell::Wish(wish.clone())));
    if before.is_none() {
        all.push(Tell::Told(Told {}));
    }
    all
}

#[cfg(test)]
mod tests {
    use peerage_model::linking::Wish;
    use peerage_model::{InstanceId, TrustId, UnixTime};

    use super::*;

    fn wish(id: u8) -> (TrustId, Wish) {
        let (from, to) = ("a.b".parse().expect("a name"), "c.d".parse().expect("a name"));
        (TrustId([id; 16]), Wish { id: TrustId([id; 16]), from, to, purpose: None })
    }

    #[test]
    fn a_new_stream_is_told_everything_and_where_it_ends() {
        let outgoing = Outgoing { wishes: [wish(1), wish(2)].into(), ..Outgoing::default() };
        let told = difference(None, &outgoing);
        let [Tell::Hello(_), Tell::Wish(_), Tell::Wish(_), Tell::Told(_)] = &told[..] else { panic!("{told:?}") };
    }

    #[test]
    fn a_hearer_that_acknowledges_nothing_is_told_a_window_and_counts_as_silent() {
        let begun = Instant::now();
        let mut flow = Flow::begin(begun);
        for _ in 0..WINDOW {
            assert!(flow.has_room());
            flow.sent(begun);
        }
        assert!(!flow.has_room(), "neither news nor a keepalive");
        assert!(matches!(flow.heard(0, begun + SILENCE), Ok(false)));
        assert_eq!(flow.last_heard, begun, "an old count is no sign of life");
        assert!(matches!(flow.heard(1, begun + KEEPALIVE), Ok(true)));
        assert_eq!((flow.has_room(), flow.last_heard), (true, begun + KEEPALIVE));
        assert!(matches!(flow.heard(WINDOW + 1, begun), Err(Ended::Malformed)));
    }

    #[test]
    fn later_only_what_changed_is_told_and_what_was_taken_back_first() {
        let before = Outgoing { wishes: [wish(1), wish(2)].into(), ..Outgoing::default() };
        let denied = [(("a.b".parse().expect("a name"), InstanceId([7; 8])), UnixTime(9))].into();
        let after = Outgoing { wishes: [wish(2), wish(3)].into(), denied, ..Outgoing::default() };
        let told = difference(Some(&before), &after);
        let [Tell::Withdrawn(gone), Tell::Denied(_), Tell::Wish(new)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((gone.id, new.id), (TrustId([1; 16]), TrustId([3; 16])));
        assert_eq!(difference(Some(&after), &after), []);
    }
}
