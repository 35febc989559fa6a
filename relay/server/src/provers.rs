//! Threads that look at the proofs in BINDs.
//!
//! After a restart thousands of agents bind at once, some 0.2 ms of work each, while packets of those who are back already have to go on. So
//! this is not the work of the threads that forward, and where there is no core to spare it yields to them: a nice value makes the kernel
//! give a packet's thread ten times as much. Who binds waits a little longer; what flows, flows.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use peerage_relay_proto::{Decision, Proof};

use crate::departures::Outgoing;
use crate::socket::BatchSocket;
use crate::worker::{self, Shared};

/// A tenth of the weight of a thread that is not nice (Linux, sched(7)).
const NICE: i32 = 10;

/// Runs until dropped.
pub(crate) struct Provers {
    shared: Arc<Shared>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Provers {
    /// One for each socket, so that whoever gives a relay more cores gets more of these, too.
    pub(crate) fn start(sockets: &[Arc<BatchSocket>], shared: &Arc<Shared>) -> io::Result<Self> {
        let mut provers =
            Self { shared: Arc::clone(shared), ending: Arc::default(), threads: Vec::with_capacity(sockets.len()) };
        for socket in sockets {
            let (socket, shared, ending) = (Arc::clone(socket), Arc::clone(shared), Arc::clone(&provers.ending));
            let run = move || prove(&socket, &shared, &ending);
            provers.threads.push(thread::Builder::new().name("relay-binds".into()).spawn(run)?);
        }
        Ok(provers)
    }
}

impl Drop for Provers {
    fn drop(&mut self) {
        {
            // Under the lock, so that none is between looking and waiting.
            let _relay = self.shared.relay();
            self.ending.store(true, Ordering::Relaxed);
        }
        self.shared.binds.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of theirs was told when it happened.
            let _ = thread.join();
        }
    }
}

fn prove(socket: &BatchSocket, shared: &Shared, ending: &AtomicBool) {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "nice");
    }
    while let Some(proof) = next(shared, ending) {
        let (from, local) = (proof.from(), proof.local());
        let proven = proof.check();
        let decision = shared.relay().conclude(proven);
        let Decision::Reply(reply) = decision else { continue };
        match worker::answer(from, local, reply) {
            // If the kernel has no room, the client asks again, and is told what was decided.
            Outgoing::Reply(envelope, reply) => shared.count_send(socket.send_now(envelope, reply.as_bytes())),
            Outgoing::ReplyToStream(id, reply) => {
                shared.streams.push(id, reply.as_bytes(), reply.as_bytes().len());
            }
            Outgoing::Forward(..) | Outgoing::ForwardToStream(..) => {}
        }
    }
}

/// Waits for the one whose turn it is; nothing when all is over.
fn next(shared: &Shared, ending: &AtomicBool) -> Option<Proof> {
    let mut relay = shared.relay();
    while !ending.load(Ordering::Relaxed) {
        if let Some(proof) = relay.poll_proof() {
            if relay.has_proof() {
                shared.binds.notify_one();
            }
            return Some(proof);
        }
        relay = shared.binds.wait(relay).unwrap_or_else(PoisonError::into_inner);
    }
    None
}
