//! The engine alone: what our Noise session costs against TLS 1.3, under the same driver, in the same process run.
//!
//! quinn-proto is driven by one minimal loop over quinn-udp with segmentation offload; only the crypto configuration
//! differs. Kinds alternate within each round, so that whatever else the machine does falls on all of them, and the
//! table shows medians. Handshakes are also run without sockets on one thread, which counts processor time per session.
//!
//! `cargo run --release -p peerage-bench --bin engine_alone -- --rounds 9`

mod handshakes;
mod report;

use clap::Parser;
use peerage_bench::alone::flavor::Kind;
use peerage_bench::alone::transfer;
use report::Report;

/// Compares QUIC keyed by Noise with QUIC keyed by TLS 1.3.
#[derive(Debug, Parser)]
struct Arguments {
    /// Measurements of each kind; the table shows their medians.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Mebibytes sent over one stream in each measurement.
    #[arg(long, default_value_t = 256)]
    mebibytes: usize,
    /// Handshakes in each measurement.
    #[arg(long, default_value_t = 300)]
    handshakes: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    for round in 0..arguments.rounds {
        for offset in 0..Kind::ALL.len() {
            // The order turns from round to round: who comes first has the warmer or the colder processor.
            let kind = Kind::ALL[(round + offset) % Kind::ALL.len()];
            let (throughput, latency) = transfer::run(kind, arguments.mebibytes << 20)?;
            report.add(kind, throughput, latency, handshakes::per_second(kind, arguments.handshakes));
        }
    }
    if arguments.json {
        report.print_json(arguments.rounds)
    } else {
        report.print_table(arguments.rounds)
    }
    Ok(())
}
