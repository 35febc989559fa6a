//! What the program `peerage-relay` logs, as `RUST_LOG` says it.
//!
//! The parser of [`Targets`] takes a misspelt level for the name of a target, and then nothing at all is logged. A relay that does not
//! even say that it has started is hard to operate, so what cannot be read is not acted on, and is told.

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// The environment variable that says what to log.
pub(crate) const VARIABLE: &str = "RUST_LOG";

/// What to log, and what is wrong with how it was said, for the log itself.
pub(crate) fn filter(said: Option<&str>) -> (Targets, Option<String>) {
    let usual = Targets::new().with_default(Level::INFO);
    let Some(said) = said.map(str::trim).filter(|said| !said.is_empty()) else { return (usual, None) };
    let is_misspelt = |part: &&str| !part.contains('=') && part.parse::<LevelFilter>().is_err();
    match (said.split(',').find(is_misspelt), said.parse::<Targets>()) {
        (None, Ok(filter)) => (filter, None),
        (misspelt, _) => {
            let wrong = misspelt.unwrap_or(said);
            let complaint = format!(
                "{VARIABLE}: `{wrong}` is no level (off, error, warn, info, debug, trace) and no target=level; logging at info"
            );
            (usual, Some(complaint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_taken_as_they_are_said() {
        for (said, info, debug) in [
            (None, true, false),
            (Some(""), true, false),
            (Some("warn"), false, false),
            (Some("DEBUG"), true, true),
            (Some("warn,peerage_relay=debug"), true, true),
        ] {
            let (filter, complaint) = filter(said);
            let enabled = [Level::INFO, Level::DEBUG].map(|level| filter.would_enable("peerage_relay::worker", &level));
            assert_eq!((enabled, complaint), ([info, debug], None), "{said:?}");
        }
    }

    #[test]
    fn a_misspelt_level_silences_nothing_and_is_told() {
        for said in ["verbose", "warn,verbose", "peerage_relay=verbose"] {
            let (filter, complaint) = filter(Some(said));
            assert!(filter.would_enable("peerage_relay::worker", &Level::INFO), "{said}");
            assert!(complaint.is_some_and(|complaint| complaint.contains("verbose")), "{said}");
        }
    }
}
