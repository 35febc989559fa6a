//! Real programs, unmodified, find a peer by its name and reach its port 80.

use std::net::{Ipv4Addr, SocketAddr};

use crate::support::{Runner, closed_port, dns_server, http_server, peer_address, text};

#[test]
fn curl_reaches_a_peer_by_name() {
    let run = Runner::with_peer("db-tool-server", peer_address(1), http_server("from the peer"));
    assert_eq!(run.prints(&["curl", "-sS", "http://db-tool-server/"]), "from the peer");
}

#[test]
fn python_reaches_a_peer_by_name() {
    let run = Runner::with_peer("db-tool-server", peer_address(2), http_server("from the peer"));
    let script = "import urllib.request as u; print(u.urlopen('http://db-tool-server/').read().decode())";
    assert_eq!(run.prints(&["python3", "-c", script]), "from the peer\n");
}

#[test]
fn getaddrinfo_gives_the_peers_stable_address() {
    let run = Runner::with_peer("db-tool-server", peer_address(3), closed_port());
    let script = "import socket; print({a[4][0] for a in socket.getaddrinfo('db-tool-server', 80)})";
    assert_eq!(run.prints(&["python3", "-c", script]), "{'127.64.200.3'}\n");
}

#[test]
fn a_static_program_reaches_a_peer_by_name() {
    let run = Runner::with_peer("db-tool-server", peer_address(4), http_server("from the peer"));
    assert_eq!(run.prints(&["busybox", "wget", "-q", "-O", "-", "http://db-tool-server/"]), "from the peer");
}

#[test]
fn an_event_loop_reaches_a_peer_with_a_nonblocking_connect() {
    let run = Runner::with_peer("db-tool-server", peer_address(5), http_server("from the peer"));
    let script = "
import asyncio
async def main():
    reader, writer = await asyncio.open_connection('db-tool-server', 80)
    writer.write(b'GET / HTTP/1.0\\r\\n\\r\\n')
    print((await reader.read()).split(b'\\r\\n\\r\\n')[1].decode())
asyncio.run(main())";
    assert_eq!(run.prints(&["python3", "-c", script]), "from the peer\n");
}

#[test]
fn a_nonblocking_connect_returns_in_progress_and_then_succeeds() {
    let run = Runner::with_peer("db", peer_address(6), http_server(""));
    let script = "
import errno, select, socket
s = socket.socket(); s.setblocking(False)
print(errno.errorcode[s.connect_ex(('db', 80))])
select.select([], [s], [], 5)
print(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))";
    assert_eq!(run.prints(&["python3", "-c", script]), "EINPROGRESS\n0\n");
}

#[test]
fn an_ipv6_socket_reaches_a_peer_by_its_mapped_address() {
    let run = Runner::with_peer("db", peer_address(7), http_server("from the peer"));
    let url = "http://[::ffff:127.64.200.7]/";
    assert_eq!(run.prints(&["curl", "-sS", url]), "from the peer");
}

#[test]
fn a_refused_connection_is_refused() {
    let run = Runner::with_peer("db", peer_address(8), closed_port());
    let script = "
import errno, socket
s = socket.socket()
print(errno.errorcode[s.connect_ex(('db', 80))])
s = socket.socket(); s.settimeout(5)
print(errno.errorcode[s.connect_ex(('db', 80))])";
    assert_eq!(run.prints(&["python3", "-c", script]), "ECONNREFUSED\nECONNREFUSED\n");
}

#[test]
fn errors_of_connect_are_the_kernels() {
    let run = Runner::with_peer("db", peer_address(9), http_server(""));
    let script = "
import ctypes, errno, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def connect(fd, address, length):
    return 'ok' if libc.connect(fd, address, length) == 0 else errno.errorcode[ctypes.get_errno()]
to = struct.pack('=H', socket.AF_INET) + struct.pack('>H', 80) + bytes([127, 64, 200, 9]) + bytes(8)
s = socket.socket()
print(connect(999, to, 16), connect(0, to, 16), connect(s.fileno(), None, 16), connect(s.fileno(), to, 3))
print(connect(s.fileno(), to, 16), connect(s.fileno(), to, 16))";
    assert_eq!(run.prints(&["python3", "-c", script]), "EBADF ENOTSOCK EFAULT EINVAL\nok EISCONN\n");
}

#[test]
fn a_thousand_connections_of_a_threaded_program_all_arrive() {
    let run = Runner::with_peer("db", peer_address(10), http_server("x"));
    let script = "
import concurrent.futures as f, socket
def one(_):
    with socket.create_connection(('db', 80)) as s:
        s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
        return s.makefile('rb').read().endswith(b'x')
with f.ThreadPoolExecutor(100) as pool:
    print(sum(pool.map(one, range(1000))))";
    assert_eq!(run.prints(&["python3", "-c", script]), "1000\n");
}

#[test]
fn everything_else_connects_as_before() {
    let real = http_server("directly");
    let run = Runner::with_peer("db", peer_address(11), closed_port());
    assert_eq!(run.prints(&["curl", "-sS", &format!("http://{real}/")]), "directly");
}

#[test]
fn a_name_that_is_not_a_peers_still_comes_from_the_original_file() {
    let run = Runner::with_peer("db", peer_address(12), closed_port());
    let script = "import socket; print(socket.gethostbyname('localhost'))";
    assert_eq!(run.prints(&["python3", "-c", script]), "127.0.0.1\n");
}

#[test]
fn a_name_that_appears_while_the_program_runs_is_found() {
    let names = tempfile("names");
    let run = Runner::bare().option("--names-file", &names);
    let script = "
import socket, sys
def look():
    try: return socket.gethostbyname('db')
    except OSError: return 'unknown'
before = look()
open(sys.argv[1], 'w').write('db=127.64.200.13')
during = look()
open(sys.argv[1], 'w').write('')
print(before, during, look())";
    std::fs::write(&names, "").expect("a temporary file");
    make_writable(&names);
    assert_eq!(run.prints(&["python3", "-c", script, &names]), "unknown 127.64.200.13 unknown\n");
    std::fs::remove_file(&names).expect("still there");
}

#[test]
fn an_unconnected_query_reaches_the_agents_dns() {
    let run = Runner::bare().option("--dns", dns_server(Ipv4Addr::new(127, 64, 9, 9)).to_string());
    let script = "
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
query = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + b'\\2db\\0' + struct.pack('>2H', 1, 1)
print(s.sendto(query, ('127.64.0.1', 53)) == len(query))
print(socket.inet_ntoa(s.recv(512)[-4:]))";
    assert_eq!(run.prints(&["python3", "-c", script]), "True\n127.64.9.9\n");
}

#[test]
fn a_resolver_that_speaks_dns_itself_asks_the_agent() {
    let run = Runner::bare().option("--dns", dns_server(Ipv4Addr::new(127, 64, 9, 9)).to_string());
    let script = "import socket; print(socket.gethostbyname('known-to-dns-only.example'))";
    assert_eq!(run.prints(&["python3", "-c", script]), "127.64.9.9\n");
    assert!(run.prints(&["cat", "/etc/resolv.conf"]).starts_with("nameserver 127.64.0.1\n"));
}

#[test]
fn without_an_agents_dns_the_resolver_configuration_is_the_original() {
    let original = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(run_cat("/etc/resolv.conf"), text(&original));
}

#[test]
fn files_answer_first_for_hosts() {
    let shown = run_cat("/etc/nsswitch.conf");
    let hosts = shown.lines().find(|line| line.starts_with("hosts:")).expect("a hosts line");
    assert!(hosts.starts_with("hosts: files"), "{hosts}");
}

#[test]
fn the_name_cache_is_not_asked() {
    let script = "
import errno, socket
s = socket.socket(socket.AF_UNIX)
print(errno.errorcode[s.connect_ex('/var/run/nscd/socket')])";
    assert_eq!(Runner::bare().prints(&["python3", "-c", script]), "ENOENT\n");
}

#[test]
fn a_descriptor_of_the_hosts_file_is_a_program_own() {
    let script = "
import fcntl, os
a, b = open('/etc/hosts', 'rb'), open('/etc/hosts', 'rb')
a.read()
print(b.tell(), bool(fcntl.fcntl(a, fcntl.F_GETFD) & fcntl.FD_CLOEXEC), a.read() == b'', b.read() != b'')
try: os.write(a.fileno(), b'x'); print('written')
except OSError: print('read-only')";
    let run = Runner::with_peer("db", peer_address(14), closed_port());
    assert_eq!(run.prints(&["python3", "-c", script]), "0 True True True\nread-only\n");
}

fn run_cat(path: &str) -> String {
    Runner::with_peer("db", peer_address(15), closed_port()).prints(&["cat", path])
}

/// A path in the temporary directory that no other test and no other run uses.
fn tempfile(name: &str) -> String {
    let path = std::env::temp_dir().join(format!("peerage-run-{}-{name}", std::process::id()));
    path.to_str().expect("a plain path").to_owned()
}

fn make_writable(path: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).expect("our own file");
}

#[test]
fn a_closed_real_port_is_free_for_the_next_test() {
    // Guards the helper that every refusal test stands on.
    assert!(std::net::TcpStream::connect::<SocketAddr>(closed_port()).is_err());
}
