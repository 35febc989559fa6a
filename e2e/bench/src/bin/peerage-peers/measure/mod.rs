//! What is measured. A new measure is a file beside this one that implements [`Measure`], and a line where `main` says
//! what is measured when.

pub mod memory;
pub mod requests;
pub mod setup;
pub mod throughput;
pub mod transfer;

use std::time::Duration;

use peerage_bench::Result;
pub use peerage_bench::figures::Figure;
use peerage_bench::network::{Network, Place};
use peerage_bench::process::processor_time;
use peerage_bench::wait::until;

use crate::load::web;
use crate::subject::{Running, Service};

/// Something that is taken of each subject in turn, round after round.
pub trait Measure {
    /// What it is about, for progress and for reasons.
    fn name(&self) -> String;

    /// Takes it once.
    ///
    /// # Errors
    /// Why the subject does not get through it.
    fn take(&self, network: &Network, subject: &mut dyn Running) -> Result<Vec<Figure>>;
}

/// Waits until a request through the subject is answered.
pub fn until_answered(client: &Place, subject: &dyn Running) -> Result<()> {
    let to = subject.address(Service::Web);
    let asking = client.thread(move || {
        until("an answer", || Ok(web::once(to, Duration::from_secs(2)).ok())).map_err(|error| error.to_string())
    })?;
    Ok(asking.join().map_err(|_| "a client panicked")??)
}

/// Processor time so far of a subject's processes, and of this one, which is the programs at both ends.
fn spent(subject: &dyn Running) -> Result<Duration> {
    let all = subject.client().into_iter().chain(subject.others()).chain([std::process::id()]);
    all.map(processor_time).sum()
}
