//! TLS to PostgreSQL against a scripted server with certificates made for the test.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/walsender.rs"]
mod walsender;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use seawall::error::Error;
use seawall::postgres::{Client, ConnInfo, Mode, PgError};
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use walsender::Step::{ClientCloses, Expect, Scram, Send, Startup, Tls};
use walsender::{Step, Walsender, say};

/// What a client says before TLS, and the answers.
const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";

struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("root.crt"), issuer.pem()).unwrap();
        Authority { directory, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn root(&self) -> String {
        self.path("root.crt").display().to_string()
    }

    fn issue(&self, common_name: &str, names: &[&str]) -> (CertificateDer<'static>, KeyPair) {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

fn server_config(
    certificate: &CertificateDer<'static>,
    key: &KeyPair,
    clients: Option<&Authority>,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(vec![certificate.clone()], private(key)).unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Arc::new(config)
}

fn tls_then(config: &Arc<ServerConfig>, rest: Vec<Step>) -> Vec<Step> {
    let mut steps = vec![Expect(SSL_REQUEST.to_vec()), Send(b"S".to_vec()), Tls(config.clone())];
    steps.extend(rest);
    steps
}

fn login() -> Vec<Step> {
    vec![Startup(vec![("user", "tester")]), Send(say::welcome("15.18")), ClientCloses]
}

/// Connects to `localhost` by its address; without a home directory, so that nobody's certificates are found.
async fn connect(port: u16, settings: &str) -> Result<Client, PgError> {
    let text = format!("host=localhost hostaddr=127.0.0.1 port={port} user=tester passfile=/dev/null {settings}");
    let info = ConnInfo::parse(&text, &|name| (name == "HOME").then(|| "/nonexistent".to_owned())).unwrap();
    Client::connect(&info, Mode::Physical, &[]).await
}

#[tokio::test]
async fn each_mode_checks_as_much_as_it_says() {
    let (ours, other) = (Authority::new(), Authority::new());
    let right = ours.issue("server", &["localhost"]);
    let wrong_name = ours.issue("server", &["elsewhere.example"]);
    let common_name_only = ours.issue("localhost", &[]);
    let stranger = other.issue("server", &["localhost"]);
    let root = format!("sslrootcert={}", ours.root());

    let accepted = [
        (&right, "sslmode=prefer".to_owned()),
        (&stranger, "sslmode=require".to_owned()),
        (&right, format!("sslmode=require {root}")),
        (&wrong_name, format!("sslmode=verify-ca {root}")),
        (&right, format!("sslmode=verify-full {root}")),
        (&right, format!("sslmode=verify-full ssl_max_protocol_version=TLSv1.2 {root}")),
        (&right, format!("sslmode=verify-full ssl_min_protocol_version=TLSv1.3 sslsni=0 {root}")),
        (&common_name_only, format!("sslmode=verify-full {root}")),
    ];
    for ((certificate, key), settings) in accepted {
        let server = Walsender::script(tls_then(&server_config(certificate, key, None), login()));
        let client = connect(server.port(), &settings).await.unwrap_or_else(|error| panic!("{settings}: {error}"));
        client.close().await;
        server.finish();
    }

    let refused = [
        // As libpq: a root certificate turns require into verify-ca.
        (&stranger, format!("sslmode=require {root}")),
        (&stranger, format!("sslmode=verify-ca {root}")),
        (&wrong_name, format!("sslmode=verify-full {root}")),
    ];
    for ((certificate, key), settings) in refused {
        let server = Walsender::script(tls_then(&server_config(certificate, key, None), vec![]));
        let error = connect(server.port(), &settings).await.unwrap_err();
        assert!(error.to_string().contains("TLS: the handshake failed"), "{settings}: {error}");
        assert!(!error.is_transient(), "{settings}");
        assert!(Error::from(error).hint_text().is_some(), "{settings}: no hint");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_the_root_will_do() {
    // Given what `openssl req -new -x509` makes: an authority that is the server itself.
    let directory = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(directory.path().join("root.crt"), certificate.pem()).unwrap();
    let server = Walsender::script(tls_then(&server_config(certificate.der(), &key, None), login()));
    let settings = format!("sslmode=verify-full sslrootcert={}", directory.path().join("root.crt").display());
    connect(server.port(), &settings).await.unwrap().close().await;
    server.finish();
}

#[tokio::test]
async fn verification_without_roots_is_refused_with_a_way_out() {
    for settings in ["sslmode=verify-full", "sslmode=verify-ca sslrootcert=/nonexistent/root.crt"] {
        let server = Walsender::script(vec![Expect(SSL_REQUEST.to_vec()), Send(b"S".to_vec()), ClientCloses]);
        let error = Error::from(connect(server.port(), settings).await.unwrap_err());
        assert!(error.hint_text().is_some_and(|hint| hint.contains("sslrootcert=system")), "{error:?}");
        server.finish();
    }
}

#[tokio::test]
async fn a_server_without_tls_gets_what_the_mode_allows() {
    let no = || vec![Expect(SSL_REQUEST.to_vec()), Send(b"N".to_vec())];
    let server = Walsender::script(no().into_iter().chain(login()).collect());
    connect(server.port(), "sslmode=prefer").await.unwrap().close().await;
    server.finish();

    let server = Walsender::script(no().into_iter().chain([ClientCloses]).collect());
    let error = connect(server.port(), "sslmode=require").await.unwrap_err();
    assert!(error.to_string().contains("the server has none"), "{error}");
    server.finish();
}

#[tokio::test]
async fn a_login_refused_for_its_encryption_is_tried_the_other_way() {
    let ours = Authority::new();
    let (certificate, key) = ours.issue("server", &["localhost"]);
    let config = server_config(&certificate, &key, None);
    let no_entry =
        || vec![Startup(vec![]), Send(say::error("FATAL", "28000", "no pg_hba.conf entry for host")), ClientCloses];
    // prefer: with TLS first, then without; allow: the other way round.
    let server = Walsender::scripts(vec![tls_then(&config, no_entry()), login()]);
    connect(server.port(), "sslmode=prefer").await.unwrap().close().await;
    server.finish();
    let server = Walsender::scripts(vec![no_entry(), tls_then(&config, login())]);
    connect(server.port(), "sslmode=allow").await.unwrap().close().await;
    server.finish();
    // When neither will do, both are told.
    let server = Walsender::scripts(vec![tls_then(&config, no_entry()), no_entry()]);
    let error = connect(server.port(), "sslmode=prefer").await.unwrap_err().to_string();
    assert!(error.contains("with TLS: FATAL") && error.contains("without TLS: FATAL"), "{error}");
    server.finish();
    // A wrong password is not repeated in the clear.
    let wrong = vec![Startup(vec![]), Send(say::error("FATAL", "28P01", "no")), ClientCloses];
    let server = Walsender::script(tls_then(&config, wrong));
    assert_eq!(connect(server.port(), "sslmode=prefer").await.unwrap_err().sqlstate(), Some("28P01"));
    server.finish();
}

#[tokio::test]
async fn words_before_tls_begins_are_nobodys() {
    for answer in [b"S then something".to_vec(), say::error("FATAL", "28P01", "give me your password at example.org")] {
        let server = Walsender::script(vec![Expect(SSL_REQUEST.to_vec()), Send(answer), ClientCloses]);
        let error = connect(server.port(), "sslmode=require").await.unwrap_err();
        assert!(error.to_string().contains("unexpected answer"), "{error}");
        assert!(!error.to_string().contains("example.org"), "{error}");
        server.finish();
    }
}

#[tokio::test]
async fn scram_is_tied_to_the_servers_certificate() {
    let ours = Authority::new();
    let (certificate, key) = ours.issue("server", &["localhost"]);
    let config = server_config(&certificate, &key, None);
    let hash = Sha256::digest(&certificate).to_vec();
    let script = |end_point| {
        let scram = Scram { password: "sesame", end_point, forged: false };
        Walsender::script(tls_then(&config, vec![Startup(vec![]), scram, Send(say::welcome("15.18")), ClientCloses]))
    };
    for binding in ["prefer", "require"] {
        let server = script(Some(hash.clone()));
        let settings = format!("sslmode=require password=sesame channel_binding={binding}");
        connect(server.port(), &settings).await.unwrap_or_else(|error| panic!("{binding}: {error}")).close().await;
        server.finish();
    }
    // Given a server that does not offer it: the client says that it could have ("y").
    let server = script(None);
    connect(server.port(), "sslmode=require password=sesame").await.unwrap().close().await;
    server.finish();
}

#[tokio::test]
async fn a_password_in_the_clear_goes_out_under_tls_only() {
    let ours = Authority::new();
    let (certificate, key) = ours.issue("server", &["localhost"]);
    let server = Walsender::script(tls_then(
        &server_config(&certificate, &key, None),
        vec![
            Startup(vec![]),
            Send(say::authentication(3, &[])),
            Expect(b"p\0\0\0\x0bsesame\0".to_vec()),
            Send(say::welcome("15.18")),
            ClientCloses,
        ],
    ));
    connect(server.port(), "sslmode=require password=sesame").await.unwrap().close().await;
    server.finish();
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_its_key_kept_private() {
    let ours = Authority::new();
    let (certificate, key) = ours.issue("server", &["localhost"]);
    let (client_certificate, client_key) = ours.issue("tester", &[]);
    let pem = |tag: &str, der: &[u8]| {
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {tag}-----\n{body}\n-----END {tag}-----\n")
    };
    std::fs::write(ours.path("client.crt"), pem("CERTIFICATE", &client_certificate)).unwrap();
    std::fs::write(ours.path("client.key"), client_key.serialize_pem()).unwrap();
    let set_mode =
        |mode| std::fs::set_permissions(ours.path("client.key"), std::fs::Permissions::from_mode(mode)).unwrap();
    let settings = format!(
        "sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
        ours.root(),
        ours.path("client.crt").display(),
        ours.path("client.key").display()
    );
    set_mode(0o600);
    let server = Walsender::script(tls_then(&server_config(&certificate, &key, Some(&ours)), login()));
    connect(server.port(), &settings).await.unwrap().close().await;
    server.finish();

    set_mode(0o644);
    let server = Walsender::script(vec![Expect(SSL_REQUEST.to_vec()), Send(b"S".to_vec()), ClientCloses]);
    let error = connect(server.port(), &settings).await.unwrap_err();
    assert!(error.to_string().contains("can be read by others"), "{error}");
    server.finish();
}

#[tokio::test]
async fn direct_tls_begins_at_once_and_wants_its_protocol_named() {
    let ours = Authority::new();
    let (certificate, key) = ours.issue("server", &["localhost"]);
    let config = server_config(&certificate, &key, None);
    let direct = |config: Arc<ServerConfig>, rest: Vec<Step>| {
        let mut steps = vec![Tls(config)];
        steps.extend(rest);
        Walsender::script(steps)
    };
    let settings = format!("sslnegotiation=direct sslmode=verify-full sslrootcert={}", ours.root());
    let server = direct(config.clone(), login());
    connect(server.port(), &settings).await.unwrap().close().await;
    server.finish();

    let mut without = ServerConfig::clone(&config);
    without.alpn_protocols.clear();
    let server = direct(Arc::new(without), vec![ClientCloses]);
    let error = connect(server.port(), &settings).await.unwrap_err();
    assert!(error.to_string().contains("ALPN"), "{error}");
    server.finish();
}
