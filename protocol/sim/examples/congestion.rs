//! Prints what each congestion controller makes of a set of paths: docs/benchmarks/congestion-sim.txt.
//!
//! `cargo run --release -p peerage-sim --example congestion [transfer|again|alone|shared]... [SEEDS]`

use std::time::Duration;

use peerage_engine::node::Algorithm;
use peerage_sim::contest::Path;
use peerage_sim::link::Chance;
use peerage_sim::{ms, secs};

const BOTH: [Algorithm; 2] = [Algorithm::Cubic, Algorithm::Bbr];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let seeds = wanted.iter().find_map(|word| word.parse().ok()).unwrap_or(5);
    let all = !wanted.iter().any(|word| word.parse::<u64>().is_err());
    let wants = |what: &str| all || wanted.iter().any(|word| word == what);
    if wants("transfer") {
        transfers(seeds);
    }
    if wants("again") {
        again(seeds);
    }
    if wants("alone") {
        alone(seeds);
    }
    if wants("shared") {
        shared(seeds);
    }
}

/// The one in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn lossy(rtt: u64, mbit: u64, per_thousand: u32) -> Path {
    Path { loss: Chance::per_million(per_thousand * 1_000), ..Path::clean(rtt, mbit, 1_000) }
}

fn transfers(seeds: u64) {
    println!("5 MB on a session that is up, seconds: median and slowest of {seeds} seeds");
    for path in [lossy(30, 100, 0), lossy(30, 100, 5), lossy(30, 100, 20), lossy(30, 1_000, 20), lossy(100, 100, 20)] {
        for algorithm in BOTH {
            let took = |seed| path.transfer(seed, algorithm, 5_000_000).as_secs_f64();
            let all: Vec<f64> = (0..seeds).map(took).collect();
            let slowest = all.iter().copied().fold(0.0, f64::max);
            println!("{path:?} {algorithm:?}: {:.2} {slowest:.2}", median(all));
        }
    }
}

fn again(seeds: u64) {
    println!("\n5 MB six times on one session, seconds: medians of {seeds} seeds; before them, the path was another");
    let near = Path::clean(1, 1_000, 1_000);
    for (before, path) in [
        (lossy(30, 1_000, 0), lossy(30, 1_000, 0)),
        (lossy(30, 1_000, 20), lossy(30, 1_000, 20)),
        (lossy(100, 1_000, 20), lossy(100, 1_000, 20)),
        (near, lossy(30, 1_000, 0)),
        (near, lossy(30, 1_000, 20)),
        (lossy(30, 1_000, 0), lossy(100, 1_000, 20)),
        (lossy(30, 1_000, 0), lossy(30, 50, 0)),
    ] {
        for algorithm in BOTH {
            let all: Vec<_> = (0..seeds).map(|seed| path.transfers(&before, seed, algorithm, 5_000_000, 6)).collect();
            let medians = (0..6).map(|n| median(all.iter().map(|one| one[n].as_secs_f64()).collect()));
            let medians: Vec<_> = medians.map(|median| format!("{median:.2}")).collect();
            println!("{before:?}, then {path:?} {algorithm:?}: {}", medians.join(" "));
        }
    }
}

fn alone(seeds: u64) {
    println!("\none stream: Mb/s after 5 s, for 10 s, and what a packet waited in the queue; medians of {seeds} seeds");
    let paths = [
        lossy(30, 100, 0),
        lossy(30, 100, 5),
        lossy(30, 100, 20),
        Path::clean(100, 500, 1_000),
        Path::clean(100, 500, 250),
        Path::clean(30, 100, 4_000),
        Path::clean(10, 20, 1_000),
        Path::clean(200, 10, 1_000),
    ];
    for path in paths {
        for algorithm in BOTH {
            let seen: Vec<_> = (0..seeds).map(|seed| path.alone(seed, algorithm, secs(5), secs(10))).collect();
            let mbit = median(seen.iter().map(|seen| seen.mbit[0]).collect());
            let waited = median(seen.iter().map(|seen| in_ms(seen.waited)).collect());
            println!(
                "{path:?} {algorithm:?}: {mbit:.1} Mb/s, {:.2} of the link, {waited:.1} ms",
                mbit / path.mbit as f64
            );
        }
    }
}

fn shared(seeds: u64) {
    println!(
        "\ntwo streams share 50 Mb/s, 40 s after 10 s: part of the first, Jain's index, sum, waiting; medians of {seeds} seeds"
    );
    let pairs = [
        [Algorithm::Cubic, Algorithm::Cubic],
        [Algorithm::Bbr, Algorithm::Cubic],
        [Algorithm::Cubic, Algorithm::Bbr],
        [Algorithm::Bbr, Algorithm::Bbr],
    ];
    for queue in [50, 100, 500, 1_000, 4_000] {
        for pair in pairs {
            let path = Path::clean(30, 50, queue);
            let seen: Vec<_> = (0..seeds).map(|seed| path.shared(seed, pair, secs(10), secs(40))).collect();
            let [share, fairness, sum, waited] = [
                median(seen.iter().map(|seen| seen.share()).collect()),
                median(seen.iter().map(|seen| seen.fairness()).collect()),
                median(seen.iter().map(|seen| seen.mbit.iter().sum()).collect()),
                median(seen.iter().map(|seen| in_ms(seen.waited)).collect()),
            ];
            let queue = ms(30 * queue / 1_000);
            println!("{pair:?}, queue of {queue:?}: {share:.2} {fairness:.2} {sum:.1} Mb/s {waited:.1} ms");
        }
    }
}

fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
