//! The processes of a pod, as the machine sees them: for ending one as a crash would.

use std::fs;
use std::process::Command;

use crate::failed::{Failed, Trying, ensure};

/// The number of the one process called `name` of the pod with this UID.
///
/// # Errors
/// There is not exactly one.
pub fn find(pod: &str, name: &str) -> Result<String, Failed> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").trying("look at processes")?.flatten() {
        let folder = entry.path();
        // A process that ended meanwhile has neither.
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        // The kernel keeps 15 bytes of a name.
        if read("cgroup").contains(&format!("pod{pod}")) && read("comm").trim() == &name[..name.len().min(15)] {
            found.extend(folder.file_name().and_then(|number| number.to_str()).map(str::to_owned));
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(Failed::new(format!("expected one process {name} in pod {pod}, found {found:?}"))),
    }
}

/// Kills a process, which gets no chance to do anything about it.
///
/// # Errors
/// There is none of that number.
pub fn kill(number: &str) -> Result<(), Failed> {
    let status = Command::new("kill").args(["-KILL", number]).status().trying("run kill")?;
    ensure(status.success(), || format!("cannot kill process {number}"))
}
