//! How much memory the tunnel may take.
//!
//! Peers fill it where programs here do not read what they send. A container that takes more than it was given is killed, and
//! every session with it; so unless the owner says otherwise, the tunnel takes at most half of what this process was given.

use std::fs;
use std::str::FromStr;

use peerage_engine::node::DEFAULT_MEMORY;

/// The smallest amount that makes sense: the windows of a few streams.
const LEAST: u64 = 1 << 20;

/// Bytes that the streams of all sessions may hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelMemory(u64);

impl TunnelMemory {
    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    fn within(limit: Option<u64>) -> Self {
        Self(limit.map_or(DEFAULT_MEMORY, |limit| (limit / 2).clamp(LEAST, DEFAULT_MEMORY)))
    }
}

/// 384 MiB, or half of what the control group of this process allows if that is less.
impl Default for TunnelMemory {
    fn default() -> Self {
        Self::within(limit())
    }
}

/// Why a text is no amount of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an amount of at least 1Mi, like 64Mi or 1Gi")]
pub struct NoAmount;

impl FromStr for TunnelMemory {
    type Err = NoAmount;

    fn from_str(text: &str) -> Result<Self, NoAmount> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit {
            "" => 1,
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            _ => return Err(NoAmount),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes.filter(|bytes| *bytes >= LEAST).map(Self).ok_or(NoAmount)
    }
}

/// What the control group allows, by cgroups(7) of either version: in a container at the root of the mount, elsewhere in the
/// folder that /proc names.
fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        match (parts.next()?, parts.next()?) {
            ("", path) => Some(format!("/sys/fs/cgroup{path}/memory.max")),
            ("memory", path) => Some(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
            _ => None,
        }
    });
    let root = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"].map(str::to_owned);
    own.chain(root).find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        let bytes = |text: &str| text.parse::<TunnelMemory>().map(TunnelMemory::bytes);
        assert_eq!([bytes("64Mi"), bytes("2GiB"), bytes("1048576")], [Ok(64 << 20), Ok(2 << 30), Ok(1 << 20)]);
        for wrong in ["", "Mi", "64M", "64 Mi", "-1", "1023Ki", "99999999999Gi"] {
            assert_eq!(bytes(wrong), Err(NoAmount), "{wrong}");
        }
    }

    #[test]
    fn a_small_container_keeps_half_of_its_memory_for_itself() {
        assert_eq!(TunnelMemory::within(Some(128 << 20)).bytes(), 64 << 20);
        assert_eq!(TunnelMemory::within(Some(u64::MAX)).bytes(), DEFAULT_MEMORY);
        assert_eq!(TunnelMemory::within(None).bytes(), DEFAULT_MEMORY);
    }
}
