//! What the end-to-end tests on clusters share: a list of tests that runs from its first to its last on one stage, one line
//! for each, and a status that is 0 only if everything was as expected.
//!
//! They are programs and not `#[test]`s, because making a stage takes longer than most tests on it.

pub mod failed;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use crate::failed::{Failed, ensure};

/// A test's name and what it does; it tells what it saw.
pub type Test<Stage> = (&'static str, fn(&Stage) -> Result<String, Failed>);

/// Which tests run, and how they tell of it.
#[derive(Args, Clone, Debug, Default)]
pub struct Choice {
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,

    /// Only these tests; commas between them. Where others use what the first one makes, that one always runs
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub only: Vec<String>,
}

impl Choice {
    /// Whether all that were chosen are there; asked before a stage is made.
    ///
    /// # Errors
    /// One of them is not; the error names all.
    pub fn check<Stage>(&self, all: &[Test<Stage>]) -> Result<(), Failed> {
        let unknown = self.only.iter().find(|name| !all.iter().any(|(known, _)| known == name));
        ensure(unknown.is_none(), || {
            let known: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
            format!("`{}` is not one of {}", unknown.map_or("", String::as_str), known.join(", "))
        })
    }

    /// Whether this test was chosen.
    #[must_use]
    pub fn is_chosen(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|one| one == name)
    }

    /// Runs what was chosen; true if all of it was as expected.
    pub fn run<Stage>(&self, all: &[Test<Stage>], stage: &Stage) -> bool {
        let chosen = all.iter().filter(|(name, _)| self.is_chosen(name));
        // Each runs, whatever became of those before it.
        let failed = chosen.filter(|test| !self.run_one(test, stage)).count();
        failed == 0
    }

    /// The same where the first test makes what the others use: it runs in any case, and without it nothing does.
    pub fn run_from_nothing<Stage>(&self, all: &[Test<Stage>], stage: &Stage) -> bool {
        let Some((first, others)) = all.split_first() else { return true };
        let only_first = !self.only.is_empty() && self.only.iter().all(|one| one == first.0);
        self.run_one(first, stage) && (only_first || self.run(others, stage))
    }

    fn run_one<Stage>(&self, (name, test): &Test<Stage>, stage: &Stage) -> bool {
        let begun = Instant::now();
        let found = test(stage);
        let seconds = (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        println!("{}", line(self.json, name, &found, seconds));
        found.is_ok()
    }
}

fn line(json: bool, name: &str, found: &Result<String, Failed>, seconds: f64) -> String {
    let (ok, said) = match found {
        Ok(said) => (true, said.clone()),
        Err(failed) => (false, failed.to_string()),
    };
    if json {
        serde_json::json!({"test": name, "ok": ok, "said": said, "seconds": seconds}).to_string()
    } else {
        format!("{:<7} {name:<18} {seconds:>6.1} s  {said}", if ok { "ok" } else { "FAILED" })
    }
}

/// The top folder of this repository.
///
/// # Errors
/// The tests were built elsewhere than in it.
pub fn repository() -> Result<&'static Path, Failed> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    top.ok_or_else(|| Failed::new("this crate lies in no repository"))
}

/// The status of a program whose tests were all as expected, or not, or could not run.
#[must_use]
pub fn exit_code(done: Result<bool, Failed>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failed) => {
            eprintln!("error: {failed}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Which tests ran.
    type Ran = RefCell<Vec<&'static str>>;

    const ALL: [Test<Ran>; 3] = [
        ("first", |ran| note(ran, "first", true)),
        ("bad", |ran| note(ran, "bad", false)),
        ("last", |ran| note(ran, "last", true)),
    ];

    fn note(ran: &Ran, name: &'static str, good: bool) -> Result<String, Failed> {
        ran.borrow_mut().push(name);
        ensure(good, || "as it should".into()).map(|()| String::new())
    }

    fn only(names: &[&str]) -> Choice {
        Choice { json: true, only: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_test_that_fails_keeps_no_other_from_running() {
        let ran = Ran::default();
        assert!(!only(&[]).run(&ALL, &ran));
        assert_eq!(ran.into_inner(), ["first", "bad", "last"]);
    }

    #[test]
    fn what_makes_the_stage_runs_also_unasked_and_ends_everything_where_it_fails() {
        let ran = Ran::default();
        assert!(only(&["last"]).run_from_nothing(&ALL, &ran));
        assert_eq!(ran.take(), ["first", "last"]);
        assert!(only(&["first"]).run_from_nothing(&ALL, &ran));
        assert_eq!(ran.take(), ["first"]);
        assert!(!only(&[]).run_from_nothing(&ALL[1..], &ran));
        assert_eq!(ran.take(), ["bad"]);
    }

    #[test]
    fn a_test_that_is_none_is_named_with_those_that_are() {
        let failed = only(&["last", "nonsense"]).check(&ALL).expect_err("there is none").to_string();
        assert_eq!(failed, "`nonsense` is not one of first, bad, last");
    }

    #[test]
    fn a_line_is_for_programs_or_for_people() {
        let failed = Err(Failed::new("no"));
        assert_eq!(line(true, "a", &failed, 0.5), r#"{"ok":false,"said":"no","seconds":0.5,"test":"a"}"#);
        assert_eq!(line(false, "a", &Ok("yes".into()), 0.5), "ok      a                     0.5 s  yes");
    }
}
