//! The API server without kubectl: for objects by the thousand, and for knowing when a write was made. What a user would
//! type goes through kubectl (`cluster`).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::cluster::Cluster;
use crate::failed::{Failed, Trying, ensure};

/// Connections that work off a list. The API server lets one user do 200 things at a time and more; two cores do not.
const WORKERS: usize = 16;

/// One thing to do.
#[derive(Clone, Debug)]
pub struct Todo {
    method: Method,
    path: String,
    body: Value,
}

impl Todo {
    /// Makes an object in the collection at `path`.
    #[must_use]
    pub fn create(path: impl Into<String>, object: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: object }
    }

    /// Deletes what is at `path`, at once.
    #[must_use]
    pub fn delete(path: impl Into<String>) -> Self {
        let body = serde_json::json!({"gracePeriodSeconds": 0});
        Self { method: Method::DELETE, path: path.into(), body }
    }
}

/// Where the collection of one of our kinds is.
#[must_use]
pub fn ours(namespace: &str, plural: &str) -> String {
    format!("/apis/peerage.dev/v1alpha1/namespaces/{namespace}/{plural}")
}

/// A way to the API server, as its administrator.
#[derive(Clone)]
pub struct Api {
    tls: TlsConnector,
    address: SocketAddr,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({})", self.address)
    }
}

/// A connection, for one request after the other.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Api {
    /// As the cluster's administrator.
    ///
    /// # Errors
    /// The kubeconfig is not as expected.
    pub fn new(cluster: &Cluster) -> Result<Self, Failed> {
        let config = cluster.kubectl("config view --raw --flatten --minify -o json")?;
        let config: Value = serde_json::from_str(&config).trying("read a kubeconfig")?;
        let (server, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let pem = |value: &Value| {
            let text = value.as_str().unwrap_or_default();
            data_encoding::BASE64.decode(text.as_bytes()).trying("read a kubeconfig's certificates")
        };
        let address = server["server"].as_str().and_then(|url| url.strip_prefix("https://"));
        let address = address.unwrap_or_default().parse().trying("read where the API server is")?;
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(&pem(&server["certificate-authority-data"])?);
        roots.add(root.trying("read the cluster's certificate")?).trying("believe the cluster's certificate")?;
        let certificate = CertificateDer::from_pem_slice(&pem(&user["client-certificate-data"])?);
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?).trying("read our key")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
        let config = config.trying("set up TLS")?.with_root_certificates(roots);
        let config = config.with_client_auth_cert(vec![certificate.trying("read our certificate")?], key);
        Ok(Self { tls: TlsConnector::from(Arc::new(config.trying("set up TLS")?)), address })
    }

    /// Where the API server is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn connect(&self) -> Result<Connection, Failed> {
        let tcp = TcpStream::connect(self.address).await.trying("reach the API server")?;
        tcp.set_nodelay(true).trying("set a socket option")?;
        let name = ServerName::from(self.address.ip());
        let tls = self.tls.connect(name, tcp).await.trying("reach the API server")?;
        let (sender, connection) = handshake(TokioIo::new(tls)).await.trying("reach the API server")?;
        // It ends with the sender; what went wrong is told to whoever waits for an answer.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Connection { sender })
    }

    /// Does all of it, several at a time and in no order; the answers are in the order of the list.
    ///
    /// # Errors
    /// The first thing that failed.
    pub async fn all(&self, list: Vec<Todo>) -> Result<Vec<Value>, Failed> {
        let mut answers = vec![Value::Null; list.len()];
        let queue: Arc<Mutex<VecDeque<_>>> = Arc::new(Mutex::new(list.into_iter().enumerate().collect()));
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS.min(answers.len()) {
            let (api, queue) = (self.clone(), Arc::clone(&queue));
            workers.spawn(async move {
                let mut connection = api.connect().await?;
                let mut done = Vec::new();
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some((place, todo)) = next() {
                    done.push((place, connection.send(&todo).await?));
                }
                Ok::<_, Failed>(done)
            });
        }
        while let Some(done) = workers.join_next().await {
            for (place, answer) in done.trying("work off a list")?? {
                answers[place] = answer;
            }
        }
        Ok(answers)
    }
}

impl Connection {
    /// Does one thing; what the API server answers.
    ///
    /// # Errors
    /// It refuses, with what it says.
    pub async fn send(&mut self, todo: &Todo) -> Result<Value, Failed> {
        let request = Request::builder().method(todo.method.clone()).uri(&todo.path);
        let request = request.header("host", "kubernetes").header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(todo.body.to_string()))).trying("make a request")?;
        self.sender.ready().await.trying("ask the API server")?;
        let answer = self.sender.send_request(request).await.trying("ask the API server")?;
        let status = answer.status();
        let body = answer.into_body().collect().await.trying("hear the API server")?.to_bytes();
        let good = [StatusCode::OK, StatusCode::CREATED, StatusCode::ACCEPTED].contains(&status);
        ensure(good, || format!("{} {}: {}", todo.method, todo.path, String::from_utf8_lossy(&body)))?;
        serde_json::from_slice(&body).trying("read the API server's answer")
    }
}
