//! Where the fuzzers start: every message of the spec's vectors, good values made here, and scripts of drawn bytes.
//!
//! The same seeds come out each time, so that they can be reviewed as code and a test can compare them with the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use data_encoding::HEXLOWER;
use peerage_agent::state::document::Document;
use peerage_engine::noise::SeededRandom;
use peerage_model::control::{
    Birthday, BirthdayStep, Candidate, CandidateKind, Candidates, ControlMessage, Hello, Opened, Renewal, Retire,
    TrustRequest,
};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{BirthdayMode, DeniedInstance, Invite, PathMode, Peer, Port, Protocol, Snapshot};
use peerage_model::stream::{StreamHeader, StreamKind};
use peerage_model::ticket::InviteSecret;
use peerage_model::{AgentId, AgreementSecret, Credential, Fingerprint, InstanceId, PairSecret, Ticket, TrustId, cbor};
use serde_json::Value;

use crate::TARGETS;
use crate::model::{NOW, authority};

/// Seeds by file name.
pub type Seeds = BTreeMap<String, Vec<u8>>;

/// Lengths of the scripts; the shorter ones end early, the longer ones fill every target's number of steps.
const SCRIPTS: [usize; 4] = [16, 64, 256, 700];

/// Whether a file of the corpus is a seed, not something that a fuzzer found.
#[must_use]
pub fn is_seed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-"))
}

/// The seeds of every target.
#[must_use]
pub fn all() -> BTreeMap<&'static str, Seeds> {
    TARGETS.iter().map(|(target, _)| (*target, named(of(target)))).collect()
}

fn named(seeds: Vec<Vec<u8>>) -> Seeds {
    seeds.into_iter().enumerate().map(|(number, bytes)| (format!("seed-{number:02}"), bytes)).collect()
}

fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "model_text" => text(&[
            "db",
            "db-tool-server.tools",
            "xn--nxasmq6b",
            "a..b",
            &agent("db").to_string(),
            &relay(1, "relay.example").to_string(),
            &relay(2, "2001:db8::1").to_string(),
            &RelayInfo { tls: Some(443), ..relay(2, "relay.example") }.to_string(),
            &TrustId([1; 16]).to_string(),
            &InstanceId([2; 8]).to_string(),
        ]),
        "model_ticket" => tickets(),
        "model_signed" => signed(),
        "model_control" => control(),
        "model_snapshot" => vec![cbor::to_vec(&Snapshot::default()), cbor::to_vec(&snapshot())],
        "model_operator" => operator(),
        "model_linking" => linking(),
        "relay_frame" => [messages("relay.json", "frames"), messages("mailbox.json", "frames")].concat(),
        "relay_stream" => messages("relay.json", "tls"),
        "stun" => stun(),
        "dns_message" => dns(),
        "http_head" => text(&[
            "CONNECT db:80 HTTP/1.1\r\nHost: db:80",
            "GET http://db/path?x=1 HTTP/1.1\r\nHost: db\r\nProxy-Connection: keep-alive",
            "POST http://[::1]:8080?q HTTP/1.0\r\nConnection: close",
            "GET / HTTP/1.1",
        ]),
        "socks" => vec![
            [&[5, 1, 0, 3, 2][..], b"db", &[0, 80]].concat(),
            vec![5, 1, 0, 1, 127, 64, 0, 7, 1, 187],
            [&[5, 1, 0, 4][..], &[0; 16], &[0, 80]].concat(),
            vec![5, 2, 0, 1, 0, 0, 0, 0, 0, 0],
        ],
        "control_line" => text(&[
            r#"{"v":1,"request":"status"}"#,
            r#"{"v":1,"request":"connect","name":"db","port":80}"#,
            r#"{"v":1,"request":"approve","name":"db","terms":{"alias":"x","inbound":["web"],"expires_s":60,"path":"relay-only"}}"#,
            r#"{"v":1,"request":"handshake","ticket":"peerage1-","reason":"why"}"#,
            r#"{"v":2,"request":"status"}"#,
            r#"{"v":1,"ok":{"a":[1,2.5,null]}}"#,
            r#"{"v":1,"error":{"code":"bad_request","message":"m","hint":"h"}}"#,
            r#"{"v":1,"end":true}"#,
        ]),
        "state" => state(),
        "words" => {
            text(&["mcp=80:8080", "53:127.0.0.1:5353/udp", "db@1f3a", "30d", "2026-11-21T03:07:15Z", "symmetric"])
        }
        "etc_files" => text(&[
            "127.0.0.1 localhost\n::1 localhost\n",
            "# made by hand\nsearch corp.example\nnameserver 10.0.0.53\nnameserver 2001:db8::53\noptions ndots:5\n",
            "passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns # note\n",
        ]),
        "relay_server" => scripts(target).into_iter().chain([meeting()]).collect(),
        script => scripts(script),
    }
}

/// Bytes drawn for scripts. Even lengths begin with a few steps that most scripts need: the first choices, in order.
fn scripts(target: &str) -> Vec<Vec<u8>> {
    let mut random = SeededRandom::from_seed(peerage_model::id::sha256(&[target.as_bytes()]));
    SCRIPTS
        .iter()
        .flat_map(|length| {
            let mut drawn = vec![0; *length];
            random.fill(&mut drawn);
            // The same again with small numbers, which hit the common choices and addresses.
            let small = drawn.iter().map(|byte| byte % 12).collect();
            [drawn, small]
        })
        .chain([vec![0, 1, 0, 1, 0, 1], (0..=60).collect()])
        .collect()
}

/// Steps of `relay_server`: agents 0 and 1 bind, a visitor comes, and each sends to another.
pub(crate) fn meeting() -> Vec<u8> {
    // What, from which address, as or to which agent, under which tag; unchanged and once.
    let asks = |what: u8, address: u8, agent: u8| [&[what, 8 * address, agent][..], &[3; 6], &[0, 0]].concat();
    let sends = |what: u8, address: u8, agent: u8| vec![what, 8 * address, agent, 0, 0];
    let visit = [&[4, 16, 0][..], &[3; 6], &[1, 0, 0]].concat();
    [
        asks(1, 0, 0),
        asks(2, 0, 0),
        asks(1, 1, 1),
        asks(2, 1, 1),
        asks(1, 2, 0),
        visit,
        sends(9, 0, 1),
        sends(7, 1, 0),
        sends(8, 0, 1),
        sends(7, 2, 1),
        sends(7, 3, 1),
        vec![0, 30],
        sends(7, 0, 1),
    ]
    .concat()
}

fn text(lines: &[&str]) -> Vec<Vec<u8>> {
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// A choice in front of what it chooses.
fn chosen(choice: u8, bytes: &[u8]) -> Vec<u8> {
    [&[choice][..], bytes].concat()
}

fn agent(name: &str) -> AgentId {
    authority().agent(name.parse().expect("a name"))
}

fn relay(key: u8, host: &str) -> RelayInfo {
    let key = AgreementSecret::from_bytes([key; 32]).public();
    RelayInfo { key, host: host.parse().expect("a host"), port: 3478, tls: None }
}

fn tickets() -> Vec<Vec<u8>> {
    let ticket = Ticket {
        record: authority().record().clone(),
        name: "db".parse().expect("a name"),
        relays: vec![relay(1, "relay.example"), relay(2, "198.18.0.1")],
        secret: InviteSecret::from_bytes([4; 32]),
        expires: NOW.plus(Duration::from_secs(600)),
    };
    let text = ticket.to_string();
    let encoded = text.strip_prefix("peerage1-").expect("a ticket");
    let payload = data_encoding::BASE64URL_NOPAD.decode(encoded.as_bytes()).expect("a ticket");
    vec![chosen(0, text.as_bytes()), chosen(1, &payload[..payload.len() - 4])]
}

fn credential() -> Vec<u8> {
    let key = AgreementSecret::from_bytes([3; 32]).public();
    let passport = authority().issue(&agent("db"), key, NOW, NOW.plus(Duration::from_secs(86_400)));
    Credential::join(authority().record(), passport)
}

fn signed() -> Vec<Vec<u8>> {
    let record = authority().record().as_bytes().to_vec();
    let inside = |bytes: &[u8]| {
        let signed: peerage_model::signed::Signed = minicbor::decode(bytes).expect("just signed");
        signed.unverified_payload().to_vec()
    };
    let key = AgreementSecret::from_bytes([3; 32]).public();
    let passport = authority().issue(&agent("db"), key, NOW, NOW.plus(Duration::from_secs(86_400)));
    vec![chosen(0, &credential()), chosen(1, &record), chosen(2, &inside(&record)), chosen(3, &inside(&passport))]
}

fn port(name: &str, number: u16, protocol: Protocol) -> Port {
    Port { name: name.parse().expect("a label"), number, protocol }
}

fn control() -> Vec<Vec<u8>> {
    let candidate = |kind, address: &str| Candidate { kind, address: address.parse().expect("an address") };
    let messages = [
        ControlMessage::Hello(Hello {
            ports: vec![port("web", 80, Protocol::Tcp)],
            version: Some("1".into()),
            succeeds: Vec::new(),
            run: None,
            time: None,
            siblings: vec![InstanceId([9; 8])],
        }),
        ControlMessage::Candidates(Candidates {
            generation: 3,
            list: vec![
                candidate(CandidateKind::Host, "10.0.0.7:4000"),
                candidate(CandidateKind::ServerReflexive, "[2001:db8::7]:4000"),
            ],
            nat: Some("symmetric".parse().expect("a label")),
            birthday: true,
        }),
        ControlMessage::Renewal(Renewal { credential: credential() }),
        ControlMessage::Retire(Retire { opened: 2, accepted: 300 }),
        ControlMessage::Birthday(Birthday { step: BirthdayStep::Ready }),
        ControlMessage::Opened(Opened { generation: 3 }),
    ];
    let request = TrustRequest { reason: "reports need the database".into(), relays: vec![relay(1, "relay.example")] };
    let header = StreamHeader { kind: StreamKind::Tcp, port: 80 }.encode();
    let mut out: Vec<_> = messages.iter().map(|message| chosen(0, &message.encode_framed()[2..])).collect();
    out.extend([chosen(1, &cbor::to_vec(&request)), chosen(2, &[&header[..], &[3]].concat())]);
    out
}

fn snapshot() -> Snapshot {
    let peer = Peer {
        trust: TrustId([1; 16]),
        id: agent("db-tool-server.tools"),
        secrets: vec![PairSecret::from_bytes([2; 32])],
        alias: "db".parse().expect("a label"),
        inbound: vec!["web".parse().expect("a label")],
        ports: vec![port("mcp", 80, Protocol::Tcp)],
        relays: vec![relay(1, "relay.example")],
        expires: Some(NOW),
        path: PathMode::RelayOnly,
        birthday: BirthdayMode::Enabled,
    };
    Snapshot {
        peers: vec![peer],
        ports: vec![port("dns", 53, Protocol::Udp)],
        relays: vec![relay(2, "198.18.0.1")],
        denied: vec![DeniedInstance { authority: Fingerprint([3; 32]), instance: InstanceId([4; 8]), until: NOW }],
        invites: vec![Invite { id: TrustId([5; 16]), secret: PairSecret::from_bytes([6; 32]), expires: NOW }],
    }
}

fn stun() -> Vec<Vec<u8>> {
    let lists = ["plain_requests", "plain_responses", "check_requests", "check_responses", "rejected_checks"];
    let mut out: Vec<_> =
        lists.iter().flat_map(|list| messages("stun.json", list)).map(|message| chosen(0, &message)).collect();
    let request = [0, 0x24, 0, 4, 0, 0, 0, 1, 0xff, 0x50, 0, 12, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1];
    let response = [0, 0x20, 0, 8, 0, 1, 0x80, 1, 0xe1, 0x12, 0xa6, 0x43];
    out.push([&[3, 0][..], &[7; 12], &request].concat());
    out.push([&[3, 1][..], &[7; 12], &response].concat());
    out.extend([1, 2].map(|choice| chosen(choice, &[choice; 24])));
    out
}

/// Every message of one part of a file of vectors: hex strings by name, or objects that have one as their `message`.
fn messages(file: &str, part: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/spec/vectors").join(file);
    let text = fs::read_to_string(path).expect("the vectors are there");
    let vectors: Value = serde_json::from_str(&text).expect("the vectors are JSON");
    let part = &vectors[part];
    let texts: Vec<&Value> = match part {
        Value::Object(by_name) => by_name.values().collect(),
        Value::Array(list) => list.iter().map(|item| &item["message"]).collect(),
        other => panic!("{file} has no messages in {other}"),
    };
    texts.into_iter().map(|text| HEXLOWER.decode(text.as_str().expect("hex").as_bytes()).expect("hex")).collect()
}

/// Each frame of a teller, all of them one after the other, and the one of a hearer.
fn linking() -> Vec<Vec<u8>> {
    let told = messages("linking.json", "tell");
    let all = told.concat();
    let heard = [&[1][..], &[0, 0, 0, 5, 0x82, 0, 0xa1, 0, 1]].concat();
    told.into_iter().chain([all]).map(|frame| chosen(0, &frame)).chain([heard]).collect()
}

/// Each frame of both sides, and all of a side one after the other.
fn operator() -> Vec<Vec<u8>> {
    let sides = [(0, "to_agent"), (1, "to_operator")];
    let seeds = sides.into_iter().flat_map(|(side, name)| {
        let frames = messages("operator.json", name);
        let all = frames.concat();
        frames.into_iter().chain([all]).map(move |frame| [&[side][..], &frame].concat())
    });
    seeds.collect()
}

fn dns() -> Vec<Vec<u8>> {
    let question = |name: &[&str], kind: u8, class: u8| {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name {
            out.push(u8::try_from(label.len()).expect("a label"));
            out.extend_from_slice(label.as_bytes());
        }
        out.extend_from_slice(&[0, 0, kind, 0, class]);
        out
    };
    let mut edns = question(&["db"], 1, 1);
    edns[11] = 1;
    edns.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    vec![
        question(&["db", "peer", "internal"], 1, 1),
        question(&["db-tool-server", "tools", "peer", "internal"], 28, 1),
        question(&["nobody", "peer", "internal"], 255, 255),
        question(&["7", "0", "64", "127", "in-addr", "arpa"], 12, 1),
        question(&["example", "com"], 65, 1),
        question(&["peer", "internal"], 6, 3),
        edns,
    ]
}

fn state() -> Vec<Vec<u8>> {
    let empty = serde_json::to_vec(&Document::default()).expect("text for keys");
    let mut full: Value = serde_json::from_slice(&empty).expect("just written");
    let record = data_encoding::BASE64URL_NOPAD.encode(authority().record().as_bytes());
    let peer = agent("db").to_string();
    full["hostname"] = "planner.agents".into();
    full["relays"] = vec![relay(1, "relay.example").to_string()].into();
    full["services"] = serde_json::json!([{"name": "mcp", "port": 80, "protocol": "tcp", "target": "127.0.0.1:8080"}]);
    full["trusts"] = serde_json::json!([{
        "id": TrustId([1; 16]).to_string(), "peer": peer, "records": [record], "alias": "db", "inbound": {"only": ["mcp"]},
        "relays": [], "path": "auto", "purpose": "p", "since": "2026-11-21T03:07:15Z", "expires": null,
    }]);
    full["revoked"] =
        serde_json::json!([{"id": TrustId([2; 16]).to_string(), "peer": peer, "at": "2026-11-21T03:07:15Z"}]);
    let full: Document = serde_json::from_value(full).expect("a good document");
    let full = serde_json::to_vec(&full).expect("text for keys");
    let invites = BTreeMap::from([(TrustId([1; 16]), PairSecret::from_bytes([1; 32]))]);
    vec![
        chosen(0, &empty),
        chosen(0, &full),
        chosen(1, &cbor::to_vec(&invites)),
        chosen(2, &cbor::to_vec(&authority().secrets())),
    ]
}
