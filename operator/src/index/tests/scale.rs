//! 10,000 AgentPeers and 50,000 AgentTrusts: what a change touches does not grow with what is there.

use std::time::Instant;

use serde_json::json;

use super::{World, name};

const PEERS: usize = 10_000;
const TRUSTS: usize = 50_000;

/// Prints its times with `--nocapture`; what it asserts is counted, not timed.
#[test]
fn one_change_among_fifty_thousand_touches_two_agents() {
    let started = Instant::now();
    let mut world = World::new();
    let agent = |i: usize| format!("agent-{}.n{}", i % PEERS, i % PEERS % 100);
    for i in 0..PEERS {
        world.peer(&agent(i), json!({"ports": [{"name": "mcp"}]}));
    }
    // Five for each agent, in pairs that consent to each other.
    for i in 0..TRUSTS / 2 {
        let (a, b) = (agent(i), agent(i * 7 + i / PEERS + 1));
        world.trust(&format!("t{i}"), &a, &b, json!({"alias": format!("p{i}")}));
        world.trust(&format!("u{i}"), &b, &a, json!({"alias": format!("q{i}"), "inbound": [{"portName": "mcp"}]}));
    }
    println!("{PEERS} AgentPeers and {TRUSTS} AgentTrusts indexed in {:?}", started.elapsed());
    assert_eq!(world.index.counts(), [PEERS, TRUSTS, 0]);
    let key = name(&format!("t4711.n{}", 4711 % 100));
    let facts = world.index.trust(&key).expect("it is there").clone();
    let started = Instant::now();
    for _ in 0..500 {
        let gone = world.index.set_trust(&key, None);
        assert_eq!((gone.pairs.len(), gone.agents.len(), gone.all), (2, 0, false));
        let back = world.index.set_trust(&key, Some(facts.clone()));
        assert_eq!((back.pairs.len(), back.trusts.len()), (2, 2));
        for (agent, peer) in &back.pairs {
            assert!(world.index.entry(agent, peer, &[]).is_some());
        }
    }
    println!("a change takes {:?}", started.elapsed() / 1000);
}
