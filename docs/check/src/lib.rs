//! Keeps pages true, for tests of all crates: what a program can say of itself is written into its page by a test, and compared
//! ever after; what is written by hand has to name everything that there is.
//!
//! A generated section stands between two comments of its page, so that a person may write around it:
//!
//! ```text
//! <!-- generated: options -->
//! <!-- end of options -->
//! ```
//!
//! `UPDATE_DOCS=1 cargo test --workspace reference` writes all of them anew: tests that hold a section have that word in their name.

mod options;
mod series;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use options::{options, options_of};
pub use series::series;

/// Tests of one crate run at the same time, and one may write the page that another reads.
static TURN: Mutex<()> = Mutex::new(());

/// A page of the repository.
#[derive(Clone, Debug)]
pub struct Page {
    path: PathBuf,
}

/// The top of the repository.
#[must_use]
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this crate lies in docs/check")
}

impl Page {
    /// The page at this path from the top of the repository.
    #[must_use]
    pub fn at(path: &str) -> Self {
        Self { path: top().join(path) }
    }

    /// What it says, for who has the turn.
    fn read(&self, _turn: &MutexGuard<'_, ()>) -> String {
        fs::read_to_string(&self.path).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    fn text(&self) -> String {
        self.read(&TURN.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Checks that the section of this name is `generated`; writes it if `UPDATE_DOCS` is set.
    ///
    /// # Panics
    /// It is another text, or the page has no such section.
    pub fn holds(&self, section: &str, generated: &str) {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let page = self.read(&turn);
        let Some(wanted) = with_section(&page, section, generated) else {
            panic!("{} has no section `<!-- generated: {section} -->`", self.path.display());
        };
        if page == wanted {
            return;
        }
        assert!(
            std::env::var_os("UPDATE_DOCS").is_some(),
            "{} is out of date in its section `{section}`: run  UPDATE_DOCS=1 cargo test --workspace reference",
            self.path.display()
        );
        fs::write(&self.path, wanted).expect("the page can be written");
    }

    /// Checks that below this heading there is a row of a table for each of `words`, in its first cell, and for nothing else.
    ///
    /// # Panics
    /// A row is missing, or is about nothing that there is.
    pub fn has_rows(&self, heading: &str, words: impl IntoIterator<Item = impl Into<String>>) {
        let wanted: BTreeSet<String> = words.into_iter().map(Into::into).collect();
        let found = rows(&self.text(), heading);
        let missing: Vec<_> = wanted.difference(&found).collect();
        let about_nothing: Vec<_> = found.difference(&wanted).collect();
        assert!(
            missing.is_empty() && about_nothing.is_empty(),
            "{} under `{heading}`: rows that are missing: {missing:?}; rows about nothing that there is: {about_nothing:?}",
            self.path.display()
        );
    }

    /// Checks that the section of this heading has each of `words` in code quotes.
    ///
    /// # Panics
    /// One is missing.
    pub fn names(&self, heading: &str, words: impl IntoIterator<Item = impl Into<String>>) {
        let said: BTreeSet<String> = section(&self.text(), heading).into_iter().flat_map(in_code).collect();
        let missing: Vec<String> = words.into_iter().map(Into::into).filter(|word| !said.contains(word)).collect();
        assert!(missing.is_empty(), "{} under `{heading}` does not name {missing:?}", self.path.display());
    }
}

/// Every word that a type takes, from the error by which serde refuses another one: so a new word cannot be forgotten here.
///
/// # Panics
/// The error is not of that kind.
#[must_use]
pub fn words_of(refusal: &dyn std::fmt::Display) -> Vec<String> {
    let refusal = refusal.to_string();
    let (_, words) = refusal.split_once("expected ").expect("serde says what it expected");
    in_code(words)
}

/// The page with another text in this section.
fn with_section(page: &str, section: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- generated: {section} -->\n"), format!("<!-- end of {section} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{}\n{end}{after}", text.trim_end()))
}

/// Words in code quotes in the first cells of the tables below a heading.
fn rows(page: &str, heading: &str) -> BTreeSet<String> {
    let first_cells =
        section(page, heading).into_iter().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    first_cells.flat_map(in_code).collect()
}

/// The lines below a heading, up to the next one of its level or above.
fn section<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let level = |line: &str| line.chars().take_while(|letter| *letter == '#').count();
    let is_it = |line: &&str| level(line) > 0 && line.trim_start_matches('#').trim() == heading;
    let mut below = page.lines().skip_while(|line| !is_it(line));
    let own = below.next().map_or(0, level);
    below.take_while(|line| level(line) == 0 || level(line) > own).collect()
}

/// What stands in code quotes.
fn in_code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_what_stands_around_it_stays() {
        let page = "# A\n<!-- generated: b -->\nold\n<!-- end of b -->\nmore\n";
        let wanted = "# A\n<!-- generated: b -->\nnew\n<!-- end of b -->\nmore\n";
        assert_eq!(with_section(page, "b", "new\n").as_deref(), Some(wanted));
        assert_eq!(with_section(page, "c", "new"), None);
    }

    #[test]
    fn rows_are_those_of_their_own_heading() {
        let page = "## One\n| `a`, `b` | `no` |\n### Below\n| `c` | |\n## Two\n| `d` | |\n";
        assert_eq!(rows(page, "One").into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(rows(page, "Two").into_iter().collect::<Vec<_>>(), ["d"]);
        assert!(rows(page, "Three").is_empty());
    }

    #[test]
    fn serde_tells_all_words_when_it_refuses_one() {
        let refusal = "unknown variant `?`, expected one of `not_running`, `internal` at line 1 column 3";
        assert_eq!(words_of(&refusal), ["not_running", "internal"]);
    }
}
