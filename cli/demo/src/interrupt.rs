//! Ctrl-C, SIGTERM and a lost terminal: everything is taken down, then the process ends.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::report::Report;
use crate::stage::Teardown;

/// Takes everything down when a signal asks for it, and ends the process as a shell expects.
pub(crate) fn watch(teardown: Arc<Teardown>, report: Arc<Report>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        // Handlers stand when this returns, not when the thread gets round to it.
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
                _ = hangup.recv() => 1,
            }
        });
        report.lines("\ninterrupted: taking everything down");
        report.object(serde_json::json!({"event": "interrupted", "signal": number}));
        report.close();
        teardown.now();
        std::process::exit(128 + number);
    })?;
    Ok(())
}
