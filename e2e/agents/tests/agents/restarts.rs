//! Programs are killed without a word, and come back.

use std::io::{BufRead, BufReader};
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use peerage_e2e::{Agent, Failed, Running, SERVER, Trying, until};

use crate::support::{acquainted, alone, until_direct};

/// A restarted agent is to be reached again this soon after it is up.
const AGAIN: Duration = Duration::from_secs(2);

#[test]
fn a_killed_agent_is_reached_by_the_same_name_when_it_is_up_again() {
    alone("restarts::a_killed_agent_is_reached_by_the_same_name_when_it_is_up_again", |programs| {
        let (world, client, mut server) = acquainted(programs)?;
        until_direct(&client)?;
        assert_eq!(fetch(&client)?, "hello\n");
        server.process().kill()?;
        drop(server);
        let server = world.start_server()?;
        let up = Instant::now();
        let instance = server.ask(&["status"])?["instance"].clone();
        // The agent that was killed cannot say so; that its successor has come is what its peer goes by.
        client.until_status("the successor is known", |status| {
            status["peers"][0]["instances"].as_array().is_some_and(|known| known.contains(&instance))
        })?;
        assert_eq!(fetch(&client)?, "hello\n");
        let took = up.elapsed();
        assert!(took < AGAIN, "it took {took:?}; the server's agent: {}", server.log("agent"));
        Ok(())
    });
}

#[test]
fn a_killed_client_asks_again_as_soon_as_it_is_up() {
    alone("restarts::a_killed_client_asks_again_as_soon_as_it_is_up", |programs| {
        let (world, mut client, server) = acquainted(programs)?;
        until_direct(&client)?;
        client.process().kill()?;
        drop(client);
        let client = world.start_client()?;
        let up = Instant::now();
        // Its names and ports come from the peer, so a program can be started before they are there.
        client.wait_for(Agent::beginning(), "ports", |event| !event["ports"][0].is_null())?;
        assert_eq!(fetch(&client)?, "hello\n");
        let took = up.elapsed();
        assert!(took < AGAIN, "it took {took:?}; the server's agent: {}", server.log("agent"));
        Ok(())
    });
}

#[test]
fn an_open_direct_stream_outlives_the_relay_and_new_sessions_come_up_with_it() {
    alone("restarts::an_open_direct_stream_outlives_the_relay_and_new_sessions_come_up_with_it", |programs| {
        let (mut world, client, mut server) = acquainted(programs)?;
        until_direct(&client)?;
        let (mut curl, mut lines) = open_stream(&client)?;
        read_lines(&mut lines, 5)?;

        world.kill_relays()?;
        read_lines(&mut lines, 50)?;
        assert_eq!(fetch(&client)?, "hello\n", "new streams need no relay either");

        let mark = client.mark();
        world.restart_relays()?;
        client.wait_for(mark, "relay", |event| event["up"] == true)?;
        read_lines(&mut lines, 5)?;
        assert!(curl.ended()?.is_none(), "the stream never broke");
        drop(curl);

        server.process().kill()?;
        drop(server);
        let _server = world.start_server()?;
        let mut answer = String::new();
        until("an answer by a new session", || {
            answer = fetch(&client)?;
            Ok((answer == "hello\n").then_some(()))
        })
        .map_err(|failed| Failed::new(format!("{failed}: {answer}")))
    });
}

#[test]
fn a_restarted_router_does_not_break_an_open_stream() {
    alone("restarts::a_restarted_router_does_not_break_an_open_stream", |programs| {
        let (world, client, _server) = acquainted(programs)?;
        until_direct(&client)?;
        let (mut curl, mut lines) = open_stream(&client)?;
        read_lines(&mut lines, 5)?;
        world.lab.flush_nat(client.host());
        read_lines(&mut lines, 50)?;
        assert!(curl.ended()?.is_none());
        Ok(())
    });
}

/// What the server answers, or what went wrong.
fn fetch(client: &Agent) -> Result<String, Failed> {
    let answer = client.curl(&[&format!("http://{SERVER}/")])?;
    Ok(if answer.status.success() { answer.stdout } else { answer.said() })
}

/// A curl whose answer does not end.
pub fn open_stream(client: &Agent) -> Result<(Running, BufReader<ChildStdout>), Failed> {
    let words = ["run", "--", "curl", "-sS", "--no-buffer", &format!("http://{SERVER}/drip")];
    let mut curl = client.start(client.peerage(&words), "curl")?;
    let lines = BufReader::new(curl.stdout());
    Ok((curl, lines))
}

/// Reads that many lines of it.
pub fn read_lines(lines: &mut BufReader<ChildStdout>, count: usize) -> Result<(), Failed> {
    for number in 0..count {
        let mut line = String::new();
        if lines.read_line(&mut line).trying("read from curl")? == 0 {
            return Err(Failed::new(format!("curl ended after {number} of {count} lines")));
        }
    }
    Ok(())
}
