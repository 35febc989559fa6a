//! Knocks against `docs/spec/vectors/knock.json`, which a second implementation wrote.

use peerage_model::{PairSecret, UnixTime};

use super::{Epoch, KnockKeys, KnockTable};
use crate::noise::Pairing;
use crate::noise::vectors::Vectors;

#[test]
fn knocks_agree_with_the_specs_vectors() {
    let file = Vectors::open("knock.json");
    let knocks = file.list("knocks");
    assert!(knocks.len() >= 5);
    for vector in knocks {
        let secret = PairSecret::from_bytes(vector.array("pair_secret"));
        let pairing = Pairing::new(&[secret], &vector.bytes("initiator_id"), &vector.bytes("responder_id"));
        let pairing = pairing.expect("short ids");
        let now = UnixTime(vector.number("unix_time"));
        assert_eq!(Epoch::at(now).0, vector.number("epoch"));
        let keys = KnockKeys::new(&pairing.directions()[0], Epoch::at(now));
        assert_eq!(keys.hint().to_vec(), vector.bytes("hint"));
        assert_eq!(keys.knock(vector.array("random")).as_bytes().to_vec(), vector.bytes("knock"));

        let mut table = KnockTable::new(now);
        table.insert((), pairing);
        assert!(table.check(&vector.bytes("knock"), now).is_some());
    }
}
