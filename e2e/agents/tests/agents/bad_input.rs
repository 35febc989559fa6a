//! People type wrong things, late, twice, or on the wrong machine: each is told what happened and what to do.

use peerage_e2e::{Agent, Failed, Machine, Nats, Programs, SERVER, World, until};
use serde_json::Value;

use crate::support::{acquainted, inside};

/// Fails unless `machine` refuses `words` with this status and code, and says in text what happened and what to do.
fn refuses(machine: &Machine, words: &[&str], status: i32, code: &str) -> Result<Value, Failed> {
    let text = machine.attempt(words)?;
    assert_eq!(text.status.code(), Some(status), "{words:?}: {}", text.said());
    assert_eq!(text.stdout, "", "{words:?}: an error is not an answer");
    assert!(text.stderr.starts_with("error: ") && text.stderr.contains("hint: "), "{words:?}: {}", text.said());
    let json = machine.attempt(&[&["--json"], words].concat())?;
    assert_eq!((json.status.code(), json.code().as_str()), (Some(status), code), "{words:?}: {}", json.said());
    let error = json.json()["error"].clone();
    for part in ["message", "hint"] {
        assert!(error[part].as_str().is_some_and(|said| !said.is_empty()), "{words:?}: no {part} in {error}");
    }
    Ok(error)
}

fn one_server(programs: &Programs) -> Result<(World, Agent), Failed> {
    let world = World::new(programs, Nats::home_routers(), 1)?;
    let server = world.start_server()?;
    Ok((world, server))
}

fn ticket(server: &Agent, expires: &str) -> Result<String, Failed> {
    let invited = server.ask(&["invite", "--expires", expires])?;
    Ok(invited["ticket"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn junk_and_damaged_tickets_are_named_as_such() {
    inside("bad_input::junk_and_damaged_tickets_are_named_as_such", |programs| {
        let (world, server) = one_server(programs)?;
        let client = world.start_client()?;
        let good = ticket(&server, "10m")?;
        let (half, changed) = (&good[..good.len() / 2], format!("{good}x"));
        for junk in ["peerage1-x", "", half, &changed, "\u{1f511}"] {
            refuses(&client, &["handshake", junk, "why"], 1, "ticket_invalid")?;
        }
        Ok(())
    });
}

#[test]
fn ones_own_ticket_is_refused() {
    inside("bad_input::ones_own_ticket_is_refused", |programs| {
        let (_world, server) = one_server(programs)?;
        let own = ticket(&server, "10m")?;
        refuses(&server, &["handshake", &own, "why"], 1, "own_ticket").map(drop)
    });
}

#[test]
fn an_expired_ticket_is_refused() {
    inside("bad_input::an_expired_ticket_is_refused", |programs| {
        let (world, server) = one_server(programs)?;
        let client = world.start_client()?;
        let short = ticket(&server, "1s")?;
        // The wall's clock is what ends a ticket; until then it asks for trust.
        until("the ticket's end", || {
            let asked = client.attempt(&["--json", "handshake", &short, "why"])?;
            Ok((asked.code() == "ticket_expired").then_some(()))
        })?;
        refuses(&client, &["handshake", &short, "why"], 1, "ticket_expired").map(drop)
    });
}

#[test]
fn a_used_ticket_is_silent() {
    inside("bad_input::a_used_ticket_is_silent", |programs| {
        let (world, server) = one_server(programs)?;
        let client = world.start_client()?;
        let used = ticket(&server, "10m")?;
        client.ask(&["handshake", &used, "first"])?;
        server.wait_for(Agent::beginning(), "request", |_| true)?;
        // Somebody else got hold of it: another state on the same machine is another authority.
        let stranger =
            Agent::start(&world.client, &["--state", "stranger", "--hostname", "stranger", "--relay", world.relay()])?;
        stranger.wait_for(Agent::beginning(), "relay", |event| event["up"] == true)?;
        let again = world.client.attempt(&["--json", "--state", "stranger", "handshake", &used, "second"])?;
        assert_eq!((again.status.code(), again.code().as_str()), (Some(1), "unreachable"), "{}", again.said());
        let requests = server.attempt(&["--json", "requests"])?;
        assert!(!requests.stdout.contains("stranger"), "{}", requests.said());
        Ok(())
    });
}

#[test]
fn a_second_agent_on_one_state_is_refused_and_the_first_goes_on() {
    inside("bad_input::a_second_agent_on_one_state_is_refused_and_the_first_goes_on", |programs| {
        let (_world, server) = one_server(programs)?;
        refuses(&server, &["up", "--hostname", SERVER], 1, "already_running")?;
        refuses(&server, &["up", "--detach"], 1, "already_running")?;
        server.ask(&["status"]).map(drop)
    });
}

#[test]
fn without_an_agent_commands_say_that_none_runs() {
    inside("bad_input::without_an_agent_commands_say_that_none_runs", |programs| {
        let world = World::new(programs, Nats::home_routers(), 1)?;
        let url = format!("http://{SERVER}/");
        for words in [&["status"][..], &["peers"], &["invite"], &["run", "--", "curl", &url], &["revoke", SERVER]] {
            refuses(&world.client, words, 3, "not_running")?;
        }
        Ok(())
    });
}

#[test]
fn names_that_nobody_has_lead_nowhere() {
    inside("bad_input::names_that_nobody_has_lead_nowhere", |programs| {
        let (_world, client, _server) = acquainted(programs)?;
        for words in [&["connect", "payroll"][..], &["ping", "payroll"], &["revoke", "payroll"], &["bench", "payroll"]]
        {
            refuses(&client, words, 1, "unknown_peer")?;
        }
        refuses(&client, &["approve", "payroll"], 1, "unknown_request")?;
        refuses(&client, &["reject", "payroll"], 1, "unknown_request")?;
        let unknown = client.curl(&["http://payroll/"])?;
        assert_eq!(unknown.status.code(), Some(6), "curl's word for a name that nobody has: {}", unknown.said());
        let closed = client.curl(&[&format!("http://{SERVER}:81/")])?;
        assert_eq!(closed.status.code(), Some(7), "curl's word for a port that is closed: {}", closed.said());
        Ok(())
    });
}

#[test]
fn an_agent_that_is_not_approved_yet_is_not_reached() {
    inside("bad_input::an_agent_that_is_not_approved_yet_is_not_reached", |programs| {
        let (world, server) = one_server(programs)?;
        let client = world.start_client()?;
        client.ask(&["handshake", &ticket(&server, "10m")?, "why"])?;
        let answer = client.curl(&[&format!("http://{SERVER}/")])?;
        assert!(!answer.status.success(), "{}", answer.said());
        let status = client.ask(&["status"])?;
        assert_eq!(status["peers"][0]["state"], "waiting_for_approval", "{status}");
        Ok(())
    });
}

#[test]
fn a_relay_with_another_key_is_not_taken_for_ours() {
    inside("bad_input::a_relay_with_another_key_is_not_taken_for_ours", |programs| {
        let world = World::new(programs, Nats::home_routers(), 1)?;
        let wrong = another_key(world.relay());
        let agent = Agent::start(&world.client, &["--hostname", "reporter", "--relay", &wrong])?;
        agent.wait_for(Agent::beginning(), "started", |_| true)?;
        let doctor = agent.attempt(&["doctor"])?;
        assert_eq!(doctor.status.code(), Some(1), "{}", doctor.said());
        assert!(doctor.stdout.contains("does not answer"), "it names the relay: {}", doctor.said());
        assert!(doctor.stdout.contains("check its address and key"), "and what to do: {}", doctor.said());
        let status = agent.ask(&["status"])?;
        assert_eq!(status["relays"][0]["up"], false, "{status}");
        Ok(())
    });
}

/// The same relay with one digit of its key changed.
fn another_key(relay: &str) -> String {
    let other = if relay.starts_with('b') { "c" } else { "b" };
    format!("{other}{}", &relay[1..])
}
