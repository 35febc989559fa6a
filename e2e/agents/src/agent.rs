//! A running agent, `peerage up --json`, and what it has said so far.

use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::{Machine, Running};
use crate::wait::{PATIENCE, until};
use peerage_suite::failed::Failed;

/// An agent on a machine; everything the machine can do is asked of it directly.
#[derive(Debug)]
pub struct Agent {
    machine: Machine,
    running: Running,
    heard: Arc<Heard>,
}

/// Events in the order they came.
#[derive(Debug, Default)]
struct Heard {
    events: Mutex<Vec<(Instant, Value)>>,
    more: Condvar,
}

/// What had been heard at some moment; later events are news.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl Agent {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started. What it says later is for the caller to see.
    pub fn start(machine: &Machine, words: &[&str]) -> Result<Self, Failed> {
        Self::start_with(machine, words, |_| {})
    }

    /// Starts it with a command that was changed before.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(machine: &Machine, words: &[&str], change: impl FnOnce(&mut Command)) -> Result<Self, Failed> {
        let mut command = machine.peerage(&[&["--json", "up"], words].concat());
        change(&mut command);
        let mut running = machine.start(command, "agent")?;
        let heard = Arc::new(Heard::default());
        let (keeper, stdout) = (Arc::clone(&heard), running.stdout());
        std::thread::spawn(move || {
            // It ends with the agent.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    keeper.lock().push((Instant::now(), event));
                    keeper.more.notify_all();
                }
            }
        });
        Ok(Self { machine: machine.clone(), running, heard })
    }

    /// The present.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.heard.lock().len())
    }

    /// The beginning.
    #[must_use]
    pub const fn beginning() -> Mark {
        Mark(0)
    }

    /// The first event since `mark` called `name` that is as `wanted`, and when it came.
    ///
    /// # Errors
    /// It did not come within [`PATIENCE`]; says what came instead.
    pub fn wait_for(
        &self,
        mark: Mark,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<(Instant, Value), Failed> {
        self.heard(mark, PATIENCE, |event| event["event"] == name && wanted(event)).ok_or_else(|| {
            let heard = self.heard.lock();
            let since: Vec<_> = heard[mark.0..].iter().map(|(_, event)| event.to_string()).collect();
            let (who, log) = (self.machine.host().name(), self.machine.log("agent"));
            Failed::new(format!("{who} did not say `{name}` as expected, but: {}\n{log}", since.join("\n  ")))
        })
    }

    /// The first event since `mark` that is as `wanted`, if it comes within `patience`.
    pub fn heard(&self, mark: Mark, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Option<(Instant, Value)> {
        let find = |events: &[(Instant, Value)]| events[mark.0..].iter().find(|(_, event)| wanted(event)).cloned();
        let none = |events: &mut Vec<(Instant, Value)>| find(events).is_none();
        let (events, _) = self
            .heard
            .more
            .wait_timeout_while(self.heard.lock(), patience, none)
            .unwrap_or_else(PoisonError::into_inner);
        find(&events)
    }

    /// The path to its peer, by what it has said so far.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        let path = |event: &Value| match event["event"].as_str() {
            Some("connected") => event["path"].as_str().map(str::to_owned),
            Some("path_changed") => event["to"].as_str().map(str::to_owned),
            _ => None,
        };
        self.heard.lock().iter().rev().find_map(|(_, event)| path(event))
    }

    /// Looks at its status until that is as `wanted`.
    ///
    /// # Errors
    /// It does not become so.
    pub fn until_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value, Failed> {
        let mut last = Value::Null;
        let found = until(what, || {
            last = self.machine.ask(&["status"])?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        found.map_err(|failed| Failed::new(format!("{failed}; the status is {last:#}")))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.running
    }
}

impl Deref for Agent {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, Value)>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
