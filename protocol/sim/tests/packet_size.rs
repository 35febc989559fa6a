//! Packets that are too large for a link vanish without a word (a black hole, RFC 4821 section 1). Looking for the largest that arrives
//! loses some of them, and that is no sign of anything else.

use peerage_sim::link::LinkConfig;
use peerage_sim::nat::NatKind;
use peerage_sim::{Packet, Sim, ms, secs};

/// The largest UDP payload of a link of 1,500 bytes, the usual one, with IPv6 on it: what remains of a header of 40 and one of 8.
const LARGEST: usize = 1_452;
/// No larger than this is whatever else two agents say to each other.
const SMALLEST_PROBE: usize = 1_260;
/// Those that both ends need, each of which crosses the core twice: five that arrive, and three of each size that does not.
const ENOUGH: usize = 40;

/// Two whose only way is by relay, over links of that size and this long.
fn far_apart(seed: u64, one_way: u64) -> Sim {
    let mut sim = Sim::seeded_pair(seed, NatKind::symmetric_random(), NatKind::symmetric_random());
    for who in ["a", "b"] {
        sim.set_line(who, &LinkConfig { jitter: ms(3), ..LinkConfig::with_delay(ms(one_way)) });
    }
    sim.tamper(|packet| match packet.bytes.len() > LARGEST {
        true => Vec::new(),
        false => vec![(ms(0), packet)],
    });
    sim
}

#[test]
fn a_session_that_nobody_uses_looks_for_its_packet_size_once() {
    for one_way in [2, 10, 25, 40, 60, 90] {
        for seed in 0..20 {
            let mut sim = far_apart(seed, one_way);
            sim.run_until(secs(20), |sim| sim.both_up("a", "b")).expect("they meet by relay");
            let tape = sim.record();
            sim.run_for(secs(60));
            let probes = tape.only(|packet: &Packet| packet.bytes.len() > SMALLEST_PROBE).len();
            assert!(probes <= ENOUGH, "{probes} probes in a minute, {one_way} ms from each relay, seed {seed}");
        }
    }
}
