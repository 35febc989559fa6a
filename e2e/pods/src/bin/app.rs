//! What the pods of the tests run: an application that knows nothing of Peerage.
//!
//! `serve ADDRESS…` answers every HTTP request with the pod's name and who asked, and one for `/drip` without end. `load HOST:PORT COUNT PAUSE-MS RETRIES`
//! sends that many, one connection each, and prints a JSON line of what came of them. `get HOST:PORT` asks once. `echo ADDRESS`
//! sends back what it gets, and `hold HOST:PORT WORD` keeps a connection to it open; both print how and when it ended.
//! `forgetful-dns ADDRESS` is a DNS server that answers a question when it is asked the second time. `sleep` waits for
//! SIGTERM, at which all of them end at once; `load` after the request that it is at.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Between two lines of an answer without end.
const DRIP: Duration = Duration::from_millis(20);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whether a load has sent enough.
static ENOUGH: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    end_at_sigterm();
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", addresses @ ..] if !addresses.is_empty() => serve(addresses),
        ["load", target, count, pause, retries] => load(target, count, pause, retries),
        ["get", target] => ask(target).map(|body| println!("{body}")),
        ["forgetful-dns", address] => forgetful_dns(address),
        ["echo", address] => echo(address),
        ["hold", target, word] => hold(target, word),
        ["sleep"] => loop {
            thread::park();
        },
        _ => Err(io::Error::other(
            "usage: app serve ADDRESS… | load HOST:PORT COUNT PAUSE-MS RETRIES | get HOST:PORT | echo ADDRESS | \
             hold HOST:PORT WORD | forgetful-dns ADDRESS | sleep",
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

/// A load says what came of its requests before it ends.
fn end_after_this_at_sigterm() {
    extern "C" fn enough(_: libc::c_int) {
        ENOUGH.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler stores a flag and calls nothing.
    unsafe { libc::signal(libc::SIGTERM, enough as *const () as libc::sighandler_t) };
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
    if request.starts_with(b"GET /drip ") {
        stream.write_all(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n")?;
        loop {
            stream.write_all(b"drip\n")?;
            thread::sleep(DRIP); // the rhythm of the answer
        }
    }
    let body = format!("{name} answers {peer}\n");
    stream.write_all(
        format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).as_bytes(),
    )
}

/// Sends back everything; of each connection, how and when it ended.
fn echo(address: &str) -> io::Result<()> {
    for stream in TcpListener::bind(address)?.incoming().flatten() {
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut word = String::new();
            let mut one = |stream: &mut BufReader<TcpStream>| -> io::Result<usize> {
                let mut line = String::new();
                let length = stream.read_line(&mut line)?;
                stream.get_mut().write_all(line.as_bytes())?;
                if word.is_empty() {
                    word = line.trim().to_owned();
                }
                Ok(length)
            };
            let end = loop {
                match one(&mut stream) {
                    Ok(0) => break None,
                    Ok(_) => {}
                    Err(error) => break Some(error),
                }
            };
            println!("{}", ended(&word, end.as_ref()));
        });
    }
    Ok(())
}

/// A connection that stays: says when it is open, then how and when it ended.
fn hold(target: &str, word: &str) -> io::Result<()> {
    let mut stream = BufReader::new(connect(target)?);
    stream.get_mut().write_all(format!("{word}\n").as_bytes())?;
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    println!("open");
    stream.get_mut().set_read_timeout(Some(Duration::from_secs(1)))?;
    let end = loop {
        match stream.read_line(&mut line) {
            Ok(0) => break None,
            Ok(_) => {}
            // A second without a word: say one, for which an answer comes back.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if let Err(error) = stream.get_mut().write_all(b"still here\n") {
                    break Some(error);
                }
            }
            Err(error) => break Some(error),
        }
    };
    println!("{}", ended(word, end.as_ref()));
    Ok(())
}

/// How a connection ended, as a JSON line.
fn ended(word: &str, error: Option<&io::Error>) -> String {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let how = error.map_or_else(|| "closed".to_owned(), |error| format!("{:?}", error.kind()));
    format!(r#"{{"word": {word:?}, "how": {how:?}, "at_ms": {}}}"#, at.as_millis())
}

fn connect(target: &str) -> io::Result<TcpStream> {
    let address = target.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no address"))?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(target: &str) -> io::Result<String> {
    let mut stream = connect(target)?;
    let host = target.split(':').next().unwrap_or_default();
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no HTTP answer"))?;
    Ok(body.trim().to_owned())
}

/// What a DNS message begins with (RFC 1035 section 4.1.1).
const DNS_HEAD: usize = 12;

/// Answers what is asked about names of the top-level domain `test` when it is asked again, with 192.0.2.53, and says so
/// in a line when it does not answer. It refuses what is about other names.
fn forgetful_dns(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut heard = BTreeSet::new();
    let mut buffer = [0; 512];
    println!("answering on {address}");
    loop {
        let (length, client) = socket.recv_from(&mut buffer)?;
        let Some((head, rest)) = buffer[..length].split_first_chunk::<DNS_HEAD>() else { continue };
        // The name with its end, and the type and class that are asked for.
        let Some(name) = rest.iter().position(|byte| *byte == 0) else { continue };
        let Some(question) = rest.get(..name + 5) else { continue };
        let is_known = rest[..name].ends_with(b"\x04test");
        if is_known && heard.insert(question.to_vec()) {
            println!("asked for the first time");
            continue;
        }
        // NOERROR or REFUSED; one answer to who asks for an address (type A, class IN), and none to others.
        let has_address = is_known && question.ends_with(&[0, 1, 0, 1]);
        let mut answer =
            [&head[..2], &[0x81, if is_known { 0x80 } else { 0x85 }, 0, 1, 0, has_address.into(), 0, 0, 0, 0]].concat();
        answer.extend_from_slice(question);
        if has_address {
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 192, 0, 2, 53]);
        }
        socket.send_to(&answer, client)?;
    }
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
    end_after_this_at_sigterm();
    println!("loading");
    let begun = Instant::now();
    for _ in (0..count).take_while(|_| !ENOUGH.load(Ordering::Relaxed)) {
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
