//! For tests: an API server that answers as it is told, and tells what it was given.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Each request as `METHOD PATH`, and its body.
pub(super) type Given = mpsc::UnboundedReceiver<(String, Value)>;

/// A client of one that answers each request, `METHOD PATH`, with this status and body.
pub(super) async fn api(answer: impl Fn(&str) -> (u16, Value) + Send + Sync + 'static) -> (kube::Client, Given) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
    let address = listener.local_addr().expect("it is bound");
    let (told, given) = mpsc::unbounded_channel();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (told, answer) = (told.clone(), Arc::clone(&answer));
            let serve = move |request: Request<Incoming>| {
                let (told, what) = (told.clone(), format!("{} {}", request.method(), request.uri().path()));
                let (status, said) = answer(&what);
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let _ = told.send((what, serde_json::from_slice(&body).unwrap_or_default())); // nobody may listen
                    let mut response = Response::new(Full::<Bytes>::from(said.to_string()));
                    *response.status_mut() = status.try_into().expect("it is a status");
                    Ok::<_, hyper::Error>(response)
                }
            };
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(serve)));
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().expect("a URI"));
    (kube::Client::try_from(config).expect("a client"), given)
}
