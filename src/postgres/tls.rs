//! TLS over a TCP connection: what the connection string asks for as a rustls configuration, and the handshake.

use super::auth::Security;
use super::conninfo::{RootCertificates, SslMode, TlsOptions, TlsVersion};
use super::error::PgError;
use super::tls_verify::{self, Verifier};
use crate::runtime;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The protocol's name in TLS (`src/include/libpq/pqcomm.h`, `PG_ALPN_PROTOCOL`).
const ALPN: &[u8] = b"postgresql";

/// Which authorities are trusted.
#[derive(Debug)]
pub(super) struct Roots {
    pub(super) store: RootCertStore,
    /// The certificates themselves: one of them may be the server's own.
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// Reads certificates and key anew, so that renewed ones are taken at the next connection.
pub(super) async fn configure(options: &TlsOptions) -> Result<Arc<ClientConfig>, PgError> {
    let options = options.clone();
    let configured = runtime::blocking(move || configure_now(&options)).await;
    configured.unwrap_or_else(|error| Err(PgError::tls(error.to_string())))
}

fn configure_now(options: &TlsOptions) -> Result<Arc<ClientConfig>, PgError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] = match (options.min_version, options.max_version) {
        (TlsVersion::V13, _) => &[&rustls::version::TLS13],
        (_, TlsVersion::V12) => &[&rustls::version::TLS12],
        _ => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let verifier = Verifier {
        roots: roots(options)?,
        check_name: options.mode == SslMode::VerifyFull,
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| PgError::tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client_identity(options)? {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| PgError::tls(format!("the client certificate cannot be used: {error}")))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = options.server_name_indication;
    Ok(Arc::new(config))
}

/// The trusted authorities; `None` if the mode checks no certificate.
fn roots(options: &TlsOptions) -> Result<Option<Roots>, PgError> {
    let (path, required) = match (&options.roots, options.mode) {
        (_, SslMode::Disable | SslMode::Allow | SslMode::Prefer) => return Ok(None),
        (RootCertificates::System, _) => return system_roots().map(Some),
        // As libpq: a root file turns require into verify-ca.
        (RootCertificates::Default(path), SslMode::Require) => (path.as_deref(), false),
        (RootCertificates::File(path), SslMode::Require) => (Some(path.as_path()), false),
        (RootCertificates::Default(path), _) => (path.as_deref(), true),
        (RootCertificates::File(path), _) => (Some(path.as_path()), true),
    };
    let Some(path) = path.filter(|path| required || path.exists()) else {
        return match required {
            true => Err(missing_roots("no home directory to find root.crt in")),
            false => Ok(None),
        };
    };
    let text = std::fs::read(path).map_err(|error| missing_roots(&format!("{}: {error}", path.display())))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| PgError::tls(format!("{} is not a PEM file: {error}", path.display())))?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates.iter().cloned());
    match certificates.is_empty() {
        true => Err(PgError::tls(format!("there is no certificate in {}", path.display()))),
        false => Ok(Some(Roots { store, certificates })),
    }
}

fn missing_roots(problem: &str) -> PgError {
    PgError::Tls {
        message: format!("there are no root certificates to check the server's with ({problem})"),
        hint: Some(
            "Name the file with sslrootcert=, trust what the system trusts with sslrootcert=system, or use sslmode=require, \
             which encrypts and does not check.",
        ),
    }
}

fn system_roots() -> Result<Roots, PgError> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(loaded.certs.iter().cloned());
    match store.is_empty() {
        true => Err(missing_roots("the system has none: is the package ca-certificates installed?")),
        false => Ok(Roots { store, certificates: Vec::new() }),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_identity(options: &TlsOptions) -> Result<Option<Identity>, PgError> {
    let Some((certificate_path, required)) = &options.client_certificate else {
        return Ok(None);
    };
    let text = match std::fs::read(certificate_path) {
        Ok(text) => text,
        Err(error) if !required && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(PgError::tls(format!(
                "the client certificate {} cannot be read: {error}",
                certificate_path.display()
            )));
        }
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| {
        PgError::tls(format!("the client certificate {} is not a PEM file: {error}", certificate_path.display()))
    })?;
    let Some(key_path) = &options.client_key else {
        return Err(PgError::tls("there is a client certificate and no key: name it with sslkey="));
    };
    check_key_is_private(key_path)?;
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| PgError::Tls {
        message: format!("the client key {} cannot be read: {error}", key_path.display()),
        hint: Some("The key must be PEM and without a passphrase."),
    })?;
    Ok(Some((chain, key)))
}

/// libpq's rule (`fe-secure-openssl.c`, `initialize_SSL`): the owner alone, or root's with its group reading.
fn check_key_is_private(path: &Path) -> Result<(), PgError> {
    let metadata = std::fs::metadata(path)
        .map_err(|error| PgError::tls(format!("the client key {} cannot be read: {error}", path.display())))?;
    let too_open = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    match metadata.permissions().mode() & too_open {
        0 => Ok(()),
        _ => Err(PgError::Tls {
            message: format!("the client key {} can be read by others", path.display()),
            hint: Some("Make it private: chmod 0600."),
        }),
    }
}

/// Shakes hands; `host` is the name that the certificate must have, where the mode wants one.
pub(super) async fn handshake(
    socket: TcpStream,
    config: Arc<ClientConfig>,
    host: &str,
    address: IpAddr,
    options: &TlsOptions,
) -> Result<(TlsStream<TcpStream>, Security), PgError> {
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        Err(_) if options.mode < SslMode::VerifyFull => ServerName::from(address),
        Err(_) => return Err(PgError::tls(format!("{host:?} is no name that a certificate can have"))),
    };
    let connecting = TlsConnector::from(config).connect(name, socket).await;
    let stream = connecting.map_err(|error| failed_handshake(&error, options))?;
    let (_, session) = stream.get_ref();
    if options.direct && session.alpn_protocol() != Some(ALPN) {
        return Err(PgError::tls(
            "the server does not say that it speaks PostgreSQL (ALPN) behind a direct connection",
        ));
    }
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let end_point = certificate.and_then(|certificate| tls_verify::end_point_hash(certificate));
    let certificate_end = certificate.and_then(|certificate| tls_verify::end_of(certificate));
    Ok((stream, Security::Tls { end_point, certificate_end }))
}

fn failed_handshake(error: &io::Error, options: &TlsOptions) -> PgError {
    use rustls::{CertificateError as Bad, Error as TlsError};
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    let hint = match cause {
        Some(TlsError::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
            Some("No authority in sslrootcert signed the server's certificate: is it the right file?")
        }
        Some(TlsError::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
            Some("The certificate is for other host names: connect by one of them (hostaddr= can give the address).")
        }
        Some(TlsError::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
            Some("The server's certificate has expired, or the clock of this machine is wrong.")
        }
        None if options.direct => Some("Direct TLS needs PostgreSQL 17 or later."),
        _ => None,
    };
    PgError::Tls { message: format!("the handshake failed: {error}"), hint }
}
