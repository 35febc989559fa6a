//! Results as tables for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use peerage_netlab::kernel::Network;

use crate::fallback::{Row, Way};
use crate::matrix::Cell;
use crate::warm::{Flight, RELAY_ROUND_TRIP};

/// Wide enough for a path and its mark.
const COLUMN: usize = 9;

/// Paths by client (down) and server (across), then how long they took, then what is not as it should be.
#[must_use]
pub fn matrix(cells: &[Cell]) -> String {
    let mut out = String::from("\nclient, down; server, across. `!` is not what theory says\n\n");
    let clients: BTreeSet<Network> = cells.iter().map(|cell| cell.client).collect();
    let servers: BTreeSet<Network> = cells.iter().map(|cell| cell.server).collect();
    let numbered = |server: &Network| servers.iter().position(|other| other == server).unwrap_or_default() + 1;
    line(&mut out, "", servers.iter().map(|server| numbered(server).to_string()));
    for client in clients {
        let of = |server: &Network| {
            let of_pair = || cells.iter().filter(|cell| (cell.client, &cell.server) == (client, server));
            // Of a pair that was tried more than once, a time that was not as it should be.
            let cell = of_pair().find(|cell| !cell.is_as_expected()).or_else(|| of_pair().next());
            cell.map_or(String::from("."), |cell| {
                format!("{}{}", cell.path(), if cell.is_as_expected() { "" } else { "!" })
            })
        };
        let number = if servers.contains(&client) { numbered(&client).to_string() } else { String::new() };
        line(&mut out, &format!("{number:>2} {client}"), servers.iter().map(of));
    }
    times(&mut out, cells);
    let misnamed: BTreeSet<_> = cells.iter().flat_map(Cell::misnamed).collect();
    for (network, said) in misnamed {
        writeln!(out, "? an agent in {network} called its NAT {said}, not {}", network.nat_type()).expect(ENDLESS);
    }
    for cell in cells {
        for fault in cell.misadvised() {
            writeln!(out, "? the doctor in {}, connected to {}, {fault}", cell.client, cell.server).expect(ENDLESS);
        }
    }
    for cell in cells.iter().filter(|cell| !cell.is_as_expected()) {
        let why = cell.seen.as_ref().map_or_else(Clone::clone, |seen| seen.why.clone());
        let (client, server, path) = (cell.client, cell.server, cell.path());
        let why = why.lines().next().unwrap_or_default();
        writeln!(out, "! {client} to {server}: {path}, expected {}: {why}", cell.expected()).expect(ENDLESS);
    }
    out
}

const ENDLESS: &str = "a String takes everything";

fn line(out: &mut String, head: &str, columns: impl Iterator<Item = String>) {
    write!(out, "{head:<20}").expect(ENDLESS);
    for column in columns {
        write!(out, "{column:<COLUMN$}").expect(ENDLESS);
    }
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

/// Round trips of the relay path by client (down) and server (across), warm and cold.
#[must_use]
pub fn flights(flights: &[Flight]) -> String {
    let millis = RELAY_ROUND_TRIP.as_millis();
    let mut out =
        format!("\nclient, down; server, across: warm/cold, in round trips of the relay path ({millis} ms)\n\n");
    let clients: BTreeSet<Network> = flights.iter().map(|flight| flight.client).collect();
    let servers: BTreeSet<Network> = flights.iter().map(|flight| flight.server).collect();
    line(&mut out, "", servers.iter().map(|server| server.name().chars().take(COLUMN - 1).collect()));
    for client in clients {
        let trips = |of: &Result<Duration, String>| {
            of.as_ref().map_or_else(|_| String::from("-"), |of| format!("{:.1}", Flight::round_trips(*of)))
        };
        let of = |server: &Network| {
            let flight = flights.iter().find(|flight| (flight.client, &flight.server) == (client, server));
            flight.map_or(String::from("."), |flight| format!("{}/{}", trips(&flight.warm), trips(&flight.cold)))
        };
        line(&mut out, client.name(), servers.iter().map(of));
    }
    out.push('\n');
    spread(&mut out, "warm", flights.iter().filter_map(|flight| flight.warm.clone().ok()).collect());
    spread(&mut out, "cold", flights.iter().filter_map(|flight| flight.cold.clone().ok()).collect());
    spread(&mut out, "path", flights.iter().filter_map(|flight| flight.path).collect());
    beyond(&mut out, flights);
    for flight in flights {
        if let Some(error) = flight.warm.as_ref().err().or(flight.cold.as_ref().err()) {
            let (client, server) = (flight.client, flight.server);
            writeln!(out, "! {client} to {server}: {}", error.lines().next().unwrap_or_default()).expect(ENDLESS);
        }
    }
    out
}

/// What a request took besides its one and a half round trips of the path as both ends measured it.
fn beyond(out: &mut String, flights: &[Flight]) {
    let of_one = |flight: &Flight| Some((flight.warm.as_ref().ok()?.as_secs_f64(), flight.path?.as_secs_f64()));
    let millis: Vec<f64> = flights.iter().filter_map(of_one).map(|(warm, path)| (warm - path * 1.5) * 1e3).collect();
    if !millis.is_empty() {
        let [middle, most] = [50, 95].map(|percent| of(&millis, percent));
        writeln!(out, "warm, beyond 1.5 of the path as measured: median {middle:.1} ms, 95 % below {most:.1} ms")
            .expect(ENDLESS);
    }
}

/// Throughput and latency by way to the relay.
#[must_use]
pub fn fallback(rows: &BTreeMap<Way, Row>, mib: u64) -> String {
    let mut out = format!("one stream of {mib} MiB; small requests on a session that is up; medians\n\n");
    let head = ["Gb/s", "least-most", "of UDP", "request", "95 %", "first byte"];
    let [gbit, span, of_udp, request, most, first] = head;
    writeln!(out, "{:<26}{gbit:>7}{span:>14}{of_udp:>8}{request:>10}{most:>9}{first:>12}", "").expect(ENDLESS);
    let udp = rows.get(&Way::Udp).map_or(f64::NAN, |row| of(&row.gbit_per_s, 50));
    for (way, row) in rows {
        let millis: Vec<f64> = row.request.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let (middle, least, most) = (of(&row.gbit_per_s, 50), of(&row.gbit_per_s, 0), of(&row.gbit_per_s, 100));
        let (request, nearly, first) = (of(&millis, 50), of(&millis, 95), row.first_byte.as_secs_f64() * 1e3);
        let span = format!("{least:.2}-{most:.2}");
        let (name, part) = (way.name(), middle / udp);
        writeln!(out, "{name:<26}{middle:>7.2}{span:>14}{part:>8.2}{request:>7.1} ms{nearly:>6.1} ms{first:>9.1} ms")
            .expect(ENDLESS);
    }
    out
}

/// What so many of a hundred are not above; NaN of nothing.
fn of(figures: &[f64], part: usize) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_unstable_by(f64::total_cmp);
    figures.get((figures.len() * part / 100).min(figures.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn times(out: &mut String, cells: &[Cell]) {
    let seen = || cells.iter().filter_map(|cell| cell.seen.as_ref().ok());
    let good = cells.iter().filter(|cell| cell.is_as_expected()).count();
    writeln!(out, "\n{good} of {} pairs as theory says", cells.len()).expect(ENDLESS);
    spread(out, "first byte", seen().map(|seen| seen.first_byte).collect());
    spread(out, "direct after", seen().filter_map(|seen| seen.direct_after).collect());
}

/// The median, what nineteen of twenty stay below, and the most.
fn spread(out: &mut String, what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1))).copied();
    if let (Some(middle), Some(most), Some(all)) = (at(50), at(95), times.last()) {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let (middle, most, all) = (millis(middle), millis(most), millis(*all));
        writeln!(out, "{what:<13} median {middle:>7.0} ms   95 % {most:>7.0} ms   most {all:>7.0} ms").expect(ENDLESS);
    }
}
