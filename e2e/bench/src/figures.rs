//! What was measured: every value of every round, told as medians, in lines of JSON or as a table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::median;

/// One value of one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub measure: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

impl Figure {
    /// A value.
    pub fn new(measure: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { measure: measure.into(), value, unit }
    }
}

/// A line of JSON: what all rounds say of one measure of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub subject: String,
    pub measure: String,
    /// The median; nothing where it was not run.
    pub value: Option<f64>,
    pub unit: String,
    /// What it is the median of, in the order of rounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<f64>,
    /// Of what was not run: what, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The measure of a line that says why there is none.
pub const NOT_RUN: &str = "not run";

/// Everything so far.
#[derive(Debug, Default)]
pub struct Figures {
    lines: Vec<Line>,
}

impl Figures {
    pub fn new(lines: Vec<Line>) -> Self {
        Self { lines }
    }

    /// One more round of a subject.
    pub fn note(&mut self, subject: &str, figure: Figure) {
        let same = |line: &&mut Line| line.subject == subject && line.measure == figure.measure;
        match self.lines.iter_mut().find(same) {
            Some(line) => {
                line.values.push(figure.value);
                line.value = Some(median(&line.values));
            }
            None => self.lines.push(Line {
                subject: subject.into(),
                measure: figure.measure,
                value: Some(figure.value),
                unit: figure.unit.into(),
                values: vec![figure.value],
                reason: None,
            }),
        }
    }

    /// Why there is no figure.
    pub fn not_run(&mut self, subject: &str, what: &str, why: &str) {
        let (subject, measure) = (subject.into(), NOT_RUN.into());
        let reason = Some(if what.is_empty() { why.to_owned() } else { format!("{what}: {why}") });
        self.lines.push(Line { subject, measure, value: None, unit: String::new(), values: Vec::new(), reason });
    }

    /// Puts lines of one measure into this order of subjects; measures stay in that in which their first values came.
    pub fn sort(&mut self, subjects: &[&str]) {
        let measures: Vec<String> =
            distinct(self.lines.iter().map(|line| line.measure.as_str())).into_iter().map(str::to_owned).collect();
        self.lines.sort_by_key(|line| {
            let measure = measures.iter().position(|measure| *measure == line.measure);
            (measure, subjects.iter().position(|subject| *subject == line.subject))
        });
    }

    /// All lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// One object a line.
    pub fn json(&self) -> String {
        let lines = self.lines.iter().map(|line| serde_json::to_string(line).expect("a line has no map and no bytes"));
        lines.map(|line| line + "\n").collect()
    }

    /// A row for each measure, a column for each subject that has a figure, and then what was not run.
    pub fn table(&self) -> String {
        let subjects = distinct(self.measured().map(|line| line.subject.as_str()));
        let measures = distinct(self.measured().map(|line| line.measure.as_str()));
        let mut text = format!("{:<52} {:>7}", "medians", "");
        for subject in &subjects {
            let _ = write!(text, " {subject:>13}");
        }
        text.push('\n');
        for measure in measures {
            let row: Vec<&Line> = self.measured().filter(|line| line.measure == measure).collect();
            let unit = row.first().map_or("", |line| line.unit.as_str());
            let _ = write!(text, "{measure:<52} {unit:>7}");
            for subject in &subjects {
                let value = row.iter().find(|line| line.subject == *subject).and_then(|line| line.value);
                let _ = write!(text, " {:>13}", value.map_or_else(|| "-".into(), short));
            }
            text.push('\n');
        }
        for line in self.lines.iter().filter(|line| line.measure == NOT_RUN) {
            let _ =
                writeln!(text, "not run: {}: {}", line.subject, line.reason.as_deref().unwrap_or("no reason given"));
        }
        text
    }

    fn measured(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.value.is_some())
    }
}

/// Each once, in the order of the first time.
pub fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

/// Three digits that say something, and no more.
pub fn short(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Figures {
        let mut figures = Figures::default();
        for (subject, value) in [("a", 3.0), ("b", 20.0), ("a", 1.0), ("a", 900.0)] {
            figures.note(subject, Figure::new("speed", value, "km/h"));
        }
        figures.not_run("c", "speed", "it has no wheels");
        figures
    }

    #[test]
    fn a_line_is_the_median_of_its_rounds_and_keeps_them() {
        let lines: Vec<Line> = some().json().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((lines[0].value, lines[0].values.as_slice()), (Some(3.0), [3.0, 1.0, 900.0].as_slice()));
        assert_eq!(lines[1].value, Some(20.0));
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn subjects_can_be_put_into_an_order() {
        let mut figures = some();
        figures.sort(&["b", "a", "c"]);
        let order: Vec<&str> = figures.lines().iter().map(|line| line.subject.as_str()).collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn what_was_not_run_is_told_with_its_reason() {
        let figures = some();
        let last = figures.json().lines().last().map(str::to_owned).expect("a line");
        let expected =
            r#"{"subject":"c","measure":"not run","value":null,"unit":"","reason":"speed: it has no wheels"}"#;
        assert_eq!(last, expected);
        assert!(figures.table().ends_with("not run: c: speed: it has no wheels\n"));
    }

    #[test]
    fn a_table_has_a_column_for_each_subject_with_a_figure() {
        let table = some().table();
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["medians", "a", "b"]);
        assert_eq!(rows[1], ["speed", "km/h", "3.00", "20.0"]);
    }
}
