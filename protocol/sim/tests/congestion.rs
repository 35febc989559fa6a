//! What the agents' congestion control makes of paths that users have, alone and beside others. The table that these bounds are
//! taken from is docs/benchmarks/congestion-sim.txt.

use peerage_engine::node::Algorithm;
use peerage_sim::contest::Path;
use peerage_sim::link::Chance;
use peerage_sim::{ms, secs};

/// 20 Mb/s at 30 ms, with a queue as long as the path: enough packets to tell, few enough for a build without optimisation.
const HOME: Path = Path::clean(30, 20, 1_000);

#[test]
fn five_megabytes_at_two_percent_loss_take_less_than_three_seconds() {
    let path = Path { loss: Chance::percent(2), ..Path::clean(30, 100, 1_000) };
    let mut took: Vec<_> = (0..10).map(|seed| path.transfer(seed, Algorithm::Bbr, 5_000_000)).collect();
    took.sort();
    assert!(took[5] < ms(1_000), "the median of {took:?}");
    assert!(took[9] < secs(3), "the slowest of {took:?}");
}

#[test]
fn losing_two_percent_by_chance_leaves_seven_tenths_of_the_line() {
    let path = Path { loss: Chance::percent(2), ..HOME };
    let seen = path.alone(0, Algorithm::Bbr, secs(5), secs(10));
    assert!(seen.mbit[0] > 0.7 * 20.0, "{seen:?}");
}

#[test]
fn a_session_whose_path_becomes_a_longer_one_is_fast_again_within_a_second() {
    let path = Path::clean(60, 100, 1_000);
    let took = path.transfers(&Path::clean(2, 100, 1_000), 0, Algorithm::Bbr, 2_000_000, 2);
    assert!(took[0] < secs(1), "{took:?}");
    assert!(took[1] < ms(400), "160 ms and a way of 30 by the line: {took:?}");
}

#[test]
fn a_long_fat_pipe_with_a_short_queue_is_filled_and_the_session_lives() {
    // A sender that is twice too fast loses every second packet here, and quinn-proto gives a session up that has too many gaps.
    let seen = Path::clean(100, 500, 250).alone(0, Algorithm::Bbr, secs(5), secs(1));
    assert!(seen.mbit[0] > 0.85 * 500.0, "{seen:?}");
}

#[test]
fn a_flow_that_is_alone_leaves_the_queue_almost_empty() {
    let seen = Path { queue: 4_000, ..HOME }.alone(0, Algorithm::Bbr, secs(5), secs(10));
    assert!(seen.mbit[0] > 0.9 * 20.0, "{seen:?}");
    assert!(seen.waited < ms(10), "of 120 ms that the queue has: {seen:?}");
}

#[test]
fn what_a_receiver_sends_is_not_held_back_for_its_acknowledgements() {
    let path = Path::clean(100, 200, 1_000);
    let took: Vec<_> = (0..6).map(|n| path.request_beside(n, Algorithm::Bbr, ms(2_000 + 333 * n))).collect();
    assert!(took.iter().all(|took| *took < ms(50) + ms(1) / 20), "the way takes 50 ms: {took:?}");
}

#[test]
fn beside_cubic_each_has_its_part() {
    for (first, second) in [(Algorithm::Bbr, Algorithm::Cubic), (Algorithm::Cubic, Algorithm::Bbr)] {
        let seen = HOME.shared(1, [first, second], secs(10), secs(30));
        assert!((0.3..0.7).contains(&seen.share()), "{first:?} beside {second:?}: {:.2} of {seen:?}", seen.share());
    }
}

#[test]
fn cubic_is_not_pushed_out_of_a_queue_too_short_to_be_seen() {
    for (first, second) in [(Algorithm::Bbr, Algorithm::Cubic), (Algorithm::Cubic, Algorithm::Bbr)] {
        // 1.5 ms, where 2 ms count as a queue.
        let seen = Path::clean(30, 100, 50).shared(1, [first, second], secs(5), secs(10));
        assert!((0.25..0.75).contains(&seen.share()), "{first:?} beside {second:?}: {:.2} of {seen:?}", seen.share());
    }
}

#[test]
fn beside_cubic_in_a_deep_queue_each_has_its_part() {
    for (first, second) in [(Algorithm::Bbr, Algorithm::Cubic), (Algorithm::Cubic, Algorithm::Bbr)] {
        let seen = Path { queue: 4_000, ..HOME }.shared(1, [first, second], secs(10), secs(30));
        assert!((0.25..0.75).contains(&seen.share()), "{first:?} beside {second:?}: {:.2} of {seen:?}", seen.share());
    }
}

#[test]
fn who_comes_later_has_its_part() {
    let seen = HOME.shared(1, [Algorithm::Bbr; 2], secs(10), secs(30));
    assert!(seen.fairness() > 0.9, "{:.2} of {seen:?}", seen.fairness());
}
