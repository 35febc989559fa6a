//! The tests, in the order in which they run: from two empty clusters to what a life of both brings.

mod actions;
mod laptop;
mod lives;
mod names;
mod paths;
mod protocols;
mod relays;
mod revocation;

use peerage_suite::Test;

use crate::stage::Stage;

/// All tests. The first makes what the others use.
pub const ALL: [Test<Stage>; 12] = [
    ("four-actions", actions::four),
    ("both-symmetric", paths::both_symmetric),
    ("udp-blocked", paths::udp_blocked),
    ("revocation", revocation::across),
    ("mcp", protocols::mcp),
    ("a2a", protocols::a2a),
    ("pipeline", protocols::pipeline),
    ("laptop", laptop::both_ways),
    ("same-names", names::same),
    ("managed-relay", relays::managed),
    ("rolling-restart", lives::rolling_restart),
    ("operators-away", lives::operators_away),
];

/// Those that need the image with the SDK of the Agent2Agent protocol.
pub const OF_A2A: [&str; 2] = ["a2a", "pipeline"];

/// The client of the first two agents.
pub const REPORTER: &str = "-n reports deploy/reporter -c app";
