//! What is logged, as `PEERAGE_LOG` says it.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// The environment variable that says what to log.
pub const VARIABLE: &str = "PEERAGE_LOG";

/// What to log, and what is wrong with how it was said, for the log itself. What cannot be read is not acted on: the parser of
/// [`Targets`] takes a misspelt level for the name of a target, and then nothing at all is logged.
#[must_use]
pub fn filter(said: Option<&str>, default: Level) -> (Targets, Option<String>) {
    let usual = Targets::new().with_default(default);
    let Some(said) = said.map(str::trim).filter(|said| !said.is_empty()) else { return (usual, None) };
    let is_misspelt = |part: &&str| !part.contains('=') && part.parse::<LevelFilter>().is_err();
    match (said.split(',').find(is_misspelt), said.parse::<Targets>()) {
        (None, Ok(filter)) => (filter, None),
        (misspelt, _) => {
            let wrong = misspelt.unwrap_or(said);
            let usually = default.as_str().to_lowercase();
            let complaint = format!(
                "{VARIABLE}: `{wrong}` is no level (off, error, warn, info, debug, trace) and no target=level; logging at {usually}"
            );
            (usual, Some(complaint))
        }
    }
}

/// Whether lines on stderr have colours: for who reads them at a terminal, and has not said otherwise (<https://no-color.org>).
/// In a file, and to what collects the logs of pods, they are noise.
#[must_use]
pub fn stderr_has_colours() -> bool {
    has_colours(io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref())
}

fn has_colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_user_has_not_turned_them_off() {
        let has = |is_terminal, no_color: Option<&str>| has_colours(is_terminal, no_color.map(OsStr::new));
        assert!(has(true, None) && has(true, Some("")));
        assert!(!has(true, Some("1")) && !has(false, None) && !has(false, Some("")));
    }

    #[test]
    fn levels_and_targets_are_taken_as_they_are_said() {
        for (said, info, debug) in [
            (None, true, false),
            (Some(""), true, false),
            (Some("warn"), false, false),
            (Some("DEBUG"), true, true),
            (Some("warn,peerage_agent=debug"), true, true),
        ] {
            let (filter, complaint) = filter(said, Level::INFO);
            let enabled = [Level::INFO, Level::DEBUG].map(|level| filter.would_enable("peerage_agent::daemon", &level));
            assert_eq!((enabled, complaint), ([info, debug], None), "{said:?}");
        }
    }

    #[test]
    fn a_misspelt_level_silences_nothing_and_is_told() {
        for said in ["verbose", "warn,verbose", "peerage_agent=verbose"] {
            let (filter, complaint) = filter(Some(said), Level::INFO);
            assert!(filter.would_enable("peerage_agent::daemon", &Level::INFO), "{said}");
            assert!(complaint.is_some_and(|complaint| complaint.contains("verbose")), "{said}");
        }
    }
}
