//! The path is the best that the two NATs leave. `scripts/e2e nat` tries every pair; these stand for the rest.

use peerage_e2e::{Failed, Programs, nat};

use crate::support::inside;

#[test]
fn a_full_cone_is_reached_from_behind_a_symmetric_nat() {
    inside("nat::a_full_cone_is_reached_from_behind_a_symmetric_nat", |programs| expect(programs, 3, 0, "direct"));
}

#[test]
fn two_port_restricted_cones_are_punched() {
    inside("nat::two_port_restricted_cones_are_punched", |programs| expect(programs, 2, 2, "direct"));
}

#[test]
fn a_restricted_cone_reaches_behind_a_symmetric_nat() {
    inside("nat::a_restricted_cone_reaches_behind_a_symmetric_nat", |programs| expect(programs, 1, 3, "direct"));
}

#[test]
fn two_symmetric_nats_stay_relayed_and_say_why() {
    inside("nat::two_symmetric_nats_stay_relayed_and_say_why", |programs| {
        let [.., symmetric] = nat::types();
        let outcome = nat::pair(programs, symmetric, symmetric)?;
        assert!(outcome.is_as_expected(), "{outcome:?}");
        assert!(outcome.why.contains("symmetric"), "it says why: {outcome:?}");
        Ok(())
    });
}

fn expect(programs: &Programs, client: usize, server: usize, path: &str) -> Result<(), Failed> {
    let types = nat::types();
    let outcome = nat::pair(programs, types[client], types[server])?;
    let way = if outcome.path == "relayed" { "relayed" } else { "direct" };
    assert_eq!(way, path, "{outcome:?}");
    assert!(outcome.is_as_expected(), "{outcome:?}");
    Ok(())
}
