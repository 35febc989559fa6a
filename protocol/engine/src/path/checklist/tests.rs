//! When addresses are checked that answer and are not used.

use peerage_model::control::CandidateKind;

use super::remote::OFFSETS;
use super::*;

/// How often each of two addresses that answer after these times is checked in `time`, while traffic stays relayed.
fn checks_of_slow_addresses(answer_after: [Duration; 2], time: Duration) -> [usize; 2] {
    let start = Instant::now();
    let addresses = ["198.18.2.1:5000", "198.18.2.2:5000"].map(|text| text.parse().expect("an address"));
    let mut list = Checklist::new(start);
    list.set_signalled(&addresses.map(|address| Candidate { kind: CandidateKind::Host, address }));
    list.begin(start);
    let (mut answers, mut checks, mut sent) = (Vec::new(), [0; 2], 0_u32);
    let mut now = start;
    while now < start + time {
        now += ms(10);
        list.start_round(now, false, None, |_| true);
        let (come, waiting): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(at, _, _)| *at <= now);
        answers = waiting;
        for (_, path, id) in come {
            assert!(list.on_answered(now, path, id, addresses[0]));
        }
        while let Some(Due::Check(path)) = list.due(now, None) {
            let who = usize::from(path.remote == addresses[1]);
            let mut id = TransactionId([0; 12]);
            id.0[..4].copy_from_slice(&sent.to_be_bytes());
            sent += 1;
            list.on_sent(now, path, id);
            answers.push((now + answer_after[who], path, id));
            checks[who] += 1;
        }
    }
    checks
}

#[test]
fn of_addresses_that_are_all_too_slow_only_the_fastest_has_rounds_of_its_own() {
    let [slower, faster] = checks_of_slow_addresses([ms(80), ms(60)], ms(35_000));
    assert_eq!(slower, OFFSETS.len(), "the first round");
    // Begun 4 and 8 s after the one before.
    assert_eq!(faster, 3 * OFFSETS.len());
}

#[test]
fn an_address_that_stays_too_slow_is_asked_as_rarely_as_all_others_in_the_end() {
    let [slower, faster] = checks_of_slow_addresses([ms(80), ms(60)], ms(3_600_000));
    let rounds = 4 + (3600 - 580) / 300 + 1;
    assert!(slower <= rounds * OFFSETS.len(), "{slower} checks in an hour");
    // Those between the first rounds of all, and hardly any afterwards.
    assert!(faster <= slower + 8 * OFFSETS.len(), "{faster} checks in an hour, {slower} of the other");
}
