//! The model agrees, byte for byte, with `docs/spec/vectors/identity.json`, which an independent implementation wrote.

use core::time::Duration;

use data_encoding::HEXLOWER;
use peerage_model::passport::{BACKDATED, LIFETIME};
use peerage_model::relay::RelayInfo;
use peerage_model::ticket::InviteSecret;
use peerage_model::{
    AgentId, AgreementSecret, Authority, AuthorityRecord, Credential, InstanceId, PairSecret, Ticket, UnixTime,
};
use serde_json::Value;
use zeroize::Zeroizing;

/// The file, and the values in it by path.
struct Vectors(Value);

impl Vectors {
    fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/identity.json");
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

    fn time(&self, at: &str) -> UnixTime {
        UnixTime(self.0.pointer(at).and_then(Value::as_u64).expect(at))
    }

    fn now(&self) -> UnixTime {
        self.time("/now")
    }

    fn authority(&self, n: usize) -> Authority {
        Authority::new(&Zeroizing::new(self.array(&format!("/authorities/{n}/random"))), self.now())
    }

    fn agent(&self, n: usize) -> AgentId {
        self.authority(n).agent(self.text(&format!("/agents/{n}/name")).parse().expect("a name"))
    }
}

#[test]
fn authorities_make_the_same_records_from_the_same_seeds() {
    let vectors = Vectors::read();
    for n in [0, 1] {
        let authority = vectors.authority(n);
        assert_eq!(authority.fingerprint().0, vectors.array(&format!("/authorities/{n}/fingerprint")));
        assert_eq!(authority.record().as_bytes(), vectors.bytes(&format!("/authorities/{n}/record")));
    }
}

#[test]
fn a_record_of_another_implementation_verifies() {
    let vectors = Vectors::read();
    let record = AuthorityRecord::verify(&vectors.bytes("/authorities/1/record"), vectors.now());
    let record = record.expect("it is good");
    assert_eq!(record.fingerprint().0, vectors.array("/authorities/1/fingerprint"));
    assert_eq!(record.sequence(), 1);
}

#[test]
fn agents_have_the_same_bindings_and_routing_ids() {
    let vectors = Vectors::read();
    for n in [0, 1] {
        let agent = vectors.agent(n);
        assert_eq!(agent.binding(), vectors.bytes(&format!("/agents/{n}/binding")));
        assert_eq!(agent.routing_id().0, vectors.array(&format!("/agents/{n}/routing_id")));
    }
}

#[test]
fn a_credential_is_made_and_read_alike() {
    let vectors = Vectors::read();
    let (authority, agent, now) = (vectors.authority(0), vectors.agent(0), vectors.now());
    let key = AgreementSecret::from_bytes(vectors.array("/instance/secret")).public();
    assert_eq!(key.0, vectors.array("/instance/key"));
    assert_eq!(InstanceId::of_key(&key).0, vectors.array("/instance/id"));
    assert_eq!(now.minus(BACKDATED), vectors.time("/instance/not_before"));
    assert_eq!(now.plus(LIFETIME), vectors.time("/instance/not_after"));

    let passport = authority.issue(&agent, key, now.minus(BACKDATED), now.plus(LIFETIME));
    assert_eq!(passport, vectors.bytes("/instance/passport"));
    let credential = Credential::join(authority.record(), passport);
    assert_eq!(credential, vectors.bytes("/instance/credential"));
    let verified = Credential::verify(&credential, now).expect("it is good");
    assert_eq!((verified.agent(), verified.instance_key()), (&agent, &key));
}

#[test]
fn pair_secrets_are_the_same_from_both_sides_and_for_every_kind() {
    let vectors = Vectors::read();
    let (ours, theirs) = (vectors.authority(0), vectors.authority(1));
    let (a, b) = (vectors.agent(0), vectors.agent(1));
    let here = PairSecret::between(ours.agreement(), theirs.record().agreement_key(), &a, &b).expect("good keys");
    let there = PairSecret::between(theirs.agreement(), ours.record().agreement_key(), &b, &a).expect("good keys");
    let expected = vectors.array("/pair_secret/between");
    assert_eq!((here.expose(), there.expose()), (&expected, &expected));

    let local = |n: usize| ours.agent(vectors.text(&format!("/pair_secret/within_names/{n}")).parse().expect("a name"));
    let within = PairSecret::within(ours.agreement(), &local(0), &local(1));
    assert_eq!(within.expose(), &vectors.array("/pair_secret/within"));

    let asked = PairSecret::of_invite(&vectors.array("/pair_secret/invite_secret"), &b);
    assert_eq!(asked.expose(), &vectors.array("/pair_secret/of_invite"));
}

#[test]
fn a_ticket_is_written_and_read_alike() {
    let vectors = Vectors::read();
    let (inviter, now) = (vectors.authority(1), vectors.now());
    let ticket = Ticket {
        record: inviter.record().clone(),
        name: vectors.agent(1).name,
        relays: vec![vectors.text("/ticket/relay").parse().expect("a relay")],
        secret: InviteSecret::from_bytes(vectors.array("/pair_secret/invite_secret")),
        expires: now.plus(Duration::from_secs(3600)),
    };
    assert_eq!(ticket.expires, vectors.time("/ticket/expires"));
    assert_eq!(ticket.to_string(), vectors.text("/ticket/text"));
    assert_eq!(Ticket::parse(vectors.text("/ticket/text"), now), Ok(ticket));
}

#[test]
fn a_relay_that_could_not_be_written_as_text_is_not_read_either() {
    let vectors = Vectors::read();
    let all = |at: &str| {
        let list = vectors.0.pointer(at).and_then(Value::as_array).expect(at).clone();
        list.into_iter().map(|one| HEXLOWER.decode(one.as_str().expect(at).as_bytes()).expect(at)).collect::<Vec<_>>()
    };
    for bytes in all("/relays/good") {
        let relay: RelayInfo = minicbor::decode(&bytes).expect("it is a relay");
        assert_eq!(relay.to_string().parse(), Ok(relay.clone()), "{relay}");
        assert_eq!(minicbor::to_vec(&relay).expect("it is written to memory"), bytes);
    }
    for bytes in all("/relays/malformed") {
        let read = minicbor::decode::<RelayInfo>(&bytes);
        assert!(read.is_err(), "{}: {read:?}", HEXLOWER.encode(&bytes));
    }
}
