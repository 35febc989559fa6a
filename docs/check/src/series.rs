//! What a registry has, from the text by which it is scraped.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// One row for each series: its whole name, its labels, its type, and what it says of itself.
///
/// # Panics
/// A line is not as the registry writes them.
#[must_use]
pub fn series(scraped: &str) -> String {
    let mut table = String::from("| series | type | |\n|---|---|---|\n");
    for line in scraped.lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let kind_of = format!("# TYPE {name} ");
        let kind = scraped.lines().find_map(|line| line.strip_prefix(&kind_of)).expect("each series has a type");
        let suffix = if kind == "counter" { "_total" } else { "" };
        let labels: BTreeSet<&str> = scraped.lines().flat_map(|line| labels(line, name)).collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.into_iter().collect::<Vec<_>>().join(",")),
        };
        writeln!(table, "| `{name}{suffix}{labels}` | {kind} | {} |", help.trim_end_matches('.'))
            .expect("a String takes everything");
    }
    table
}

/// Names of the labels of a sample of this series.
fn labels<'a>(line: &'a str, name: &str) -> Vec<&'a str> {
    let sample = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', '_']));
    let inside = sample.and_then(|rest| rest.split_once('{')?.1.split_once('}'));
    // `le` is how a histogram says its buckets.
    let pairs = inside.into_iter().flat_map(|(pairs, _)| pairs.split(','));
    pairs.filter_map(|pair| pair.split_once('=')).map(|(label, _)| label).filter(|label| *label != "le").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_named_as_it_is_asked_for() {
        let scraped = "# HELP a_sent Bytes sent.\n# TYPE a_sent counter\na_sent_total{kind=\"x\"} 1\n\
                       # HELP a_age_seconds Age.\n# TYPE a_age_seconds histogram\na_age_seconds_bucket{le=\"1.0\"} 0\n# EOF\n";
        let wanted = "| series | type | |\n|---|---|---|\n| `a_sent_total{kind}` | counter | Bytes sent |\n\
                      | `a_age_seconds` | histogram | Age |\n";
        assert_eq!(series(scraped), wanted);
    }
}
