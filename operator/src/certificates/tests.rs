//! Lives of certificates, on a clock that is only a number.

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
    for key in ["ca.crt", "ca.key", "tls.crt", "tls.key"] {
        let mut data = stored.write();
        data.insert(key.into(), b"this is none".to_vec());
        assert_eq!(Stored::read(&data), None, "text in {key}");
    }
}

#[test]
fn nothing_is_renewed_before_its_time() {
    let stored = Stored::mint(&names(), NOW).expect("it can be made");
    assert_eq!(stored.renewed(&names(), NOW.plus(days(4))).expect("it can be made"), None);
}

fn minted() -> Stored {
    Stored::mint(&names(), NOW).expect("it can be made")
}

fn amended(known: Option<&Stored>, found: Option<&Stored>, names: &[String], leads: bool) -> Option<Stored> {
    Stored::amended(known, found, names, leads, NOW).expect("it can be made")
}

#[test]
fn a_name_that_is_missing_is_added_at_once_by_whichever_replica_needs_it() {
    let (stored, other) = (minted(), ["other.svc".to_owned()]);
    let new = amended(Some(&stored), Some(&stored), &other, false).expect("a name is missing");
    assert!(is_believed(&new, &stored.bundle(), "other.svc", NOW), "the CA is the one that is known");
    assert!(is_believed(&new, &stored.bundle(), NAME_OF_SERVICE, NOW), "the other replicas need their own");
    for wanted in [&names()[..], &other] {
        for leads in [true, false] {
            assert_eq!(amended(Some(&new), Some(&new), wanted, leads), None, "nobody takes a name away");
        }
    }
}

#[test]
fn names_that_nobody_wants_go_with_the_next_leaf() {
    let both = Stored::mint(&["old.svc".to_owned(), "new.svc".to_owned()], NOW).expect("it can be made");
    let later = NOW.plus(days(6));
    let new = Stored::amended(Some(&both), Some(&both), &["new.svc".to_owned()], true, later);
    assert!(!is_believed(&new.expect("it can be made").expect("it is due"), &both.bundle(), "old.svc", later));
}

#[test]
fn a_secret_that_is_gone_is_written_again_as_it_was_by_who_knows_it() {
    let stored = minted();
    for leads in [true, false] {
        assert_eq!(amended(Some(&stored), None, &names(), leads), Some(stored.clone()));
    }
}

#[test]
fn where_nobody_knows_what_was_there_it_is_made_anew() {
    let new = amended(None, None, &names(), false).expect("it is made");
    assert!(is_believed(&new, &new.bundle(), NAME_OF_SERVICE, NOW));
}

#[test]
fn another_ca_in_the_secret_is_taken_over_and_the_one_that_others_still_serve_under_stays_believed() {
    let (old, foreign) = (minted(), minted());
    let both = amended(Some(&old), Some(&foreign), &names(), false).expect("the other CA is added");
    assert!(is_believed(&old, &both.bundle(), NAME_OF_SERVICE, NOW), "replicas that have not looked yet");
    assert!(is_believed(&foreign, &both.bundle(), NAME_OF_SERVICE, NOW), "who made it");
    assert_eq!(both.leaf.certificate, foreign.leaf.certificate);
    for known in [&old, &foreign, &both] {
        assert_eq!(amended(Some(known), Some(&both), &names(), false), None, "once");
    }
}

#[test]
fn what_has_ended_is_not_written_again() {
    let old = minted();
    let later = NOW.plus(days(800));
    let new = Stored::amended(Some(&old), None, &names(), false, later).expect("it can be made");
    assert!(is_believed(&new.clone().expect("it is made"), &new.expect("it is made").bundle(), NAME_OF_SERVICE, later));
}

#[test]
fn a_replica_knows_whether_the_api_server_would_believe_it() {
    let (ours, theirs) = (minted(), minted());
    let both = format!("{}{}", theirs.bundle(), ours.bundle());
    assert!(ours.is_believed_by(both.as_bytes()) && !ours.is_believed_by(theirs.bundle().as_bytes()));
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
