//! What the API server believes the webhooks by: a CA of our own, and a leaf under it, in one Secret that all replicas
//! share.
//!
//! Nothing else rests on them, so a Secret that is gone or damaged is written again by whoever still knows what was in it,
//! and made anew by a replica that starts and never knew; the chart generates none, because what it generates it never
//! rotates. The CA lasts a year and the leaf a week. Each is replaced after two thirds of that by the
//! clock on the wall, which is read again and again: a timer over months would not survive a process. Through a change of
//! CAs both are believed, and the leaf stays under the old one until its own turn, days after everybody knows the new one.

pub mod bundle;
pub mod keeper;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::UnixTime;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};

/// The Secret.
pub const NAME: &str = "peerage-webhook";

const DAY: u64 = 24 * 3600;
/// The end of a certificate in PEM.
const END: &str = "-----END CERTIFICATE-----";
/// How long a CA is good.
const CA_LASTS: Duration = Duration::from_secs(365 * DAY);
/// How long a leaf is good.
const LEAF_LASTS: Duration = Duration::from_secs(7 * DAY);
/// How far back validity begins: an API server's clock may be behind ours.
const BACKDATED: u64 = 3600;

/// Why there is no certificate. Neither depends on anything a user chose but the names.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It could not be made.
    #[error("cannot make a certificate for the webhook's names")]
    Make(#[source] rcgen::Error),
    /// TLS did not take it.
    #[error("cannot serve with the webhook's certificate")]
    Tls(#[source] rustls::Error),
    /// The Secret holds something else than PEM.
    #[error("what Secret {NAME} holds is no certificate with its key; delete it, and it is made anew")]
    Damaged,
}

/// A certificate with its key, as PEM, and when it ends.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: String,
    key: String,
    until: UnixTime,
}

/// Keys and certificates as they are stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    ca: Pair,
    /// The CA before this one, until it ends: certificate only, its key is of no use any more.
    before: Option<(String, UnixTime)>,
    leaf: Pair,
    /// For which names the leaf is.
    names: Vec<String>,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored").field("names", &self.names).field("until", &self.leaf.until).finish_non_exhaustive()
    }
}

impl Stored {
    /// A new CA and a leaf for `names`.
    ///
    /// # Errors
    /// [`CertificateError::Make`] for what is no name.
    pub fn mint(names: &[String], now: UnixTime) -> Result<Self, CertificateError> {
        let ca = make_ca(now)?;
        let leaf = make_leaf(&ca, names, now)?;
        Ok(Self { ca, before: None, leaf, names: names.to_vec() })
    }

    /// Whether who believes `bundle` believes our leaf, whichever of our CAs it is under.
    #[must_use]
    pub fn is_believed_by(&self, bundle: &[u8]) -> bool {
        let bundle = String::from_utf8_lossy(bundle);
        self.bundle().split_inclusive(END).all(|certificate| bundle.contains(certificate.trim()))
    }

    /// From a Secret's data; `None` for what we did not write.
    #[must_use]
    pub fn read(data: &BTreeMap<String, Vec<u8>>) -> Option<Self> {
        let text = |key: &str| data.get(key).and_then(|bytes| String::from_utf8(bytes.clone()).ok());
        let until = |key: &str| text(key)?.parse().ok().map(UnixTime);
        let pair = |name: &str| {
            let [certificate, key] = [text(&format!("{name}.crt"))?, text(&format!("{name}.key"))?];
            Some(Pair { certificate, key, until: until(&format!("{name}.until"))? })
        };
        let names = text("tls.names")?.split_whitespace().map(str::to_owned).collect();
        let before = text("before.crt").zip(until("before.until"));
        let stored = Self { ca: pair("ca")?, before, leaf: pair("tls")?, names };
        // A pair that does not load would be served to nobody, and what is no CA's would make the API server believe nobody.
        let is_sound = is_ca(&stored.ca.certificate)
            && stored.before.as_ref().is_none_or(|(certificate, _)| is_ca(certificate))
            && KeyPair::from_pem(&stored.ca.key).is_ok()
            && stored.server_config().is_ok();
        is_sound.then_some(stored)
    }

    /// As a Secret's data.
    #[must_use]
    pub fn write(&self) -> BTreeMap<String, Vec<u8>> {
        let mut data = BTreeMap::new();
        let mut put = |key: String, value: &str| data.insert(key, value.as_bytes().to_vec());
        for (name, pair) in [("ca", &self.ca), ("tls", &self.leaf)] {
            put(format!("{name}.crt"), &pair.certificate);
            put(format!("{name}.key"), &pair.key);
            put(format!("{name}.until"), &pair.until.0.to_string());
        }
        put("tls.names".into(), &self.names.join(" "));
        if let Some((certificate, until)) = &self.before {
            put("before.crt".into(), certificate);
            put("before.until".into(), &until.0.to_string());
        }
        data
    }

    /// What to write where the Secret holds `found` and this replica serves with `self`; `None` where nothing is to be
    /// written. Who leads also renews.
    ///
    /// # Errors
    /// [`CertificateError::Make`].
    pub fn amended(
        known: Option<&Self>,
        found: Option<&Self>,
        names: &[String],
        leads: bool,
        now: UnixTime,
    ) -> Result<Option<Self>, CertificateError> {
        // What has ended helps nobody.
        let known = known.filter(|known| known.ca.until > now);
        let amended = match (found, known) {
            (None, None) => return Self::mint(names, now).map(Some),
            // Somebody deleted or damaged it. The API server believes what we have, and so do the other replicas.
            (None, Some(known)) => Some(known.clone()),
            (Some(found), Some(known)) => found.beside(known),
            (Some(_), None) => None,
        };
        let current = amended.as_ref().or(found);
        let next = match current {
            Some(current) if leads => current.renewed(names, now)?,
            Some(_) | None => None,
        };
        let named = match next.as_ref().or(current) {
            Some(current) => current.naming(names, now)?,
            None => None,
        };
        Ok(named.or(next).or(amended))
    }

    /// With the CA of `known` believed as well, where another one was made without knowing of it: replicas that have not
    /// heard of that yet serve under the one of `known`, and the API server must not stop believing them.
    fn beside(&self, known: &Self) -> Option<Self> {
        let believed = |certificate: &String| self.bundle().contains(certificate.as_str());
        let before = (known.ca.certificate.clone(), known.ca.until);
        (!believed(&before.0)).then(|| Self { before: Some(before), ..self.clone() })
    }

    /// With a leaf for these names, too, where one is missing. Those that are there stay: replicas of two versions of the
    /// chart may want different ones, and none takes away what another needs. The next renewal does.
    fn naming(&self, names: &[String], now: UnixTime) -> Result<Option<Self>, CertificateError> {
        let missing: Vec<_> = names.iter().filter(|name| !self.names.contains(name)).cloned().collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let names = [&self.names[..], &missing].concat();
        Ok(Some(Self { leaf: make_leaf(&self.ca, &names, now)?, names, ..self.clone() }))
    }

    /// What is due at `now`, done; `None` while nothing is. One thing at a time, so that a new CA is known everywhere
    /// before the first leaf is under it.
    ///
    /// # Errors
    /// [`CertificateError::Make`].
    pub fn renewed(&self, names: &[String], now: UnixTime) -> Result<Option<Self>, CertificateError> {
        if self.ca.until <= now {
            return Self::mint(names, now).map(Some); // nobody was here for months: nothing is worth keeping
        }
        if is_due(self.leaf.until, LEAF_LASTS, now) {
            let leaf = make_leaf(&self.ca, names, now)?;
            return Ok(Some(Self { leaf, names: names.to_vec(), ..self.clone() }));
        }
        if is_due(self.ca.until, CA_LASTS, now) {
            let before = Some((self.ca.certificate.clone(), self.ca.until));
            return Ok(Some(Self { ca: make_ca(now)?, before, ..self.clone() }));
        }
        let ended = self.before.as_ref().is_some_and(|(_, until)| *until <= now);
        Ok(ended.then(|| Self { before: None, ..self.clone() }))
    }

    /// The CAs to believe, as PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        let before = self.before.as_ref().map_or("", |(certificate, _)| certificate);
        format!("{}{before}", self.ca.certificate)
    }

    /// For serving.
    ///
    /// # Errors
    /// [`CertificateError`] when what was stored is not what we wrote.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let damaged = |_| CertificateError::Damaged;
        let chain = CertificateDer::pem_slice_iter(self.leaf.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(self.leaf.key.as_bytes()).map_err(damaged)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain.unwrap_or_default(), key))
            .map_err(CertificateError::Tls)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// After two thirds of its life.
fn is_due(until: UnixTime, lasts: Duration, now: UnixTime) -> bool {
    until.0 <= now.0.saturating_add(lasts.as_secs() / 3)
}

fn make_ca(now: UnixTime) -> Result<Pair, CertificateError> {
    let key = KeyPair::generate().map_err(CertificateError::Make)?;
    let until = now.plus(CA_LASTS);
    let params = valid(ca_params()?, now, until);
    let certificate = params.self_signed(&key).map_err(CertificateError::Make)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem(), until })
}

fn make_leaf(ca: &Pair, names: &[String], now: UnixTime) -> Result<Pair, CertificateError> {
    let ca_key = KeyPair::from_pem(&ca.key).map_err(CertificateError::Make)?;
    let issuer = Issuer::new(ca_params()?, ca_key);
    let key = KeyPair::generate().map_err(CertificateError::Make)?;
    let until = now.plus(LEAF_LASTS).min(ca.until);
    let mut params = CertificateParams::new(names.to_vec()).map_err(CertificateError::Make)?;
    params.distinguished_name.push(DnType::CommonName, "peerage webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = valid(params, now, until).signed_by(&key, &issuer).map_err(CertificateError::Make)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem(), until })
}

/// What every CA of ours says of itself but its time.
fn ca_params() -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(CertificateError::Make)?;
    params.distinguished_name.push(DnType::CommonName, "peerage webhook CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn valid(mut params: CertificateParams, now: UnixTime, until: UnixTime) -> CertificateParams {
    let at = |time: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(time);
    (params.not_before, params.not_after) = (at(now.0.saturating_sub(BACKDATED)), at(until.0));
    params
}

/// Whether a certificate is one that others can be believed by.
fn is_ca(pem: &str) -> bool {
    CertificateDer::from_pem_slice(pem.as_bytes()).is_ok_and(|der| RootCertStore::empty().add(der).is_ok())
}

#[cfg(test)]
mod tests;
