//! What `scripts/e2e pods` runs: a real cluster with a node, the chart, and unmodified programs in pods that reach each
//! other by hostname.
//!
//! One line for each test, with `--json` as `{"test":…,"ok":…}`; it ends with 0 only if everything was as expected.

mod tests;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use peerage_e2e_pods::failed::Failed;
use peerage_e2e_pods::stage::Stage;

use crate::tests::ALL;

/// Pods that reach each other by hostname, on a real cluster
#[derive(Parser, Debug)]
#[command(name = "peerage-e2e-pods")]
struct Cli {
    /// One JSON object a line
    #[arg(long)]
    json: bool,

    /// Only these tests; commas between them. The first, `first-request`, always runs: it makes what the others use
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// Images that are not optimised, which are built sooner
    #[arg(long)]
    debug: bool,

    /// Leave the cluster as it is at the end
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            eprintln!("error: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for; true if all of it was as expected.
fn run(cli: &Cli) -> Result<bool, Failed> {
    if let Some(unknown) = cli.only.iter().find(|name| !ALL.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        return Err(Failed::new(format!("`{unknown}` is not one of {}", known.join(", "))));
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let repository = repository.ok_or_else(|| Failed::new("this crate lies in no repository"))?;
    let stage = Stage::set(repository, cli.debug, cli.keep)?;
    let mut good = true;
    for (number, (name, test)) in ALL.iter().enumerate() {
        if number > 0 && !cli.only.is_empty() && !cli.only.iter().any(|one| one == name) {
            continue;
        }
        let begun = Instant::now();
        let found = test(&stage);
        good &= found.is_ok();
        say(cli.json, name, &found, begun);
        if number == 0 && found.is_err() {
            return Ok(false); // nothing is there that the others could try
        }
    }
    Ok(good)
}

fn say(json: bool, name: &str, found: &Result<String, Failed>, begun: Instant) {
    let seconds = (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let (ok, said) = match found {
        Ok(said) => (true, said.clone()),
        Err(failed) => (false, failed.to_string()),
    };
    if json {
        println!("{}", serde_json::json!({"test": name, "ok": ok, "said": said, "seconds": seconds}));
    } else {
        println!("{:<7} {name:<16} {seconds:>5.1} s  {said}", if ok { "ok" } else { "FAILED" });
    }
}
