//! What the node agent and `peerage run` read: DNS, proxies, control lines, state, files of the machine.

use std::net::{IpAddr, Ipv4Addr};

use futures::FutureExt as _;
use peerage_agent::address::{AddressBook, Directory, Listed, is_peer_network};
use peerage_agent::control::message::{Answer, MAX_REQUEST, Said};
use peerage_agent::control::server::parse_request;
use peerage_agent::control::{Failure, Request};
use peerage_agent::dns::{self, Decision, ResolvConf};
use peerage_agent::proxy::{self, Host};
use peerage_agent::state::document::{Document, Service};
use peerage_agent::state::{InviteSecrets, PeerRef, time};
use peerage_agent::trust;
use peerage_engine::nat::NatType;
use peerage_model::authority::AuthoritySecrets;
use peerage_model::{AgentId, Authority, Fingerprint, PairSecret, TrustId};
use peerage_run::{Names, files};

use crate::feed::Feed;
use crate::model::{NOW, authority, same_again};

/// Largest answer that one question may get over UDP from us, and a question's own size is not part of it: what we
/// announce, docs/spec/local.md.
const MAX_DNS_ANSWER: usize = 1232;

fn directory() -> Directory {
    let id = AgentId { authority: Fingerprint([7; 32]), name: "db-tool-server.tools".parse().expect("a name") };
    AddressBook::new().directory([Listed::new(id, "db".parse().expect("a label"), Vec::new())])
}

/// A DNS request, and bytes that claim to answer it. The request is the input up to its first 512 bytes, or whole.
pub fn dns_message(data: &[u8]) {
    let (request, reply) = data.split_at(data.len().min(512));
    match dns::decide(&directory(), request) {
        Decision::Answer(answer) => {
            assert!(answer.len() <= MAX_DNS_ANSWER, "{} bytes", answer.len());
            assert_eq!(answer[..2], request[..2], "the id comes back");
            assert_eq!(answer[2] & 0x80, 0x80, "it is a response");
        }
        Decision::Forward(question) => {
            let _ = question.response_code(reply, 7);
            let _ = question.response_code(request, 7);
            let mut echo = request.to_vec();
            echo[2] |= 0x80;
            let id = u16::from_be_bytes([echo[0], echo[1]]);
            let _ = question.response_code(&echo, id);
            assert!(question.response_code(&echo, !id).is_none(), "another id is another question");
        }
        Decision::Drop => {}
    }
}

/// The head of an HTTP request to the proxy. What goes on to a peer is one request, in origin form, and its last.
pub fn http_head(data: &[u8]) {
    let mut head = data.to_vec();
    head.extend_from_slice(b"\r\n\r\n");
    // As the reader cuts it: a head ends at its first empty line.
    let end = head.windows(4).position(|w| w == b"\r\n\r\n").expect("just put there");
    match proxy::parse(&head[..end + 4]) {
        Ok(proxy::Request::Connect { host, port }) => assert!(!host.is_empty() && port != 0),
        Ok(proxy::Request::Plain { host, port, head }) => {
            assert!(!host.is_empty() && port != 0);
            let text = std::str::from_utf8(&head).expect("what was text stays text");
            assert_eq!(text.matches("\r\n\r\n").count(), 1, "one head");
            assert!(text.ends_with("\r\nConnection: close\r\n\r\n"));
            let line = text.split("\r\n").next().unwrap_or_default();
            let words: Vec<&str> = line.split(' ').collect();
            assert!(words.len() == 3 && words[1].starts_with('/'), "{line}");
        }
        Err(_) => {}
    }
}

/// A SOCKS5 request, arriving whole. Reads no byte beyond it.
pub fn socks(data: &[u8]) {
    let mut stream = data;
    let Some(read) = proxy::read_request(&mut stream).now_or_never() else { panic!("bytes in memory never wait") };
    let Ok(Ok((host, _))) = read else { return };
    let used = data.len() - stream.len();
    match host {
        Host::Address(IpAddr::V4(_)) => assert_eq!(used, 10),
        Host::Address(IpAddr::V6(_)) => assert_eq!(used, 22),
        Host::Name(name) => assert_eq!(used, 7 + name.len()),
    }
}

/// A line of the control socket, as the daemon and as its caller read it.
pub fn control_line(data: &[u8]) {
    if data.len() > MAX_REQUEST {
        return;
    }
    match parse_request(data) {
        Ok(request) => assert_eq!(parse_request(&line_of(&request)).ok(), Some(request)),
        Err(failure) => refused(failure),
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(data) {
        let line = answer.said.clone().into_line();
        assert_eq!(line.find('\n'), Some(line.len() - 1), "one line");
        // Numbers beyond what a double holds come back as they were or not at all, so the text is compared.
        let again: Answer = serde_json::from_str(&line).expect("what we write, we read");
        assert_eq!(again.said.into_line(), line);
    }
}

fn line_of(request: &Request) -> Vec<u8> {
    let mut value = serde_json::to_value(request).expect("text for keys");
    value["v"] = 1.into();
    serde_json::to_vec(&value).expect("text for keys")
}

fn refused(failure: Failure) {
    let line = Said::Error(failure).into_line();
    assert_eq!(line.find('\n'), Some(line.len() - 1), "one line");
}

/// The state's files: first byte 0 the document, 1 the secrets of invitations, 2 those of the authority. A document is
/// written as what reads the same, and whatever it holds, there is a snapshot of it.
pub fn state(data: &[u8]) {
    let mut feed = Feed::new(data);
    match feed.u8() % 3 {
        0 => document(feed.rest()),
        1 => {
            if let Ok(secrets) = minicbor::decode::<InviteSecrets>(feed.rest()) {
                let again = minicbor::to_vec(&secrets).expect("writing to memory");
                assert!(minicbor::decode::<InviteSecrets>(&again).expect("what we write, we read") == secrets);
            }
        }
        _ => {
            if let Ok(secrets) = minicbor::decode::<AuthoritySecrets>(feed.rest())
                && let Ok(authority) = Authority::restore(&secrets, NOW)
            {
                assert!(Authority::restore(&authority.secrets(), NOW).is_ok());
            }
        }
    }
}

fn document(bytes: &[u8]) {
    let Ok(mut document) = serde_json::from_slice::<Document>(bytes) else { return };
    let text = serde_json::to_string_pretty(&document).expect("text for keys");
    assert_eq!(serde_json::from_str::<Document>(&text).expect("what we write, we read"), document);
    let own = authority();
    let us = own.agent("us".parse().expect("a name"));
    let invites = InviteSecrets::from([(TrustId([1; 16]), PairSecret::from_bytes([1; 32]))]);
    let compiled = trust::compile(&[own], &us, &document, &invites, NOW);
    assert_eq!(compiled.snapshot.peers.len() + compiled.problems.len(), document.trusts.len());
    crate::model::snapshot(&peerage_model::cbor::to_vec(&compiled.snapshot));
    document.sweep(NOW);
    let _ = document.next_end();
}

/// Words that people type: services, peers, times, spans, NAT types. What is read is written as what reads the same.
pub fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    same_again::<PeerRef>(text);
    same_again::<NatType>(text);
    if let Ok(service) = text.parse::<Service>() {
        assert!(service.port != 0 && service.target.port() != 0);
    }
    if let Ok(time) = time::parse_rfc3339(text) {
        assert_eq!(time::rfc3339(time), text);
    }
    if let Ok(span) = time::parse_span(text) {
        assert!(!span.is_zero());
        let _ = time::span(span);
    }
}

/// The machine's files: resolv.conf as the DNS server reads it; hosts, resolv.conf and nsswitch.conf as `peerage run`
/// shows them. The original's lines stay, ours come first.
pub fn etc_files(data: &[u8]) {
    let conf = ResolvConf::parse(&String::from_utf8_lossy(data));
    assert!(conf.nameservers.len() <= 3);
    let names = Names {
        hosts: vec![
            ("db".to_owned(), IpAddr::V4(Ipv4Addr::new(127, 64, 3, 7))),
            (String::from_utf8_lossy(data).into_owned(), IpAddr::V4(Ipv4Addr::new(127, 64, 3, 8))),
        ],
    };
    let hosts = files::hosts(data, &names);
    assert!(hosts.starts_with(b"127.64.3.7\tdb\n") && hosts.ends_with(data));
    let ours = &hosts[..hosts.len() - data.len()];
    assert!(ours.iter().filter(|byte| **byte == b'\n').count() <= 2, "a name is one line at most");
    let resolv = files::resolv(data);
    assert!(resolv.ends_with(data));
    let first = ResolvConf::parse(&String::from_utf8_lossy(&resolv)).nameservers;
    assert!(matches!(first.first(), Some(IpAddr::V4(ip)) if is_peer_network(*ip)), "ours is asked first");
    let switch = files::nsswitch(data);
    let of_hosts: Vec<&[u8]> =
        switch.split(|byte| *byte == b'\n').filter(|line| line.trim_ascii_start().starts_with(b"hosts:")).collect();
    assert!(!of_hosts.is_empty() && of_hosts.iter().all(|line| line.starts_with(b"hosts: files")));
}
