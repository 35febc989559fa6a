//! What sessions without a word take on the heap, counted by an allocator of this program's own. Limits of an agent's
//! container are set for hundreds of them (docs/benchmarks/agent.md has what real agents take).

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use peerage_sim::nat::NatKind;
use peerage_sim::{Sim, secs};

/// Bytes that are allocated at the moment.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does what it is asked to, and counting changes nothing of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KIB: usize = 1024;
const PEERS: usize = 20;

/// An agent in the middle and what is around it, who know nobody yet.
fn hub() -> (Sim, Vec<String>) {
    let mut sim = Sim::new(1);
    sim.add_relay("r1");
    sim.add_agent("hub", NatKind::none());
    let peers: Vec<_> = (0..PEERS).map(|n| format!("p{n}")).collect();
    peers.iter().for_each(|peer| sim.add_agent(peer, NatKind::none()));
    sim.run_for(secs(5));
    (sim, peers)
}

/// Waits until sessions without a word have ended, and says what is allocated then.
fn ended(sim: &mut Sim, peers: &[String]) -> usize {
    let all_gone = |sim: &Sim| peers.iter().all(|peer| sim.sessions("hub", peer).is_empty());
    sim.run_until(secs(600), all_gone).expect("sessions without a word end");
    TAKEN.load(Ordering::Relaxed)
}

/// One test, since allocations of another that runs beside it would count as well.
#[test]
fn a_session_without_a_word_is_small_and_leaves_nothing_behind() {
    let (mut sim, peers) = hub();
    peers.iter().for_each(|peer| sim.trust("hub", peer));
    let all_direct = |sim: &Sim| peers.iter().all(|peer| sim.both_direct("hub", peer));
    sim.run_until(secs(30), all_direct).expect("nothing is between them");
    sim.run_for(secs(20));
    let connected = TAKEN.load(Ordering::Relaxed);
    let first = ended(&mut sim, &peers);
    for peer in &peers {
        sim.request("hub", peer, b"hello");
    }
    sim.run_until(secs(30), all_direct).expect("a request brings a session");
    let second = ended(&mut sim, &peers);
    let of_each_end = |more: usize, less: usize| more.saturating_sub(less) / (2 * PEERS);
    let (session, left) = (of_each_end(connected, first), of_each_end(second, first));
    assert!((1..32 * KIB).contains(&session), "a session takes {session} bytes");
    // The simulation notes what happened, some 8 KiB of it.
    assert!(left < session / 2, "of another, which takes {session} bytes, {left} are left");
}
