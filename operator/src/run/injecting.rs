//! What an operator needs that injects sidecars: certificates, the CA that the API server believes them by, and the port
//! that it asks.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use peerage_agent::health::{Pending, Readiness};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{AdmissionOptions, Ground};
use crate::admission::settings::{AdmissionFile, ClusterDns, Settings};
use crate::admission::{Reviewer, server};
use crate::causes::causes;
use crate::certificates::bundle;
use crate::certificates::keeper::Keeper;

/// How soon the API server is asked again which version it is.
const AGAIN: Duration = Duration::from_secs(2);

/// What the chart says of injection, if it says anything. Where that cannot be read agents are served all the same, but the
/// replica is not ready for as long as the guard lives: a rollout with a mistake stops at it, and those before it go on.
pub(super) fn read(
    options: Option<&AdmissionOptions>,
    readiness: &Readiness,
) -> (Option<AdmissionFile>, Option<Pending>) {
    let Some(options) = options else { return (None, None) };
    match AdmissionFile::read(&options.file) {
        Ok(file) => {
            for name in file.unknown() {
                tracing::warn!(name, "the chart sets what this version does not know; it goes without");
            }
            (Some(file), None)
        }
        Err(error) => {
            tracing::error!(error = %causes(&error), "nothing is injected");
            (None, Some(readiness.wait_for("settings of injection that can be read; the log says what is wrong")))
        }
    }
}

/// Serves the API server's reviews, until a while after `stopping`. Not ready before there is a certificate for that.
pub(super) async fn start(
    Ground { cluster, client, namespace, leadership }: &Ground,
    file: AdmissionFile,
    listener: TcpListener,
    readiness: &Readiness,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
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
    tracing::info!(?cluster_dns, native, "injecting");
    let settings = Settings { agent: file.agent, authority, cluster_dns, native };
    let reviewer = Reviewer { cluster: Arc::clone(cluster), settings };
    tokio::spawn(server::Server::new(reviewer, current).run(listener, stopping))
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
    use super::*;

    #[test]
    fn settings_that_cannot_be_read_keep_it_from_being_ready_and_from_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = AdmissionOptions {
            listen: "127.0.0.1:0".parse().expect("an address"),
            file: folder.path().join("admission.json"),
        };
        let readiness = Readiness::default();
        let (file, unusable) = read(Some(&options), &readiness);
        assert!(file.is_none() && readiness.pending().len() == 1);
        drop(unusable);
        assert!(readiness.pending().is_empty());
    }

    #[test]
    fn native_sidecars_are_there_from_1_29_on() {
        for (version, expected) in [(("1", "28"), false), (("1", "29"), true), (("1", "34+"), true), (("2", "0"), true)]
        {
            assert_eq!(is_native(version.0, version.1), expected, "{version:?}");
        }
        assert!(!is_native("", "v"), "what is not understood is taken for old");
    }
}
