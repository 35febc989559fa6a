//! One agent, left alone: what it holds and does while its peers are connected, and when their sessions have ended for want
//! of words.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use peerage_agent::state::document::{Inbound, Path as PathMode, Trust};
use peerage_agent::state::{Place as State, StateError, Store};
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentName, TrustId};

use peerage_bench::agents::{Agent, Relay};
use peerage_bench::figures::Figure;
use peerage_bench::network::Network;
use peerage_bench::people::{Person, random, wall};
use peerage_bench::process::{processor_time, resident};
use peerage_bench::{Result, median};

use crate::crowd::{Crowd, Friend};

/// What the agent is called.
const NAME: &str = "idle";
/// After the last thing that happened: an agent counts as idle after ten quiet seconds, and gives memory back at the next look.
const SETTLE: Duration = Duration::from_secs(25);
/// How long its memory and processor time are looked at. The kernel counts in hundredths of a second.
const WATCHED: Duration = Duration::from_secs(40);
/// How long all of a thousand peers may take to connect on two cores, and how long sessions without a word live (120 s), with room.
const PATIENCE: Duration = Duration::from_secs(240);

/// Everything for an agent that trusts so many.
pub fn measure(peerage: &Path, program: &Path, network: &Network, peers: u16) -> Result<Vec<Figure>> {
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
    let agent = Agent::start_contained(program, &network.client, NAME, &relay.info, folder.path())?;
    let crowd = Crowd::start(&network.server, people, friend)?;
    let mut found = Vec::new();
    if peers > 0 {
        wait_for(&agent, peers.into())?;
        found.extend(at_rest(&agent, program, &format!("{peers} peers, connected"))?);
        wait_for(&agent, 0)?;
    }
    found.extend(at_rest(&agent, program, &format!("{peers} peers, no sessions"))?);
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

fn at_rest(agent: &Agent, program: &Path, when: &str) -> Result<Vec<Figure>> {
    let process = agent.program.id();
    each_second(SETTLE, || keep_in_memory(program))?;
    let before = processor_time(process)?;
    let (mut total, mut own) = (Vec::new(), Vec::new());
    // An agent gives back every ten seconds, and holds more and more from then to the next time.
    each_second(WATCHED, || {
        keep_in_memory(program)?;
        let held = resident(process)?;
        total.push(held.total / 1024.0);
        own.push(held.own / 1024.0);
        Ok(())
    })?;
    let worked = processor_time(process)?.saturating_sub(before);
    Ok(vec![
        Figure::new(format!("resident, {when}"), median(&total), "MiB"),
        Figure::new(format!("resident at most, {when}"), total.iter().copied().fold(0.0, f64::max), "MiB"),
        Figure::new(format!("of it its own, {when}"), median(&own), "MiB"),
        Figure::new(format!("processor, {when}"), worked.as_secs_f64() * 1e3 / WATCHED.as_secs_f64(), "ms/s"),
    ])
}

/// A machine that runs short, or takes back what is cold, drops pages of programs from its memory, and then an agent holds
/// fewer than it would beside others of its kind: there they are never cold.
fn keep_in_memory(program: &Path) -> Result<()> {
    fs::read(program)?;
    Ok(())
}

fn each_second(how_long: Duration, mut what: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 0..how_long.as_secs() {
        what()?;
        sleep(Duration::from_secs(1));
    }
    Ok(())
}
