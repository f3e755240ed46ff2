//! One POST over HTTP/1.1, with or without TLS. Everything about it is bounded, and its address is told to nobody but its host.

use super::form::PAGERDUTY;
use super::{Event, Form};
use crate::error::{Error, Kind, Result};
use crate::runtime::Tasks;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// From the connection to the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where events are sent.
pub struct Hook {
    form: Form,
    uri: Uri,
    host: String,
    port: u16,
    /// PagerDuty's routing key.
    key: String,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Hook {
    /// Without the address, which is a secret with most of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("form", &self.form).field("host", &self.host).finish_non_exhaustive()
    }
}

/// Why an event was not delivered.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// It may be tried again.
    pub(super) is_transient: bool,
}

/// Trusts whom the machine trusts.
///
/// # Errors
/// If it trusts nobody.
pub(super) fn trust() -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Error::new(
            Kind::Local,
            "this machine has no certificates to trust, so no notification can be sent",
        )
        .hint("Install the package ca-certificates."));
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

impl Hook {
    /// To this address, or PagerDuty's with this key.
    ///
    /// # Errors
    /// [`Kind::Config`] for what is no address. It is not quoted.
    pub(super) fn new(form: Form, address: &str, tls: Arc<ClientConfig>) -> Result<Hook> {
        let bad = || {
            Error::new(Kind::Config, format!("the address for notifications ({form:?}) cannot be used"))
                .hint("It is https://host/path, or http://host/path within a network of your own.")
        };
        let (address, key) = match form {
            Form::PagerDuty => (PAGERDUTY, address),
            Form::Json | Form::Slack => (address, ""),
        };
        let uri: Uri = address.parse().map_err(|_| bad())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Hook { form, uri, host, port, key: key.to_owned(), tls: is_tls.then_some(tls) })
    }

    /// For messages.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Delivers an event.
    pub(super) async fn send(&self, event: &Event) -> std::result::Result<(), Failure> {
        let late = Failure { why: format!("no answer within {} s", TIMEOUT.as_secs()), is_transient: true };
        let status = tokio::time::timeout(TIMEOUT, self.post(event)).await.unwrap_or(Err(late))?;
        match status {
            status if status.is_success() => Ok(()),
            status => {
                let is_transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                Err(Failure { why: format!("the answer was {status}"), is_transient })
            }
        }
    }

    async fn post(&self, event: &Event) -> std::result::Result<StatusCode, Failure> {
        let connected = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = connected.map_err(|error| Failure { why: error.to_string(), is_transient: true })?;
        let request = self.request(event)?;
        let Some(tls) = &self.tls else { return exchange(stream, request).await };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| Failure { why: error.to_string(), is_transient: false })?;
        let connected = TlsConnector::from(tls.clone()).connect(name, stream).await;
        exchange(connected.map_err(|error| Failure { why: error.to_string(), is_transient: true })?, request).await
    }

    fn request(&self, event: &Event) -> std::result::Result<Request<Full<Bytes>>, Failure> {
        let here = nix::unistd::gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default();
        let body = self.form.body(event, &here, &self.key).to_string();
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        // What stands before the host is a name and a password: no header has those.
        let authority = authority.rsplit('@').next().unwrap_or_default();
        Request::post(path)
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("seawall/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure { why: error.to_string(), is_transient: false })
    }
}

/// Sends a request and reads the head of the answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> std::result::Result<StatusCode, Failure> {
    let failed = |error: hyper::Error| Failure { why: error.to_string(), is_transient: true };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Dropped with the answer, or when it takes too long.
    let mut driving = Tasks::default();
    driving.start(connection);
    Ok(sender.send_request(request).await.map_err(failed)?.status())
}
