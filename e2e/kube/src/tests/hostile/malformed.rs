//! Frames that are none: each ends the stream on which it was said, and nothing else. What is only unknown is skipped.

use std::convert::Infallible;

use minicbor::Encoder;
use peerage_model::linking::{
    Denied, Hello, MAX_FRAME, MAX_PURPOSE, MAX_RECORD, MAX_RECORDS, MAX_RELAYS, MAX_VERSION, RecordBytes, Tell, Told,
    Wish, Withdrawn,
};
use peerage_model::operator::{Keepalive, PREFIX};
use peerage_model::{InstanceId, TrustId, UnixTime};

use super::Siege;
use crate::failed::{Failed, Trying, ensure};

/// Says each of them on a stream of its own, after something that is heard.
pub fn everything(siege: &Siege<'_>) -> Result<(), Failed> {
    let hello = &siege.operator.hello;
    let mut frames = limits(hello)?;
    for tell in one_of_each(hello)? {
        frames.extend(broken(&tell));
    }
    frames.extend(no_frames());
    ensure(frames.len() > 40, || format!("{} frames are not everything", frames.len()))?;
    siege.stage.runtime.block_on(async {
        for (what, frame) in frames {
            let channel = siege.operator.open().await?;
            channel.ends_by(&frame).await.map_err(|failed| Failed::new(format!("{what}: {failed}")))?;
        }
        let mut channel = siege.operator.open().await?;
        for (what, frame) in unknown() {
            channel.say(&[frame]).await.map_err(|failed| Failed::new(format!("{what}: {failed}")))?;
        }
        Ok(())
    })
}

/// A good message of each kind.
fn one_of_each(hello: &Hello) -> Result<[Tell; 6], Failed> {
    let agent = "db.tools".parse().trying("read a name")?;
    Ok([
        Tell::Hello(hello.clone()),
        Tell::Wish(wish(None)?),
        Tell::Withdrawn(Withdrawn { id: TrustId([1; 16]) }),
        Tell::Denied(Denied { agent, instance: InstanceId([1; 8]), until: UnixTime(u64::MAX) }),
        Tell::Told(Told {}),
        Tell::Keepalive(Keepalive {}),
    ])
}

fn wish(purpose: Option<String>) -> Result<Wish, Failed> {
    let name = |text: &str| text.parse().trying("read a name");
    Ok(Wish { id: TrustId([1; 16]), from: name("a.lair")?, to: name("nobody.asked")?, purpose })
}

type Named = (String, Vec<u8>);

/// A message that ends too soon, too late, or is of another shape than its kind.
fn broken(tell: &Tell) -> Vec<Named> {
    let whole = &tell.encode()[PREFIX..];
    let kind = whole[1];
    let (half, rest) = (whole[..whole.len() - 1].to_vec(), [whole, &[0]].concat());
    // `[kind, body]` with a body that is no map; a map whose first value is a map; a text that is none; an array of three.
    let shapes: [(&str, Vec<u8>); 5] = [
        ("a text for a body", vec![0x82, kind, 0x61, b'x']),
        ("a map in the place of each field", vec![0x82, kind, 0xa2, 0x00, 0xa0, 0x01, 0xa0]),
        ("no UTF-8", vec![0x82, kind, 0xa2, 0x00, 0x62, 0xff, 0xfe, 0x01, 0x62, 0xff, 0xfe]),
        ("three things", vec![0x83, kind, 0xa0, 0xa0]),
        ("a length without an end", vec![0x82, kind, 0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ];
    // Fields of another shape are unknown ones where a kind has none.
    let has_fields = !matches!(tell, Tell::Told(_) | Tell::Keepalive(_));
    let shapes = shapes
        .into_iter()
        .filter(|(what, _)| has_fields || !["a map in", "no UTF"].iter().any(|w| what.starts_with(w)));
    let all = [("one byte too few", half), ("one byte too many", rest)].into_iter().chain(shapes);
    all.map(|(what, body)| (format!("kind {kind}, {what}"), framed(&body))).collect()
}

/// Messages that are well formed and larger than they may be.
fn limits(hello: &Hello) -> Result<Vec<Named>, Failed> {
    let relay = hello.relays.first().ok_or_else(|| Failed::new("the ticket names no relay"))?;
    let record = RecordBytes(vec![0; MAX_RECORD + 1]);
    let no_port = relay.clone();
    let hellos = [
        ("no record", Hello { records: Vec::new(), ..hello.clone() }),
        ("too many records", Hello { records: vec![hello.records[0].clone(); MAX_RECORDS + 1], ..hello.clone() }),
        ("a record too long", Hello { records: vec![record], ..hello.clone() }),
        ("too many relays", Hello { relays: vec![relay.clone(); MAX_RELAYS + 1], ..hello.clone() }),
        ("a version too long", Hello { version: Some("v".repeat(MAX_VERSION + 1)), ..hello.clone() }),
        (
            "a relay at port 0",
            Hello { relays: vec![peerage_model::relay::RelayInfo { port: 0, ..no_port }], ..hello.clone() },
        ),
    ];
    let mut all: Vec<Named> =
        hellos.into_iter().map(|(what, hello)| (what.to_owned(), Tell::Hello(hello).encode())).collect();
    let purpose = Tell::Wish(wish(Some("x".repeat(MAX_PURPOSE + 1)))?);
    all.push(("a purpose too long".into(), purpose.encode()));
    for host in ["-", "..", "g::h", "a b", ""] {
        all.push((format!("a relay at `{host}`"), relay_at(hello, host)));
    }
    for name in ["", "UPPER.lair", "a..b", "under_score.lair", &"x".repeat(64), &"a.".repeat(64)] {
        all.push((format!("an agent called `{name}`"), wish_from(name)));
    }
    Ok(all)
}

/// A Hello with a relay at this host, whose type would not let us write that.
fn relay_at(hello: &Hello, host: &str) -> Vec<u8> {
    written(|e| {
        e.array(2)?.u8(0)?.map(2)?.u8(1)?.array(1)?.bytes(&hello.records[0].0)?;
        e.u8(2)?.array(1)?.map(3)?.u8(0)?.bytes(&[7; 32])?.u8(1)?.str(host)?.u8(2)?.u16(3478).map(drop)
    })
}

/// The same of a Wish and who is said to have it.
fn wish_from(name: &str) -> Vec<u8> {
    written(|e| {
        e.array(2)?.u8(1)?.map(3)?.u8(0)?.bytes(&[1; 16])?.u8(1)?.str(name)?.u8(2)?.str("target.asked").map(drop)
    })
}

type Written = Result<(), minicbor::encode::Error<Infallible>>;

fn written(write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Written) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder).expect("writing to a Vec cannot fail");
    framed(encoder.writer())
}

/// What cannot even be a frame.
fn no_frames() -> Vec<Named> {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    vec![
        ("a frame of nothing".into(), length(0)),
        ("a frame that is too long".into(), [length(MAX_FRAME + 1), vec![0; MAX_FRAME + 1]].concat()),
        ("a frame of 4 GiB".into(), length(usize::MAX)),
        ("no CBOR".into(), framed(&[0xff; 64])),
        ("arrays in arrays".into(), framed(&[&[0x82, 0x01][..], &[0x81; 8000]].concat())),
        ("a kind that is no number".into(), framed(&[0x82, 0x61, b'x', 0xa0])),
        ("a request for a page".into(), b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ]
}

/// What a later version might say: it is counted, and has no effect.
fn unknown() -> Vec<Named> {
    vec![
        ("an unknown kind".into(), framed(&[0x82, 0x17, 0xa0])),
        ("an unknown kind of another shape".into(), framed(&[0x82, 0x18, 0xff, 0x61, b'x'])),
        ("an unknown field".into(), framed(&[0x82, 0x04, 0xa1, 0x18, 0x63, 0x61, b'x'])),
        (
            "an unknown field, arrays in arrays".into(),
            framed(&[&[0x82, 0x04, 0xa1, 0x18, 0x63][..], &[0x81; 8000], &[0]].concat()),
        ),
    ]
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a frame of a test is short");
    [&length.to_be_bytes()[..], body].concat()
}
