//! What the subject's processes on the client's side hold: what a user of it gives to it.

use std::fs;

use peerage_bench::Result;
use peerage_bench::network::Network;
use peerage_bench::process::{peak_resident, resident};

use super::{Figure, Measure};
use crate::subject::Running;

const KIB_PER_MIB: f64 = 1024.0;

/// While nothing has been done for a while.
pub struct Idle;

impl Measure for Idle {
    fn name(&self) -> String {
        "memory, idle".into()
    }

    fn take(&self, _: &Network, subject: &mut dyn Running) -> Result<Vec<Figure>> {
        let processes = subject.client();
        if processes.is_empty() {
            return Err("it has no process on the client's side".into());
        }
        let mut total = 0.0;
        for process in processes {
            total += resident(process)?.total;
        }
        Ok(vec![Figure::new(self.name(), total / KIB_PER_MIB, "MiB")])
    }
}

/// Makes the kernel note the most that the subject's client's side holds from here on.
pub fn forget_peak(subject: &dyn Running) -> Result<()> {
    subject.client().into_iter().try_for_each(|process| Ok(fs::write(format!("/proc/{process}/clear_refs"), "5")?))
}

/// The most since then in MiB; nothing where there is no process.
pub fn peak(subject: &dyn Running) -> Result<Option<f64>> {
    let peaks: Vec<f64> = subject.client().into_iter().map(peak_resident).collect::<Result<_>>()?;
    Ok((!peaks.is_empty()).then(|| peaks.iter().sum::<f64>() / KIB_PER_MIB))
}
