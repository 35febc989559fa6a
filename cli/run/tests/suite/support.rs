//! A pretend agent (listeners on high ports of loopback) and the programs that shall reach it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Output};
use std::thread;

/// A free address of our range for each test, so that tests can run side by side.
pub fn peer_address(number: u8) -> IpAddr {
    IpAddr::from([127, 64, 200, number])
}

/// `peerage-run-as` with options; the caller adds `--` and the command.
///
/// Run as root, every command is tried as `nobody` too: see [`Runner::output`].
#[derive(Clone, Debug)]
pub struct Runner {
    options: Vec<String>,
}

impl Runner {
    /// One peer, named `name`, whose port 80 really is `real`.
    pub fn with_peer(name: &str, address: IpAddr, real: SocketAddr) -> Self {
        Self { options: Vec::new() }.option("--name", format!("{name}={address}")).map(address, 80, real)
    }

    pub fn bare() -> Self {
        Self { options: Vec::new() }
    }

    pub fn option(mut self, name: &str, value: impl Into<String>) -> Self {
        self.options.extend([name.to_owned(), value.into()]);
        self
    }

    pub fn flag(mut self, name: &str) -> Self {
        self.options.push(name.to_owned());
        self
    }

    pub fn map(self, address: IpAddr, port: u16, real: SocketAddr) -> Self {
        self.option("--map", format!("{}={real}", SocketAddr::new(address, port)))
    }

    /// The command, not started, as the user who runs the tests.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut run = Command::new(env!("CARGO_BIN_EXE_peerage-run-as"));
        run.args(&self.options).arg("--").args(command);
        run
    }

    /// Runs the command; as root it runs once more without any privilege, and both must agree.
    pub fn output(&self, command: &[&str]) -> Output {
        let output = self.command(command).output().expect("the runner starts");
        if rustix::process::geteuid().is_root() {
            let plain = self.as_nobody(command).output().expect("setpriv is part of util-linux");
            assert_eq!(plain.status, output.status, "as nobody: {}", String::from_utf8_lossy(&plain.stderr));
            assert_eq!(text(&plain.stdout), text(&output.stdout), "as nobody");
        }
        output
    }

    /// The runner may stand in a directory that only root can enter, so `nobody` gets it by descriptor.
    fn as_nobody(&self, command: &[&str]) -> Command {
        const HAND_OVER: &str = r#"exec 9<"$0"; exec setpriv --reuid=65534 --regid=65534 --clear-groups \
            --inh-caps=-all --bounding-set=-all /proc/self/fd/9 "$@""#;
        let mut shell = Command::new("/bin/bash");
        shell.args(["-c", HAND_OVER, env!("CARGO_BIN_EXE_peerage-run-as")]);
        shell.args(&self.options).arg("--").args(command).current_dir("/");
        shell
    }

    /// What the command prints; it must succeed.
    pub fn prints(&self, command: &[&str]) -> String {
        let output = self.output(command);
        assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output.stderr));
        text(&output.stdout)
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An HTTP server on a high port that answers every request with `body`.
pub fn http_server(body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut bytes = [0; 1024];
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut bytes) {
                        Ok(len) if len > 0 => request.extend_from_slice(&bytes[..len]),
                        Ok(_) | Err(_) => return,
                    }
                }
                let len = body.len();
                // The client may have what it wants already.
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}");
            });
        }
    });
    address
}

/// An address where nobody listens: bound once, so free, and closed again.
pub fn closed_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback").local_addr().expect("bound")
}

/// A DNS server that answers every A question with `answer`.
pub fn dns_server(answer: Ipv4Addr) -> SocketAddr {
    // Where the agent's stands: resolvers compare the address of a reply.
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 64, 0, 1), 0)).expect("loopback");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&dns_reply(&bytes[..len], answer), from);
        }
    });
    address
}

fn dns_reply(query: &[u8], answer: Ipv4Addr) -> Vec<u8> {
    const HEADER: usize = 12;
    let mut end = HEADER;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let is_a = query[end + 1..end + 3] == [0, 1];
    let mut reply = [&query[..2], &[0x85, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0], &query[HEADER..end + 5]].concat();
    if is_a {
        // The name is a pointer to the question's; type A, class IN, 5 s, four bytes.
        reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        reply.extend(answer.octets());
    }
    reply
}
