//! The measuring of a relay, run small. Its figures mean nothing here; that it still runs from one end to the other does.

use std::path::Path;
use std::process::Command;

use peerage_e2e::Programs;
use serde_json::Value;

const RELAYS: &str = env!("CARGO_BIN_EXE_peerage-relays");

/// Runs these parts, and returns the measures that have a value, by name.
fn measured(parts: &str) -> Vec<(String, f64)> {
    let peerage = Programs::of_this_build(Path::new(RELAYS)).peerage;
    let mut command = Command::new(RELAYS);
    command.args(["--json", "--rounds", "1", "--seconds", "0.3", "--settle", "0.2", "--only", parts]);
    command.args(["--datagrams", "120", "--streams", "40", "--storm", "300", "--peerage"]).arg(peerage);
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lines: Vec<(String, Option<f64>, Value)> = lines
        .map(|line| (line["measure"].as_str().expect("a name").to_owned(), line["value"].as_f64(), line))
        .collect();
    lines.into_iter().map(|(name, value, line)| (name, value.unwrap_or_else(|| panic!("{line}")))).collect()
}

#[track_caller]
fn value(measured: &[(String, f64)], name: &str) -> f64 {
    let found = measured.iter().find(|(other, _)| other == name);
    found.unwrap_or_else(|| panic!("no {name} in {measured:?}")).1
}

#[test]
fn forwarding_is_measured_of_trains_and_of_single_packets() {
    let measured = measured("forward");
    for load in ["trains of 40", "trains of 10", "single packets, a full queue", "single packets, as they come"] {
        assert!(value(&measured, &format!("forwarding, {load}, packets per core")) > 0.0);
    }
}

#[test]
fn modest_clients_that_are_alone_get_everything() {
    let measured = measured("fairness");
    assert!(value(&measured, "modest clients alone, delivered") > 50.0, "{measured:?}");
    assert!(value(&measured, "modest clients beside a flood of single packets, delivered") > 0.0);
}

#[test]
fn idle_clients_by_udp_and_by_tls_are_counted_in_memory() {
    let measured = measured("idle,tls");
    assert!(value(&measured, "120 idle clients by UDP, memory in all") > 0.0);
    assert!(value(&measured, "40 idle clients by TLS, memory in all") > 0.0);
}

#[test]
fn everybody_is_bound_again_after_a_restart() {
    let measured = measured("restart");
    assert!(value(&measured, "restart, 300 clients of one address, all are bound again after") > 0.0);
}
