//! The page of the chart's values is what values.yaml and its schema say, and its alerts are those of rules.yaml.

use std::fmt::Write as _;
use std::fs;

use peerage_docs::{Page, top};
use serde_json::Value;

/// A line of values.yaml that is a key, with what is said of it.
struct Entry {
    /// Keys from the top down to this one.
    path: Vec<String>,
    /// As it is written; empty for one that has others below it.
    default: String,
    comment: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The file is written by us, so a line is a comment, or a key of its own with a comment right above it or none.
fn entries() -> Vec<Entry> {
    let (mut entries, mut above, mut comment) = (Vec::new(), Vec::<String>::new(), String::new());
    for line in read("charts/peerage/values.yaml").lines().skip(2) {
        let text = line.trim_start();
        if let Some(more) = text.strip_prefix('#') {
            comment = format!("{comment} {}", more.trim());
            continue;
        }
        let Some((key, rest)) = text.split_once(':') else {
            assert!(text.is_empty(), "not a key: {line}");
            comment.clear();
            continue;
        };
        above.truncate((line.len() - text.len()) / 2);
        above.push(key.to_owned());
        let comment = std::mem::take(&mut comment).trim().to_owned();
        entries.push(Entry { path: above.clone(), default: rest.trim().to_owned(), comment });
    }
    entries
}

fn schema() -> Value {
    serde_json::from_str(&read("charts/peerage/values.schema.json")).expect("the schema is JSON")
}

/// What the schema says of a value: what it says there, before what it refers to.
fn describe(schema: &Value, path: &[String]) -> (Value, String) {
    let follow = |of: &Value| match of["$ref"].as_str() {
        Some(to) => schema.pointer(to.trim_start_matches('#')).expect("a definition").clone(),
        None => of.clone(),
    };
    let (mut at, mut about) = (schema.clone(), String::new());
    for key in path {
        let below = at["properties"][key].clone();
        assert!(!below.is_null(), "the schema does not know {}", path.join("."));
        at = follow(&below);
        let said = below["description"].as_str().or_else(|| at["description"].as_str());
        about = said.unwrap_or_default().to_owned();
    }
    (at, about)
}

/// What may be written, in words.
fn kind(schema: &Value) -> String {
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<_> = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
        return words.join(", ");
    }
    let name = match &schema["type"] {
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        one => one.as_str().unwrap_or("object").to_owned(),
    };
    match (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
        (Some(least), Some(most)) => format!("{name}, {least} to {most}"),
        (Some(least), None) => format!("{name}, {least} or more"),
        _ => name.replace("array", "list").replace("object", "map"),
    }
}

#[test]
fn the_reference_has_every_value_of_the_chart() {
    let schema = schema();
    let mut table = String::from("| value | default | may be | |\n|---|---|---|---|\n");
    for Entry { path, default, comment } in entries() {
        let (at, about) = describe(&schema, &path);
        let name = path.join(".");
        let about = if comment.is_empty() { about } else { comment };
        if default.is_empty() {
            // What is said of a group stands at its first line; a group of which nothing is said needs none.
            if !about.is_empty() {
                writeln!(table, "| **`{name}`** | | | {about} |").expect("a String takes everything");
            }
            continue;
        }
        writeln!(table, "| `{name}` | `{default}` | {} | {about} |", kind(&at)).expect("a String takes everything");
    }
    Page::at("docs/reference/chart.md").holds("values", &table);
}

#[test]
fn further_options_of_the_relay_are_those_that_its_reference_has() {
    let relay = &schema()["properties"]["relay"];
    let own = relay["properties"]["extraArgs"]["items"]["not"]["pattern"].as_str().expect("a pattern");
    let own: Vec<_> = own.trim_start_matches("^--(").trim_end_matches(")(=|$)").split('|').collect();
    let (page, mut flags, mut valued) = (read("docs/reference/relay.md"), Vec::new(), Vec::new());
    for option in page.lines().filter_map(|line| line.strip_prefix("| `--")?.split('`').next()) {
        match option.split_once(' ') {
            _ if own.contains(&option.split(' ').next().unwrap_or(option)) => {}
            Some((name, _)) => valued.push(name),
            None => flags.push(option),
        }
    }
    let pattern = format!("^--({}|({})=.+)$", flags.join("|"), valued.join("|"));
    let found = &relay["then"]["properties"]["extraArgs"]["items"]["pattern"];
    assert_eq!(*found, pattern, "this is what charts/peerage/values.schema.json must say");
}

#[test]
fn each_value_of_the_chart_says_what_it_means() {
    let schema = schema();
    let silent: Vec<_> = entries()
        .into_iter()
        .filter(|one| !one.default.is_empty() && one.comment.is_empty() && describe(&schema, &one.path).1.is_empty())
        .map(|one| one.path.join("."))
        .collect();
    assert!(silent.is_empty(), "neither values.yaml nor its schema says what these are: {silent:?}");
}

#[test]
fn each_value_that_the_schema_knows_is_in_the_values() {
    let (schema, entries) = (schema(), entries());
    let mut missing = Vec::new();
    let groups = entries.iter().filter(|one| one.default.is_empty()).map(|one| one.path.clone());
    for group in groups.chain([Vec::new()]) {
        let (at, _) = describe(&schema, &group);
        for key in at["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            let path: Vec<String> = group.iter().chain([key]).cloned().collect();
            // Helm's own.
            if key != "global" && !entries.iter().any(|one| one.path == path) {
                missing.push(path.join("."));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_reference_has_every_alert() {
    let rules: Value = serde_saphyr::from_str(&read("charts/peerage/files/monitoring/rules.yaml")).expect("YAML");
    let mut table = String::from("| alert | severity | when | what it means |\n|---|---|---|---|\n");
    let groups = rules.as_array().expect("a list of groups");
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("a list of rules")) {
        let word = |value: &Value| value.as_str().unwrap_or_default().replace('|', "\\|");
        let lasts = rule["for"].as_str().map(|time| format!(" for {time}")).unwrap_or_default();
        let notes = &rule["annotations"];
        let about = format!("{}. {}", word(&notes["summary"]), word(&notes["description"]));
        let (name, severity, when) = (word(&rule["alert"]), word(&rule["labels"]["severity"]), word(&rule["expr"]));
        writeln!(table, "| `{name}` | {severity} | `{when}`{lasts} | {} |", about.trim())
            .expect("a String takes everything");
    }
    Page::at("docs/reference/metrics.md").holds("alerts", &table);
}
