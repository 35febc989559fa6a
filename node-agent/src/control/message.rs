//! What is said over the control socket: one request a connection, one JSON object a line.
//!
//! ```text
//! → {"v":1,"request":"status"}
//! ← {"v":1,"ok":{…}}                                   one answer, or
//! ← {"v":1,"error":{"code":…,"message":…,"hint":…}}    a failure, or
//! ← {"v":1,"event":{…}}  …  {"v":1,"end":true}         a stream; a failure may end it, too
//! ```
//!
//! After the answer to `connect` the line ends the JSON: what follows, both ways, is the peer's port.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failure::Failure;
use crate::state::document::{Path, Transport};

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// Longest line of a request. A ticket, the largest thing in one, has at most 4096 bytes.
pub const MAX_REQUEST: usize = 16 * 1024;
/// Longest line of an answer: a status with a thousand peers has about 1 MB.
pub const MAX_ANSWER: usize = 16 << 20;

/// A request as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// What a person or program may ask of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Everything at a glance. Answer: [`super::view::Status`].
    Status,
    /// Whom we trust. Answer: list of [`super::view::Peer`].
    Peers,
    /// A new ticket. Answer: [`super::view::Invited`].
    Invite {
        /// Good for how many seconds.
        expires_s: u64,
    },
    /// The tickets that nobody has used yet. Answer: list of [`super::view::OpenTicket`].
    Tickets,
    /// Make tickets worthless that nobody has used yet. Answer: list of [`super::view::OpenTicket`], those that are gone.
    Withdraw {
        /// The ticket's text, the first digits of its id, or `all`.
        ticket: String,
    },
    /// Ask a ticket's inviter for trust. Answer: [`super::view::Asked`].
    Handshake {
        /// The ticket's text.
        ticket: String,
        /// Whom we then trust, where the ticket is a cluster's: one of its agents. Otherwise the ticket's own agent.
        #[serde(default)]
        to: Option<String>,
        /// Why.
        reason: String,
        /// What the inviter may do here.
        #[serde(default)]
        terms: Terms,
    },
    /// Ask an agent for trust by its name alone. Answer: [`super::view::Asked`].
    HandshakeByName {
        /// `NAME` or `NAME@FINGERPRINT`, of which the first digits are enough.
        name: String,
        /// Where to look; our own relays when there are none.
        #[serde(default)]
        relays: Vec<String>,
        /// Why.
        reason: String,
        /// What the peer may do here.
        #[serde(default)]
        terms: Terms,
    },
    /// Who asks for our trust. Answer: list of [`super::view::Pending`].
    Requests,
    /// Say yes, or change what was said. Answer: [`super::view::Approved`].
    Approve {
        /// Whom.
        name: String,
        /// What the peer may do here.
        #[serde(default)]
        terms: Terms,
    },
    /// Say no. Answer: [`super::view::Rejected`].
    Reject {
        /// Whom.
        name: String,
    },
    /// Take trust back. Answer: [`super::view::Revoked`].
    Revoke {
        /// From whom.
        name: String,
        /// Answer only when the engine has reset the peer's streams.
        #[serde(default)]
        wait: bool,
    },
    /// Refuse one running instance of a peer, until every passport it may have has ended. Answer: null.
    Deny {
        /// Whose.
        name: String,
        /// Which, as [`super::view::Peer::instances`] has it.
        instance: String,
    },
    /// Follow the keys in daily use by fresh ones. Answer: [`super::view::Rotated`].
    Rotate {
        /// For how many seconds the former ones count, too.
        overlap_s: u64,
    },
    /// Offer a port. Answer: [`super::view::Exposed`].
    Expose {
        /// `[NAME=]PORT[:TARGET][/udp]`.
        service: String,
    },
    /// Stop offering. Answer: [`super::view::Exposed`].
    Unexpose {
        /// Its name or number.
        service: String,
    },
    /// Echo small messages. Stream of [`super::view::Pong`].
    Ping {
        /// Whom.
        name: String,
        /// How many.
        count: u32,
        /// Milliseconds between two.
        interval_ms: u64,
    },
    /// Open a peer's port. Answer: a number; after it the connection carries the port's bytes.
    Connect {
        /// Whom.
        name: String,
        /// Which port.
        port: u16,
    },
    /// How a `connect` ended. Answer: null, or the failure that ended it.
    Outcome {
        /// The number that it was answered with.
        connection: u64,
    },
    /// Names of peers and where their ports listen. Stream of [`super::view::Names`], one now and one per change.
    Names,
    /// Measure throughput. Stream of [`super::view::Throughput`]; the last is the result.
    Bench {
        /// Whom.
        name: String,
        /// For how long.
        seconds: u32,
    },
    /// What may be wrong. Answer: list of [`super::view::Finding`].
    Doctor,
    /// Stop. The answer comes when the daemon has begun to; the socket closes when it has.
    Down,
    /// What happens from now on. Stream of [`super::view::Event`].
    Events,
}

/// What a person says about a peer when giving consent; what is not said is not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What to call it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// What it may open here: names or numbers of exposed ports, or `all`, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Vec<String>>,
    /// Seconds until the trust ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// How data may travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// Whether ports may be guessed to get a direct path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birthday: Option<bool>,
}

/// One line from the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub v: u32,
    /// What it says.
    #[serde(flatten)]
    pub said: Said,
}

/// The four things a daemon says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The answer.
    Ok(Value),
    /// The failure.
    Error(Failure),
    /// One of a stream.
    Event(Value),
    /// The stream is over.
    End(bool),
}

impl Said {
    /// The line, with its newline.
    #[must_use]
    pub fn into_line(self) -> String {
        let answer = Answer { v: VERSION, said: self };
        let mut line = serde_json::to_string(&answer).expect("values with text for keys, written to memory");
        line.push('\n');
        line
    }
}

/// A port of a peer and where it listens on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where programs connect to.
    pub address: SocketAddr,
    /// Its transport.
    pub protocol: Transport,
    /// Where we really listen, when that port is not ours to bind.
    pub bound: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_flat_object() {
        let request = Request::Ping { name: "db".into(), count: 3, interval_ms: 200 };
        let text = serde_json::to_string(&Envelope { v: 1, request: request.clone() }).expect("it is plain");
        assert_eq!(text, r#"{"v":1,"request":"ping","name":"db","count":3,"interval_ms":200}"#);
        let read: Envelope = serde_json::from_str(&text).expect("what we write we read");
        assert_eq!(read.request, request);
    }

    #[test]
    fn an_answer_has_one_key_that_says_what_it_is() {
        assert_eq!(Said::Ok(Value::from(1)).into_line(), "{\"v\":1,\"ok\":1}\n");
        assert_eq!(Said::End(true).into_line(), "{\"v\":1,\"end\":true}\n");
    }
}
