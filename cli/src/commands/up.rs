//! Starting and stopping the agent.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use peerage_agent::control::failure::Failure;
use peerage_agent::control::view::{Event, Status};
use peerage_agent::control::{Code, Request, client};
use peerage_agent::daemon::{self, Daemon, NO_RELAY, Options, driver};
use peerage_agent::driver::ProxySettings;
use peerage_agent::process;
use peerage_agent::state::Place;
use peerage_agent::state::lookup::short;
use peerage_output::Output;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::log::{self, LOG};
use super::{Done, Threads, log_to_stderr, runtime, system};
use crate::args::Up;

/// How long a daemon may take to come up or to go; its own limits are shorter.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often we look whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the agent in this process until a signal or `peerage down`.
pub async fn foreground(place: Place, up: Up, output: Output) -> Done {
    if up.detached {
        // Away from the terminal, so that closing it does not end us.
        rustix::process::setsid().map_err(|error| system("leave the terminal", &error.into()))?;
    }
    log_to_stderr(tracing::Level::WARN);
    process::end_at_panic();
    process::allow_files();
    let stop = process::stop_signal().map_err(|error| system("listen for signals", &error))?;
    let state = place.directory().display().to_string();
    if up.detached {
        tokio::spawn(log::keep_short(place.clone()));
    }
    let daemon = daemon::start(place, options(up), driver::starter()).await?;
    let events = daemon.events();
    say_started(&daemon, &state, output);
    let stopper = daemon.stopper();
    let running = tokio::spawn(daemon.run());
    tokio::spawn(async move {
        stop.await;
        stopper.stop();
    });
    show(events, output).await;
    match running.await {
        Ok(ended) => ended.map(|()| ExitCode::SUCCESS),
        Err(error) => {
            Err(Failure::new(Code::Internal, format!("the agent broke off: {error}"), "look at what it said before"))
        }
    }
}

fn options(up: Up) -> Options {
    Options {
        hostname: up.hostname,
        relays: up.relay,
        public: (up.public || up.no_public).then_some(up.public),
        expose: up.expose,
        avoid: up.avoid,
        endpoints: up.endpoint,
        bind: up.bind,
        port_mapping: up.port_mapping,
        relay_proxy: ProxySettings::from_env(|name| std::env::var(name).ok()),
        memory: up.tunnel_memory.unwrap_or_default(),
        proxy: up.proxy,
        names: true,
        health: up.health,
    }
}

fn say_started(daemon: &Daemon, state: &str, output: Output) {
    let (dns, proxy) = daemon.edges();
    let started = json!({
        "event": "started", "agent": daemon.agent().to_string(), "state": state, "pid": std::process::id(),
        "dns": dns, "proxy": proxy, "health": daemon.health, "problems": daemon.problems(),
    });
    output.event(&started, |_| {
        let mut lines = vec![
            format!("agent      {}", short(daemon.agent())),
            format!("authority  {}", daemon.agent().authority),
            format!("state      {state}"),
        ];
        lines.extend(dns.map(|address| format!("dns        {address}")));
        lines.extend(proxy.map(|address| format!("proxy      {address}")));
        lines.extend(daemon.health.map(|address| format!("health     http://{address}/metrics")));
        lines.extend(daemon.problems().iter().map(|problem| format!("problem    {problem}")));
        lines.join("\n")
    });
}

/// Says what happens until the daemon stops.
async fn show(mut events: broadcast::Receiver<Event>, output: Output) {
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(count)) => Event::Missed { count },
            Err(broadcast::error::RecvError::Closed) => return,
        };
        output.event(&event, in_words);
        if event == Event::Stopping {
            return;
        }
    }
}

fn in_words(event: &Event) -> String {
    let place = |relay: &str| relay.split_once('@').map_or(relay, |(_, place)| place).to_owned();
    match event {
        Event::Relay { relay, up: true, observed: Some(observed) } => {
            format!("relay      {} up; our public endpoint is {observed}", place(relay))
        }
        Event::Relay { relay, up: true, observed: None } => format!("relay      {} up", place(relay)),
        Event::Relay { relay, up: false, .. } => format!("relay      {} down", place(relay)),
        Event::RelayRefused { relay, reason } => format!("relay      {} does not take us: {reason}", place(relay)),
        Event::Nat { nat } => format!("nat        {}", nat.detail),
        Event::Connected { peer, path, approved: true, .. } => format!("approved   {peer}; connected, {path}"),
        Event::Connected { peer, path, approved: false, .. } => format!("connected  {peer}, {path}"),
        Event::Disconnected { peer, reason, .. } => format!("ended      {peer}: {reason}"),
        Event::PathChanged { peer, from, to, why, rtt_ms } => {
            let rtt = rtt_ms.map_or_else(String::new, |rtt| format!(", {rtt:.1} ms"));
            format!("path       {peer}: {from} -> {to}{rtt} ({why})")
        }
        Event::Ports { peer, ports } if ports.is_empty() => format!("ports      {peer} opens nothing to us"),
        Event::Ports { peer, ports } => format!("ports      {peer} opens {}", ports.join(", ")),
        Event::Request { name, reason, .. } => {
            format!("request    {name} asks for trust: \"{reason}\" (peerage approve {name})")
        }
        Event::Approved { peer, .. } => format!("trusted    {peer}"),
        Event::Revoked { peer, reset_ms: Some(took), streams, .. } => {
            format!("revoked    {peer}: {streams} streams reset after {took:.1} ms")
        }
        Event::Revoked { peer, reset_ms: None, .. } => format!("revoked    {peer}"),
        Event::StreamsReset { peer, count, why } => format!("reset      {count} streams with {peer}: {why}"),
        Event::Expired { peer, .. } => format!("expired    the trust in {peer}"),
        Event::Missed { count } => format!("…          {count} events more"),
        Event::Stopping => "stopping".into(),
    }
}

/// Starts the agent in the background, and returns when it answers.
pub fn detach(place: &Place, output: Output) -> Done {
    let (mut log, from) = open_log(place)?;
    let mut child = spawn_detached(&log)?;
    let runtime = runtime(Threads::None)?;
    let begun = Instant::now();
    loop {
        // Another agent may hold the state and answer: only our child counts.
        match runtime.block_on(client::call::<Status>(place, &Request::Status)) {
            Ok(status) if status.pid == child.id() => {
                output.answer(&status, in_background);
                return Ok(ExitCode::SUCCESS);
            }
            Ok(_) | Err(_) => {}
        }
        if child.try_wait().map_err(|error| system("look after the agent", &error))?.is_some() {
            return Err(why_it_ended(&mut log, from));
        }
        if begun.elapsed() > PATIENCE {
            return Err(Failure::new(
                Code::TimedOut,
                format!("the agent did not answer within {} s", PATIENCE.as_secs()),
                format!("its log is `{}`", place.file(LOG).display()),
            ));
        }
        sleep(LOOK);
    }
}

fn in_background(status: &Status) -> String {
    let mut lines = vec![format!(
        "{} runs in the background (process {}). Stop it with: peerage down",
        short(&status.agent),
        status.pid
    )];
    let no_relay = status.relays.is_empty().then_some(NO_RELAY);
    let problems = no_relay.into_iter().chain(status.problems.iter().map(String::as_str));
    lines.extend(problems.map(|problem| format!("problem    {problem}")));
    lines.join("\n")
}

fn open_log(place: &Place) -> Result<(File, u64), Failure> {
    // First, as the agent itself would: with the log in it, a directory that was empty and open to others would not be taken.
    place.prepare()?;
    let mut file = place.append(LOG)?;
    let end = file.seek(SeekFrom::End(0)).map_err(|error| system("find the end of the log", &error))?;
    Ok((file, end))
}

/// The same command again, with its output in the log.
fn spawn_detached(log: &File) -> Result<Child, Failure> {
    let spawn = || {
        let detach = |arg: &std::ffi::OsString| arg != "--detach" && arg != "-d" && arg != "--json";
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1).filter(detach)).args(["--detached", "--json"]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?).spawn()
    };
    spawn().map_err(|error| system("start the agent", &error))
}

/// The failure that the child said, or what else it said.
fn why_it_ended(log: &mut File, from: u64) -> Failure {
    #[derive(Deserialize)]
    struct Said {
        error: Failure,
    }
    let mut text = String::new();
    let read = log.seek(SeekFrom::Start(from)).and_then(|_| log.read_to_string(&mut text));
    let said = text.lines().rev().find_map(|line| serde_json::from_str::<Said>(line).ok());
    match (said, read) {
        (Some(said), _) => said.error,
        (None, _) => Failure::new(
            Code::Internal,
            format!("the agent ended at once: {}", text.lines().last().unwrap_or("it said nothing")),
            "start it without --detach to see more",
        ),
    }
}

/// Stops the agent, and returns when it is gone.
pub async fn down(place: &Place, output: Output) -> Done {
    let _: Value = client::call(place, &Request::Down).await?;
    let gone = async {
        let begun = Instant::now();
        // The lock goes with the process, the socket before: who has the lock knows that all is over.
        while place.clone().take().is_err() {
            if begun.elapsed() > PATIENCE {
                return Err(Failure::new(
                    Code::TimedOut,
                    "the agent is still there",
                    "look at its log, or end its process",
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    output.waiting("telling peers", gone).await?;
    output.answer(&json!({ "event": "stopped" }), |_| "Stopped.".into());
    Ok(ExitCode::SUCCESS)
}
