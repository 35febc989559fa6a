//! Medians, as a table or as one JSON object.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_bench::alone::flavor::Kind;
use peerage_bench::median;
use serde_json::json;

#[derive(Default)]
pub struct Report {
    rows: BTreeMap<Kind, Row>,
}

#[derive(Default)]
struct Row {
    gbit_per_s: Vec<f64>,
    handshake_us: Vec<f64>,
    handshakes_per_s: Vec<f64>,
}

impl Report {
    pub fn add(&mut self, kind: Kind, gbit_per_s: f64, latency: Duration, handshakes_per_s: f64) {
        let row = self.rows.entry(kind).or_default();
        row.gbit_per_s.push(gbit_per_s);
        row.handshake_us.push(latency.as_secs_f64() * 1e6);
        row.handshakes_per_s.push(handshakes_per_s);
    }

    pub fn print_table(&self, rounds: usize) {
        println!("medians of {rounds}, alternating; handshakes/s: client and server on one core, no sockets");
        println!(
            "{:<14} {:>8} {:>8} {:>14} {:>13} {:>8}",
            "kind", "Gb/s", "ratio", "handshake µs", "handshakes/s", "ratio"
        );
        for (kind, row) in &self.rows {
            println!(
                "{:<14} {:>8.2} {:>8.2} {:>14.0} {:>13.0} {:>8.2}",
                kind.name(),
                median(&row.gbit_per_s),
                self.ratio(*kind, |row| &row.gbit_per_s),
                median(&row.handshake_us),
                median(&row.handshakes_per_s),
                self.ratio(*kind, |row| &row.handshakes_per_s),
            );
        }
        println!("ratio: Noise's figure over the row's own");
    }

    pub fn print_json(&self, rounds: usize) {
        let kinds: BTreeMap<&str, _> = self
            .rows
            .iter()
            .map(|(kind, row)| {
                let figures = json!({
                    "gbit_per_s": median(&row.gbit_per_s),
                    "handshake_us": median(&row.handshake_us),
                    "handshakes_per_s": median(&row.handshakes_per_s),
                    "noise_throughput_ratio": self.ratio(*kind, |row| &row.gbit_per_s),
                    "noise_handshakes_ratio": self.ratio(*kind, |row| &row.handshakes_per_s),
                    "all_gbit_per_s": row.gbit_per_s,
                });
                (kind.name(), figures)
            })
            .collect();
        println!("{}", json!({"benchmark": "engine_alone", "rounds": rounds, "kinds": kinds}));
    }

    /// The median over rounds of Noise's figure divided by `kind`'s of the same round.
    fn ratio(&self, kind: Kind, figure: impl Fn(&Row) -> &Vec<f64>) -> f64 {
        let (Some(noise), Some(row)) = (self.rows.get(&Kind::Noise), self.rows.get(&kind)) else {
            return f64::NAN;
        };
        let ratios: Vec<f64> = figure(noise).iter().zip(figure(row)).map(|(noise, other)| noise / other).collect();
        median(&ratios)
    }
}
