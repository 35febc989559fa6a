//! Answers for the names that are ours: pure, from a directory and a question.

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::TTL_SECONDS;
use super::question::{NotAQuestion, Question};
use crate::address::{Directory, ZONE, is_peer_network, strip_zone};

/// The UDP payload we announce: fits any path without fragments (DNS flag day 2020).
const EDNS_PAYLOAD: u16 = 1232;

/// What to do with a request.
#[derive(Debug)]
pub enum Decision {
    /// Send this back.
    Answer(Vec<u8>),
    /// Not ours: ask upstream.
    Forward(Question),
    /// Say nothing.
    Drop,
}

/// Decides on one request of any content. Touches no socket.
pub fn decide(directory: &Directory, request: &[u8]) -> Decision {
    let question = match Question::of_request(request) {
        Ok(question) => question,
        Err(NotAQuestion::Silence) => return Decision::Drop,
        Err(NotAQuestion::Error { id, op_code, code }) => return bare_error(id, op_code, code),
    };
    let Some(finding) = find(directory, &question) else {
        return Decision::Forward(question);
    };
    // The rest of the request matters only for EDNS; one that does not parse gets no further.
    match Message::from_vec(request) {
        Ok(whole) => Decision::Answer(encode(&question, finding.into_message(&question), whole.edns.as_ref())),
        Err(_) => Decision::Answer(failure(&question, ResponseCode::FormErr)),
    }
}

/// A response without records, for when forwarding has failed.
pub(super) fn failure(question: &Question, code: ResponseCode) -> Vec<u8> {
    let mut message = reply(question);
    message.metadata.response_code = code;
    encode(question, message, None)
}

/// What we know about a name that is ours.
enum Finding {
    /// The name exists; `data` if it has a record of the type asked for.
    Exists { zone: Name, data: Option<RData> },
    /// Nobody is called that.
    Missing { zone: Name },
    /// Ours, but not in this class.
    Refused,
}

/// `None`: not ours.
fn find(directory: &Directory, question: &Question) -> Option<Finding> {
    let name = question.query.name();
    let text = name.to_ascii().to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let finding = find_forward(directory, text, question).or_else(|| find_reverse(directory, name, question))?;
    match question.query.query_class() {
        DNSClass::IN | DNSClass::ANY => Some(finding),
        DNSClass::CH | DNSClass::HS | DNSClass::NONE | DNSClass::OPT(_) | DNSClass::Unknown(_) => {
            Some(Finding::Refused)
        }
    }
}

fn find_forward(directory: &Directory, text: &str, question: &Question) -> Option<Finding> {
    let wants = |wanted| [wanted, RecordType::ANY].contains(&question.query.query_type());
    if text == ZONE {
        let data = wants(RecordType::SOA).then(|| RData::SOA(soa(&zone())));
        return Some(Finding::Exists { zone: zone(), data });
    }
    let Some(inner) = strip_zone(text) else {
        // A bare alias, from a program without our search domain. It stands for a zone of its own.
        let entry = directory.by_name(text)?;
        let data = wants(RecordType::A).then_some(RData::A(A(entry.address)));
        return Some(Finding::Exists { zone: question.query.name().clone(), data });
    };
    Some(match directory.by_inner_name(inner) {
        Some(entry) => {
            let data = wants(RecordType::A).then_some(RData::A(A(entry.address)));
            Finding::Exists { zone: zone(), data }
        }
        None if directory.has_names_below(inner) => Finding::Exists { zone: zone(), data: None },
        None => Finding::Missing { zone: zone() },
    })
}

/// 127.64.0.0/10 read backwards. Half a name (`64.127.in-addr.arpa`) exists without records.
fn find_reverse(directory: &Directory, name: &Name, question: &Question) -> Option<Finding> {
    let Ok(network) = name.parse_arpa_name() else {
        return None;
    };
    let std::net::IpAddr::V4(address) = network.addr() else {
        return None;
    };
    // The /10 holds whole second octets, so a name of two labels or more is inside or outside of it.
    if network.prefix_len() < 16 || !is_peer_network(address) {
        return None;
    }
    let zone = name.trim_to(4);
    if network.prefix_len() < 32 {
        return Some(Finding::Exists { zone, data: None });
    }
    let Some(entry) = directory.by_address(address) else {
        return Some(Finding::Missing { zone });
    };
    let wanted = [RecordType::PTR, RecordType::ANY].contains(&question.query.query_type());
    let target = Name::from_ascii(format!("{}.", entry.full_name())).ok()?;
    Some(Finding::Exists { zone, data: wanted.then_some(RData::PTR(PTR(target))) })
}

impl Finding {
    fn into_message(self, question: &Question) -> Message {
        let mut message = reply(question);
        message.metadata.authoritative = true;
        match self {
            Self::Exists { data: Some(data), .. } => {
                message.add_answer(Record::from_rdata(question.query.name().clone(), TTL_SECONDS, data));
            }
            Self::Exists { zone, data: None } => {
                message.add_authority(soa_record(zone));
            }
            Self::Missing { zone } => {
                message.metadata.response_code = ResponseCode::NXDomain;
                message.add_authority(soa_record(zone));
            }
            Self::Refused => message.metadata.response_code = ResponseCode::Refused,
        }
        message
    }
}

fn zone() -> Name {
    Name::from_ascii(format!("{ZONE}.")).expect("the zone is a valid name")
}

/// RFC 2308 section 3: the SOA of a negative answer says how long the absence may be cached.
fn soa_record(zone: Name) -> Record {
    let data = soa(&zone);
    Record::from_rdata(zone, TTL_SECONDS, RData::SOA(data))
}

fn soa(zone: &Name) -> SOA {
    let mailbox = Name::from_ascii("nobody.invalid.").expect("a valid name");
    // Nobody transfers this zone; serial and timers are there because the record has fields for them.
    SOA::new(zone.clone(), mailbox, 1, 3600, 600, 86400, TTL_SECONDS)
}

fn reply(question: &Question) -> Message {
    let asked = question.header.metadata;
    let mut message = Message::response(asked.id, OpCode::Query);
    message.metadata.recursion_desired = asked.recursion_desired;
    message.metadata.checking_disabled = asked.checking_disabled;
    message.metadata.recursion_available = true;
    message.add_query(question.query.clone());
    message
}

fn encode(question: &Question, mut message: Message, asked: Option<&Edns>) -> Vec<u8> {
    if let Some(asked) = asked {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD).set_version(0);
        message.set_edns(edns);
        // RFC 6891 section 6.1.3: another version is answered with BADVERS and ours.
        if asked.version() != 0 {
            message.answers.clear();
            message.metadata.response_code = ResponseCode::BADVERS;
        }
    }
    let id = question.header.metadata.id;
    message
        .to_vec()
        .unwrap_or_else(|_| Message::error_msg(id, OpCode::Query, ResponseCode::ServFail).to_vec().unwrap_or_default())
}

fn bare_error(id: u16, op_code: OpCode, code: ResponseCode) -> Decision {
    match Message::error_msg(id, op_code, code).to_vec() {
        Ok(bytes) => Decision::Answer(bytes),
        Err(_) => Decision::Drop,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::address::{AddressBook, Listed};
    use hickory_proto::op::{MessageType, Query};
    use peerage_model::{AgentId, Fingerprint};
    use proptest::prelude::{any, prop_assert, proptest};

    fn directory() -> Directory {
        let id = AgentId { authority: Fingerprint([7; 32]), name: "db-tool-server.tools".parse().expect("a name") };
        AddressBook::new().directory([Listed::new(id, "db".parse().expect("a label"), Vec::new())])
    }

    fn address() -> Ipv4Addr {
        directory().by_name("db").expect("db is listed").address
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        message
    }

    fn ask(message: &Message) -> Option<Message> {
        match decide(&directory(), &message.to_vec().expect("encodes")) {
            Decision::Answer(bytes) => Some(Message::from_vec(&bytes).expect("our answer parses")),
            Decision::Forward(_) => None,
            Decision::Drop => panic!("a query was dropped"),
        }
    }

    #[test]
    fn every_name_of_a_peer_leads_to_its_address() {
        for name in ["db.", "DB.", "db.peer.internal.", "dB-Tool-Server.Tools.Peer.Internal."] {
            let answer = ask(&query(name, RecordType::A)).expect("ours");
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert_eq!(answer.answers[0].data, RData::A(A(address())), "{name}");
            assert_eq!(answer.answers[0].ttl, TTL_SECONDS);
            assert_eq!(answer.answers[0].name.to_ascii(), name, "the case comes back as it was asked");
            assert_eq!(answer.metadata.id, 0x1234);
        }
    }

    #[test]
    fn other_types_of_a_known_name_are_empty_answers_that_may_be_cached_briefly() {
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB, RecordType::MX, RecordType::TXT] {
            let answer = ask(&query("db.peer.internal.", kind)).expect("ours");
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{kind}");
            assert!(answer.answers.is_empty());
            let RData::SOA(soa) = &answer.authorities[0].data else { panic!("no SOA") };
            assert_eq!(soa.minimum, TTL_SECONDS);
        }
    }

    #[test]
    fn an_unknown_name_in_the_zone_does_not_exist_and_is_not_forwarded() {
        for name in
            ["nobody.peer.internal.", "x.db.peer.internal.", "db.peer.internal.peer.internal.", "a\\.b.peer.internal."]
        {
            let answer = ask(&query(name, RecordType::A)).expect("ours");
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
            assert_eq!(answer.authorities.len(), 1);
        }
    }

    #[test]
    fn a_name_with_names_below_it_exists_without_records() {
        let answer = ask(&query("tools.peer.internal.", RecordType::A)).expect("ours");
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.answers.is_empty());
    }

    #[test]
    fn an_address_of_ours_leads_back_to_the_name() {
        let [a, b, c, d] = address().octets();
        let answer = ask(&query(&format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR)).expect("ours");
        let RData::PTR(name) = &answer.answers[0].data else { panic!("no PTR") };
        assert_eq!(name.0.to_ascii(), "db-tool-server.tools.peer.internal.");
        let nobody = ask(&query("1.2.99.127.in-addr.arpa.", RecordType::PTR)).expect("ours");
        assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn everything_else_is_forwarded() {
        for name in [
            "example.com.",
            "peer.internal.example.com.",
            "xpeer.internal.",
            "internal.",
            ".",
            "other.",
            "1.0.0.127.in-addr.arpa.",
            "127.in-addr.arpa.",
            "db-tool-server.tools.",
        ] {
            assert!(ask(&query(name, RecordType::A)).is_none(), "{name} was answered here");
        }
    }

    #[test]
    fn edns_is_answered_with_edns_and_a_strange_version_with_badvers() {
        let mut asked = query("db.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        asked.set_edns(edns.clone());
        assert!(ask(&asked).expect("ours").edns.is_some());
        edns.set_version(7);
        asked.set_edns(edns);
        let code = ask(&asked).expect("ours").metadata.response_code;
        assert_eq!(u16::from(code), 16, "BADVERS, which shares its number with BADSIG");
    }

    #[test]
    fn a_response_is_never_answered() {
        let mut message = query("db.", RecordType::A);
        message.metadata.message_type = MessageType::Response;
        assert!(matches!(decide(&directory(), &message.to_vec().expect("encodes")), Decision::Drop));
    }

    #[test]
    fn two_questions_and_updates_are_refused_with_a_code() {
        let mut two = query("db.", RecordType::A);
        two.add_query(two.queries[0].clone());
        assert_eq!(ask(&two).expect("an answer").metadata.response_code, ResponseCode::FormErr);
        let mut update = query("db.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        let Decision::Answer(bytes) = decide(&directory(), &update.to_vec().expect("encodes")) else {
            panic!("no answer");
        };
        assert_eq!(bytes[3] & 0x0f, 4, "NOTIMP");
    }

    proptest! {
        #[test]
        fn bytes_of_any_content_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            decide(&directory(), &bytes);
        }

        #[test]
        fn a_damaged_query_never_panics_and_answers_carry_its_id(
            at in 0_usize..60, value in any::<u8>(), keep in 0_usize..60,
        ) {
            let mut asked = query("db.peer.internal.", RecordType::A);
            asked.set_edns(Edns::new());
            let mut bytes = asked.to_vec().expect("encodes");
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(keep);
            if let Decision::Answer(answer) = decide(&directory(), &bytes) {
                prop_assert!(answer[..2] == bytes[..2]);
                prop_assert!(answer[2] & 0x80 != 0, "it is marked as a response");
            }
        }
    }
}
