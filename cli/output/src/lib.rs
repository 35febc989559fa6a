//! How commands say things: text for people, or one JSON object a line; failures with a hint; progress where it takes long.
//!
//! For `peerage` and `kubectl peerage`, so that both keep the same word about what is written where.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use serde::Serialize;
use serde_json::json;

/// Nothing that is done sooner needs to be explained.
const QUIET: Duration = Duration::from_secs(1);
/// Why what is said can always be written as JSON.
const TEXT_KEYS: &str = "what we say has text for keys";

/// Where and how to say things.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// As JSON, or for people.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.json
    }

    /// One answer: the object, or what `text` makes of it.
    pub fn answer<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        match self.json {
            true => line(&serde_json::to_string(value).expect(TEXT_KEYS)),
            false => line(&text(value)),
        }
    }

    /// Something that happened in a process that goes on whether or not anybody reads: a reader that has gone, a full disk and a
    /// terminal that takes nothing at the moment must not end an agent.
    pub fn event<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        let said = match self.json {
            true => write_line(&serde_json::to_string(value).expect(TEXT_KEYS)),
            false => write_line(&text(value)),
        };
        if let Err(error) = said {
            tracing::debug!(%error, "an event was not said");
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

    /// Says what went wrong: all of `failure` to programs; what happened, and what to do next if there is anything, to people.
    pub fn fail<T: Serialize>(self, failure: &T, message: &str, hint: &str) {
        if self.json {
            return line(&json!({ "error": failure }).to_string());
        }
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(io::stderr(), "error: {message}");
        if !hint.is_empty() {
            let _ = writeln!(io::stderr(), "hint: {hint}");
        }
    }

    /// Waits for `work`, and says what for when a person at a terminal would start to wonder.
    pub async fn waiting<T>(self, what: &str, work: impl Future<Output = T>) -> T {
        if self.json || !io::stderr().is_terminal() {
            return work.await;
        }
        let begun = Instant::now();
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + QUIET, QUIET);
        let mut shown = false;
        loop {
            tokio::select! {
                result = &mut work => {
                    if shown {
                        let _ = write!(io::stderr(), "\r\x1b[K");
                    }
                    return result;
                }
                _ = ticks.tick() => {
                    shown = true;
                    let _ = write!(io::stderr(), "\r\x1b[K{what} … {} s", begun.elapsed().as_secs());
                }
            }
        }
    }
}

/// What came of a command line that is no command. Help is an answer; what cannot be understood is exit status 2, said as
/// JSON where that was asked for, with `help` as the command that tells more.
#[must_use]
pub fn usage(error: &clap::Error, help: &str) -> ExitCode {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !is_help && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        let message = text.trim().trim_start_matches("error: ");
        line(&json!({ "error": { "code": "usage", "message": message, "hint": format!("see `{help}`") } }).to_string());
    } else {
        // A closed terminal is nobody to tell.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The answer of a command. Whose answer cannot be said has nothing left to do.
fn line(text: &str) {
    match write_line(text) {
        Ok(()) => {}
        // A reader that has gone (`| head`) wants no more; that is no failure of ours.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot write the answer: {error}");
            std::process::exit(1);
        }
    }
}

fn write_line(text: &str) -> io::Result<()> {
    let text = text.trim_end_matches('\n');
    if text.is_empty() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Columns that line up, without a line around them.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One with nothing under its head.
    #[must_use]
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// One with these rows.
    pub fn of(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let mut table = Self::new(head);
        table.rows.extend(rows);
        table
    }

    /// One row more.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// All of it; each line ends with a line feed.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let joined: Vec<String> = cells.collect();
            out.push_str(joined.join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// All of it without the last line feed, or `none` where there is nothing under the head.
    #[must_use]
    pub fn render_or(&self, none: &str) -> String {
        match self.rows.len() {
            0 | 1 => none.to_owned(),
            _ => self.render().trim_end_matches('\n').to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "PATH"]);
        table.row(vec!["db-tool-server".into(), "direct".into()]);
        table.row(vec!["é".into(), String::new()]);
        assert_eq!(table.render(), "NAME            PATH\ndb-tool-server  direct\né\n");
    }

    #[test]
    fn a_table_without_rows_says_so_instead() {
        assert_eq!(Table::new(&["NAME"]).render_or("nobody asks"), "nobody asks");
        assert_eq!(Table::of(&["NAME"], [vec!["db".into()]]).render_or("nobody asks"), "NAME\ndb");
    }
}
