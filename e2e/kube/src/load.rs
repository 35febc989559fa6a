//! Requests that honest programs go on with while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use peerage_netlab::kernel::Site;

use crate::failed::{Failed, Trying};
use crate::pair::fetch;

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(50);

/// One request after the other, each tried once, each on a connection of its own; until [`Self::end`].
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Came>,
}

/// What came of them.
#[derive(Debug, Default)]
pub struct Came {
    /// How many there were.
    pub count: usize,
    /// Why those failed that did.
    pub failed: Vec<String>,
}

impl Load {
    /// Begins to ask `http://NAME/` on this site's host.
    #[must_use]
    pub fn begin(site: &Site, name: &str) -> Self {
        let (stop, site, name) = (Arc::new(AtomicBool::new(false)), site.clone(), name.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut came = Came::default();
            while !stopped.load(Ordering::Relaxed) {
                came.count += 1;
                match fetch(&site, &name) {
                    Ok(body) if body == "hello" => {}
                    Ok(body) => came.failed.push(format!("it says `{body}`")),
                    Err(failed) => came.failed.push(failed.to_string()),
                }
                std::thread::sleep(PAUSE);
            }
            came
        });
        Self { stop, thread }
    }

    /// Ends, and tells what came of it.
    ///
    /// # Errors
    /// It has ended before.
    pub fn end(self) -> Result<Came, Failed> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "it panicked").trying("end a load")
    }
}
