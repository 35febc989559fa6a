//! Trust that is taken back ends what is open, on both sides, at once.

use std::io::Read;
use std::time::{Duration, Instant};

use peerage_e2e::{Agent, Failed, SERVER, Trying};

use crate::restarts::{open_stream, read_lines};
use crate::support::{acquainted, alone};

/// DESIGN.md, promise 7.
const PROMISE: Duration = Duration::from_secs(1);

#[test]
fn the_servers_revocation_resets_an_open_curl_on_the_client_within_a_second() {
    alone("revocation::the_servers_revocation_resets_an_open_curl_on_the_client_within_a_second", |programs| {
        let (_world, client, server) = acquainted(programs)?;
        resets_curl(&client, &server, "reporter")?;
        // The name stays, as the client still trusts; who asks waits in vain.
        let refused = client.curl(&["--max-time", "2", &format!("http://{SERVER}/")])?;
        assert!(!refused.status.success(), "nothing flows any more: {}", refused.said());
        Ok(())
    });
}

#[test]
fn the_clients_own_revocation_resets_its_curl_within_a_second() {
    alone("revocation::the_clients_own_revocation_resets_its_curl_within_a_second", |programs| {
        let (_world, client, _server) = acquainted(programs)?;
        resets_curl(&client, &client, SERVER)?;
        let unknown = client.curl(&[&format!("http://{SERVER}/")])?;
        assert_eq!(unknown.status.code(), Some(6), "curl's word for a name that nobody has: {}", unknown.said());
        Ok(())
    });
}

/// Opens a stream at the client, lets `who` revoke, and measures when curl ends.
fn resets_curl(client: &Agent, who: &Agent, whom: &str) -> Result<(), Failed> {
    let (mut curl, mut lines) = open_stream(client)?;
    read_lines(&mut lines, 5)?;
    let ended = std::thread::spawn(move || {
        let rest = lines.read_to_end(&mut Vec::new());
        (Instant::now(), rest)
    });
    let begun = Instant::now();
    let revoked = who.ask(&["revoke", whom, "--wait"])?;
    let told = begun.elapsed();
    let (at, rest) = ended.join().map_err(|_| Failed::new("the reader panicked"))?;
    rest.trying("read from curl")?;
    let took = at.saturating_duration_since(begun);
    let status = curl.wait()?;
    let logs = || format!("curl: {}\nagent: {}", client.log("curl"), client.log("agent"));
    assert!(!status.success(), "a reset must not look like the end of an answer: {status}; {}", logs());
    assert!(took < PROMISE, "curl ended after {took:?}");
    assert!(told < PROMISE, "`revoke --wait` came back after {told:?}");
    assert!(revoked["streams_reset"].as_u64() > Some(0), "{revoked}");
    assert!(revoked["reset_ms"].as_f64().is_some_and(|reset| reset < 1000.0), "{revoked}");
    println!("curl ended {took:?} after the command was typed; `--wait` said {} ms", revoked["reset_ms"]);
    Ok(())
}
