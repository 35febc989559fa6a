//! What the pods of the tests run: an application that knows nothing of Peerage.
//!
//! `serve ADDRESS…` answers every HTTP request with the pod's name and who asked. `load HOST:PORT COUNT PAUSE-MS RETRIES`
//! sends that many, one connection each, and prints a JSON line of what came of them. `get HOST:PORT` asks once. `sleep`
//! waits for SIGTERM, at which all of them end at once.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    end_at_sigterm();
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", addresses @ ..] if !addresses.is_empty() => serve(addresses),
        ["load", target, count, pause, retries] => load(target, count, pause, retries),
        ["get", target] => ask(target).map(|body| println!("{body}")),
        ["sleep"] => loop {
            thread::park();
        },
        _ => Err(io::Error::other(
            "usage: app serve ADDRESS… | load HOST:PORT COUNT PAUSE-MS RETRIES | get HOST:PORT | sleep",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The first process of a container gets no signal that it has not asked for.
fn end_at_sigterm() {
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: _exit may be called in a signal handler (signal-safety(7)) and takes any number.
        unsafe { libc::_exit(0) }
    }
    // SAFETY: the handler calls nothing that a signal handler must not.
    unsafe { libc::signal(libc::SIGTERM, end as *const () as libc::sighandler_t) };
}

fn serve(addresses: &[&str]) -> io::Result<()> {
    let name = env::var("HOSTNAME").unwrap_or_default();
    let listen = |address: &&str| TcpListener::bind(address);
    let listeners = addresses.iter().map(listen).collect::<io::Result<Vec<_>>>()?;
    println!("serving on {}", addresses.join(" "));
    thread::scope(|scope| {
        for listener in &listeners {
            let name = &name;
            scope.spawn(move || {
                for stream in listener.incoming().flatten() {
                    let name = name.clone();
                    thread::spawn(move || answer(stream, &name));
                }
            });
        }
    });
    Ok(())
}

/// One answer for one connection; who asked is named, because the application may want to know.
fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    let body = format!("{name} answers {peer}\n");
    stream.write_all(
        format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).as_bytes(),
    )
}

fn ask(target: &str) -> io::Result<String> {
    let address = target.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let host = target.split(':').next().unwrap_or_default();
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no HTTP answer"))?;
    Ok(body.trim().to_owned())
}

/// What came of a load.
#[derive(Default)]
struct Counts {
    answered: BTreeMap<String, u32>,
    retried: u32,
    failed: u32,
    slowest: Duration,
    last_error: Option<Duration>,
    errors: BTreeMap<String, u32>,
}

fn load(target: &str, count: &str, pause: &str, retries: &str) -> io::Result<()> {
    let number = |text: &str| text.parse::<u32>().map_err(io::Error::other);
    let (count, pause, retries) = (number(count)?, Duration::from_millis(number(pause)?.into()), number(retries)?);
    let mut counts = Counts::default();
    println!("loading");
    let begun = Instant::now();
    for _ in 0..count {
        let asked = Instant::now();
        one(target, retries, begun, &mut counts);
        counts.slowest = counts.slowest.max(asked.elapsed());
        thread::sleep(pause); // the rhythm of the load, not a wait for anything
    }
    println!("{}", counts.as_json());
    Ok(())
}

fn one(target: &str, retries: u32, begun: Instant, counts: &mut Counts) {
    for attempt in 0..=retries {
        match ask(target) {
            Ok(body) => {
                let who = body.split(' ').next().unwrap_or_default().to_owned();
                *counts.answered.entry(who).or_default() += 1;
                counts.retried += u32::from(attempt > 0);
                return;
            }
            Err(error) => {
                *counts.errors.entry(error.to_string()).or_default() += 1;
                counts.last_error = Some(begun.elapsed());
            }
        }
    }
    counts.failed += 1;
}

impl Counts {
    fn as_json(&self) -> String {
        let map = |map: &BTreeMap<String, u32>| {
            map.iter().map(|(key, count)| format!("{key:?}: {count}")).collect::<Vec<_>>().join(", ")
        };
        let last = self.last_error.map_or_else(|| "null".to_owned(), |at| at.as_millis().to_string());
        format!(
            r#"{{"answered": {{{}}}, "retried": {}, "failed": {}, "slowest_ms": {}, "last_error_ms": {last}, "errors": {{{}}}}}"#,
            map(&self.answered),
            self.retried,
            self.failed,
            self.slowest.as_millis(),
            map(&self.errors),
        )
    }
}
