//! What modest clients get of a relay beside one that sends all it can.
//!
//! Fifty pairs send a hundred packets a second each. How many of them arrive, and how late: alone, and beside a client that floods with full trains
//! to one other, which brings the most bytes; with single packets; and with trains of which each packet goes to another client, which
//! costs the relay forty times what it costs the sender, so that the relay has less time than it needs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peerage_bench::Result;
use peerage_bench::figures::Figure;
use peerage_bench::network::Place;
use peerage_model::relay::frame::EndpointId;

use crate::crowd::{Arrived, Crowd};
use crate::forward::{Flood, PACKET, introduce};
use crate::stage::{Spread, Stage};

/// Modest pairs.
const PAIRS: u32 = 50;
/// Between two packets of one of them.
const PAUSE: Duration = Duration::from_millis(10);
/// After the last was sent: what comes later is as good as lost.
const LATEST: Duration = Duration::from_secs(1);

/// Others that the greedy one sends to.
const FAN: u32 = 40;

/// What the greedy one sends.
#[derive(Clone, Copy, Debug)]
enum Greed {
    Nothing,
    Trains,
    Singles,
    Fan,
}

const GREEDS: [(Greed, &str); 4] = [
    (Greed::Nothing, "alone"),
    (Greed::Trains, "beside a flood of trains"),
    (Greed::Singles, "beside a flood of single packets"),
    (Greed::Fan, "beside a flood to forty"),
];

pub fn take(peerage: &Path, place: &Place, time: Duration) -> Result<Vec<Figure>> {
    let stage = Stage::new(peerage, place, 2 * PAIRS + 1 + FAN, 1)?;
    let relay = stage.start()?;
    let mut crowd = Crowd::new(relay.address())?;
    // Senders at one socket, receivers at another; the greedy one and its others at one each.
    for numbers in [0..PAIRS, PAIRS..2 * PAIRS, 2 * PAIRS..2 * PAIRS + 1, 2 * PAIRS + 1..2 * PAIRS + 1 + FAN] {
        stage.bind(&relay, &mut crowd, numbers, Spread::Networks)?;
    }
    let half = usize::try_from(PAIRS)?;
    let modest: Vec<_> = (0..half).map(|n| (n, n + half)).collect();
    let greedy: Vec<_> = (0..usize::try_from(FAN)?).map(|n| (2 * half, 2 * half + 1 + n)).collect();
    introduce(&mut crowd, &modest)?;
    for pair in &greedy {
        // One at a time: nobody may try forty others at once.
        introduce(&mut crowd, &[*pair])?;
    }
    crowd.ignore(3)?;
    let mut figures = Vec::new();
    for (greed, name) in GREEDS {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let running = match greed {
            Greed::Nothing => None,
            Greed::Trains => Some(Flood::start(&mut crowd, 2, &greedy[..1], 40, told)?),
            Greed::Singles => Some(Flood::start(&mut crowd, 2, &greedy[..1], 1, told)?),
            Greed::Fan => Some(Flood::fan(&mut crowd, 2, &greedy, told)?),
        };
        let seen = trickle(&mut crowd, &modest, time);
        stop.store(true, Ordering::Relaxed);
        running.map_or(Ok(()), Flood::join)?;
        let Seen { sent, mut delays } = seen?;
        delays.sort_by(f64::total_cmp);
        let share = 100.0 * delays.len() as f64 / f64::from(sent);
        figures.push(Figure::new(format!("modest clients {name}, delivered"), share, "%"));
        if let (Some(middle), Some(late)) = (delays.get(delays.len() / 2), delays.get(delays.len() * 99 / 100)) {
            figures.push(Figure::new(format!("modest clients {name}, delay, p50"), *middle, "ms"));
            figures.push(Figure::new(format!("modest clients {name}, delay, p99"), *late, "ms"));
        }
    }
    Ok(figures)
}

struct Seen {
    sent: u32,
    /// Of what arrived, in milliseconds.
    delays: Vec<f64>,
}

/// Sends at an even pace from all pairs in turns, with the time in each packet.
fn trickle(crowd: &mut Crowd, pairs: &[(usize, usize)], time: Duration) -> Result<Seen> {
    let (begun, step) = (Instant::now(), PAUSE / u32::try_from(pairs.len())?);
    let to: Vec<EndpointId> = pairs.iter().map(|(_, other)| crowd.id(*other)).collect::<Result<_>>()?;
    let (mut sent, mut delays) = (0_u32, Vec::new());
    while begun.elapsed() < time + LATEST {
        while begun.elapsed() < time && begun.elapsed() >= step * sent {
            let turn = usize::try_from(sent)? % pairs.len();
            let mut packet = [0x41; PACKET];
            packet[8..16].copy_from_slice(&begun.elapsed().as_secs_f64().to_be_bytes());
            let frame = crowd.frame(pairs[turn].0, to[turn], &packet)?;
            crowd.send(pairs[turn].0, &frame)?;
            sent += 1;
        }
        let next = if begun.elapsed() < time { (step * sent).saturating_sub(begun.elapsed()) } else { LATEST / 10 };
        crowd.turn(next, &mut |Arrived { client, packet, .. }| {
            let at = packet.get(8..16).and_then(|at| at.try_into().ok()).map(f64::from_be_bytes);
            if let Some(at) = at.filter(|_| pairs.iter().any(|(_, other)| *other == client) && packet.len() == PACKET) {
                delays.push(1e3 * (begun.elapsed().as_secs_f64() - at));
            }
        })?;
    }
    Ok(Seen { sent, delays })
}
