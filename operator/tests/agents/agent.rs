//! An agent as small as one can be: it says what docs/spec/control-plane.md says, over real TLS.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_model::operator::{
    ChannelBinding, EXPORTER_LABEL, Enrol, HTTP_PATH, Hello, MAX_FRAME, PREFIX, Proof, Resume, Revision, ToAgent,
    ToOperator, UPGRADE, frame_len,
};
use peerage_model::{AgreementSecret, Fingerprint, UnixTime};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Agent {
    stream: TlsStream<TcpStream>,
    binding: ChannelBinding,
    pub hello: Hello,
    pub key: AgreementSecret,
}

impl Agent {
    /// Connects, and believes who answers if it is `authority`.
    pub async fn connect(to: SocketAddr, authority: Fingerprint, key: AgreementSecret, now: UnixTime) -> Self {
        let (stream, head) = upgrade(to).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut exported = Zeroizing::new([0; 32]);
        stream.get_ref().1.export_keying_material(&mut exported[..], EXPORTER_LABEL, Some(&[])).expect("TLS is up");
        let binding = ChannelBinding::new(exported);
        let nobody = Hello { record: Vec::new(), e: AgreementSecret::from_bytes([1; 32]).public(), signature: [0; 64] };
        let mut agent = Self { stream, binding, hello: nobody, key };
        let ToAgent::Hello(hello) = agent.hear().await else { panic!("Hello comes first") };
        hello.verify(&agent.binding, &authority, 1, now).expect("it proves its authority in this session");
        agent.hello = hello;
        agent
    }

    pub async fn enrol(&mut self, token: &str) {
        let proof = Proof::enrol(&self.binding, &self.hello.e, &self.key, token).expect("a good key");
        let key = self.key.public();
        self.say(&ToOperator::Enrol(Enrol { token: token.into(), key, proof, have: None, version: None })).await;
    }

    pub async fn resume(&mut self, credential: Vec<u8>, enrolment: Vec<u8>) {
        self.resume_with(credential, enrolment, None).await;
    }

    /// With what other replicas told.
    pub async fn resume_with(&mut self, credential: Vec<u8>, enrolment: Vec<u8>, have: Option<Revision>) {
        let proof = Proof::resume(&self.binding, &self.hello.e, &self.key, &credential).expect("a good key");
        self.say(&ToOperator::Resume(Resume { credential, enrolment, proof, have, version: None })).await;
    }

    pub async fn say(&mut self, message: &ToOperator) {
        self.stream.write_all(&message.encode()).await.expect("the stream is open");
        self.stream.flush().await.expect("the stream is open");
    }

    /// The next message that is not a sign of life.
    pub async fn hear(&mut self) -> ToAgent {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let mut prefix = [0; PREFIX];
                self.stream.read_exact(&mut prefix).await.expect("the operator has something to say");
                let mut frame = vec![0; frame_len(prefix, MAX_FRAME).expect("a frame")];
                self.stream.read_exact(&mut frame).await.expect("a whole frame");
                match ToAgent::decode(&frame).expect("a message").expect("of a known kind") {
                    ToAgent::Keepalive(_) => {}
                    message => return message,
                }
            }
        })
        .await
        .expect("the operator says something in time")
    }
}

/// Asks for the upgrade; returns the stream and the head of the answer.
pub async fn upgrade(to: SocketAddr) -> (TlsStream<TcpStream>, String) {
    let mut stream = tls(to).await;
    let request = format!("GET {HTTP_PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("it answers"));
    }
    (stream, String::from_utf8(head).expect("text"))
}

/// Asks for anything; what is said until the connection is closed.
pub async fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = tls(to).await;
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("it closes the connection").expect("it says good-bye");
    answer
}

async fn tls(to: SocketAddr) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(to).await.expect("it listens");
    let config = peerage_tls::client().expect("TLS 1.3 is known");
    let name = ServerName::try_from("operator.invalid").expect("a name");
    TlsConnector::from(config).connect(name, tcp).await.expect("TLS comes up")
}
