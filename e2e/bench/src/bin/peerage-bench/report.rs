//! Medians and what they were made of, as tables or as one JSON object.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_bench::{machine, median};
use serde_json::{Value, json};

use crate::process::Resident;
use crate::throughput::Way;

/// Everything that was measured.
pub struct Report {
    commit: String,
    rounds: u32,
    network: &'static str,
    load: (String, String),
    notes: Vec<String>,
    throughput: BTreeMap<Way, Throughput>,
    setup: Vec<Setup>,
    memory: Vec<Memory>,
}

#[derive(Default)]
struct Throughput {
    gbit_per_s: Vec<f64>,
    cpu_s_per_gib: Vec<f64>,
}

struct Setup {
    what: String,
    milliseconds: Vec<f64>,
    /// What it is a multiple of.
    round_trip: Option<Duration>,
}

struct Memory {
    what: &'static str,
    kib: f64,
    own_kib: f64,
}

impl Report {
    pub fn new(commit: &str, rounds: u32, network: &'static str) -> Self {
        Self {
            commit: commit.to_owned(),
            rounds,
            network,
            load: (machine::load(), String::new()),
            notes: Vec::new(),
            throughput: BTreeMap::new(),
            setup: Vec::new(),
            memory: Vec::new(),
        }
    }

    /// The last measurement is made.
    pub fn finish(&mut self) {
        self.load.1 = machine::load();
    }

    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub fn throughput(&mut self, way: Way, gbit_per_s: f64, cpu_s_per_gib: f64) {
        let row = self.throughput.entry(way).or_default();
        row.gbit_per_s.push(gbit_per_s);
        row.cpu_s_per_gib.push(cpu_s_per_gib);
    }

    pub fn setup(&mut self, what: impl Into<String>, took: Duration, round_trip: Option<Duration>) {
        let (what, milliseconds) = (what.into(), took.as_secs_f64() * 1e3);
        match self.setup.iter_mut().find(|row| row.what == what) {
            Some(row) => row.milliseconds.push(milliseconds),
            None => self.setup.push(Setup { what, milliseconds: vec![milliseconds], round_trip }),
        }
    }

    pub fn memory(&mut self, what: &'static str, resident: Resident) {
        self.memory.push(Memory { what, kib: resident.total, own_kib: resident.own });
    }

    pub fn print_tables(&self) {
        println!("commit {}; medians of {}, alternating; {}", self.commit, self.rounds, self.network);
        println!("{}; load {} before, {} after", machine::name(), self.load.0, self.load.1);
        self.notes.iter().for_each(|note| println!("{note}"));
        self.print_throughput();
        self.print_setup();
        self.print_memory();
    }

    fn print_throughput(&self) {
        if self.throughput.is_empty() {
            return;
        }
        println!("\n{:<30} {:>7} {:>15} {:>9} {:>12}", "one stream", "Gb/s", "least-most", "of quinn", "cpu s / GiB");
        for (way, row) in &self.throughput {
            let (least, most) = extremes(&row.gbit_per_s);
            println!(
                "{:<30} {:>7.2} {:>15} {:>9.2} {:>12.2}",
                way.name(),
                median(&row.gbit_per_s),
                format!("{least:.2}-{most:.2}"),
                self.of_quinn(row),
                median(&row.cpu_s_per_gib),
            );
        }
        println!("of quinn: median over rounds of the row's figure divided by bare quinn's in the same round");
        println!("cpu: of all processes that take part, in user and kernel mode");
    }

    fn print_setup(&self) {
        if self.setup.is_empty() {
            return;
        }
        println!("\n{:<50} {:>8} {:>15} {:>12}", "set-up", "ms", "least-most", "round trips");
        for row in &self.setup {
            let (least, most) = extremes(&row.milliseconds);
            let trips = row.round_trips().map_or_else(String::new, |trips| format!("{trips:.2}"));
            let (ms, span) = (median(&row.milliseconds), format!("{least:.1}-{most:.1}"));
            println!("{:<50} {ms:>8.1} {span:>15} {trips:>12}", row.what);
        }
    }

    fn print_memory(&self) {
        if self.memory.is_empty() {
            return;
        }
        println!("\n{:<50} {:>10} {:>10}", "resident memory, KiB", "all", "own");
        for row in &self.memory {
            println!("{:<50} {:>10.1} {:>10.0}", row.what, row.kib, row.own_kib);
        }
        println!("all: VmRSS, with pages of the program file that other processes share; own: RssAnon, without them");
    }

    pub fn print_json(&self) {
        let throughput = self.throughput.iter().map(|(way, row)| {
            json!({
                "way": way.name(), "gbit_per_s": median(&row.gbit_per_s), "of_quinn": number(self.of_quinn(row)),
                "cpu_s_per_gib": median(&row.cpu_s_per_gib), "all_gbit_per_s": row.gbit_per_s,
            })
        });
        let setup = self.setup.iter().map(|row| {
            json!({
                "what": row.what, "ms": median(&row.milliseconds), "round_trips": row.round_trips(),
                "all_ms": row.milliseconds,
            })
        });
        let memory = self.memory.iter().map(|row| json!({"what": row.what, "kib": row.kib, "own_kib": row.own_kib}));
        let report = json!({
            "benchmark": "peerage", "commit": self.commit, "rounds": self.rounds, "network": self.network,
            "machine": machine::name(), "load_before": self.load.0, "load_after": self.load.1, "notes": self.notes,
            "throughput": throughput.collect::<Vec<_>>(), "setup": setup.collect::<Vec<_>>(),
            "memory": memory.collect::<Vec<_>>(),
        });
        println!("{report}");
    }

    fn of_quinn(&self, row: &Throughput) -> f64 {
        let Some(quinn) = self.throughput.get(&Way::BareQuinn) else { return f64::NAN };
        let ratios: Vec<f64> = row.gbit_per_s.iter().zip(&quinn.gbit_per_s).map(|(ours, quinn)| ours / quinn).collect();
        median(&ratios)
    }
}

impl Setup {
    fn round_trips(&self) -> Option<f64> {
        Some(median(&self.milliseconds) / (self.round_trip?.as_secs_f64() * 1e3))
    }
}

fn extremes(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

/// JSON has no NaN.
fn number(value: f64) -> Value {
    if value.is_finite() { value.into() } else { Value::Null }
}
