//! Two agents and a relay on real sockets: streams, flows, refusals and revocation through the driver.

mod world;

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::{Duration, Instant};

use peerage_agent::driver::DriverEvent;
use peerage_agent::tunnel::{Dial, Opened, TunnelStream};
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{Running, TestRelay, WEB, person, relay, snapshot, stream, trust};

/// Accepts every stream and sends back what comes.
fn echo(running: Running) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        // The driver ends with its last handle, so the whole of it lives here.
        let mut running = running;
        let Running { handle: _handle, events: _events, incoming } = &mut running;
        while let Some(incoming) = incoming.recv().await {
            match incoming.accept() {
                Opened::Stream(stream) => {
                    tokio::spawn(async move {
                        let (mut read, mut write) = tokio::io::split(stream);
                        if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                            let _ = write.shutdown().await;
                        }
                    });
                }
                Opened::Flow(flow) => {
                    tokio::spawn(async move {
                        while let Some(packet) = flow.recv().await {
                            let _ = flow.send(packet);
                        }
                    });
                }
            }
        }
    })
}

/// Two agents with a stream between them, on which ann has said hello.
struct Met {
    relay: TestRelay,
    _ann: Running,
    bob: Running,
    /// Ann's end.
    near: TunnelStream,
    /// Bob's.
    far: TunnelStream,
}

async fn meet() -> Met {
    let relay = relay().await;
    let (ann, bob) = (person("ann"), person("bob"));
    let mut bob_runs = bob.start(snapshot(&relay.info, vec![trust(&bob, &ann, &relay.info, &["web"])]));
    let ann_runs = ann.start(snapshot(&relay.info, vec![trust(&ann, &bob, &relay.info, &[])]));
    let mut near = stream(ann_runs.handle.dial(&bob.id, WEB).await.expect("bob is trusted"));
    near.write_all(b"hello").await.expect("it is taken");
    let far = stream(bob_runs.incoming.recv().await.expect("ann opens a stream").accept());
    Met { relay, _ann: ann_runs, bob: bob_runs, near, far }
}

impl Met {
    /// Takes back all that bob has consented to.
    fn withdraw(&self) {
        self.bob.handle.apply_snapshot(snapshot(&self.relay.info, vec![]));
    }
}

#[tokio::test]
async fn what_is_written_comes_back_through_the_peer_and_ends_where_it_ended() {
    let relay = relay().await;
    let (ann, bob) = (person("ann"), person("bob"));
    let _bob = echo(bob.start(snapshot(&relay.info, vec![trust(&bob, &ann, &relay.info, &["web"])])));
    let ann_runs = ann.start(snapshot(&relay.info, vec![trust(&ann, &bob, &relay.info, &[])]));
    let mut tunnel = stream(ann_runs.handle.dial(&bob.id, WEB).await.expect("bob is trusted"));
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(&mut tunnel);
    let writing = async {
        write.write_all(&sent).await.expect("the stream takes it");
        write.shutdown().await.expect("it can be ended");
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(writing, read.read_to_end(&mut back));
    read.expect("the peer sends it back");
    assert!(back == sent, "{} of {} bytes came back, or others", back.len(), sent.len());
}

#[tokio::test]
async fn packets_of_a_flow_come_back() {
    let relay = relay().await;
    let (ann, bob) = (person("ann"), person("bob"));
    let _bob = echo(bob.start(snapshot(&relay.info, vec![trust(&bob, &ann, &relay.info, &["udp"])])));
    let mut ann_runs = ann.start(snapshot(&relay.info, vec![trust(&ann, &bob, &relay.info, &[])]));
    ann_runs.wait_for(|event| matches!(event, DriverEvent::SessionUp { .. }).then_some(())).await;
    let header = StreamHeader { kind: StreamKind::Udp, port: 53 };
    let Ok(Opened::Flow(flow)) = ann_runs.handle.dial(&bob.id, header).await else { panic!("a flow was asked for") };
    // Any of them may be lost, as UDP allows.
    let answer = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            flow.send("ping".into()).expect("it fits");
            if let Ok(Some(packet)) = tokio::time::timeout(Duration::from_millis(20), flow.recv()).await {
                return packet;
            }
        }
    };
    let packet = tokio::time::timeout(Duration::from_secs(20), answer).await.expect("a packet comes back");
    assert_eq!(&packet[..], b"ping");
}

#[tokio::test]
async fn a_port_that_is_not_open_to_us_is_refused_with_the_reason() {
    let relay = relay().await;
    let (ann, bob) = (person("ann"), person("bob"));
    let _bob = echo(bob.start(snapshot(&relay.info, vec![trust(&bob, &ann, &relay.info, &[])])));
    let ann_runs = ann.start(snapshot(&relay.info, vec![trust(&ann, &bob, &relay.info, &[])]));
    let mut tunnel = stream(ann_runs.handle.dial(&bob.id, WEB).await.expect("bob is trusted"));
    let error = tunnel.read_u8().await.expect_err("the port is closed");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains(&StreamStatus::Denied.to_string()), "{error}");
}

#[tokio::test]
async fn a_withdrawn_trust_resets_open_streams_on_both_sides() {
    let mut met = meet().await;
    let mut hello = [0; 5];
    met.far.read_exact(&mut hello).await.expect("ann said hello");
    met.withdraw();
    let start = Instant::now();
    let (near, far) = tokio::join!(met.near.read_u8(), met.far.read_u8());
    for end in [near, far] {
        assert_eq!(end.expect_err("the stream is reset").kind(), io::ErrorKind::ConnectionReset);
    }
    println!("both ends were reset {:?} after the withdrawal", start.elapsed());
}

#[tokio::test]
async fn a_withdrawn_trust_is_told_also_to_who_has_read_the_end_of_a_stream() {
    let mut met = meet().await;
    met.far.shutdown().await.expect("bob has nothing to say");
    assert_eq!(met.near.read(&mut [0; 8]).await.expect("a clean end"), 0);
    met.withdraw();
    let told = tokio::time::timeout(Duration::from_secs(20), poll_fn(|cx| met.near.poll_lost(cx))).await;
    assert_eq!(told.expect("nobody told").kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_that_its_peer_reads_no_more_is_unwanted_and_not_lost() {
    let mut met = meet().await;
    met.far.write_all(b"bye").await.expect("it is taken");
    met.far.shutdown().await.expect("that was all");
    drop(met.far);
    let told = tokio::time::timeout(Duration::from_secs(20), poll_fn(|cx| met.near.poll_unwanted(cx))).await;
    told.expect("nobody told");
    assert!(poll_fn(|cx| Poll::Ready(met.near.poll_lost(cx))).await.is_pending(), "the session is up");
    let mut said = Vec::new();
    met.near.read_to_end(&mut said).await.expect("what was said before arrives");
    assert_eq!(said, b"bye");
}

#[tokio::test]
async fn one_sided_trust_connects_nothing() {
    let relay = relay().await;
    let (ann, bob) = (person("ann"), person("bob"));
    let mut bob_runs = bob.start(snapshot(&relay.info, vec![]));
    let mut ann_runs = ann.start(snapshot(&relay.info, vec![trust(&ann, &bob, &relay.info, &[])]));
    ann_runs.wait_for(|event| matches!(event, DriverEvent::Relay { observed: Some(_), .. }).then_some(())).await;
    bob_runs.wait_for(|event| matches!(event, DriverEvent::Relay { observed: Some(_), .. }).then_some(())).await;
    let mut tunnel = stream(ann_runs.handle.dial(&bob.id, WEB).await.expect("ann trusts bob"));
    let error = tunnel.read_u8().await.expect_err("bob does not answer");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert!(bob_runs.incoming.try_recv().is_err());
}

#[tokio::test]
async fn a_relay_forgets_an_agent_that_shuts_down_at_once() {
    let relay = relay().await;
    let ann = person("ann");
    let mut running = ann.start(snapshot(&relay.info, Vec::new()));
    running.wait_for(|event| matches!(event, DriverEvent::Relay { observed: Some(_), .. }).then_some(())).await;
    assert_eq!((relay.bound)(), 1);
    running.handle.shutdown().await;
    // By itself a binding ends after 90 s.
    let forgotten = async {
        while (relay.bound)() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), forgotten).await.expect("its last frame said so");
}
