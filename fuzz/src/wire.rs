//! Relay frames, STUN and knocks.

use std::net::SocketAddr;

use aws_lc_rs::hmac;
use peerage_engine::knock::{ConnectionIdKey, EPOCH_SECONDS, Knock, KnockTable};
use peerage_engine::noise::{Pairing, SeededRandom};
use peerage_engine::stun::{
    self, Check, CheckKeys, CheckRequest, CheckResponse, PlainRequest, PlainResponse, Role, TransactionId, canonical,
};
use peerage_model::relay::frame::{self, BIND_HEAD, Destination, Frame, is_relay_frame, mailbox};
use peerage_model::relay::stream::{
    ChannelBinding, MAX_FRAME, PREFIX, frame_len, open, prefix, proof, proves, read_open,
};
use peerage_model::{AgreementSecret, PairSecret, UnixTime};
use peerage_relay_proto::stun as relay_stun;
use zeroize::Zeroizing;

use crate::feed::Feed;
use crate::model::NOW;

/// The exporter's bytes of the STUN vectors, 0 to 63.
pub(crate) fn check_keys(role: Role) -> CheckKeys {
    CheckKeys::from_exporter(role, &mut exporter())
}

fn exporter() -> [u8; 64] {
    std::array::from_fn(|n| u8::try_from(n).expect("below 64"))
}

/// A relay frame. What parses is written by the codec as a frame that parses to the same.
pub fn relay_frame(data: &[u8]) {
    let Ok((tag, frame)) = Frame::parse(data) else { return };
    assert!(is_relay_frame(data));
    let again = match &frame {
        Frame::Hello => frame::hello(tag).to_vec(),
        Frame::Cookie { cookie, boot } => frame::cookie(tag, *cookie, *boot).to_vec(),
        Frame::Bind { cookie, e, sealed, mac } => {
            let head = frame::bind_head(tag, *cookie, e);
            assert_eq!(head.len(), BIND_HEAD);
            [&head[..], sealed, *mac].concat()
        }
        Frame::Bound { grant, mac } => frame::bound(tag, grant, |_| **mac).to_vec(),
        Frame::Refused { reason, mac } => frame::refused(tag, *reason, |_| **mac).to_vec(),
        Frame::Visit { cookie, earlier } => frame::visit(tag, *cookie, *earlier).to_vec(),
        Frame::Visiting { grant, id } => frame::visiting(tag, grant, *id).to_vec(),
        Frame::Move { cookie, id, counter, mac } => frame::moved(tag, *cookie, *id, *counter, |_| **mac).to_vec(),
        Frame::Keepalive { nonce } => frame::keepalive(tag, *nonce).to_vec(),
        Frame::Alive { nonce, lifetime, flags } => frame::alive(tag, *nonce, *lifetime, *flags).to_vec(),
        Frame::Drain { grace, mac } => frame::drain(tag, *grace, |_| **mac).to_vec(),
        Frame::Lookup { nonce, name, e } => mailbox::lookup(tag, *nonce, *name, e).to_vec(),
        Frame::Records { nonce, records, mac } => mailbox::records(tag, *nonce, records.iter(), |_| **mac),
        Frame::Post { nonce, to, sealed } => mailbox::post(tag, *nonce, *to, sealed),
        Frame::Posted { nonce } => mailbox::posted(tag, *nonce).to_vec(),
        Frame::Check { nonce, done, mac } => mailbox::check(tag, *nonce, *done, |_| **mac).to_vec(),
        Frame::Mail { nonce, id, sealed, mac } => {
            mailbox::mail(tag, *nonce, sealed.map(|sealed| (*id, sealed)), |_| **mac)
        }
        Frame::WhoElse { nonce } => frame::who_else(tag, *nonce).to_vec(),
        Frame::Others { nonce, ids } => frame::others(tag, *nonce, ids.iter().map(|id| frame::EndpointId(*id))),
        Frame::Unbind { id, mac } => frame::unbind(tag, *id, |_| **mac).to_vec(),
        Frame::To { destination, packet } => {
            let mut out = vec![0; destination.header_len()];
            destination.write_header(tag, &mut out);
            match destination {
                Destination::Route(_) => assert_eq!(out.len(), frame::ROUTE_HEADER),
                Destination::Endpoint(_) => assert_eq!(out.len(), frame::ENDPOINT_HEADER),
            }
            [&out, *packet].concat()
        }
        Frame::From { source, packet } => [&frame::from_header(tag, *source)[..], packet].concat(),
    };
    assert_eq!(again.len(), data.len(), "each type has one length");
    assert_eq!(Frame::parse(&again), Ok((tag, frame)));
}

/// What comes out of a TLS stream, as either end reads it: an OPEN or a PROOF, or frames behind their lengths, cut
/// anywhere. However it is cut, the same frames come out, none longer than a frame may be; and no PROOF is right that was not
/// made with the relay's key.
pub fn relay_stream(data: &[u8]) {
    let frames = frames_of(data);
    let cut = data.first().map_or(0, |byte| usize::from(*byte) % data.len());
    assert_eq!(frames_of(&data[..cut]), frames[..frames_of(&data[..cut]).len()], "a prefix gives a prefix");
    let key = AgreementSecret::from_bytes([77; 32]);
    let binding = ChannelBinding::new(Zeroizing::new([5; 32]));
    for frame in frames {
        assert!((frame::HEADER..=MAX_FRAME).contains(&frame.len()));
        let right = proof(&binding, &key, &key.public()).expect("a good key");
        assert_eq!(proves(&frame, &binding, &key.public(), &key), frame == right);
        if let Ok(e) = read_open(&frame) {
            assert_eq!(open(&e)[..], frame);
            // A weak key is refused, any other is answered with a proof of one length.
            let _ = proof(&binding, &key, &e);
        }
    }
}

fn frames_of(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Ok(Some(len)) = frame_len(stream) {
        let Some(frame) = stream.get(PREFIX..PREFIX + len) else { break };
        assert_eq!(stream[..PREFIX], prefix(len));
        frames.push(frame.to_vec());
        stream = &stream[PREFIX + len..];
    }
    frames
}

/// STUN. The first byte says how: raw bytes to every reader; a check that must survive, and must not survive any
/// change; attributes of any content that are sealed here, as a hostile peer of a session could.
pub fn stun(data: &[u8]) {
    let mut feed = Feed::new(data);
    match feed.u8() % 4 {
        0 => raw_stun(feed.rest()),
        1 => {
            let id = TransactionId(feed.array());
            let priority = u32::from_be_bytes(feed.array());
            let (sequence, in_use) = (u64::from_be_bytes(feed.array()), feed.u8() % 2 == 1);
            check(Check::Request(CheckRequest { id, priority, sequence, in_use }), &mut feed);
        }
        2 => {
            let (id, mapped) = (TransactionId(feed.array()), canonical(feed.address()));
            check(Check::Response(CheckResponse { id, mapped }), &mut feed);
        }
        _ => {
            let kind = if feed.one_in(2) { 0x0001 } else { 0x0101 };
            let message = sealed(kind, feed.array(), feed.rest());
            if let Ok(check) = Check::decode(&message, &check_keys(Role::Responder)) {
                let again = check.encode(&check_keys(Role::Initiator));
                assert_eq!(Check::decode(&again, &check_keys(Role::Responder)), Ok(check));
            }
        }
    }
}

fn raw_stun(bytes: &[u8]) {
    let mut read = Check::decode(bytes, &check_keys(Role::Initiator)).is_ok();
    read |= Check::decode(bytes, &check_keys(Role::Responder)).is_ok();
    if let Ok(request) = PlainRequest::decode(bytes) {
        read = true;
        assert_eq!(PlainRequest::decode(&request.encode()), Ok(request));
    }
    if let Ok(response) = PlainResponse::decode(bytes) {
        read = true;
        assert_eq!(PlainResponse::decode(&response.encode()), Ok(response));
    }
    assert!(!read || stun::is_stun(bytes));
    let source = SocketAddr::from(([198, 18, 0, 1], 4000));
    if let Some(answer) = relay_stun::answer(bytes, source, None, relay_stun::Corner::default()) {
        let answer = PlainResponse::decode(answer.as_bytes()).expect("a relay's answer is one");
        assert_eq!((answer.id.0.as_slice(), answer.mapped), (&bytes[8..20], source));
    }
}

fn check(check: Check, feed: &mut Feed<'_>) {
    let message = check.encode(&check_keys(Role::Initiator));
    assert_eq!(Check::decode(&message, &check_keys(Role::Responder)), Ok(check));
    assert!(Check::decode(&message, &check_keys(Role::Initiator)).is_err(), "thrown back at its sender");
    let mut changed = message;
    if feed.mutate(&mut changed) {
        assert!(Check::decode(&changed, &check_keys(Role::Responder)).is_err(), "changed on the way");
    }
}

/// A message with these attributes and a good MESSAGE-INTEGRITY-SHA256 and FINGERPRINT behind them.
pub(crate) fn sealed(kind: u16, id: [u8; 12], attributes: &[u8]) -> Vec<u8> {
    let attributes = &attributes[..attributes.len().min(1024) / 4 * 4];
    let mut message = kind.to_be_bytes().to_vec();
    message.extend_from_slice(&[0, 0, 0x21, 0x12, 0xA4, 0x42]);
    message.extend_from_slice(&id);
    message.extend_from_slice(attributes);
    set_length(&mut message, 36);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &exporter()[..32]), &message);
    message.extend_from_slice(&[0, 0x1C, 0, 32]);
    message.extend_from_slice(tag.as_ref());
    set_length(&mut message, 8);
    let sum = (crc32(&message) ^ 0x5354_554E).to_be_bytes();
    message.extend_from_slice(&[0x80, 0x28, 0, 4]);
    message.extend_from_slice(&sum);
    message
}

/// The length a message has once `more` bytes are added.
fn set_length(message: &mut [u8], more: usize) {
    let length = u16::try_from(message.len() - 20 + more).expect("at most a kilobyte");
    message[2..4].copy_from_slice(&length.to_be_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A script over a table with two pairs: only a knock of a pair, in its time, unchanged and unused, opens.
pub fn knock(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut random = SeededRandom::from_seed([1; 32]);
    let pairings: Vec<Pairing> =
        (1..=2).map(|n| Pairing::new(&[PairSecret::from_bytes([n; 32])], &[n], b"us").expect("short ids")).collect();
    let mut table = KnockTable::new(NOW);
    for (n, pairing) in pairings.iter().enumerate() {
        table.insert(n, pairing.clone());
    }
    let ids = ConnectionIdKey::new(&mut random);
    let (mut now, mut present, mut used) = (NOW, [true; 2], Vec::new());
    for _ in 0..64 {
        if feed.is_empty() {
            return;
        }
        match feed.u8() % 5 {
            0 => now = UnixTime(now.0 + u64::from(feed.u16())),
            1 => {
                let bytes = feed.bytes(40);
                assert!(table.check(bytes, now).is_none(), "nobody guesses a tag");
                assert!(!ids.issued(bytes), "nor a connection id");
            }
            2 => {
                let n = feed.below(2);
                table.remove(&n);
                present[n] = false;
            }
            3 => {
                let n = feed.below(2);
                table.insert(n, pairings[n].clone());
                present[n] = true;
            }
            _ => {
                let n = feed.below(2);
                let skew = i64::from(feed.u8()) * 10 - 1280;
                let made = UnixTime(now.0.saturating_add_signed(skew));
                let knock = Knock::new(&pairings[n].directions()[0], made, &mut random);
                let mut bytes = knock.as_bytes().to_vec();
                let changed = feed.mutate(&mut bytes);
                let near = (made.0 / EPOCH_SECONDS).abs_diff(now.0 / EPOCH_SECONDS) <= 1;
                let found = table.check(&bytes, now);
                assert_eq!(found.as_ref().map(|m| m.pair), (near && present[n] && !changed).then_some(n));
                if let Some(found) = found {
                    table.mark_used(&found);
                    used.push(bytes);
                }
            }
        }
        assert!(used.iter().all(|bytes| table.check(bytes, now).is_none()), "a knock opens once");
    }
}
