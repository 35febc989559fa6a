//! What others in the field stumble over, on the real kernel and in a small size; `scripts/e2e field` has the full one.

use peerage_e2e::field::{self, Size, Test};

use crate::support::{alone, inside};

#[test]
fn both_sides_symmetric_is_served_by_relay_and_says_why() {
    measured("field::both_sides_symmetric_is_served_by_relay_and_says_why", field::both_sides_symmetric);
}

#[test]
fn a_transfer_outlives_new_addresses_of_the_gateway_and_of_the_host() {
    measured(
        "field::a_transfer_outlives_new_addresses_of_the_gateway_and_of_the_host",
        field::address_change_in_a_transfer,
    );
}

#[test]
fn a_relayed_transfer_outlives_the_relay_that_carries_it() {
    measured("field::a_relayed_transfer_outlives_the_relay_that_carries_it", field::primary_relay_killed_in_a_transfer);
}

#[test]
fn a_relayed_stream_becomes_direct_when_that_is_allowed() {
    measured("field::a_relayed_stream_becomes_direct_when_that_is_allowed", field::upgrade_to_direct);
}

#[test]
fn revoked_trust_resets_a_stream_at_both_ends() {
    measured("field::revoked_trust_resets_a_stream_at_both_ends", field::revocation_resets_both_sides);
}

#[test]
fn a_peer_that_restarts_with_other_addresses_is_reached() {
    measured("field::a_peer_that_restarts_with_other_addresses_is_reached", field::restarted_with_a_new_address);
}

#[test]
fn a_request_after_a_pause_that_no_mapping_survives_is_answered_at_once() {
    // It waits more than it works, so that others may run beside it.
    inside("field::a_request_after_a_pause_that_no_mapping_survives_is_answered_at_once", |programs| {
        let found = field::idle_behind_a_forgetful_nat(programs, Size::SMALL)?;
        println!("{}", found.json());
        Ok(())
    });
}

fn measured(name: &str, test: Test) {
    alone(name, |programs| {
        let found = test(programs, Size::SMALL)?;
        println!("{}", found.json());
        Ok(())
    });
}
