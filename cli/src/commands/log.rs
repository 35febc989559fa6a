//! The log of an agent in the background. Nobody looks after it, so it looks after itself: what is long becomes
//! `agent.log.1`, and the former `agent.log.1` goes.

use std::fs::{self, File};
use std::io;
use std::time::Duration;

use peerage_agent::control::Failure;
use peerage_agent::state::Place;

/// What an agent in the background says, in its state directory.
pub const LOG: &str = "agent.log";
const FORMER: &str = "agent.log.1";
/// So long it may be; with the former one twice as much.
const LONG: u64 = 8 << 20;
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Keeps the log of this process, which is its standard output and error, from growing without bound.
pub async fn keep_short(place: Place) {
    loop {
        tokio::time::sleep(LOOK).await;
        match turn_over(&place, LONG) {
            Ok(Some(fresh)) => {
                if let Err(error) = take(&fresh) {
                    tracing::warn!(%error, "the log goes on in the former file");
                }
            }
            Ok(None) => {}
            Err(failure) => tracing::warn!(%failure, "the log cannot be kept short"),
        }
    }
}

/// A fresh log, where the one that is there is longer than `long`.
fn turn_over(place: &Place, long: u64) -> Result<Option<File>, Failure> {
    let path = place.file(LOG);
    // One that its owner has removed has no length.
    if fs::metadata(&path).map_or(0, |log| log.len()) <= long {
        return Ok(None);
    }
    fs::rename(&path, place.file(FORMER)).map_err(|error| super::system("put the log aside", &error))?;
    Ok(Some(place.append(LOG)?))
}

/// Says everything into `log` from here on.
fn take(log: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn place(directory: &Path) -> Place {
        Place::find(Some(directory)).expect("a flag is a place")
    }

    #[test]
    fn a_long_log_is_put_aside_and_the_one_before_it_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = place(dir.path());
        for round in [b"1111", b"2222"] {
            place.append(LOG).expect("it is ours").write_all(round).expect("it is written");
            let fresh = turn_over(&place, 3).expect("it can").expect("it is too long");
            assert_eq!(fresh.metadata().expect("it is open").len(), 0);
        }
        assert_eq!(fs::read(place.file(FORMER)).expect("it is there"), b"2222");
        assert_eq!(fs::read(place.file(LOG)).expect("it is there"), b"");
    }

    #[test]
    fn a_short_log_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = place(dir.path());
        place.append(LOG).expect("it is ours").write_all(b"111").expect("it is written");
        assert!(turn_over(&place, 3).expect("it can").is_none());
        assert_eq!(fs::read(place.file(LOG)).expect("it is there"), b"111");
    }
}
