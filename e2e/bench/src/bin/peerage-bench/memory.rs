//! What idle processes hold: an agent with a relay and a peer, and their relay. One with thousands: `peerage-relays`.

use std::path::Path;
use std::time::Duration;

use peerage_agent::state::document::Path as PathMode;

use crate::Result;
use crate::agents::{Agent, Relay};
use crate::network::Network;
use crate::process::resident;
use crate::report::Report;

/// After the last thing that happened. An agent counts as idle after ten quiet seconds, and gives memory back at the next look.
const SETTLE: Duration = Duration::from_secs(25);

/// `agent` is the program for containers, where there is one.
pub fn measure(peerage: &Path, agent: Option<&Path>, network: &Network, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let relay = Relay::start(peerage, &network.relay, 3478, folder.path())?;
    let ann = Agent::start(peerage, &network.client, "ann", &relay.info, &[], folder.path())?;
    std::thread::sleep(SETTLE);
    report.memory("`peerage up`, relay bound, nobody trusted", resident(ann.program.id())?);
    let bob = Agent::start(peerage, &network.server, "bob", &relay.info, &["bulk=5201".into()], folder.path())?;
    ann.befriend(&bob, PathMode::Auto)?;
    std::thread::sleep(SETTLE);
    report.memory("`peerage up`, one idle session", resident(ann.program.id())?);
    report.memory("`peerage relay`, two agents bound", resident(relay.program.id())?);
    drop(ann);
    if let Some(agent) = agent {
        let carl = Agent::start_contained(agent, &network.client, "carl", &relay.info, folder.path())?;
        carl.befriend(&bob, PathMode::Auto)?;
        std::thread::sleep(SETTLE);
        report.memory("`peerage-agent`, one idle session", resident(carl.program.id())?);
    }
    Ok(())
}
