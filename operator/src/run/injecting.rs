//! What an operator needs that injects sidecars: certificates, the CA that the API server believes them by, and the port
//! that it asks.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use peerage_agent::health::Readiness;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{AdmissionOptions, Ground};
use crate::admission::settings::{ClusterDns, Settings};
use crate::admission::{Reviewer, server};
use crate::certificates::bundle;
use crate::certificates::keeper::Keeper;

/// How soon the API server is asked again which version it is.
const AGAIN: Duration = Duration::from_secs(2);

/// Serves the API server's reviews. Not ready before there is a certificate for that.
pub(super) async fn start(
    Ground { cluster, client, namespace, leadership }: &Ground,
    AdmissionOptions { listen, file }: AdmissionOptions,
    listener: TcpListener,
    readiness: &Readiness,
) {
    let (keep, current) = watch::channel(None);
    let keeper = Keeper::new(client.clone(), namespace, file.webhook.names);
    tokio::spawn(keeper.run(keep, leadership.clone()));
    let told = readiness.wait_for("the API server to know the webhooks' CA");
    tokio::spawn(bundle::run(client.clone(), file.webhook.configuration, current.clone(), leadership.clone(), told));
    let waiting = readiness.wait_for("the webhooks' certificate");
    let mut first = current.clone();
    tokio::spawn(async move {
        // An error means that the process ends.
        let _ = first.wait_for(Option::is_some).await;
        drop(waiting);
    });
    let cluster_dns = ClusterDns::here(&file.agent, namespace);
    if cluster_dns.is_none() {
        tracing::warn!("the cluster's DNS is not known: pods that use it are left alone; set agent.clusterDNS");
    }
    let authority = cluster.read().index.authority();
    let native = knows_native_sidecars(client).await;
    tracing::info!(%listen, ?cluster_dns, native, "injecting");
    let settings = Settings { agent: file.agent, authority, cluster_dns, native };
    let reviewer = Reviewer { cluster: Arc::clone(cluster), settings };
    tokio::spawn(server::Server::new(reviewer, current).run(listener));
}

/// From 1.29 on; older servers drop the field that makes a container one, and its pod would never get past it.
async fn knows_native_sidecars(client: &Client) -> bool {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return is_native(&version.major, &version.minor),
            Err(error) => tracing::warn!(%error, "the API server does not say which version it is"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Some servers put a `+` behind the number.
fn is_native(major: &str, minor: &str) -> bool {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    number(major).zip(number(minor)).is_some_and(|version| version >= (1, 29))
}

#[cfg(test)]
mod tests {
    use super::is_native;

    #[test]
    fn native_sidecars_are_there_from_1_29_on() {
        for (version, expected) in [(("1", "28"), false), (("1", "29"), true), (("1", "34+"), true), (("2", "0"), true)]
        {
            assert_eq!(is_native(version.0, version.1), expected, "{version:?}");
        }
        assert!(!is_native("", "v"), "what is not understood is taken for old");
    }
}
