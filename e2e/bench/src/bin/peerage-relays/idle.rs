//! What clients cost that say nothing but that they are there.

use std::path::Path;
use std::time::{Duration, Instant};

use peerage_bench::Result;
use peerage_bench::figures::Figure;
use peerage_bench::network::Place;

use crate::crowd::Crowd;
use crate::stage::{Spread, Stage};
use crate::streams;

/// Those that make what all share.
const FIRST: u32 = 16;

/// By UDP; `idle` is how long they are watched, a keepalive of each and some.
pub fn datagrams(peerage: &Path, place: &Place, clients: u32, idle: Duration) -> Result<Vec<Figure>> {
    let stage = Stage::new(peerage, place, clients + FIRST, 1)?;
    let relay = stage.start()?;
    let mut crowd = Crowd::new(relay.address())?;
    stage.bind(&relay, &mut crowd, 0..FIRST, Spread::Networks)?;
    let (before, begun) = (relay.resident()?, Instant::now());
    stage.bind(&relay, &mut crowd, FIRST..FIRST + clients, Spread::Networks)?;
    let took = begun.elapsed();
    let (used, since) = (relay.processor()?, Instant::now());
    while since.elapsed() < idle {
        crowd.turn(idle.saturating_sub(since.elapsed()), &mut |_| {})?;
    }
    let busy = (relay.processor()? - used).as_secs_f64() / since.elapsed().as_secs_f64();
    let bound = relay.metric("peerage_relay_bound_instances")?;
    if bound < f64::from(clients + FIRST) {
        return Err(format!("only {bound} clients stayed").into());
    }
    Ok(figures(&format!("{clients} idle clients by UDP"), clients, before.total, relay.resident()?.total, took, busy))
}

/// By TLS.
pub fn streams(peerage: &Path, place: &Place, clients: u32, idle: Duration) -> Result<Vec<Figure>> {
    let stage = Stage::new(peerage, place, clients, 1)?;
    let relay = stage.start()?;
    let mut crowd = streams::Crowd::new(&relay)?;
    crowd.bind(&stage, &relay, 0..FIRST)?;
    let (before, begun) = (relay.resident()?, Instant::now());
    crowd.bind(&stage, &relay, FIRST..clients)?;
    let took = begun.elapsed();
    let used = relay.processor()?;
    crowd.idle(idle)?;
    let busy = (relay.processor()? - used).as_secs_f64() / idle.as_secs_f64();
    let open = relay.metric("peerage_relay_tls_streams")?;
    if open < f64::from(clients) {
        return Err(format!("only {open} streams stayed").into());
    }
    let name = format!("{clients} idle clients by TLS");
    Ok(figures(&name, clients - FIRST, before.total, relay.resident()?.total, took, busy))
}

fn figures(name: &str, clients: u32, before: f64, after: f64, took: Duration, busy: f64) -> Vec<Figure> {
    vec![
        Figure::new(format!("{name}, memory of each"), (after - before) / f64::from(clients), "KiB"),
        Figure::new(format!("{name}, memory in all"), after / 1024.0, "MiB"),
        Figure::new(format!("{name}, bound within"), took.as_secs_f64(), "s"),
        Figure::new(format!("{name}, cores used afterwards"), busy, "cores"),
    ]
}
