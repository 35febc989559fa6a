//! A program's status, signals, streams and leftovers are as if it had been started directly.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Runner, http_server, peer_address, text};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process};

#[test]
fn the_exit_code_is_the_programs() {
    assert_eq!(Runner::bare().output(&["sh", "-c", "exit 7"]).status.code(), Some(7));
}

#[test]
fn death_by_a_signal_is_128_and_the_signal() {
    assert_eq!(Runner::bare().output(&["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
}

#[test]
fn a_command_that_does_not_exist_is_127() {
    let output = Runner::bare().output(&["/no/such/command"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("cannot start `/no/such/command`"));
}

#[test]
fn a_command_that_may_not_run_is_126() {
    assert_eq!(Runner::bare().output(&["/etc/passwd"]).status.code(), Some(126));
}

#[test]
fn a_second_supervisor_inside_the_first_says_what_to_do() {
    let run = Runner::bare();
    let inner = env!("CARGO_BIN_EXE_peerage-run-as");
    let output = run.command(&[inner, "--", "true"]).output().expect("the runner starts");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("start the command directly"), "{}", text(&output.stderr));
}

#[test]
fn standard_streams_are_the_programs() {
    let mut child =
        Runner::bare().command(&["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the runner");
    child.stdin.take().expect("piped").write_all(b"through").expect("cat reads");
    assert_eq!(text(&child.wait_with_output().expect("cat ends").stdout), "through");
}

#[test]
fn a_signal_to_the_supervisor_reaches_the_program() {
    let script = "trap 'echo got TERM; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let (mut child, mut lines) = start(&Runner::bare(), &["sh", "-c", script]);
    assert_eq!(next(&mut lines), "ready");
    signal(&child, Signal::TERM);
    assert_eq!(next(&mut lines), "got TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}

#[test]
fn the_program_dies_with_its_supervisor() {
    let (mut child, mut lines) = start(&Runner::bare(), &["sh", "-c", "echo $$; exec sleep 600"]);
    let program: i32 = next(&mut lines).parse().expect("a process id");
    let program = Pid::from_raw(program).expect("a process id");
    let ends = rustix::process::pidfd_open(program, PidfdFlags::empty()).expect("it runs");
    signal(&child, Signal::KILL);
    child.wait().expect("killed");
    let mut ended = [PollFd::new(&ends, PollFlags::IN)];
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ended, Some(&patience)), Ok(1), "the program lives on");
}

#[test]
fn a_process_left_behind_keeps_its_names_until_it_ends() {
    let run = Runner::bare().option("--name", "db=127.64.200.20");
    let script = "(sleep 0.3; python3 -c \"import socket; print(socket.gethostbyname('db'))\") & exit 5";
    let output = run.output(&["sh", "-c", script]);
    assert_eq!(text(&output.stdout), "127.64.200.20\n");
    assert_eq!(output.status.code(), Some(5), "the status is the command's own");
    assert!(text(&output.stderr).contains("waiting for what is left"));
}

#[test]
fn a_process_left_behind_ends_when_asked_to() {
    let run = Runner::bare().flag("--end-leftovers");
    let begin = Instant::now();
    let output = run.output(&["sh", "-c", "setsid sleep 600 &"]);
    assert!(output.status.success());
    assert!(begin.elapsed() < Duration::from_secs(60), "it did not wait for the sleep");
}

#[test]
fn a_signal_ends_those_left_behind() {
    let (mut child, mut lines) = start(
        &Runner::bare(),
        &["sh", "-c", "setsid sh -c 'trap \"exit 0\" TERM; echo ready; while :; do sleep 0.05; done' &"],
    );
    assert_eq!(next(&mut lines), "ready");
    // Before or after the shell has ended, somebody gets it; only the daemon must not be missed.
    while child.try_wait().expect("ours").is_none() {
        signal(&child, Signal::TERM);
        std::thread::yield_now();
    }
}

#[test]
fn a_handled_signal_interrupts_a_connect_that_waits() {
    // A full queue drops the handshake, so the connect waits as it would for a silent host.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let real = listener.local_addr().expect("bound");
    // Listening again shrinks the queue.
    rustix::net::listen(&listener, 0).expect("listening already");
    let run = Runner::with_peer("db", peer_address(21), real);
    let script = "
import errno, signal, socket, time
full = []
for _ in range(3):
    s = socket.socket(); s.setblocking(False); s.connect_ex(('db', 80)); full.append(s)
def on_alarm(*_): raise TimeoutError
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.3)
s = socket.socket()
begin = time.monotonic()
try: s.connect(('db', 80)); print('connected')
except TimeoutError: print('interrupted', time.monotonic() - begin < 30)
other = socket.socket(); other.settimeout(0.2)
try: other.connect(('db', 80)); print('connected')
except TimeoutError: print('timed out')";
    assert_eq!(run.prints(&["python3", "-c", script]), "interrupted True\ntimed out\n");
}

#[test]
fn one_slow_connect_does_not_hold_up_another() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    rustix::net::listen(&listener, 0).expect("listening already");
    let slow = listener.local_addr().expect("bound");
    let run = Runner::with_peer("quick", peer_address(22), http_server("x")).map(peer_address(23), 80, slow);
    let script = "
import os, socket, threading, time
full = []
for _ in range(3):
    s = socket.socket(); s.setblocking(False); s.connect_ex(('127.64.200.23', 80)); full.append(s)
waiting = [threading.Thread(target=lambda: socket.socket().connect(('127.64.200.23', 80)), daemon=True) for _ in range(8)]
for t in waiting: t.start()
socket.create_connection(('quick', 80))
print(all(t.is_alive() for t in waiting), flush=True)
os._exit(0)";
    assert_eq!(run.prints(&["python3", "-c", script]), "True\n");
}

fn start(run: &Runner, command: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command: Command = run.command(command);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the runner starts");
    let lines = BufReader::new(child.stdout.take().expect("piped"));
    (child, lines)
}

fn next(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    line.trim_end().to_owned()
}

fn signal(child: &Child, signal: Signal) {
    let child = Pid::from_raw(child.id() as i32).expect("a process");
    kill_process(child, signal).expect("it lives");
}
