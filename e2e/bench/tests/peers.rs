//! The comparison with peers, run small: with the two subjects that need nothing from outside. Its figures mean nothing
//! here; that it still runs from one end to the other does.

use std::path::Path;
use std::process::Command;

use peerage_e2e::Programs;
use serde_json::Value;

const PEERS: &str = env!("CARGO_BIN_EXE_peerage-peers");

/// Runs it, and returns what it printed: a value of JSON for each line.
fn run(words: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let peerage = Programs::of_this_build(Path::new(PEERS)).peerage;
    let mut command = Command::new(PEERS);
    command.args(["run", "--json", "--rounds", "1", "--seconds", "0.05", "--settle", "0"]).args(words);
    command.arg("--peerage").arg(peerage).arg("--cache").arg(folder.path());
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What was measured of a subject, in order of names; every value is more than nothing, but for processor time, which the
/// kernel tells in hundredths of a second.
fn measured(lines: &[Value], subject: &str) -> Vec<String> {
    let own = lines.iter().filter(|line| line["subject"] == subject && line["measure"] != "not run");
    let mut names: Vec<String> = own
        .map(|line| {
            let name = line["measure"].as_str().expect("a name");
            let least = if name.starts_with("processor time") { 0.0 } else { f64::MIN_POSITIVE };
            assert!(line["value"].as_f64().is_some_and(|value| value >= least), "{line}");
            name.to_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn raw_tcp_and_peerage_are_measured_side_by_side_by_the_direct_link() {
    let lines = run(&["--only", "direct", "--subjects", "raw TCP,Peerage"]);
    let (raw, ours) = (measured(&lines, "raw TCP"), measured(&lines, "Peerage"));
    for name in ["throughput, 16 streams", "requests, new connection, p99", "set-up, cold"] {
        assert!(raw.iter().any(|other| other == name), "raw TCP has no {name}: {raw:?}");
    }
    let of_processes = |name: &String| name.starts_with("memory");
    let comparable: Vec<_> = ours.iter().filter(|name| !of_processes(name)).collect();
    assert_eq!(comparable, raw.iter().collect::<Vec<_>>(), "all but memory is measured of both: {lines:?}");
    assert!(ours.iter().any(of_processes));
    let not_run: Vec<&Value> = lines.iter().filter(|line| line["measure"] == "not run").collect();
    let [only] = not_run.as_slice() else { panic!("{not_run:?}") };
    assert_eq!(only["subject"], "raw TCP");
    assert_eq!(only["reason"], "memory, idle: it has no process on the client's side");
}

#[test]
fn raw_tcp_and_peerage_are_measured_by_a_relay_and_over_links_that_take_time() {
    let lines = run(&["--only", "relayed,links", "--links", "4/0", "--subjects", "raw TCP,Peerage"]);
    for subject in ["raw TCP", "Peerage"] {
        let names = measured(&lines, subject);
        for name in ["relayed throughput, 1 stream", "5 MB at 4 ms, 0 % loss"] {
            assert!(names.iter().any(|other| other == name), "{subject} has no {name}: {lines:?}");
        }
    }
}

#[test]
fn a_subject_that_cannot_be_had_is_told_with_its_reason() {
    let lines = run(&["--only", "relayed", "--subjects", "frp"]);
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((&line["subject"], &line["measure"]), (&"frp".into(), &"not run".into()));
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("module")), "{line}");
}
