//! What an agent says happened, and when: its event stream, heard by a thread and kept.
//!
//! A path changes between two commands, faster than anybody could ask. The thread tells what people should see at once,
//! and the steps look up what they wait for, whether it has come already or comes in time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peerage_agent::control::view::Event;
use peerage_agent::control::{Failure, Request, client};
use peerage_agent::state::Place;
use serde_json::json;

use crate::problem::Problem;
use crate::report::Report;

/// One agent's events since the demo began to listen.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    kept: Mutex<Vec<(Instant, Event)>>,
    more: Condvar,
}

impl Timeline {
    /// Listens to the agent at `place` until it ends.
    pub(crate) fn listen(place: Place, report: &Arc<Report>) -> Result<Arc<Self>, Problem> {
        let timeline = Arc::new(Self::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let heard = runtime.block_on(client::stream(&place, &Request::Events));
        let mut heard = heard.map_err(|failure: Failure| {
            Problem::new("the laptop's agent to tell what happens", failure.message, failure.hint)
        })?;
        let (keeper, report) = (Arc::clone(&timeline), Arc::clone(report));
        std::thread::Builder::new().name("events".into()).spawn(move || {
            // Ends with the agent.
            while let Ok(Some(event)) = runtime.block_on(heard.next::<Event>()) {
                keeper.keep(event, &report);
            }
        })?;
        Ok(timeline)
    }

    /// What `pick` takes first, from the beginning; `None` when it has not come after `patience`.
    pub(crate) fn wait<T>(&self, patience: Duration, pick: impl Fn(&Event) -> Option<T>) -> Option<(Instant, T)> {
        let find = |kept: &[(Instant, Event)]| kept.iter().find_map(|(at, event)| Some((*at, pick(event)?)));
        let none = |kept: &mut Vec<(Instant, Event)>| find(kept).is_none();
        let (kept, _) =
            self.more.wait_timeout_while(self.kept(), patience, none).unwrap_or_else(PoisonError::into_inner);
        find(&kept)
    }

    /// The path at a moment, by what was heard until then.
    pub(crate) fn path_at(&self, moment: Instant) -> Option<String> {
        let kept = self.kept();
        let before = kept.iter().take_while(|(at, _)| *at <= moment);
        before.filter_map(|(_, event)| path_after(event)).last().map(str::to_owned)
    }

    fn keep(&self, event: Event, report: &Report) {
        let at = Instant::now();
        let mut kept = self.kept();
        // Where both dialled there are two sessions for a moment, and the second says what is known.
        let known = kept.iter().filter_map(|(_, event)| path_after(event)).next_back();
        if known.is_some() && known == path_after(&event) {
            return;
        }
        let connected = kept.iter().find(|(_, event)| matches!(event, Event::Connected { .. })).map(|(at, _)| *at);
        tell(&event, connected.map(|connected| at - connected), report);
        kept.push((at, event));
        self.more.notify_all();
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Instant, Event)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn path_after(event: &Event) -> Option<&str> {
    match event {
        Event::Connected { path, .. } | Event::PathChanged { to: path, .. } => Some(path),
        _ => None,
    }
}

/// Says at once what people should see; `connected` is the time since the first session came up.
fn tell(event: &Event, connected: Option<Duration>, report: &Report) {
    match event {
        Event::Connected { peer, path, .. } => {
            let again = if connected.is_some() { " again" } else { "" };
            report.saw(
                &format!("the laptop is connected to {peer}{again}: {path}"),
                json!({"event": "connected", "peer": peer, "path": path}),
            );
        }
        Event::PathChanged { peer, from, to, why, rtt_ms } => {
            let after = connected.unwrap_or_default().as_millis();
            let rtt = rtt_ms.map_or(String::new(), |rtt| format!(", round trip {rtt:.1} ms"));
            report.saw(
                &format!("the path to {peer} changed: {from} → {to}, {after} ms after connecting{rtt} ({why})"),
                json!({
                    "event": "path_changed", "peer": peer, "from": from, "to": to, "why": why, "rtt_ms": rtt_ms,
                    "after_ms": u64::try_from(after).unwrap_or(u64::MAX),
                }),
            );
        }
        Event::StreamsReset { peer, count, why } => {
            report.saw(
                &format!("the laptop's agent reset its streams with {peer}: {why} (open: {count})"),
                json!({"event": "streams_reset", "peer": peer, "count": count, "why": why}),
            );
        }
        _ => {}
    }
}
