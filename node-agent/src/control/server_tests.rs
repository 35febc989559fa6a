//! Callers of every kind against the real socket.

use proptest::prelude::{any, prop_assert, proptest};
use tokio::io::duplex;

use super::*;
use crate::control::client;
use crate::state::Place;

/// Answers with what a daemon would, without being one.
struct Parrot;

impl Handler for Parrot {
    fn handle(self: Arc<Self>, request: Request) -> Handling {
        Box::pin(async move {
            match request {
                Request::Status => Ok(Reply::Value("fine".into())),
                Request::Peers => Err(Failure::new(Code::UnknownPeer, "nobody", "look around")),
                Request::Events => {
                    let (events, stream) = mpsc::channel(4);
                    for i in 0..3 {
                        events.send(Ok(Value::from(i))).await.expect("there is room");
                    }
                    Ok(Reply::Stream(stream))
                }
                Request::Connect { .. } => {
                    let (ours, mut peer) = duplex(64);
                    tokio::spawn(async move {
                        let mut heard = Vec::new();
                        peer.read_to_end(&mut heard).await.expect("it ends");
                        heard.reverse();
                        peer.write_all(&heard).await.expect("the caller listens");
                    });
                    Ok(Reply::Raw(Value::Null, Box::new(ours), Box::new(drop)))
                }
                other => Err(Failure::bad_request(format!("{other:?}"))),
            }
        })
    }
}

struct Daemon {
    place: Place,
    _dir: tempfile::TempDir,
    _serving: tokio::task::JoinSet<()>,
}

fn daemon() -> Daemon {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::find(Some(dir.path())).expect("a flag is a place");
    let socket = ControlSocket::bind(&place.socket()).expect("it binds");
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(socket.serve(Arc::new(Parrot)));
    Daemon { place, _dir: dir, _serving: serving }
}

async fn said_to(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(daemon.place.socket()).await.expect("it listens");
    // The daemon may hang up on us in the middle of too long a line.
    let _ = stream.write_all(bytes).await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn a_caller_gets_its_answer_or_its_failure() {
    let daemon = daemon();
    let fine: String = client::call(&daemon.place, &Request::Status).await.expect("it answers");
    assert_eq!(fine, "fine");
    let failure = client::call::<Value>(&daemon.place, &Request::Peers).await.expect_err("it fails");
    assert_eq!((failure.code, failure.hint.as_str()), (Code::UnknownPeer, "look around"));
}

#[tokio::test]
async fn a_stream_ends_when_the_daemon_ends_it() {
    let daemon = daemon();
    let mut events = client::stream(&daemon.place, &Request::Events).await.expect("it answers");
    let mut seen = Vec::new();
    while let Some(event) = events.next::<u32>().await.expect("nothing fails") {
        seen.push(event);
    }
    assert_eq!(seen, [0, 1, 2]);
}

#[tokio::test]
async fn connect_carries_bytes_both_ways_with_half_close() {
    let daemon = daemon();
    let request = Request::Connect { name: "db".into(), port: 80 };
    let ((), mut raw) = client::raw(&daemon.place, &request).await.expect("it answers");
    raw.write_all(b"abc").await.expect("it is open");
    raw.shutdown().await.expect("it is open");
    let mut answer = String::new();
    raw.read_to_string(&mut answer).await.expect("it ends");
    assert_eq!(answer, "cba");
}

#[tokio::test]
async fn nobody_home_is_said_as_such() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::find(Some(dir.path())).expect("a flag is a place");
    let failure = client::call::<Value>(&place, &Request::Status).await.expect_err("nobody listens");
    assert_eq!(failure.code, Code::NotRunning);
    drop(UnixListener::bind(place.socket()).expect("it binds")); // a daemon that died leaves its file
    let failure = client::call::<Value>(&place, &Request::Status).await.expect_err("nobody listens");
    assert_eq!(failure.code, Code::NotRunning);
}

#[tokio::test]
async fn garbage_is_answered_and_harms_nobody_else() {
    let daemon = daemon();
    for (bytes, code) in [
        (&b"hello\n"[..], "bad_request"),
        (b"{}\n", "bad_request"),
        (b"{\"v\":1}\n", "bad_request"),
        (b"{\"v\":1,\"request\":\"fly\"}\n", "bad_request"),
        (b"{\"v\":1,\"request\":\"ping\",\"name\":7}\n", "bad_request"),
        (b"{\"v\":2,\"request\":\"status\"}\n", "version_mismatch"),
        (&[0xff, 0xfe, b'\n'], "bad_request"),
    ] {
        let answer = said_to(&daemon, bytes).await;
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{bytes:?}: {answer}");
    }
    let fine: String = client::call(&daemon.place, &Request::Status).await.expect("it still answers");
    assert_eq!(fine, "fine");
}

#[tokio::test]
async fn a_line_without_end_is_cut_off() {
    let daemon = daemon();
    let answer = said_to(&daemon, &vec![b'x'; MAX_REQUEST + 1]).await;
    assert!(answer.contains("bad_request"), "{answer}");
}

#[tokio::test]
async fn the_socket_is_its_owners_and_goes_with_the_daemon() {
    let daemon = daemon();
    let path = daemon.place.socket();
    let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let Daemon { _serving: mut serving, _dir: dir, .. } = daemon;
    serving.shutdown().await;
    assert!(!path.exists());
    drop(dir);
}

proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_request(&bytes).is_err());
    }
}
