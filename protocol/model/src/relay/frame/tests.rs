//! Frames against the vectors, and against nonsense.

use std::fs;
use std::net::IpAddr;

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use serde_json::Value;
use zeroize::Zeroizing;

use super::keys::{BootKey, MacKey, Opening, bind};
use super::*;
use crate::id::InstanceId;
use crate::keys::AgreementSecret;

struct Vectors(Value);

impl Vectors {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/relay.json");
        let text = fs::read_to_string(path).expect("the vectors are part of the repository");
        Self(serde_json::from_str(&text).expect("the vectors are JSON"))
    }

    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().expect("the vector exists")
    }

    fn bytes<const N: usize>(&self, name: &str) -> [u8; N] {
        unhex(self.text(name)).try_into().expect("the vector has this length")
    }

    fn frame(&self, name: &str) -> Vec<u8> {
        unhex(self.0["frames"][name].as_str().expect("the frame exists"))
    }

    fn grant(&self, tag: &str, address: &str) -> Grant {
        Grant { tag: Tag(self.bytes(tag)), lifetime: 90, observed: self.text(address).parse().expect("an address") }
    }

    fn session(&self) -> MacKey {
        MacKey::new(Zeroizing::new(self.bytes("session")))
    }
}

fn unhex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).expect("vectors are lower-case hex")
}

#[test]
fn what_a_relay_derives_from_its_boot_key_matches_the_vectors() {
    let v = Vectors::load();
    let key = BootKey::new(&Zeroizing::new(v.bytes("boot_key")));
    let address = address_bytes(v.text("address").parse().expect("an address"));
    assert_eq!(key.cookie(3, &address).0, v.bytes("cookie"));
    assert_eq!(key.boot().0, v.bytes("boot"));
    let (endpoint, visitor) = (EndpointId(v.bytes("endpoint")), EndpointId(v.bytes("visitor")));
    assert_eq!(key.tag(endpoint).0, v.bytes("endpoint_tag"));
    assert_eq!(key.tag(visitor).0, v.bytes("visitor_tag"));
    assert_eq!(key.taste(visitor).to_be_bytes(), v.bytes("taste"));
}

#[test]
fn bind_matches_the_vectors_and_opens_with_the_relays_key() {
    let v = Vectors::load();
    let relay = AgreementSecret::from_bytes(v.bytes("relay_secret"));
    let instance = AgreementSecret::from_bytes(v.bytes("instance_secret"));
    let e = AgreementSecret::from_bytes(v.bytes("e_secret"));
    let credential = unhex(v.text("credential"));
    let cookie = Cookie(v.bytes("cookie"));
    let made = bind(Tag(v.bytes("tag")), cookie, &e, &relay.public(), &instance, &credential).expect("good keys");
    assert_eq!(made.frame, v.frame("bind"));
    assert_eq!(InstanceId::of_key(&instance.public()).0, v.bytes("endpoint"));

    let (_, Frame::Bind { e, sealed, .. }) = Frame::parse(&made.frame).expect("it is a frame") else {
        panic!("it is BIND");
    };
    let relay_key = relay.public();
    let opening = Opening::new(relay.agree(&e).expect("good keys"), &relay_key, &e, cookie);
    let mut buffer = [0; MAX_CREDENTIAL + SEAL_TAG];
    assert_eq!(opening.open(&made.frame, sealed, &mut buffer), Some(&credential[..]));
    let ss = relay.agree(&instance.public()).expect("good keys");
    assert!(opening.session(&ss, &instance.public()).verifies(&made.frame));
}

#[test]
fn every_other_frame_is_written_as_the_vectors_say() {
    let v = Vectors::load();
    let (tag, cookie, boot) = (Tag(v.bytes("tag")), Cookie(v.bytes("cookie")), Boot(v.bytes("boot")));
    let (endpoint, endpoint_tag) = (EndpointId(v.bytes("endpoint")), Tag(v.bytes("endpoint_tag")));
    let (visitor, visitor_tag) = (EndpointId(v.bytes("visitor")), Tag(v.bytes("visitor_tag")));
    let (session, nonce) = (v.session(), v.bytes("nonce"));
    let refusal = MacKey::new(Zeroizing::new(v.bytes("refusal")));
    let mac = |body: &[u8]| session.mac(body);
    let none = AliveFlags::default();

    assert_eq!(hello(tag)[..], v.frame("hello"));
    assert_eq!(super::cookie(tag, cookie, boot)[..], v.frame("cookie"));
    assert_eq!(bound(tag, &v.grant("endpoint_tag", "address"), mac)[..], v.frame("bound"));
    let refused = refused(tag, Refusal::Authority, |body| refusal.mac(body));
    assert_eq!(refused[..], v.frame("refused_authority"));
    assert_eq!(visit(tag, cookie, None)[..], v.frame("visit"));
    assert_eq!(visit(tag, cookie, Some((visitor, visitor_tag)))[..], v.frame("visit_again"));
    assert_eq!(visiting(tag, &v.grant("visitor_tag", "address6"), visitor)[..], v.frame("visiting"));
    assert_eq!(moved(tag, cookie, endpoint, 7, mac)[..], v.frame("move"));
    assert_eq!(keepalive(endpoint_tag, nonce)[..], v.frame("keepalive"));
    let (draining, mail) = (AliveFlags { draining: true, ..none }, AliveFlags { mail: true, ..none });
    assert_eq!(alive(endpoint_tag, nonce, 90, draining)[..], v.frame("alive_draining"));
    assert_eq!(alive(endpoint_tag, nonce, 90, mail)[..], v.frame("alive_mail"));
    assert_eq!(alive(endpoint_tag, nonce, 90, AliveFlags { others: true, ..none })[..], v.frame("alive_others"));
    assert_eq!(who_else(endpoint_tag, nonce)[..], v.frame("who_else"));
    assert_eq!(others(endpoint_tag, nonce, [visitor, endpoint])[..], v.frame("others"));
    assert_eq!(drain(endpoint_tag, 30, mac)[..], v.frame("drain"));
    assert_eq!(unbind(endpoint_tag, endpoint, mac)[..], v.frame("unbind"));
    let packet = unhex(v.text("packet"));
    assert_eq!([&from_header(visitor_tag, endpoint)[..], &packet].concat(), v.frame("from"));
    let to = |destination: Destination, tag| {
        let mut out = vec![0; destination.header_len()];
        destination.write_header(tag, &mut out);
        [out, packet.clone()].concat()
    };
    let route = RoutingId(v.bytes("routing_id"));
    assert_eq!(to(Destination::Route(route), visitor_tag), v.frame("to_route"));
    assert_eq!(to(Destination::Endpoint(visitor), endpoint_tag), v.frame("to_endpoint"));
}

#[test]
fn grants_read_back_the_address_the_relay_saw() {
    let v = Vectors::load();
    let frame = v.frame("bound");
    let (_, parsed) = Frame::parse(&frame).expect("it is a frame");
    let Frame::Bound { grant, .. } = parsed else {
        panic!("it is BOUND");
    };
    assert_eq!(grant, v.grant("endpoint_tag", "address"));
    assert!(v.session().verifies(&frame));
    let frame = v.frame("visiting");
    let (_, parsed) = Frame::parse(&frame).expect("it is a frame");
    let (grant, id) = (v.grant("visitor_tag", "address6"), EndpointId(v.bytes("visitor")));
    assert_eq!(parsed, Frame::Visiting { grant, id });
}

#[test]
fn a_frame_that_is_cut_or_of_another_version_is_no_frame() {
    let v = Vectors::load();
    for (name, _) in v.0["frames"].as_object().expect("frames by name") {
        let good = v.frame(name);
        Frame::parse(&good).expect("the vector is a frame");
        let carries = matches!(good[1], 12..=14);
        let shortest = if carries { good.len() - 4 } else { good.len() };
        let shortest = match name.as_str() {
            "bind" => BIND_HEAD + SEAL_TAG + 1 + MAC,
            "others" => HEADER + 8,
            _ => shortest,
        };
        for length in 0..shortest {
            assert_eq!(Frame::parse(&good[..length]), Err(NotAFrame), "{name} cut to {length}");
        }
        for version in (0..=255).filter(|version| *version != VERSION_1) {
            let mut other = good.clone();
            other[0] = version;
            assert_eq!(Frame::parse(&other), Err(NotAFrame), "{name} of version byte {version}");
        }
        if !carries && name != "bind" {
            let longer = [&good[..], &[0]].concat();
            assert_eq!(Frame::parse(&longer), Err(NotAFrame), "{name} with a byte too many");
        }
    }
}

#[test]
fn nothing_but_quic_travels_inside_a_frame() {
    let destination = Destination::Endpoint(EndpointId([1; 8]));
    let mut frame = vec![0; ENDPOINT_HEADER + 20];
    destination.write_header(Tag([2; 6]), &mut frame);
    for first in 0..=255 {
        frame[ENDPOINT_HEADER] = first;
        assert_eq!(Frame::parse(&frame).is_ok(), first >= 64, "first byte {first}");
    }
}

#[test]
fn an_oversized_packet_or_credential_is_no_frame() {
    let mut frame = vec![255; ENDPOINT_HEADER + MAX_PACKET];
    Destination::Endpoint(EndpointId([1; 8])).write_header(Tag([2; 6]), &mut frame);
    assert!(Frame::parse(&frame).is_ok());
    frame.push(0);
    assert_eq!(Frame::parse(&frame), Err(NotAFrame));
    let mut bind = bind_head(Tag([1; 6]), Cookie([2; 16]), &AgreementKey([3; 32])).to_vec();
    bind.resize(MAX_BIND, 0);
    assert!(Frame::parse(&bind).is_ok());
    bind.push(0);
    assert_eq!(Frame::parse(&bind), Err(NotAFrame));
}

#[test]
fn an_initial_packet_fits_the_smallest_ipv6_mtu() {
    const IPV6_AND_UDP: usize = 40 + 8;
    const { assert!(1200 + ROUTE_HEADER + IPV6_AND_UDP <= 1280) };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_datagram_makes_the_parser_panic(kind in 0_u8..20, rest in proptest::collection::vec(any::<u8>(), 0..900)) {
        let _ = Frame::parse(&rest);
        let datagram = [&[VERSION_1, kind][..], &rest].concat();
        if let Ok((tag, Frame::To { destination, packet })) = Frame::parse(&datagram) {
            let mut again = vec![0; destination.header_len()];
            destination.write_header(tag, &mut again);
            again.extend_from_slice(packet);
            prop_assert_eq!(again, datagram);
        }
    }

    #[test]
    fn any_address_reads_back_from_a_grant(ip in any::<IpAddr>(), port: u16, lifetime: u16) {
        let observed = SocketAddr::new(ip.to_canonical(), port);
        let grant = Grant { tag: Tag([7; 6]), lifetime, observed };
        let bytes = visiting(Tag([1; 6]), &grant, EndpointId([2; 8]));
        let same = matches!(Frame::parse(&bytes), Ok((_, Frame::Visiting { grant: read, .. })) if read == grant);
        prop_assert!(same);
    }
}
