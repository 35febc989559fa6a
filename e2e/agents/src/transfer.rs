//! One long download by hostname while the ground moves: the direct way is blocked and freed, the client's NAT gets
//! another public address, the client another of its own. What arrives must be what was sent, and the lab's counters
//! must show that it went by the ways it was told to go.
//!
//! Who reads sets the pace: a valve lets curl's output through in pieces, so that each stage lasts until the
//! expected way has carried its share, on fast machines as on slow ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::flow::{Valve, read};
use crate::origin::Pattern;
use crate::wait::LOOK;
use crate::world::{SERVER, World};
use peerage_suite::failed::{Failed, Trying};

/// Of the whole, what each stage must see on its way. Six stages take a quarter; the rest is for what flows while a
/// path moves, and for what is on its way in buffers.
const SHARE: u64 = 24;
/// Let through a look while a path is to move: 3 MB/s, so that something is always on its way, yet little is used up.
const TRICKLE: u64 = 32 * 1024;
/// Let through a look while a stage has its way: up to 100 MB/s.
const FLOW: u64 = 1024 * 1024;
/// A path moves within seconds; a busy machine is slower.
const PATIENCE: Duration = Duration::from_secs(40);

/// By which way data is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Relayed,
    Direct,
}

/// What was seen in one stage.
#[derive(Debug)]
pub struct Stage {
    /// What had been done to the network.
    pub what: &'static str,
    /// Bytes on the wire to the client through the relay.
    pub relayed: u64,
    /// Bytes on the wire from the server straight to the client.
    pub direct: u64,
    /// Bytes on the wire from the client straight to the server.
    pub direct_back: u64,
    /// Until the expected way carried data.
    pub moved_after: Duration,
}

/// A download that arrived as it was sent.
#[derive(Debug)]
pub struct Transfer {
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// From curl's start to its end.
    pub took: Duration,
    /// In the order they came.
    pub stages: Vec<Stage>,
}

impl Transfer {
    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        let stages = self.stages.iter().map(|stage| {
            json!({
                "stage": stage.what, "relayed_bytes": stage.relayed, "direct_bytes": stage.direct,
                "direct_bytes_back": stage.direct_back, "moved_ms": millis(stage.moved_after),
            })
        });
        let stages: Vec<Value> = stages.collect();
        json!({"test": "transfer", "bytes": self.size, "sha256": self.sha256, "seconds": self.took.as_secs_f64(), "stages": stages})
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Downloads `size` bytes. Both agents run and trust each other, and the direct way is blocked.
///
/// # Errors
/// Data did not take the expected way, did not arrive, or is not what was sent.
pub fn run(world: &World, client: &Agent, size: u64) -> Result<Transfer, Failed> {
    let begun = Instant::now();
    let url = format!("http://{SERVER}/bytes/{size}");
    let mut curl = client.start(client.peerage(&["run", "--", "curl", "-sS", "--no-buffer", &url]), "curl")?;
    let valve = Arc::new(Valve::default());
    let (tap, stdout) = (Arc::clone(&valve), curl.stdout());
    let reader = std::thread::spawn(move || read(stdout, &tap));

    let download = Download { world, client, valve: &valve, share: size / SHARE };
    let stages = download.stages();
    // Also after a failure: the reader ends with curl, and curl with its output.
    valve.let_through(u64::MAX);
    if stages.is_err() {
        drop(curl);
        let _ = reader.join();
        return Err(stages.err().unwrap_or_else(|| Failed::new("it failed")));
    }
    let (got, sum) = reader.join().map_err(|_| Failed::new("the reader panicked"))?.trying("read from curl")?;
    let status = curl.wait()?;
    if !status.success() {
        return Err(Failed::new(format!("curl: {status}, after {got} bytes: {}", client.log("curl"))));
    }
    if (got, &sum) != (size, &Pattern::sum(size)) {
        return Err(Failed::new(format!("{got} bytes of {size} arrived, and their sum is {sum}")));
    }
    Ok(Transfer { size, sha256: sum, took: begun.elapsed(), stages: stages? })
}

struct Download<'a> {
    world: &'a World,
    client: &'a Agent,
    valve: &'a Valve,
    share: u64,
}

impl Download<'_> {
    fn stages(&self) -> Result<Vec<Stage>, Failed> {
        let world = self.world;
        let block = |blocked| {
            move || {
                world.block_direct(blocked);
                Ok(())
            }
        };
        Ok(vec![
            self.stage("the direct way is blocked", Way::Relayed, || Ok(()))?,
            self.stage("it is free", Way::Direct, block(false))?,
            self.stage("it is blocked again", Way::Relayed, block(true))?,
            self.stage("it is free again", Way::Direct, block(false))?,
            self.stage("the client's NAT has another address", Way::Direct, || {
                world.lab.change_public_address(world.client.host()).trying("change an address").map(drop)
            })?,
            self.stage("the client has another address", Way::Direct, || {
                world.lab.change_address(world.client.host()).trying("change an address").map(drop)
            })?,
        ])
    }

    /// Does something to the network, and lets data flow until it has come by the expected way.
    fn stage(
        &self,
        what: &'static str,
        way: Way,
        change: impl FnOnce() -> Result<(), Failed>,
    ) -> Result<Stage, Failed> {
        change()?;
        let begun = Instant::now();
        let before = self.counters();
        // Acknowledgements and checks are small; this much is data.
        let moved_at = self.share.min(64 * 1024);
        self.flow_until(what, TRICKLE, || self.carried(way, before) >= moved_at)?;
        let moved_after = begun.elapsed();
        self.flow_until(what, FLOW, || self.carried(way, before) >= self.share)?;
        let after = self.counters();
        let back = after.back - before.back;
        if way == Way::Direct && back == 0 {
            return Err(Failed::new(format!("{what}: nothing went straight from the client to the server")));
        }
        Ok(Stage {
            what,
            relayed: after.relayed - before.relayed,
            direct: after.direct - before.direct,
            direct_back: back,
            moved_after,
        })
    }

    fn flow_until(&self, what: &str, pace: u64, reached: impl Fn() -> bool) -> Result<(), Failed> {
        let begun = Instant::now();
        while !reached() {
            if begun.elapsed() > PATIENCE {
                return Err(Failed::new(format!(
                    "{what}: data does not come that way; the client says `{}`, {} bytes came so far; {}",
                    self.client.path().unwrap_or_default(),
                    self.valve.passed(),
                    self.client.ask(&["status"])?["peers"],
                )));
            }
            if self.valve.is_closed() {
                return Err(Failed::new(format!(
                    "{what}: the download ended after {} bytes: {}\nthe client's agent: {}\nthe server's agent: {}",
                    self.valve.passed(),
                    self.client.log("curl"),
                    self.client.log("agent"),
                    self.world.server.log("agent"),
                )));
            }
            // Not more than that is owed: what was not taken in time is no reason for a flood later.
            self.valve.let_through(pace);
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn carried(&self, way: Way, before: Counters) -> u64 {
        let after = self.counters();
        match way {
            Way::Relayed => after.relayed - before.relayed,
            Way::Direct => after.direct - before.direct,
        }
    }

    fn counters(&self) -> Counters {
        Counters {
            relayed: self.world.relayed_bytes(),
            direct: self.world.direct_bytes(),
            back: self.world.direct_bytes_back(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Counters {
    relayed: u64,
    direct: u64,
    back: u64,
}
