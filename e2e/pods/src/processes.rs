//! The processes of a pod, as the machine sees them: for ending one as a crash would.

use std::fs;
use std::process::Command;

use crate::failed::{Failed, Trying, ensure};

/// Kills the one process called `name` of the pod with this UID.
///
/// # Errors
/// There is not exactly one.
pub fn kill(pod: &str, name: &str) -> Result<(), Failed> {
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
    let [one] = found.as_slice() else {
        return Err(Failed::new(format!("expected one process {name} in pod {pod}, found {found:?}")));
    };
    let status = Command::new("kill").args(["-KILL", one]).status().trying("run kill")?;
    ensure(status.success(), || format!("cannot kill process {one}"))
}
