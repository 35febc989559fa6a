//! The model agrees, byte for byte, with `docs/spec/vectors/operator.json`, which an independent implementation wrote.

use data_encoding::HEXLOWER;
use peerage_model::linking::RecordBytes;
use peerage_model::operator::{
    Ack, ChannelBinding, Conflict, Enrol, Enrolment, Entry, GoAway, GoAwayCode, Hello, Keepalive, LocalPort, MAX_FRAME,
    Nat, Offer, Passport, PathWord, PeerReport, PeerState, PortNumber, Proof, Renew, Report, Resume, Revision,
    Settings, ToAgent, ToOperator, Update, audience, split_frame,
};
use peerage_model::snapshot::{BirthdayMode, DeniedInstance, PathMode, Peer, Port, Protocol};
use peerage_model::{AgentId, AgreementSecret, Authority, Credential, InstanceId, PairSecret, TrustId, UnixTime};
use serde_json::Value;
use zeroize::Zeroizing;

struct Vectors(Value);

impl Vectors {
    fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/operator.json");
        let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
        Self(serde_json::from_str(&text).expect("the vectors are JSON"))
    }

    fn text(&self, at: &str) -> &str {
        self.0.pointer(at).and_then(Value::as_str).expect(at)
    }

    fn bytes(&self, at: &str) -> Vec<u8> {
        HEXLOWER.decode(self.text(at).as_bytes()).expect(at)
    }

    fn array<const N: usize>(&self, at: &str) -> [u8; N] {
        self.bytes(at).try_into().expect(at)
    }

    fn now(&self) -> UnixTime {
        UnixTime(self.0.pointer("/now").and_then(Value::as_u64).expect("a time"))
    }

    fn authority(&self) -> Authority {
        Authority::new(&Zeroizing::new(self.array("/authority_random")), self.now())
    }

    fn other(&self) -> Authority {
        Authority::new(&Zeroizing::new(self.array("/other_random")), self.now())
    }

    fn binding(&self) -> ChannelBinding {
        ChannelBinding::new(Zeroizing::new(self.array("/exporter")))
    }

    fn e(&self) -> AgreementSecret {
        AgreementSecret::from_bytes(self.array("/e_secret"))
    }

    fn instance(&self) -> AgreementSecret {
        AgreementSecret::from_bytes(self.array("/instance_secret"))
    }

    fn agent(&self) -> AgentId {
        self.authority().agent("reporter.reports".parse().expect("a name"))
    }

    /// That the message is written as the vector, and the vector read as the message.
    fn compare_to_agent(&self, name: &str, message: &ToAgent) {
        let expected = self.bytes(&format!("/to_agent/{name}"));
        assert_eq!(HEXLOWER.encode(&message.encode()), HEXLOWER.encode(&expected), "{name}");
        let (body, rest) = split_frame(&expected, MAX_FRAME).expect("a frame").expect("a whole one");
        assert_eq!((ToAgent::decode(body), rest), (Ok(Some(message.clone())), &[][..]), "{name}");
    }

    fn compare_to_operator(&self, name: &str, message: &ToOperator) {
        let expected = self.bytes(&format!("/to_operator/{name}"));
        assert_eq!(HEXLOWER.encode(&message.encode()), HEXLOWER.encode(&expected), "{name}");
        let (body, rest) = split_frame(&expected, MAX_FRAME).expect("a frame").expect("a whole one");
        assert_eq!((ToOperator::decode(body), rest), (Ok(Some(message.clone())), &[][..]), "{name}");
    }
}

#[test]
fn the_operator_opens_alike_and_is_believed() {
    let vectors = Vectors::read();
    let hello = Hello::new(&vectors.authority(), &vectors.binding(), vectors.e().public());
    vectors.compare_to_agent("hello", &ToAgent::Hello(hello.clone()));
    let ours = vectors.authority().fingerprint();
    assert!(hello.verify(&vectors.binding(), &ours, 1, vectors.now()).is_ok());
}

#[test]
fn an_agent_enrols_and_resumes_alike() {
    let vectors = Vectors::read();
    let (binding, e, instance) = (vectors.binding(), vectors.e().public(), vectors.instance());
    assert_eq!(audience(&vectors.authority().fingerprint()), vectors.text("/audience"));
    let proof = Proof::enrol(&binding, &e, &instance, vectors.text("/token")).expect("a good key");
    assert_eq!(proof.0, vectors.array("/proof_enrol"));
    let have = Some(Revision { epoch: 1, versions: vec![4700, 0, 4698] });
    let enrol = Enrol {
        token: vectors.text("/token").into(),
        key: instance.public(),
        proof,
        have: have.clone(),
        version: Some("0.1.0".into()),
    };
    assert_eq!(enrol.check(&binding, &vectors.e()), Ok(()));
    vectors.compare_to_operator("enrol", &ToOperator::Enrol(enrol));

    let credential = vectors.bytes("/credential");
    let proof = Proof::resume(&binding, &e, &instance, &credential).expect("a good key");
    assert_eq!(proof.0, vectors.array("/proof_resume"));
    let enrolment = vectors.bytes("/enrolment");
    let resume = Resume { credential, enrolment, proof, have, version: Some("0.1.0".into()) };
    let shown = Credential::verify(&resume.credential, vectors.now()).expect("it is good");
    assert_eq!(resume.check(&binding, &vectors.e(), shown.instance_key()), Ok(()));
    vectors.compare_to_operator("resume", &ToOperator::Resume(resume));
}

#[test]
fn what_an_agent_gets_is_made_alike() {
    let vectors = Vectors::read();
    let enrolment = Enrolment {
        agent: vectors.agent(),
        instance: vectors.instance().public(),
        pod_uid: core::array::from_fn(|n| u8::try_from(n).expect("small")),
        namespace: "reports".into(),
        pod: "reporter-0".into(),
        service_account: "reporter".into(),
        issued: vectors.now(),
    };
    assert_eq!(enrolment.sign(&vectors.authority()), vectors.bytes("/enrolment"));
    let (credential, signed) = (vectors.bytes("/credential"), vectors.bytes("/enrolment"));
    assert_eq!(Enrolment::verify(&signed, vectors.authority().record()), Ok(enrolment));
    vectors.compare_to_agent("passport", &ToAgent::Passport(Passport { credential, enrolment: signed }));
}

#[test]
fn an_update_is_written_and_read_alike() {
    let vectors = Vectors::read();
    let label = |text: &str| text.parse().expect("a label");
    let relay = peerage_model::relay::RelayInfo {
        key: peerage_model::AgreementKey(core::array::from_fn(|n| 64 + u8::try_from(n).expect("small"))),
        host: "relay.example.com".parse().expect("a host"),
        port: 3478,
        tls: None,
    };
    let trust = |from: u8| TrustId(core::array::from_fn(|n| from + u8::try_from(n).expect("small")));
    let peer = Peer {
        trust: trust(0),
        id: vectors.authority().agent("db-tool-server.tools".parse().expect("a name")),
        secrets: vec![PairSecret::from_bytes([7; 32])],
        alias: label("db"),
        inbound: vec![label("results")],
        ports: vec![Port { name: label("mcp"), number: 80, protocol: Protocol::Tcp }],
        relays: vec![relay.clone()],
        expires: Some(UnixTime(vectors.now().0 + 3600)),
        path: PathMode::Auto,
        birthday: BirthdayMode::Disabled,
    };
    let update = Update {
        sequence: 1,
        full: true,
        more: false,
        revision: Revision { epoch: 1, versions: vec![4711, 4650, 4700] },
        entries: vec![Entry {
            peer,
            consents: vec![trust(0), trust(16)],
            link: Some(label("cluster-b")),
            local_ports: vec![LocalPort { port: 80, protocol: Protocol::Tcp, here: 8081 }],
        }],
        withdrawn: vec![vectors.other().agent("planner".parse().expect("a name"))],
        gone: vec![TrustId([9; 16])],
        denied: vec![DeniedInstance {
            authority: vectors.authority().fingerprint(),
            instance: InstanceId([3; 8]),
            until: UnixTime(vectors.now().0 + 86_400),
        }],
        settings: Some(Settings {
            ports: vec![Offer { name: label("results"), port: 80, protocol: Protocol::Tcp, target: 8080 }],
            relays: vec![relay],
            max_staleness: Some(3600),
            fail_closed: true,
            reserved: vec![PortNumber { protocol: Protocol::Udp, port: 5353 }],
        }),
        shown: Revision { epoch: 1, versions: vec![4705, 0, 4699] },
    };
    vectors.compare_to_agent("update", &ToAgent::Update(Box::new(update)));
}

#[test]
fn the_small_messages_are_written_and_read_alike() {
    let vectors = Vectors::read();
    let go_away = GoAway::new(GoAwayCode::NoAgent, "no AgentPeer selects this pod", Some(30));
    vectors.compare_to_agent("go_away", &ToAgent::GoAway(go_away));
    vectors.compare_to_agent("keepalive", &ToAgent::Keepalive(Keepalive {}));
    vectors.compare_to_operator("renew", &ToOperator::Renew(Renew {}));
    vectors.compare_to_operator("ack", &ToOperator::Ack(Ack { sequence: 7, refused: 1 }));
    vectors.compare_to_operator("keepalive", &ToOperator::Keepalive(Keepalive {}));
    let report = Report {
        nat: Some(Nat { word: "symmetric".into(), behaviour: "endpoint-dependent mapping".into() }),
        peers: vec![PeerReport {
            peer: vectors.agent(),
            state: PeerState::Connected,
            path: PathWord::Relayed,
            why: Some("both NATs are symmetric".into()),
        }],
        conflicts: Some(vec![Conflict {
            peer: vectors.agent(),
            port: 80,
            protocol: Protocol::Tcp,
            instead: Some(40_000),
            why: "another program listens on it".into(),
        }]),
        version: Some("0.1.0".into()),
        records: vec![RecordBytes(vectors.other().record().as_bytes().to_vec())],
    };
    vectors.compare_to_operator("report", &ToOperator::Report(report));
}
