//! One POST over HTTP/1.1, with or without TLS. Everything about it is bounded, and its address is told to nobody but its host.

use super::form::PAGERDUTY;
use super::{Event, Form};
use crate::error::{Error, Kind, Result};
use crate::runtime::Tasks;
use crate::secret::Secret;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// From the connection to the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The same, where somebody waits for it at a terminal.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where events are sent.
#[derive(Debug)]
pub struct Hook {
    form: Form,
    /// An address, or PagerDuty's routing key.
    secret: Secret,
    /// Where PagerDuty takes events.
    pagerduty: String,
    tls: Arc<ClientConfig>,
}

/// Where that is.
struct Place {
    uri: Uri,
    host: String,
    port: u16,
    /// PagerDuty's routing key.
    key: String,
    is_tls: bool,
}

/// Why an event was not delivered.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Failure {
    why: String,
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

/// Looks whether events can be sent there.
///
/// # Errors
/// [`Kind::Config`] for what is no address. It is not quoted.
pub fn check_address(form: Form, address: &str) -> Result<()> {
    Hook::place_of(form, address, PAGERDUTY).map(drop)
}

impl Place {
    fn of(form: Form, address: &str, key: &str) -> Result<Place> {
        let bad = || {
            Error::new(Kind::Config, format!("the address for notifications ({form:?}) cannot be used"))
                .hint("It is https://host/path, or http://host/path within a network of your own.")
        };
        let uri: Uri = address.parse().map_err(|_| bad())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Place { uri, host, port, key: key.to_owned(), is_tls })
    }
}

impl Hook {
    /// To the address that is a secret, or PagerDuty's with the key that is one.
    pub(super) fn new(form: Form, secret: Secret, tls: Arc<ClientConfig>) -> Hook {
        Hook { form, secret, pagerduty: PAGERDUTY.to_owned(), tls }
    }

    /// Whose.
    pub fn form(&self) -> Form {
        self.form
    }

    /// For messages: of the address only the host, the rest is a secret with most of them. Without one, where it cannot be had.
    pub async fn who(&self) -> String {
        match self.place().await {
            Ok((_, place)) => format!("{} at {}", self.form.name(), place.host),
            Err(_) => self.form.name().to_owned(),
        }
    }

    /// Looks whether there is an address, without sending anything.
    ///
    /// # Errors
    /// If there is none, or it cannot be used.
    pub(super) async fn look(&self) -> std::result::Result<(), Failure> {
        self.place().await.map(drop)
    }

    /// The secret, and what it means.
    async fn place(&self) -> std::result::Result<(String, Place), Failure> {
        // Whoever gives it out, and whoever writes it there, may mend it.
        let failed = |error: Error| Failure { why: error.to_string(), is_transient: true };
        let secret = self.secret.text().await.map_err(failed)?;
        let place = Hook::place_of(self.form, &secret, &self.pagerduty).map_err(|error| {
            self.secret.is_of_no_use();
            failed(error)
        })?;
        Ok((secret, place))
    }

    fn place_of(form: Form, secret: &str, pagerduty: &str) -> Result<Place> {
        match form {
            Form::PagerDuty => Place::of(form, pagerduty, secret),
            Form::Json | Form::Slack => Place::of(form, secret, ""),
        }
    }

    /// Delivers an event.
    pub(super) async fn send(&self, event: &Event) -> std::result::Result<(), Failure> {
        let (secret, place) = self.place().await?;
        let here = nix::unistd::gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default();
        let body = self.form.body(event, &here, &place.key).to_string();
        let status = self.ask(&place, Method::POST, body, TIMEOUT).await?;
        if status.is_success() {
            return Ok(());
        }
        let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        // Somebody may have changed the address since it was read.
        let has_changed = !may_pass && self.secret.other_than(&secret).await.is_some();
        Err(Failure { why: format!("the answer was {status}"), is_transient: may_pass || has_changed })
    }

    /// Asks whether anybody is there, by a request that tells nothing (OPTIONS). Whatever is answered is an answer, unless it is that
    /// nobody is behind it.
    ///
    /// # Errors
    /// If nobody answers, or the address cannot be had.
    pub async fn probe(&self) -> std::result::Result<(), Failure> {
        let (_, place) = self.place().await?;
        let status = self.ask(&place, Method::OPTIONS, String::new(), PROBE_TIMEOUT).await?;
        match status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
            true => Err(Failure { why: format!("the answer was {status}"), is_transient: true }),
            false => Ok(()),
        }
    }

    async fn ask(
        &self,
        place: &Place,
        method: Method,
        body: String,
        patience: Duration,
    ) -> std::result::Result<StatusCode, Failure> {
        let late = Failure { why: format!("no answer within {} s", patience.as_secs()), is_transient: true };
        let request = place.request(method, body)?;
        tokio::time::timeout(patience, self.exchange(place, request)).await.unwrap_or(Err(late))
    }

    async fn exchange(&self, place: &Place, request: Request<Full<Bytes>>) -> std::result::Result<StatusCode, Failure> {
        let connected = TcpStream::connect((place.host.as_str(), place.port)).await;
        let stream = connected.map_err(|error| Failure { why: error.to_string(), is_transient: true })?;
        if !place.is_tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(place.host.clone())
            .map_err(|error| Failure { why: error.to_string(), is_transient: false })?;
        let connected = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
        exchange(connected.map_err(|error| Failure { why: error.to_string(), is_transient: true })?, request).await
    }
}

impl Place {
    fn request(&self, method: Method, body: String) -> std::result::Result<Request<Full<Bytes>>, Failure> {
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        // What stands before the host is a name and a password: no header has those.
        let authority = authority.rsplit('@').next().unwrap_or_default();
        Request::builder()
            .method(method)
            .uri(path)
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

#[cfg(test)]
mod tests {
    use super::super::Trouble;
    use super::*;
    use crate::secret::Source;
    use http_body_util::BodyExt;
    use hyper::Response;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use rustls::ServerConfig;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use serde_json::{Value, json};
    use std::convert::Infallible;
    use std::sync::Mutex;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    type Taken = Arc<Mutex<Vec<(String, Value)>>>;

    /// A receiver on `localhost` behind TLS that answers so; where it is, what it took, and who trusts it.
    async fn receiver(answer: StatusCode, tasks: &mut Tasks<()>) -> (String, Taken, Arc<ClientConfig>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate: CertificateDer<'static> = params.self_signed(&key).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let trust = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let taken = Taken::default();
        let (all, taken) = (taken.clone(), taken);
        tasks.start(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Whoever does not trust it hangs up.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let all = all.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let all = all.clone();
                    async move {
                        let what = format!("{} {} {:?}", request.method(), request.uri(), request.headers()[HOST]);
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        all.lock().unwrap().push((what, serde_json::from_slice(&body).unwrap_or_default()));
                        let mut response = Response::new(Full::<Bytes>::default());
                        *response.status_mut() = answer;
                        Ok::<_, Infallible>(response)
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
        (format!("https://localhost:{port}/v2/enqueue"), taken, Arc::new(trust))
    }

    /// A hook to a receiver at this address, whose routing key is `routing` where it is PagerDuty.
    fn hook(form: Form, address: &str, tls: Arc<ClientConfig>) -> Hook {
        let secret = if form == Form::PagerDuty { "routing" } else { address };
        let secret = Secret::new("notify", Source::Given(secret.to_owned()));
        Hook { pagerduty: address.to_owned(), ..Hook::new(form, secret, tls) }
    }

    fn event(is_resolved: bool) -> Event {
        let at = "2026-11-22T09:00:00Z".parse().unwrap();
        Event {
            cluster: "shop".to_owned(),
            trouble: Trouble::Rpo,
            is_resolved,
            is_of_before: false,
            summary: "what is committed is not stored".to_owned(),
            since: at,
            at,
        }
    }

    #[tokio::test]
    async fn pagerduty_opens_an_incident_and_closes_the_same_over_tls() {
        let mut tasks = Tasks::default();
        let (address, taken, trust) = receiver(StatusCode::ACCEPTED, &mut tasks).await;
        let hook = hook(Form::PagerDuty, &address, trust);
        hook.send(&event(false)).await.unwrap();
        hook.send(&event(true)).await.unwrap();
        let taken = taken.lock().unwrap();
        let host = address.trim_start_matches("https://").trim_end_matches("/v2/enqueue");
        for ((what, body), action) in taken.iter().zip(["trigger", "resolve"]) {
            assert_eq!(*what, format!("POST /v2/enqueue {host:?}"));
            assert_eq!(
                (&body["event_action"], &body["routing_key"], &body["dedup_key"], &body["payload"]["severity"]),
                (&json!(action), &json!("routing"), &json!("seawall/shop/rpo"), &json!("critical"))
            );
        }
        assert_eq!(taken.len(), 2);
    }

    #[tokio::test]
    async fn who_is_not_trusted_is_told_nothing_and_what_is_refused_is_not_tried_again() {
        let mut tasks = Tasks::default();
        let (address, taken, trust) = receiver(StatusCode::FORBIDDEN, &mut tasks).await;
        // Given somebody else's certificate
        let (.., others) = receiver(StatusCode::OK, &mut tasks).await;
        let failure = hook(Form::Slack, &address, others).send(&event(false)).await.unwrap_err();
        assert!(failure.is_transient, "{failure}");
        assert!(taken.lock().unwrap().is_empty(), "the message is a secret");
        // And the right one, of a receiver that does not want it
        let hook = hook(Form::Slack, &address, trust);
        let failure = hook.send(&event(false)).await.unwrap_err();
        assert!(!failure.is_transient && failure.to_string().contains("403"), "{failure}");
        // Then somebody is there nevertheless, who is told nothing by being asked
        hook.probe().await.unwrap();
        let taken = taken.lock().unwrap();
        assert_eq!(taken.last().map(|(what, body)| (what.starts_with("OPTIONS "), body)), Some((true, &Value::Null)));
    }

    #[tokio::test]
    async fn a_program_that_prints_no_address_is_not_asked_again_at_once_and_then_once_more() {
        let place = tempfile::tempdir().unwrap();
        let runs = place.path().join("runs");
        let script = format!("echo run >> '{}'; echo no address", runs.display());
        let source = Source::Command(["sh", "-c", &script].map(str::to_owned).to_vec());
        let hook = Hook::new(Form::Slack, Secret::new("notify.slack", source), trust().unwrap());
        let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
        // Given many who want it
        for _ in 0..3 {
            assert!(hook.send(&event(false)).await.unwrap_err().is_transient);
            assert_eq!(hook.who().await, Form::Slack.name());
        }
        assert_eq!(count(), 1);
        // When somebody wants it later, then whoever comes after him has it read
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::resume();
        assert!(hook.look().await.is_err());
        assert!(hook.look().await.is_err());
        assert_eq!(count(), 2);
    }

    #[tokio::test]
    async fn who_is_only_in_front_of_a_receiver_is_none() {
        let mut tasks = Tasks::default();
        let (address, _, trust) = receiver(StatusCode::BAD_GATEWAY, &mut tasks).await;
        let hook = hook(Form::Json, &address, trust);
        assert!(hook.send(&event(false)).await.unwrap_err().is_transient);
        assert!(hook.probe().await.unwrap_err().to_string().contains("502"));
    }
}
