//! The path is the best that the two networks leave, on the real kernel. `scripts/e2e nat` tries every pair; these stand
//! for the rest.

use std::time::Duration;

use peerage_e2e::matrix::{self, Cell, Pair, Plan};
use peerage_e2e::{Failed, Programs};
use peerage_netlab::kernel::Network::{
    self, Carrier, CarrierHairpin, DualStack, FullCone, HttpProxy, Ipv6Only, None as Open, PortRestricted,
    PortRestrictedOpenInput, RestrictedCone, SymmetricPreserving, SymmetricRandom, SymmetricSequential, UdpBlocked,
};

use crate::support::inside;

#[test]
fn pairs_that_can_meet_past_relays_do() {
    inside("nat::pairs_that_can_meet_past_relays_do", |programs| {
        let pairs = [
            (Open, SymmetricRandom),
            (FullCone, FullCone),
            (RestrictedCone, SymmetricRandom),
            (SymmetricRandom, RestrictedCone),
            (PortRestricted, PortRestricted),
            (SymmetricPreserving, PortRestricted),
            (PortRestrictedOpenInput, PortRestricted),
            (PortRestrictedOpenInput, SymmetricSequential),
            (PortRestrictedOpenInput, PortRestrictedOpenInput),
            (CarrierHairpin, CarrierHairpin),
            (Carrier, SymmetricPreserving),
            (DualStack, Ipv6Only),
            (DualStack, RestrictedCone),
        ];
        for cell in as_theory_says(programs, &pairs)? {
            assert_ne!(cell.path(), "relayed", "{cell:?}");
        }
        Ok(())
    });
}

#[test]
fn pairs_that_cannot_meet_stay_relayed_and_say_why() {
    inside("nat::pairs_that_cannot_meet_stay_relayed_and_say_why", |programs| {
        let pairs = [
            (SymmetricRandom, SymmetricRandom),
            (Carrier, Carrier),
            (Ipv6Only, Open),
            (UdpBlocked, PortRestricted),
            (Open, HttpProxy),
            (HttpProxy, UdpBlocked),
        ];
        for cell in as_theory_says(programs, &pairs)? {
            assert_eq!(cell.path(), "relayed", "{cell:?}");
            let seen = cell.seen.map_err(Failed::new)?;
            assert!(!seen.why.is_empty(), "it says why: {seen:?}");
            if cell.client == SymmetricRandom {
                assert!(seen.why.contains("symmetric"), "{seen:?}");
            }
            if [cell.client, cell.server].iter().any(|network| !network.has_udp()) {
                assert!(seen.why.contains("UDP is blocked"), "{seen:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_doctor_says_in_each_network_what_is_true_there() {
    inside("nat::the_doctor_says_in_each_network_what_is_true_there", |programs| {
        let pairs = Network::ALL.map(|network| (network, network));
        for cell in as_theory_says(programs, &pairs)? {
            assert_eq!(cell.misadvised(), [""; 0], "{cell:?}");
        }
        Ok(())
    });
}

fn as_theory_says(programs: &Programs, pairs: &[Pair]) -> Result<Vec<Cell>, Failed> {
    let plan = Plan { pairs: pairs.to_vec(), at_once: 4, delay: Duration::from_millis(5), birthday: false };
    let mut cells = Vec::new();
    matrix::run(programs, &plan, |cell| cells.push(cell))?;
    assert_eq!(cells.len(), pairs.len());
    for cell in &cells {
        assert!(cell.is_as_expected(), "{cell:?}");
        assert_eq!(cell.misnamed(), [], "agents say what their NAT is: {cell:?}");
    }
    Ok(cells)
}
