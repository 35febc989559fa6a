//! An operator for tests: real TCP, TLS, HTTP and frames; what it says is each test's script.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::operator::{
    ChannelBinding, EXPORTER_LABEL, Enrol, Enrolment, GoAway, GoAwayCode, Hello, MAX_FRAME, PREFIX, Passport, Resume,
    ToAgent, ToOperator, Update, split_frame,
};
use peerage_model::passport::{BACKDATED, LIFETIME};
use peerage_model::{AgentId, AgreementKey, AgreementSecret, Authority, AuthorityRecord, Credential, UnixTime};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use crate::world::{random, wall};

/// Far more than anything here takes, also on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One replica.
pub struct Operator {
    pub authority: Authority,
    listener: TcpListener,
    tls: TlsAcceptor,
}

/// A connection that has been upgraded; nothing has been said on it.
pub struct Connection {
    authority: Authority,
    pub binding: ChannelBinding,
    pub e: AgreementSecret,
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
    sequence: u64,
}

pub fn authority() -> Authority {
    Authority::new(&Zeroizing::new(random()), wall())
}

impl Operator {
    pub async fn start(authority: &Authority) -> Self {
        Self::start_at(authority, ([127, 0, 0, 1], 0).into()).await
    }

    /// At an address that an earlier one had.
    pub async fn start_at(authority: &Authority, address: SocketAddr) -> Self {
        let made = rcgen::generate_simple_self_signed(["whatever".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("they belong together");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(address).await.expect("the port is free");
        Self { authority: authority.clone(), listener, tls: TlsAcceptor::from(Arc::new(config)) }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    /// The next agent that comes, upgraded. One that went away while it waited for us is passed over: agents stop.
    pub async fn accept(&self) -> Connection {
        let accepted = async {
            loop {
                let (tcp, _) = self.listener.accept().await.expect("a connection");
                if let Ok(connection) = self.upgrade(tcp).await {
                    return connection;
                }
            }
        };
        timeout(PATIENCE, accepted).await.expect("an agent comes in time")
    }

    async fn upgrade(&self, tcp: TcpStream) -> io::Result<Connection> {
        let mut stream = self.tls.accept(tcp).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).expect("text");
        assert!(head.starts_with("GET /v1/agent HTTP/1.1\r\nHost: "), "{head}");
        assert!(head.contains("\r\nConnection: Upgrade\r\nUpgrade: peerage/1\r\n"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: peerage/1\r\n\r\n";
        stream.write_all(answer.as_bytes()).await?;
        let mut exported = Zeroizing::new([0; 32]);
        let export = stream.get_ref().1.export_keying_material(&mut exported[..], EXPORTER_LABEL, Some(&[]));
        export.expect("the handshake is over");
        Ok(Connection {
            authority: self.authority.clone(),
            binding: ChannelBinding::new(exported),
            e: AgreementSecret::from_bytes(random()),
            stream,
            buffer: Vec::new(),
            sequence: 0,
        })
    }

    /// The next agent, which enrols as `name` and gets a passport.
    pub async fn enrol(&self, name: &str) -> (Connection, Enrol) {
        let mut connection = self.accept().await;
        connection.hello().await;
        let enrol = connection.expect_enrol().await;
        connection.passport(name, &enrol.key, LIFETIME).await;
        (connection, enrol)
    }

    /// The next agent, which goes on with the passport that it has.
    pub async fn resume(&self) -> (Connection, Resume) {
        let mut connection = self.accept().await;
        connection.hello().await;
        let ToOperator::Resume(resume) = connection.next().await else { panic!("it resumes") };
        let shown = Credential::verify(&resume.credential, wall()).expect("it is good");
        resume.check(&connection.binding, &connection.e, shown.instance_key()).expect("it holds the key");
        let enrolment = Enrolment::verify(&resume.enrolment, self.authority.record()).expect("it is ours");
        assert_eq!((&enrolment.agent, &enrolment.instance), (shown.agent(), shown.instance_key()));
        let passport = Passport { credential: resume.credential.clone(), enrolment: resume.enrolment.clone() };
        connection.send(&ToAgent::Passport(passport)).await;
        (connection, resume)
    }
}

impl Connection {
    pub async fn hello(&mut self) {
        let hello = Hello::new(&self.authority, &self.binding, self.e.public());
        self.send(&ToAgent::Hello(hello)).await;
    }

    pub async fn expect_enrol(&mut self) -> Enrol {
        let ToOperator::Enrol(enrol) = self.next().await else { panic!("it enrols") };
        enrol.check(&self.binding, &self.e).expect("it holds the key");
        enrol
    }

    pub fn agent(&self, name: &str) -> AgentId {
        self.authority.agent(name.parse().expect("a name"))
    }

    /// Gives a passport that lasts `lifetime` from this moment.
    pub async fn passport(&mut self, name: &str, key: &AgreementKey, lifetime: Duration) {
        let (agent, now) = (self.agent(name), wall());
        let signed = self.authority.issue(&agent, *key, now.minus(BACKDATED), now.plus(lifetime));
        let enrolment = Enrolment {
            agent,
            instance: *key,
            pod_uid: [7; 16],
            namespace: "test".into(),
            pod: "pod-0".into(),
            service_account: "default".into(),
            issued: UnixTime(now.0),
        };
        let credential = Credential::join(self.authority.record(), signed);
        let passport = Passport { credential, enrolment: enrolment.sign(&self.authority) };
        self.send(&ToAgent::Passport(passport)).await;
    }

    /// Sends an update and waits until the agent has acted on it; gives how many entries it did not take.
    pub async fn update(&mut self, update: Update) -> u64 {
        self.sequence += 1;
        self.send(&ToAgent::Update(Box::new(Update { sequence: self.sequence, ..update }))).await;
        loop {
            if let ToOperator::Ack(ack) = self.next().await {
                assert_eq!(ack.sequence, self.sequence);
                return ack.refused;
            }
        }
    }

    /// The authority has other keys from here on.
    pub fn rotate(&mut self) -> AuthorityRecord {
        self.authority = self.authority.rotate(&Zeroizing::new(random()), wall());
        self.authority.record().clone()
    }

    /// Waits until the agent hands on these keys of another authority.
    pub async fn hear_of(&mut self, record: &AuthorityRecord) {
        loop {
            if let ToOperator::Report(report) = self.next().await
                && report.records.iter().any(|shown| shown.0 == record.as_bytes())
            {
                return;
            }
        }
    }

    pub async fn go_away(mut self, code: GoAwayCode, text: &str) {
        self.send(&ToAgent::GoAway(GoAway::new(code, text, None))).await;
        // The agent closes; until then its side must find ours open.
        self.rest().await;
    }

    pub async fn send(&mut self, message: &ToAgent) {
        self.send_bytes(&message.encode()).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the agent reads");
        self.stream.flush().await.expect("the agent reads");
    }

    pub async fn next(&mut self) -> ToOperator {
        timeout(PATIENCE, self.message()).await.expect("a message in time").expect("the agent is there")
    }

    /// Everything that the agent sends until it closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.buffer);
        // A reset is an end, too.
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut all)).await.expect("the agent closes in time");
        all
    }

    async fn message(&mut self) -> Option<ToOperator> {
        loop {
            if let Some((frame, _)) = split_frame(&self.buffer, MAX_FRAME).expect("a frame") {
                let message = ToOperator::decode(frame).expect("a message").expect("of a kind we know");
                let used = PREFIX + frame.len();
                self.buffer.drain(..used);
                return Some(message);
            }
            if self.stream.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }
}
