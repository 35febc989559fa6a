//! What must hold whatever the network and a hostile stranger do.

use std::net::IpAddr;
use std::time::Duration;

use peerage_engine::path::{DirectPath, Hop, PathEvent, PathKind};
use proptest::prelude::*;

use crate::path_net::{A, B, By, Nat, Net, Weather, address, ms};

fn any_by() -> impl Strategy<Value = By> {
    prop_oneof![Just(By::Nothing), Just(By::Address), Just(By::AddressAndPort)]
}

fn any_weather() -> impl Strategy<Value = Weather> {
    (0u64..30, 0u64..20, 0u64..60, any::<u64>()).prop_map(|(loss, duplicates, jitter, seed)| Weather {
        loss,
        duplicates,
        jitter,
        seed,
    })
}

/// One bad thing and how long it lasts.
#[derive(Clone, Debug)]
enum Trouble {
    DirectDown(u64),
    TunnelBlocked(usize, u64),
    AddressChange(usize, u8),
    Garbage(usize, Vec<u8>),
    Replay(usize),
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        (1u64..5000).prop_map(Trouble::DirectDown),
        (0usize..2, 1u64..5000).prop_map(|(who, for_ms)| Trouble::TunnelBlocked(who, for_ms)),
        (0usize..2, any::<u8>()).prop_map(|(who, last)| Trouble::AddressChange(who, last)),
        (0usize..2, proptest::collection::vec(any::<u8>(), 0..120))
            .prop_map(|(who, bytes)| Trouble::Garbage(who, bytes)),
        (0usize..2).prop_map(Trouble::Replay),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cones_go_direct_again_after_any_trouble(
        filters in (any_by(), any_by()),
        weather in any_weather(),
        troubles in proptest::collection::vec(any_trouble(), 0..6),
    ) {
        let mut net = Net::new(
            Some(Nat::new("198.18.1.1", By::Nothing, filters.0)),
            Some(Nat::new("198.18.2.1", By::Nothing, filters.1)),
        );
        net.weather = weather;
        net.establish();
        for trouble in troubles {
            strike(&mut net, trouble)?;
            check_invariants(&net)?;
        }
        net.weather = Weather::default();
        // The longest hold that six losses can make is 64 s, the longest wait for a round 300 s.
        net.run_for(Duration::from_secs(80));
        prop_assert_eq!((net.kind(A), net.kind(B)), (PathKind::Punched, PathKind::Punched));
        check_invariants(&net)?;
    }
}

fn strike(net: &mut Net, trouble: Trouble) -> Result<(), TestCaseError> {
    match trouble {
        Trouble::DirectDown(for_ms) => {
            net.direct_down = true;
            net.run_for(ms(for_ms));
            net.direct_down = false;
        }
        Trouble::TunnelBlocked(who, for_ms) => {
            net.tunnel_blocked[who] = true;
            net.run_for(ms(for_ms));
            net.tunnel_blocked[who] = false;
        }
        Trouble::AddressChange(who, last) => {
            let outside = format!("198.18.{}.{last}", 1 + who);
            net.ends[who].nat = Some(Nat::new(&outside, By::Nothing, By::AddressAndPort));
            net.offer(who);
            net.run_for(ms(300));
        }
        Trouble::Garbage(who, bytes) => {
            prop_assert_eq!(net.inject(who, address("198.18.66.6:666"), &bytes), vec![]);
        }
        Trouble::Replay(who) => {
            net.run_for(ms(200));
            let recorded: Vec<_> = net.ends[1 - who].checks.iter().map(|(_, check)| check.bytes.clone()).collect();
            for bytes in recorded.iter().filter(|bytes| bytes.starts_with(&[0, 1])).rev().skip(8) {
                let answers = net.inject(who, address("198.18.66.6:666"), bytes);
                // A request that the network lost is fresh still: whoever brings it is answered, and checked in turn.
                prop_assert!(answers.len() <= 2);
            }
        }
    }
    Ok(())
}

/// Traffic goes to the peer's own networks only, and checks stay within their bounds.
fn check_invariants(net: &Net) -> Result<(), TestCaseError> {
    for who in [A, B] {
        let end = &net.ends[who];
        for (_, event) in &end.events {
            if let PathEvent::Changed { to: Hop::Direct(DirectPath { remote: to, .. }), .. } = event {
                let of_peer = match to.ip() {
                    IpAddr::V4(ip) => ip.octets()[..3] == [198, 18, u8::try_from(2 - who).expect("1 or 2")],
                    IpAddr::V6(_) => false,
                };
                prop_assert!(of_peer, "{who} sends to {to}");
            }
        }
        let requests: Vec<_> = end.checks.iter().filter(|(_, check)| check.bytes.starts_with(&[0, 1])).collect();
        for (at, _) in &requests {
            let second = requests.iter().filter(|(other, _)| (*at..*at + ms(1000)).contains(other)).count();
            prop_assert!(second <= 101, "{second} checks in the second after {at:?}");
        }
    }
    Ok(())
}
