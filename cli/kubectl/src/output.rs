//! How things are said: text for people, or one JSON object a line.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;

/// Where and how to say things.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// One answer: the object, or what `text` makes of it.
    pub fn answer<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        match self.json {
            true => line(&serde_json::to_string(value).expect("what we say has text for keys")),
            false => line(&text(value)),
        }
    }

    /// Several: each an object on its own line, or what `text` makes of all.
    pub fn list<T: Serialize>(self, values: &[T], text: impl FnOnce(&[T]) -> String) {
        match self.json {
            true => values.iter().for_each(|value| self.answer(value, |_| String::new())),
            false => line(&text(values)),
        }
    }

    /// Something beside the answer, for people only.
    pub fn note(self, text: &str) {
        if !self.json {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Says what went wrong.
    pub fn fail(self, failure: &Failure) -> ExitCode {
        if self.json {
            line(&json!({ "error": failure }).to_string());
            return ExitCode::FAILURE;
        }
        let _ = writeln!(io::stderr(), "error: {}", failure.message);
        if !failure.hint.is_empty() {
            let _ = writeln!(io::stderr(), "hint: {}", failure.hint);
        }
        ExitCode::FAILURE
    }
}

fn line(text: &str) {
    let mut stdout = io::stdout().lock();
    let text = text.trim_end_matches('\n');
    // A reader that has gone (`| head`) wants no more; that is no failure of ours.
    if !text.is_empty() && writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Rows in columns that line up; `none` where there are no rows.
pub fn table(head: &[&str], rows: Vec<Vec<String>>, none: &str) -> String {
    if rows.is_empty() {
        return none.to_owned();
    }
    let mut all = vec![head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
    all.extend(rows);
    let width = |column: usize| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let render = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(render).collect::<Vec<_>>().join("\n")
}
