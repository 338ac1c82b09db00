//! What a TLS Secret lacks, as far as it follows from its public part: the private key is never decoded here.
//!
//! The Pods try the key as well, and decide; what is found here is found before a Pod restarts for it. So only what is
//! certain is a problem: a certificate of a kind that is unknown here is left to the Pods.

use std::time::Duration;

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};

use jiff::Timestamp;

/// The most that a key of the Secret may have, as in the Pods.
pub(crate) const BYTES_MAX: usize = 65_536;

/// The public part of a Secret of the type `kubernetes.io/tls`.
#[derive(Debug, Default)]
pub(crate) struct TlsSecret {
    /// `tls.crt`.
    pub(crate) certificate: Vec<u8>,
    /// `ca.crt`.
    pub(crate) authority: Vec<u8>,
    /// Whether `tls.key` has anything in it.
    pub(crate) has_key: bool,
}

/// What is wrong with the Secret of this name for a server with these names; none if nothing is known to be.
#[must_use]
pub(crate) fn problem(
    name: &str,
    secret: &TlsSecret,
    host_names: &[String],
    now: Timestamp,
) -> Option<String> {
    for (key, is_there) in [
        ("tls.crt", !secret.certificate.is_empty()),
        ("tls.key", secret.has_key),
        ("ca.crt", !secret.authority.is_empty()),
    ] {
        if !is_there {
            return Some(format!("the Secret {name} has no key {key}: add it"));
        }
    }
    for (key, bytes) in [
        ("tls.crt", &secret.certificate),
        ("ca.crt", &secret.authority),
    ] {
        if bytes.len() > BYTES_MAX {
            return Some(format!(
                "the key {key} of the Secret {name} has more than {BYTES_MAX} bytes: remove what is no certificate of the chain"
            ));
        }
    }
    let no_certificate = |key: &str| {
        format!("the key {key} of the Secret {name} has no certificate in PEM: correct it")
    };
    let Some(chain) = certificates(&secret.certificate) else {
        return Some(no_certificate("tls.crt"));
    };
    let Some(authorities) = certificates(&secret.authority) else {
        return Some(no_certificate("ca.crt"));
    };
    let [own, intermediates @ ..] = chain.as_slice() else {
        return Some(no_certificate("tls.crt"));
    };
    let Ok(own) = ParsedCertificate::try_from(own) else {
        return None;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(
        u64::try_from(now.as_second()).unwrap_or_default(),
    ));
    let distrusted = distrust(&own, intermediates, authorities, now);
    distrusted
        .map(|why| format!("the certificate in the Secret {name} {why}"))
        .or_else(|| other_names(name, &own, host_names))
}

/// The certificates in a text; none if there are none, or one cannot be read.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    all.ok().filter(|all| !all.is_empty())
}

/// Why no client trusts a certificate.
fn distrust(
    own: &ParsedCertificate<'_>,
    intermediates: &[CertificateDer<'_>],
    authorities: Vec<CertificateDer<'static>>,
    now: UnixTime,
) -> Option<String> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(authorities);
    if usable == 0 {
        return None;
    }
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let verified =
        verify_server_cert_signed_by_trust_anchor(own, &roots, intermediates, now, algorithms.all);
    let Err(Error::InvalidCertificate(why)) = verified else {
        return None;
    };
    let day = |time: UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let day = Timestamp::from_second(seconds).unwrap_or_default();
        day.strftime("%Y-%m-%d").to_string()
    };
    match why {
        CertificateError::Expired => Some("has expired: renew it".to_owned()),
        CertificateError::ExpiredContext { not_after, .. } => {
            Some(format!("has expired, on {}: renew it", day(not_after)))
        }
        CertificateError::NotValidYet => Some("is not valid yet: issue it again".to_owned()),
        CertificateError::NotValidYetContext { not_before, .. } => Some(format!(
            "is not valid before {}: issue it again",
            day(not_before)
        )),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Some(
            "was not issued by the authority in its ca.crt: correct ca.crt, or issue the certificate again"
                .to_owned(),
        ),
        _ => None,
    }
}

fn other_names(name: &str, own: &ParsedCertificate<'_>, host_names: &[String]) -> Option<String> {
    let is_missing = |host: &&String| {
        let host = ServerName::try_from(host.as_str());
        let verified = host.map(|host| verify_server_name(own, &host));
        matches!(
            verified,
            Ok(Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            )))
        )
    };
    let missing: Vec<&str> = host_names
        .iter()
        .filter(is_missing)
        .map(String::as_str)
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "the certificate in the Secret {name} is not valid for {}: add what is missing to its DNS names",
            missing.join(" ")
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use testbed::certificates::{Authority, Issued, Validity};

    use super::*;

    const NAMES: [&str; 2] = ["orders-rw.shop.svc", "orders-db-0.orders-db.shop.svc"];

    fn found(certificate: &str, key: &str, authority: &str) -> Option<String> {
        let secret = TlsSecret {
            certificate: certificate.into(),
            authority: authority.into(),
            has_key: !key.is_empty(),
        };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        problem("orders-tls", &secret, &NAMES.map(str::to_owned), now)
    }

    #[test]
    fn a_good_secret_has_no_problem_and_a_bad_one_is_explained() {
        let authority = Authority::new("shop").unwrap();
        let issue = |names: &[&str], validity| authority.issue(names, validity).unwrap();
        let of = |issued: &Issued| found(&issued.certificate, &issued.key, &authority.pem);
        let good = issue(&NAMES, Validity::Valid);
        assert_eq!(of(&good), None);
        let wildcard = ["*.orders-db.shop.svc", NAMES[0]];
        assert_eq!(of(&issue(&wildcard, Validity::Valid)), None);
        let other = Authority::new("shop").unwrap();
        let both = format!("{}{}", other.pem, authority.pem);
        assert_eq!(found(&good.certificate, &good.key, &both), None);
        // The Pods find out that the key is another one's.
        let other_key = issue(&NAMES, Validity::Valid).key;
        assert_eq!(found(&good.certificate, &other_key, &authority.pem), None);
        let long = "x".repeat(BYTES_MAX + 1);
        for (problem, words) in [
            (found("", &good.key, &authority.pem), "has no key tls.crt"),
            (
                found(&good.certificate, "", &authority.pem),
                "has no key tls.key: add it",
            ),
            (found(&good.certificate, &good.key, ""), "has no key ca.crt"),
            (
                found(&long, &good.key, &authority.pem),
                "tls.crt of the Secret orders-tls has more than 65536 bytes",
            ),
            (
                found("no PEM", &good.key, &authority.pem),
                "tls.crt of the Secret orders-tls has no certificate in PEM",
            ),
            (
                found(&good.certificate, &good.key, &other.pem),
                "was not issued by the authority in its ca.crt",
            ),
            (
                of(&issue(&NAMES, Validity::Expired)),
                "has expired, on 2021-02-03: renew it",
            ),
            (
                of(&issue(&NAMES, Validity::Future)),
                "is not valid before 2048-01-01",
            ),
            (
                of(&issue(&NAMES[..1], Validity::Valid)),
                "is not valid for orders-db-0.orders-db.shop.svc: add",
            ),
        ] {
            let problem = problem.unwrap();
            assert!(problem.contains(words), "{problem}");
        }
    }
}
