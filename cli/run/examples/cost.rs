//! What a program pays for running under the filter: measured from inside, printed in microseconds.
//!
//! Run it plainly and under the filter, several times in turn, on an otherwise idle machine:
//!
//! ```sh
//! cargo build --release -p peerage-run --example cost --bin peerage-run-as
//! target/release/examples/cost
//! target/release/peerage-run-as --map 127.64.7.7:80=127.0.0.1:47080 -- target/release/examples/cost 127.64.7.7:80
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// As many as the tree of a larger program has.
const FILES: usize = 10_000;
const CONNECTS: usize = 2_000;
const LISTENER: &str = "127.0.0.1:47080";

fn main() -> io::Result<()> {
    let listener = TcpListener::bind(LISTENER)?;
    thread::spawn(move || listener.incoming().for_each(drop));
    let target = std::env::args().nth(1).unwrap_or_else(|| LISTENER.to_owned());
    let target: SocketAddr = target.parse().expect("an address and a port");

    let directory = std::env::temp_dir().join(format!("peerage-run-cost-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let paths: Vec<_> = (0..FILES).map(|number| directory.join(number.to_string())).collect();
    for path in &paths {
        File::create(path)?;
    }
    report("open and close, read-only", paths.iter().map(|path| timed(|| File::open(path).map(drop))));
    let mut as_compiler = OpenOptions::new();
    as_compiler.read(true).custom_flags(libc::O_NOCTTY);
    report("the same with O_NOCTTY", paths.iter().map(|path| timed(|| as_compiler.open(path).map(drop))));
    std::fs::remove_dir_all(&directory)?;

    let plain: SocketAddr = LISTENER.parse().expect("an address and a port");
    report("connect, blocking, not redirected", (0..CONNECTS).map(|_| timed_connect(plain, false)));
    report("connect, blocking, to the argument", (0..CONNECTS).map(|_| timed_connect(target, false)));
    report("connect, non-blocking, to the argument", (0..CONNECTS).map(|_| timed_connect(target, true)));
    Ok(())
}

fn timed_connect(to: SocketAddr, nonblocking: bool) -> io::Result<Duration> {
    let flags = if nonblocking { SocketFlags::NONBLOCK } else { SocketFlags::empty() };
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    timed(|| match rustix::net::connect(&socket, &to) {
        Err(Errno::INPROGRESS) if nonblocking => Ok(()),
        done => Ok(done?),
    })
}

fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed())
}

fn report(what: &str, samples: impl Iterator<Item = io::Result<Duration>>) {
    let mut samples: Vec<Duration> =
        samples.collect::<io::Result<_>>().expect("loopback and the temporary directory work");
    let all: Duration = samples.iter().sum();
    samples.sort_unstable();
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let (median, p99) = (samples[samples.len() / 2], samples[samples.len() * 99 / 100]);
    println!(
        "{what:<40} median {:>7.1}  p99 {:>7.1}  all {:>8.1} ms",
        micros(median),
        micros(p99),
        all.as_secs_f64() * 1e3
    );
}
