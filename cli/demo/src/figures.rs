//! What was measured, and the table at the end.

use serde_json::{Value, json};

/// Rows of the table, in the order they were measured.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, String)>);

impl Figures {
    pub(crate) fn add(&mut self, what: impl Into<String>, value: impl Into<String>) {
        self.0.push((what.into(), value.into()));
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let width = self.0.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        self.0.iter().fold(String::new(), |table, (what, value)| format!("{table}\n   {what:<width$}  {value}"))
    }

    /// For programs.
    pub(crate) fn event(&self, seconds: f64) -> Value {
        let rows: serde_json::Map<String, Value> =
            self.0.iter().map(|(what, value)| (what.clone(), value.clone().into())).collect();
        json!({"event": "done", "ok": true, "seconds": seconds, "summary": rows})
    }
}

/// The middle one; of an even number the lower.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_measured() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(1.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn the_table_is_aligned() {
        let mut figures = Figures::default();
        figures.add("a", "1");
        figures.add("long", "2");
        assert_eq!(figures.table(), "\n   a     1\n   long  2");
    }
}
