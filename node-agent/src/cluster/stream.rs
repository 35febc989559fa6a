//! Keeps a stream from an operator, for as long as the process lives (docs/spec/control-plane.md sections 8 and 10).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::operator::{
    GoAway, GoAwayCode, KEEPALIVE, Keepalive, MAX_TOKEN, Renew, SILENCE, ToAgent, ToOperator,
};
use rustls::ClientConfig;
use tokio::time::{Instant, interval, timeout};

use super::connect::{self, ConnectError, Connection, Operator, ReadError};
use super::follow::BadUpdate;
use super::node::{Node, jitter};
use super::report::Reporter;
use super::session::{Opening, Reaction, Session, SessionError, Showing};
use crate::control::failure::chain;
use crate::state::time;

/// How long TCP, TLS and the upgrade may take.
const OPENING: Duration = Duration::from_secs(15);
/// How long one write may take: the operator reads all the time.
const WRITING: Duration = Duration::from_secs(15);
/// The first wait after a failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest: an operator that was away for a night is found within a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that an operator may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// A connection that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(60);
/// How long an answer to Renew may take.
const RENEWING: Duration = Duration::from_secs(30);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the operator's name {operator} cannot be looked up")]
    Lookup {
        operator: Operator,
        #[source]
        cause: std::io::Error,
    },
    #[error("no operator is configured")]
    NoOperator,
    #[error("the ServiceAccount token cannot be read; check that the pod projects it")]
    Token(#[source] std::io::Error),
    #[error("the ServiceAccount token has {0} bytes, more than any")]
    LongToken(usize),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the operator did not answer in time")]
    TimedOut,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the connection to the operator broke")]
    Write(#[source] std::io::Error),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Update(#[from] BadUpdate),
    #[error("nothing was heard from the operator for {} s", SILENCE.as_secs())]
    Silence,
    #[error("the operator says: {}", said(.0))]
    GoAway(GoAway),
}

fn said(go_away: &GoAway) -> String {
    match go_away.text.is_empty() {
        true => format!("{:?}", go_away.code),
        false => go_away.text.clone(),
    }
}

/// Runs until dropped.
pub(super) async fn run(node: Arc<Node>) {
    let config = match peerage_tls::client() {
        Ok(config) => config,
        Err(error) => return tracing::error!(%error, "TLS cannot be set up; there will be no operator"),
    };
    let mut keeper = Keeper { node, config, enrol: false, wait: FIRST_WAIT, avoid: None };
    loop {
        let begun = Instant::now();
        let ended = keeper.attempt().await;
        let why = chain(&ended);
        tracing::warn!(why, "no operator");
        keeper.node.disconnected(why);
        let wait = keeper.after(&ended, begun.elapsed()).await;
        tokio::time::sleep(wait).await;
    }
}

struct Keeper {
    node: Arc<Node>,
    config: Arc<ClientConfig>,
    /// Whether the passport is of no use to the operator, though it counts.
    enrol: bool,
    wait: Duration,
    /// A replica that is behind; another is tried first.
    avoid: Option<SocketAddr>,
}

impl Keeper {
    /// One connection: through all addresses to the first that takes us, for as long as it lasts.
    async fn attempt(&mut self) -> Ended {
        let mut last = Ended::NoOperator;
        let places = match self.places().await {
            Ok(places) => places,
            Err(ended) => return ended,
        };
        for (place, operator) in places {
            self.node.connecting(place);
            match timeout(OPENING, connect::connect(place, &operator, &self.config)).await {
                Ok(Ok(connection)) => {
                    let Err(ended) = self.serve(connection).await;
                    if matches!(ended, Ended::GoAway(GoAway { code: GoAwayCode::Behind, .. })) {
                        self.avoid = Some(place);
                    }
                    return ended;
                }
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = Ended::TimedOut,
            }
            tracing::debug!(%place, why = chain(&last), "an operator's address does not serve");
        }
        last
    }

    /// All addresses of all operators, in random order.
    async fn places(&mut self) -> Result<Vec<(SocketAddr, Operator)>, Ended> {
        let (mut places, mut failed) = (Vec::new(), None);
        for operator in &self.node.options.operators {
            match tokio::net::lookup_host((operator.host.as_str(), operator.port)).await {
                Ok(found) => places.extend(found.map(|place| (place, operator.clone()))),
                Err(cause) => failed = Some(Ended::Lookup { operator: operator.clone(), cause }),
            }
        }
        let avoid = self.avoid.take();
        places.sort_by_cached_key(|(place, _)| (Some(*place) == avoid, jitter(Duration::from_secs(1))));
        match (places.is_empty(), failed) {
            (true, Some(failed)) => Err(failed),
            (true, None) => Err(Ended::NoOperator),
            (false, _) => Ok(places),
        }
    }

    /// What to show: the passport where it counts, else the token, which the kubelet may have replaced.
    async fn showing(&self) -> Result<Showing, Ended> {
        let instance = self.node.instance();
        if let (false, Some(_)) = (self.enrol, instance.credential(time::now()))
            && let Some(passport) = instance.passport
        {
            return Ok(Showing::Passport(passport));
        }
        let token = tokio::fs::read_to_string(&self.node.options.token_file).await.map_err(Ended::Token)?;
        let token = token.trim().to_owned();
        match token.len() {
            length if length > MAX_TOKEN => Err(Ended::LongToken(length)),
            _ => Ok(Showing::Token(token)),
        }
    }

    async fn serve(&mut self, connection: Connection) -> Result<std::convert::Infallible, Ended> {
        let Connection { binding, mut reader, writer } = connection;
        let instance = self.node.instance();
        let mut session = Session::new(Opening {
            binding,
            authority: self.node.options.authority,
            record_seen: instance.record_seen,
            key: instance.key,
            showing: self.showing().await?,
            have: self.node.follow(|follow| follow.reached().cloned()),
        });
        let mut writer = Saying { writer, last: Instant::now() };
        let (mut heard, mut renewing, mut reporter) = (Instant::now(), None::<Instant>, Reporter::default());
        let mut ticks = interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                message = reader.next() => {
                    heard = Instant::now();
                    let message = message?;
                    if matches!(message, ToAgent::Passport(_)) {
                        renewing = None;
                    }
                    let reaction = session.handle(message, time::now())?;
                    if let Some(answer) = self.react(reaction).await? {
                        reporter.begin_after(&answer);
                        writer.say(&answer).await?;
                    }
                    self.node.heard_operator(time::now());
                }
                _ = ticks.tick() => {
                    if heard.elapsed() >= SILENCE {
                        writer.writer.close().await;
                        return Err(Ended::Silence);
                    }
                    let patient = renewing.is_some_and(|asked| asked.elapsed() < RENEWING);
                    if session.is_enrolled() && !patient && self.node.is_renewal_due(time::now()) {
                        renewing = Some(Instant::now());
                        writer.say(&ToOperator::Renew(Renew {})).await?;
                    }
                    for report in reporter.due(&self.node).await {
                        writer.say(&ToOperator::Report(report)).await?;
                    }
                    // Until the other end has proven itself it gets no byte.
                    if session.is_enrolled() && writer.last.elapsed() >= KEEPALIVE {
                        writer.say(&ToOperator::Keepalive(Keepalive {})).await?;
                    }
                }
            }
        }
    }

    async fn react(&mut self, reaction: Reaction) -> Result<Option<ToOperator>, Ended> {
        match reaction {
            Reaction::Say { record_seen, first } => {
                self.node.record_seen(record_seen);
                Ok(Some(*first))
            }
            Reaction::Passport { credential, passport } => {
                self.enrol = false;
                self.node.passport(&credential, passport);
                Ok(None)
            }
            Reaction::Update(update) => Ok(self.node.update(*update).await?.map(ToOperator::Ack)),
            Reaction::GoAway(go_away) => Err(Ended::GoAway(go_away)),
            Reaction::Nothing => Ok(None),
        }
    }

    /// Acts on an end, and says how long to stay away.
    async fn after(&mut self, ended: &Ended, lasted: Duration) -> Duration {
        if lasted >= GOOD {
            self.wait = FIRST_WAIT;
        }
        let tried_passport = !self.enrol;
        let asked = match ended {
            Ended::GoAway(go_away) => {
                match go_away.code {
                    GoAwayCode::Denied => self.node.denied().await,
                    GoAwayCode::NoAgent | GoAwayCode::PodGone => self.node.no_agent(),
                    GoAwayCode::EnrolAnew => self.enrol = true,
                    GoAwayCode::Closing
                    | GoAwayCode::Malformed
                    | GoAwayCode::BadProof
                    | GoAwayCode::BadToken
                    | GoAwayCode::Ambiguous
                    | GoAwayCode::Behind
                    | GoAwayCode::NotReady
                    | GoAwayCode::Busy
                    | GoAwayCode::Replaced => {}
                }
                go_away.retry_after
            }
            Ended::Connect(ConnectError::Status { retry_after, .. }) => *retry_after,
            _ => None,
        };
        let asked =
            asked.map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds.into()).min(LONGEST_RETRY_AFTER));
        let soon = match ended {
            Ended::GoAway(GoAway { code: GoAwayCode::EnrolAnew, .. }) => tried_passport,
            // One that closes what it has just opened is no reason to hurry.
            Ended::GoAway(GoAway { code: GoAwayCode::Closing, .. }) => lasted >= FIRST_WAIT,
            _ => false,
        };
        let wait = if soon { FIRST_WAIT / 4 } else { self.wait };
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        (wait / 2 + jitter(wait / 2)).max(asked)
    }
}

/// The writer, and when it last wrote.
struct Saying {
    writer: connect::Writer,
    last: Instant,
}

impl Saying {
    async fn say(&mut self, message: &ToOperator) -> Result<(), Ended> {
        self.last = Instant::now();
        match timeout(WRITING, self.writer.send(message)).await {
            Ok(written) => written.map_err(Ended::Write),
            Err(_) => Err(Ended::TimedOut),
        }
    }
}
