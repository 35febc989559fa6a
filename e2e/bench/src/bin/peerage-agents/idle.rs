//! One agent, left alone: what it holds and does while its peers are connected, and when their sessions have ended for want
//! of words.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use peerage_agent::state::document::{Inbound, Path as PathMode, Trust};
use peerage_agent::state::{Place as State, StateError, Store};
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentName, TrustId};

use peerage_bench::Result;
use peerage_bench::agents::{Agent, Relay};
use peerage_bench::figures::Figure;
use peerage_bench::network::Network;
use peerage_bench::people::{Person, random, wall};
use peerage_bench::process::{processor_time, resident};

use crate::crowd::{Crowd, Friend};

/// What the agent is called.
const NAME: &str = "idle";
/// After the last thing that happened: an agent counts as idle after ten quiet seconds, and gives memory back at the next look.
const SETTLE: Duration = Duration::from_secs(25);
/// How long its processor time is looked at. The kernel counts in hundredths of a second.
const WATCHED: Duration = Duration::from_secs(40);
/// How long all of a thousand peers may take to connect on two cores, and how long sessions without a word live (120 s), with room.
const PATIENCE: Duration = Duration::from_secs(240);

/// Everything for an agent that trusts so many.
pub fn measure(peerage: &Path, agent: &Path, network: &Network, peers: u16) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let company = Person::new("company");
    let people: Vec<Person> = (0..peers).map(|number| company.colleague(&format!("peer-{number}"))).collect();
    let mut store = Store::open(State::find(Some(&folder.path().join(NAME)))?.take()?, wall())?;
    let (ours, theirs) = (store.authority().fingerprint(), company.id.authority);
    let access = [ours, theirs].map(|authority| ["--allow-authority".to_owned(), authority.to_string()]).concat();
    let relay = Relay::start_with(peerage, &network.relay, 3478, folder.path(), &access)?;
    let info: RelayInfo = relay.info.parse().map_err(|error| format!("{error:?}"))?;
    store.change(|document| {
        people.iter().for_each(|person| document.trusts.push(consent(person, &company, &info)));
        Ok::<_, StateError>(())
    })?;
    let name: AgentName = NAME.parse()?;
    let friend = Friend { id: store.authority().agent(name), record: store.authority().record().clone(), relay: info };
    drop(store);
    let agent = Agent::start_contained(agent, &network.client, NAME, &relay.info, folder.path())?;
    let crowd = Crowd::start(&network.server, people, friend)?;
    let mut found = Vec::new();
    if peers > 0 {
        wait_for(&agent, peers.into())?;
        found.extend(at_rest(&agent, &format!("{peers} peers, connected"))?);
        wait_for(&agent, 0)?;
    }
    found.extend(at_rest(&agent, &format!("{peers} peers, no sessions"))?);
    drop(crowd);
    Ok(found)
}

fn consent(person: &Person, company: &Person, relay: &RelayInfo) -> Trust {
    Trust {
        id: TrustId(random()),
        peer: person.id.clone(),
        records: vec![company.record().clone()],
        alias: person.id.name.first_label(),
        inbound: Inbound::NOTHING,
        relays: vec![relay.clone()],
        path: PathMode::Auto,
        birthday: false,
        purpose: "to measure".to_owned(),
        since: wall(),
        expires: None,
    }
}

/// Looks every second until so many are connected.
fn wait_for(agent: &Agent, wanted: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        let connected = agent.connected()?;
        if connected == wanted {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{connected} are connected after {} s, not {wanted}", PATIENCE.as_secs()).into());
        }
        sleep(Duration::from_secs(1));
    }
}

fn at_rest(agent: &Agent, when: &str) -> Result<Vec<Figure>> {
    sleep(SETTLE);
    let (held, before) = (resident(agent.program.id())?, processor_time(agent.program.id())?);
    sleep(WATCHED);
    let worked = processor_time(agent.program.id())?.saturating_sub(before);
    Ok(vec![
        Figure::new(format!("resident, {when}"), held.total / 1024.0, "MiB"),
        Figure::new(format!("of it its own, {when}"), held.own / 1024.0, "MiB"),
        Figure::new(format!("processor, {when}"), worked.as_secs_f64() * 1e3 / WATCHED.as_secs_f64(), "ms/s"),
    ])
}
