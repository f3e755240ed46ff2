//! Whether the server's certificate will do, by libpq's rules rather than a browser's; and its hash for SCRAM.

use super::tls::Roots;
use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{ContextSpecific, ObjectIdentifier};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::AlgorithmIdentifierOwned;

/// Checks as much as the `sslmode` asks for. The handshake's signature is checked always: it shows that the server has
/// the key of the certificate that SCRAM is bound to.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None`: any certificate will do.
    pub(super) roots: Option<Roots>,
    pub(super) check_name: bool,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        // A self-signed certificate, copied to the client as its root, is how many servers are set up. It is marked as
        // an authority, which web rules forbid a server to be.
        if roots.certificates.iter().any(|trusted| trusted == end_entity) {
            check_validity(end_entity, now)?;
        } else {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, self.algorithms.all)?;
        }
        if self.check_name {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            verify_server_name(&parsed, server_name)
                .or_else(|error| if common_name_matches(end_entity, server_name) { Ok(()) } else { Err(error) })?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate.validity;
    let now = now.as_secs();
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// libpq's fallback (`fe-secure-common.c`, `pq_verify_peer_name_matches_certificate`): a certificate without any
/// alternative name is for its common name. The manual's own recipe makes such certificates.
fn common_name_matches(certificate: &CertificateDer<'_>, server_name: &ServerName<'_>) -> bool {
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return false;
    };
    let certificate = certificate.tbs_certificate;
    let alternatives = match certificate.get::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0,
        Ok(None) => Vec::new(),
        Err(_) => return false,
    };
    let named = |name: &GeneralName| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_));
    if alternatives.iter().any(named) {
        return false;
    }
    let host = server_name.to_str();
    let attributes = certificate.subject.0.iter().flat_map(|names| names.0.iter());
    attributes.filter(|attribute| attribute.oid == COMMON_NAME).any(|attribute| {
        // Whatever string type it has, its bytes are ASCII or it is no host name.
        std::str::from_utf8(attribute.value.value()).is_ok_and(|pattern| name_matches(pattern, &host))
    })
}

/// Exact, or `*.` in place of the first label; without regard to case.
fn name_matches(pattern: &str, host: &str) -> bool {
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    match pattern.strip_prefix("*.") {
        Some(parent) if !is_address => {
            host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
        }
        _ => pattern.eq_ignore_ascii_case(host),
    }
}

/// When a certificate ends; `None` if it cannot be read.
pub(super) fn end_of(certificate: &[u8]) -> Option<Timestamp> {
    let validity = Certificate::from_der(certificate).ok()?.tbs_certificate.validity;
    Timestamp::try_from(validity.not_after.to_system_time()).ok()
}

/// The hash of the server's certificate that SCRAM is bound to, `tls-server-end-point` (RFC 5929, section 4.1): by the
/// hash of its signature, MD5 and SHA-1 raised to SHA-256. `None` where that is not defined (Ed25519).
pub(super) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    Some(match signature_hash(&parsed.signature_algorithm)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

fn signature_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    // RFC 8017 (RSA), RFC 5758 (ECDSA), RFC 3279 (SHA-1), RFC 4055 (PSS).
    Some(match algorithm.oid.to_string().as_str() {
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => Hash::Sha256,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => Hash::Sha256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Hash::Sha384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Hash::Sha512,
        "1.2.840.113549.1.1.10" => return pss_hash(algorithm),
        _ => return None,
    })
}

/// RSASSA-PSS says its hash in its parameters: `SEQUENCE { [0] EXPLICIT AlgorithmIdentifier DEFAULT sha1, … }`.
fn pss_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<Hash> {
    let parameters = algorithm.parameters.as_ref()?.to_der().ok()?;
    let mut reader = SliceReader::new(&parameters).ok()?;
    let hash = reader.sequence(|body| {
        let hash: Option<ContextSpecific<AlgorithmIdentifierOwned>> =
            ContextSpecific::decode_explicit(body, x509_cert::der::TagNumber::N0)?;
        // What follows (mask function, salt length) says nothing about the hash.
        let rest = body.remaining_len();
        body.read_slice(rest)?;
        Ok(hash)
    });
    Some(match hash.ok()?.map(|hash| hash.value.oid.to_string()).as_deref() {
        Some("2.16.840.1.101.3.4.2.1") => Hash::Sha256,
        Some("2.16.840.1.101.3.4.2.2") => Hash::Sha384,
        Some("2.16.840.1.101.3.4.2.3") => Hash::Sha512,
        None => Hash::Sha256,
        Some(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn certificate(
        algorithm: &'static rcgen::SignatureAlgorithm,
        common_name: &str,
        names: &[&str],
    ) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_end_point_hash_follows_the_signature() {
        let p384 = certificate(&PKCS_ECDSA_P384_SHA384, "db", &[]);
        assert_eq!(end_point_hash(&p384), Some(Sha384::digest(&p384).to_vec()));
        assert_eq!(end_point_hash(&certificate(&PKCS_ED25519, "db", &[])), None);
        assert_eq!(end_point_hash(b"not a certificate"), None);
    }

    #[test]
    fn the_end_of_a_certificate_is_what_it_says() {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 5, 17);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        assert_eq!(end_of(&certificate), Some("2031-05-17T00:00:00Z".parse().unwrap()));
        assert_eq!(end_of(b"not a certificate"), None);
    }

    #[test]
    fn the_common_name_counts_only_without_alternative_names() {
        let host = ServerName::try_from("db.example").unwrap();
        assert!(common_name_matches(&certificate(&PKCS_ED25519, "DB.example", &[]), &host));
        assert!(common_name_matches(&certificate(&PKCS_ED25519, "*.example", &[]), &host));
        assert!(!common_name_matches(&certificate(&PKCS_ED25519, "*.db.example", &[]), &host));
        assert!(!common_name_matches(&certificate(&PKCS_ED25519, "db.example", &["other.example"]), &host));
    }

    #[test]
    fn a_pinned_certificate_is_still_bound_to_its_dates() {
        let own = certificate(&PKCS_ED25519, "db", &[]);
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        assert_eq!(check_validity(&own, at(1_700_000_000)), Ok(()));
        assert_eq!(check_validity(&own, at(1 << 40)), Err(CertificateError::Expired.into()));
        assert_eq!(check_validity(&own, at(0)), Err(CertificateError::NotValidYet.into()));
    }
}
