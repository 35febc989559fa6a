//! How long it takes after a restart of the relay until everybody is bound again.
//!
//! Clients are bound by UDP, from one address with a port each, as a company behind its NAT. Each is the state machine of an agent: what it
//! notices, when it asks and how long it waits is what an agent does. The clock starts when the new process is started.

use std::path::Path;
use std::time::{Duration, Instant};

use peerage_bench::Result;
use peerage_bench::figures::Figure;
use peerage_bench::network::Place;

use rustix::process::Signal;

use crate::crowd::Crowd;
use crate::stage::{Running, Spread, Stage};

/// A relay that is told to stop goes on for ten seconds; more than that, and it does not end.
const TO_END: Duration = Duration::from_secs(60);
/// Longer than a client takes to notice that it was forgotten, and ask a few times.
const PATIENCE: Duration = Duration::from_secs(90);
/// By when all should be bound.
const TARGET: Duration = Duration::from_secs(5);

/// How the first process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As when a service manager restarts it: clients are told.
    Told,
    /// As when it crashes: nobody is told.
    Killed,
}

pub fn take(peerage: &Path, place: &Place, clients: u32, end: End) -> Result<Vec<Figure>> {
    let stage = Stage::new(peerage, place, clients, 1)?;
    let relay = stage.start()?;
    let mut crowd = Crowd::new(relay.address())?;
    stage.bind(&relay, &mut crowd, 0..clients, Spread::OneAddress)?;
    crowd.forget();
    stop(relay, end, &mut crowd)?;
    let begun = Instant::now();
    let relay = stage.start()?;
    let everybody = usize::try_from(clients)?;
    while crowd.bound().len() < everybody && begun.elapsed() < PATIENCE {
        crowd.turn(Duration::from_millis(50), &mut |_| {})?;
    }
    let mut after: Vec<f64> = crowd.bound().iter().map(|at| (*at - begun).as_secs_f64()).collect();
    after.sort_by(f64::total_cmp);
    let name = match end {
        End::Told => format!("restart, {clients} clients of one address"),
        End::Killed => format!("crash, {clients} clients of one address"),
    };
    let soon = after.iter().take_while(|after| **after <= TARGET.as_secs_f64()).count();
    let mut figures =
        vec![Figure::new(format!("{name}, bound again within 5 s"), 100.0 * soon as f64 / f64::from(clients), "%")];
    // Where some are not within the time that anything may take, there is no such figure.
    for (part, number) in [("half are", everybody / 2), ("all are", everybody - 1)] {
        let at = after.get(number);
        figures.extend(at.map(|at| Figure::new(format!("{name}, {part} bound again after"), *at, "s")));
    }
    let busy = relay.processor()?.as_secs_f64();
    figures.push(Figure::new(format!("{name}, the relay's processor time"), busy, "s"));
    Ok(figures)
}

fn stop(mut relay: Running, end: End, crowd: &mut Crowd) -> Result<()> {
    match end {
        End::Killed => {} // dropping it kills it
        End::Told => {
            relay.signal(Signal::TERM)?;
            let since = Instant::now();
            while !relay.has_ended() {
                crowd.turn(Duration::from_millis(10), &mut |_| {})?;
                if since.elapsed() > TO_END {
                    return Err("the relay does not end".into());
                }
            }
        }
    }
    Ok(())
}
