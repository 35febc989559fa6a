//! The tests, in the order in which they run: from nothing to what a whole life of a cluster brings.

mod chart;
mod first;
mod lives;
mod names;
mod ports;
mod protocol;
mod relays;

use peerage_e2e_pods::stage::Stage;
use peerage_suite::Test;

/// All tests. The first makes what the others use.
pub const ALL: [Test<Stage>; 17] = [
    ("first-request", first::request),
    ("restricted", first::restricted),
    ("names", names::in_the_same_pods),
    ("agent-killed", names::while_the_agent_is_dead),
    ("look-up-in-flight", names::look_up_in_flight),
    ("host-aliases", names::by_hosts_file),
    ("port-conflict", ports::conflict),
    ("job", lives::job),
    ("init-container", lives::init_container),
    ("replicas", lives::replicas),
    ("rolling-restart", lives::rolling_restart),
    ("mcp", protocol::mcp),
    ("managed-relay", relays::managed),
    ("notes", chart::notes),
    ("rollout", chart::rollout),
    ("upgrade", chart::upgrade),
    ("reinstall", chart::reinstall),
];
