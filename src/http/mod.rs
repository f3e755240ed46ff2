//! The HTTP endpoint: metrics and health, asked of whoever is served. Uses `error` and `runtime`.
//!
//! It may be open to a network, so everything about a request is bounded: how many at once, how long each may take, how
//! large its head may be. One request a connection: a scrape every few seconds needs no more, and nobody can keep one.

use crate::error::{Error, Kind, Result};
use crate::runtime::{self, Tasks};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Connections served at once; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 32;

/// From accepting a connection to the end of its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// From accepting a connection to closing it.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// The pause after a failed `accept`, which may be out of file descriptors: it must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bytes read ahead for a request's head: hyper's least.
const HEAD_BYTES_MAX: usize = 8192;

/// What `/readyz` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// True while it does what it is there for.
    pub ready: bool,
    /// Why not, or what it does: a line for each that is asked for.
    pub reason: String,
}

/// Whom the endpoint speaks for. Nothing in here may wait; metrics are processor time.
pub trait Served: Send + Sync + 'static {
    /// The text of `/metrics`.
    ///
    /// # Errors
    /// If it cannot be written.
    fn metrics(&self) -> Result<String>;

    /// Whether all of it is ready, or the one of this name; `None`: there is none of that name.
    fn health(&self, name: Option<&str>) -> Option<Health>;

    /// Whether the one of this name is alive, and need not be started anew by a person; `None`: there is none of that name.
    fn life(&self, name: &str) -> Option<Health>;
}

/// Binds the endpoint's address.
///
/// # Errors
/// Of kind `Local`, if the port is taken or the address is not this machine's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Error::new(Kind::Local, format!("cannot listen on {address}"))
            .because(error)
            .hint("Is another seawall running here? --listen takes another address, or off.")
    })
}

/// Serves until `shutdown`; open connections are then dropped.
///
/// A connection's failure is that client's matter, and a failed accept is tried again. May be dropped at any time.
pub async fn serve(listener: TcpListener, served: Arc<impl Served>, shutdown: CancellationToken) {
    let (mut connections, rendering): (Tasks<()>, _) = (Tasks::default(), Arc::new(Mutex::new(())));
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(ended) = connections.next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an HTTP request met a defect");
                }
            }
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => connections.start(converse(stream, served.clone(), rendering.clone())),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn converse(stream: TcpStream, served: Arc<impl Served>, rendering: Arc<Mutex<()>>) {
    let service = service_fn(|request: Request<Incoming>| {
        let (served, rendering) = (served.clone(), rendering.clone());
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), served, rendering).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection failed"),
        Err(_) => tracing::debug!("an HTTP connection took too long"),
    }
}

async fn answer(
    method: &Method,
    path: &str,
    served: Arc<impl Served>,
    rendering: Arc<Mutex<()>>,
) -> Response<Full<Bytes>> {
    // `/readyz/shop` is of one cluster; whether that one is there, only whoever is served knows.
    let path = path.strip_prefix('/').unwrap_or_default();
    let (page, name) = match path.split_once('/') {
        Some((page @ ("healthz" | "readyz"), name)) => (page, Some(name)),
        _ => (path, None),
    };
    if !matches!(page, "metrics" | "healthz" | "readyz") {
        return plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned());
    }
    // The answer to HEAD is that to GET: hyper leaves its body out.
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match (page, name) {
        ("metrics", _) => match render(served, rendering).await {
            Ok(text) => {
                let mut response = plain(StatusCode::OK, text);
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        ("healthz", None) => plain(StatusCode::OK, "alive\n".to_owned()),
        ("healthz", Some(name)) => shown(served.life(name)),
        (_, name) => shown(served.health(name)),
    }
}

/// Not on the threads that serve sockets: of many clusters it is megabytes. Nor behind what compresses, for who asks has seconds. One
/// at a time, whoever asks.
async fn render(served: Arc<impl Served>, rendering: Arc<Mutex<()>>) -> Result<String> {
    let one = rendering.lock_owned().await;
    let work = move || {
        let text = served.metrics();
        drop(one);
        text
    };
    runtime::blocking(work).await?
}

fn shown(health: Option<Health>) -> Response<Full<Bytes>> {
    match health {
        None => plain(StatusCode::NOT_FOUND, "there is no cluster of that name\n".to_owned()),
        Some(Health { ready: true, reason }) => plain(StatusCode::OK, format!("{reason}\n")),
        Some(Health { ready: false, reason }) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
