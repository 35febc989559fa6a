//! What all of it has cost.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{ASKED, Stage};
use crate::audit;
use crate::etcd::{self, Held};
use crate::failed::{Failed, ensure};
use crate::operator::NAMESPACE;
use crate::pair::Pair;
use crate::process::usage;
use crate::tests::links::REQUESTS;

/// Denied instances that one link may tell in a day.
pub const DENIED: usize = 256;
/// What a request may have, a denial, and a link: each with what the API server keeps of who wrote it.
const REQUEST_BYTES: usize = 3 << 10;
/// See [`REQUEST_BYTES`].
const DENIAL_BYTES: usize = 512;
/// See [`REQUEST_BYTES`].
const LINK_BYTES: usize = 16 << 10;
/// How much more memory an operator may hold afterwards, in MB: what streams may hold at the most, and what the allocator
/// does not give back of it.
const MEMORY: f64 = 48.0;
/// And an agent.
const MEMORY_OF_AGENT: f64 = 16.0;
/// Lines that operators and agents may log in a minute of it.
const LINES: f64 = 60.0;

/// Writes of the operator's, as the audit log calls them, and what it asks for again and again.
const WRITES: [&str; 5] = [
    "peerage.dev/agenttrustrequests create",
    "peerage.dev/agenttrustrequests delete",
    "peerage.dev/agentlinks patch",
    "/configmaps patch",
    "peerage.dev/agenttrustrequests list",
];

/// What there is at some moment.
#[derive(Debug)]
pub struct Holdings {
    etcd: Held,
    /// Of each operator and each agent, by its process.
    memory: BTreeMap<u32, (f64, f64)>,
    lines: usize,
    done: [usize; WRITES.len()],
}

impl Holdings {
    /// Looks.
    ///
    /// # Errors
    /// Something cannot be looked at.
    pub fn look(stage: &Stage, pair: &Pair) -> Result<Self, Failed> {
        let operators = stage.operators.borrow();
        let agents = [&pair.db.agent, &pair.reporter.agent];
        let mut memory = BTreeMap::new();
        for (pid, most) in
            operators.iter().map(|one| (one.pid(), MEMORY)).chain(agents.map(|one| (one.pid(), MEMORY_OF_AGENT)))
        {
            memory.insert(pid, (usage(pid)?.0, most));
        }
        let logs = operators.iter().map(|one| one.log()).chain(agents.map(|one| one.log()));
        let lines = logs.map(|log| log.lines().count()).sum();
        Ok(Self { etcd: etcd::held(&stage.cluster)?, memory, lines, done: audit::all_times(&stage.cluster, WRITES)? })
    }

    /// What came since `before`, as far as it may have; what that is, in words.
    ///
    /// # Errors
    /// Something is beyond what it may cost.
    pub fn judged_since(&self, before: &Self, took: Duration) -> Result<String, Failed> {
        let objects = self.objects_since(before)?;
        let mut grown = Vec::new();
        for (pid, (now, most)) in &self.memory {
            let was = before.memory.get(pid).map_or(0.0, |(was, _)| *was);
            ensure(now - was <= *most, || format!("process {pid} has {now:.1} MB, and had {was:.1}"))?;
            grown.push(format!("{was:.0} to {now:.0}"));
        }
        let minutes = took.as_secs_f64() / 60.0;
        let lines = self.lines - before.lines;
        ensure(lines as f64 <= LINES * minutes.max(1.0), || {
            format!("{lines} lines were logged in {minutes:.1} minutes")
        })?;
        let done: Vec<_> = self.done.iter().zip(&before.done).map(|(now, was)| now - was).collect();
        let writes = self.writes_are_few(&done, took.as_secs_f64())?;
        Ok(format!(
            "{objects}; {lines} lines logged in {minutes:.1} minutes; {writes}; memory in MB: {}",
            grown.join(", ")
        ))
    }

    /// Objects that came to stay are those that may come, no more of them and no larger than may be.
    fn objects_since(&self, before: &Self) -> Result<String, Failed> {
        let new: Vec<&String> = self.etcd.keys().filter(|key| !before.etcd.contains_key(*key)).collect();
        let of = |prefix: &str| new.iter().filter(|key| key.starts_with(prefix)).count();
        let requests = "/registry/peerage.dev/agenttrustrequests/";
        let denials = format!("/registry/configmaps/{NAMESPACE}/peerage-denied-");
        let [asked, tools] = [ASKED, "tools"].map(|namespace| of(&format!("{requests}{namespace}/")));
        let maps = of(&denials);
        ensure(new.len() == asked + tools + maps, || format!("objects that nobody may make: {new:?}"))?;
        ensure(asked <= REQUESTS && tools <= REQUESTS && maps <= 16, || format!("too many objects: {new:?}"))?;
        let bytes: usize = self.etcd.values().sum();
        let were: usize = before.etcd.values().sum();
        let most = were + 2 * REQUESTS * REQUEST_BYTES + DENIED * DENIAL_BYTES + 2 * LINK_BYTES;
        ensure(bytes <= most, || format!("etcd holds {bytes} bytes; {most} are the most"))?;
        let grown = bytes.saturating_sub(were);
        Ok(format!("etcd grew by {} objects and {grown} bytes, from {} and {were}", new.len(), before.etcd.len()))
    }

    /// Forty requests at once and one in ten seconds; a status as often as a Hello counts, requests change, or a link is lost
    /// and found; a denial at a time; and looks at requests at most once a second.
    fn writes_are_few(&self, done: &[usize], seconds: f64) -> Result<String, Failed> {
        let [created, deleted, links, maps, lists] = done else { return Err(Failed::new("another number of counts")) };
        let links_of = 2.0;
        let create = links_of * (40.0 + seconds / 10.0 + 1.0);
        let most =
            [create, create + 1.0, links_of * seconds / 5.0 + 2.0 * create, (DENIED + 64) as f64, seconds + 60.0];
        for ((what, done), most) in WRITES.iter().zip(done).zip(most) {
            ensure(*done as f64 <= most, || format!("{done} times {what} in {seconds:.0} s; {most:.0} are the most"))?;
        }
        Ok(format!(
            "{created} requests made and {deleted} deleted, {links} statuses of links and {maps} ConfigMaps written, requests listed {lists} times"
        ))
    }
}

/// Denials that are written down.
///
/// # Errors
/// kubectl's.
pub fn denials(stage: &Stage) -> Result<BTreeMap<String, String>, Failed> {
    let maps = stage.cluster.get(&format!("configmaps -n {NAMESPACE} -l peerage.dev/denied-instances"))?;
    let maps = maps.unwrap_or(Value::Null);
    let data = maps["items"].as_array().into_iter().flatten().filter_map(|map| map["data"].as_object());
    let all = data.flatten().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
    Ok(all.collect())
}
