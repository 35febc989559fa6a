//! Peers of an agent: drivers that run in this process, all of one authority, that trust it and say nothing.

use std::sync::mpsc;
use std::thread::JoinHandle;

use peerage_agent::driver::{self, DriverHandle};
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentId, AuthorityRecord};
use tokio::sync::watch;

use peerage_bench::Result;
use peerage_bench::network::Place;
use peerage_bench::people::{Person, snapshot};

/// Peers that run until this is dropped.
pub struct Crowd {
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Whom they trust, and where it is found.
#[derive(Clone, Debug)]
pub struct Friend {
    pub id: AgentId,
    pub record: AuthorityRecord,
    pub relay: RelayInfo,
}

impl Crowd {
    /// Starts them at a place; they have sockets when this returns, and sessions some time later.
    pub fn start(place: &Place, people: Vec<Person>, friend: Friend) -> Result<Self> {
        let (stop, stopping) = watch::channel(());
        let (started, waiting) = mpsc::channel();
        let thread = place.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(run(&people, &friend, &started, stopping));
        })?;
        waiting.recv().map_err(|_| "the peers' thread ended")??;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It has said what was wrong, if anything was.
            let _ = thread.join();
        }
    }
}

async fn run(
    people: &[Person],
    friend: &Friend,
    started: &mpsc::Sender<Result<()>>,
    mut stopping: watch::Receiver<()>,
) {
    let drivers: Result<Vec<DriverHandle>> = people.iter().map(|person| drive(person, friend)).collect();
    let (result, drivers) = match drivers {
        Ok(drivers) => (Ok(()), drivers),
        Err(error) => (Err(error), Vec::new()),
    };
    // Nobody waits for it where the measurement was given up.
    let _ = started.send(result);
    // Ends with an error when the sender is dropped, which is what it is for.
    let _ = stopping.changed().await;
    drop(drivers);
}

/// One of them, and a task that takes what it says.
fn drive(person: &Person, friend: &Friend) -> Result<DriverHandle> {
    let trust = person.trust_in(&friend.id, &friend.record, &friend.relay)?;
    let (driver, mut events, incoming) = driver::start(person.config(snapshot(&friend.relay, vec![trust])))?;
    tokio::spawn(async move {
        // Nobody opens a connection to it; the receiver stays, so that one would wait and not fail.
        let _incoming = incoming;
        while events.recv().await.is_some() {}
    });
    Ok(driver)
}
