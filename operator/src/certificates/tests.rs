//! Lives of certificates, on a clock that is only a number.

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime as TlsTime};

use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);
const NAME_OF_SERVICE: &str = "peerage-webhook.peerage-system.svc";

fn names() -> Vec<String> {
    vec![NAME_OF_SERVICE.into(), "127.0.0.1".into()]
}

fn days(days: u64) -> Duration {
    Duration::from_secs(days * DAY)
}

/// Whether an API server that believes `bundle` takes the leaf for `name` at that time.
fn is_believed(stored: &Stored, bundle: &str, name: &str, at: UnixTime) -> bool {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(ca.expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("it has roots");
    let leaf = CertificateDer::from_pem_slice(stored.leaf.certificate.as_bytes()).expect("PEM");
    let name = ServerName::try_from(name).expect("a name");
    let at = TlsTime::since_unix_epoch(Duration::from_secs(at.0));
    verifier.verify_server_cert(&leaf, &[], &name, &[], at).is_ok()
}

/// Checks every six hours, as a keeper that is often away would.
fn live_on(mut stored: Stored, from: UnixTime, for_days: u64, mut look: impl FnMut(&Stored, UnixTime)) -> Stored {
    for hours in (0..for_days * 24).step_by(6) {
        let at = from.plus(Duration::from_secs(hours * 3600));
        if let Some(new) = stored.renewed(&names(), at).expect("it can be made") {
            stored = new;
        }
        look(&stored, at);
    }
    stored
}

#[test]
fn the_api_server_believes_the_leaf_for_each_of_its_names_and_for_no_other() {
    let stored = Stored::mint(&names(), NOW).expect("it can be made");
    let believed = |name| is_believed(&stored, &stored.bundle(), name, NOW);
    assert!(believed(NAME_OF_SERVICE) && believed("127.0.0.1"));
    assert!(!believed("kubernetes.default.svc"));
}

#[test]
fn what_is_stored_is_read_as_it_was_and_what_is_damaged_is_not_read() {
    let stored = Stored::mint(&names(), NOW).expect("it can be made");
    assert_eq!(Stored::read(&stored.write()), Some(stored.clone()));
    for key in ["ca.key", "tls.crt", "tls.key", "tls.until", "tls.names"] {
        let mut data = stored.write();
        data.insert(key.into(), b"\xff".to_vec());
        assert_eq!(Stored::read(&data), None, "{key}");
    }
}

#[test]
fn nothing_is_renewed_before_its_time() {
    let stored = Stored::mint(&names(), NOW).expect("it can be made");
    assert_eq!(stored.renewed(&names(), NOW.plus(days(4))).expect("it can be made"), None);
}

#[test]
fn other_names_take_another_leaf_at_once() {
    let stored = Stored::mint(&names(), NOW).expect("it can be made");
    let new = stored.renewed(&["other.svc".into()], NOW).expect("it can be made").expect("it is due");
    assert!(is_believed(&new, &stored.bundle(), "other.svc", NOW), "the CA is the one that is known");
}

#[test]
fn for_three_years_whoever_has_the_bundle_of_a_day_ago_believes_the_leaf() {
    let stored = Stored::mint(&names(), NOW).expect("it can be made");
    let mut bundles = vec![stored.bundle()];
    let mut seen = std::collections::BTreeSet::new();
    live_on(stored, NOW, 3 * 365, |stored, at| {
        let known = &bundles[bundles.len().saturating_sub(4)];
        assert!(is_believed(stored, known, NAME_OF_SERVICE, at), "day {}", (at.0 - NOW.0) / DAY);
        seen.insert(stored.ca.certificate.clone());
        bundles.push(stored.bundle());
    });
    assert!(seen.len() >= 4, "{} CAs in three years", seen.len());
}

#[test]
fn after_years_of_absence_everything_is_made_anew() {
    let stored = Stored::mint(&names(), NOW).expect("it can be made");
    let later = NOW.plus(days(800));
    let new = stored.renewed(&names(), later).expect("it can be made").expect("it is due");
    assert!(is_believed(&new, &new.bundle(), NAME_OF_SERVICE, later));
    assert!(!new.bundle().contains(&stored.bundle()), "what has ended is believed no longer");
}
