//! The HTTP endpoint from the outside: what it answers, and that it cannot be held up.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use seawall::error::{Error, Kind, Result};
use seawall::http::{self, Health, Served};
use seawall::metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);

struct Endpoint {
    address: SocketAddr,
    state: watch::Sender<Health>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

/// The only one is called `main`.
struct One<R>(watch::Receiver<Health>, R);

impl<R: Fn() -> Result<String> + Send + Sync + 'static> Served for One<R> {
    fn metrics(&self) -> Result<String> {
        self.1()
    }

    fn health(&self, name: Option<&str>) -> Option<Health> {
        name.is_none_or(|name| name == "main").then(|| self.0.borrow().clone())
    }

    fn life(&self, name: &str) -> Option<Health> {
        (name == "main").then(|| Health { ready: true, reason: "alive".to_owned() })
    }
}

async fn start(render: impl Fn() -> Result<String> + Send + Sync + 'static) -> Endpoint {
    let listener = http::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let (state, watched) = watch::channel(Health { ready: false, reason: "starting".to_owned() });
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(http::serve(listener, Arc::new(One(watched, render)), shutdown.clone()));
    Endpoint { address, state, shutdown, server }
}

/// Sends bytes as they are and reads until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer, then the end");
        answer
    };
    tokio::time::timeout(DEADLINE, talk).await.expect("the server answers and closes")
}

async fn get(address: SocketAddr, path: &str) -> String {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: seawall\r\n\r\n")).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn metrics_are_served_in_the_format_that_prometheus_reads() {
    let metrics = Metrics::new("main").expect("metrics");
    let endpoint = start(move || metrics.render()).await;
    let answer = get(endpoint.address, "/metrics").await;
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(answer.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nseawall_rpo_seconds{cluster=\"main\"} 0\n"), "{answer}");
}

#[tokio::test]
async fn it_is_alive_from_the_start_and_ready_when_it_says_so() {
    let endpoint = start(|| Ok(String::new())).await;
    assert_eq!(status(&get(endpoint.address, "/healthz").await), "200");

    let answer = get(endpoint.address, "/readyz").await;
    assert_eq!(status(&answer), "503", "{answer}");
    assert!(answer.ends_with("starting\n"), "{answer}");

    endpoint.state.send_replace(Health { ready: true, reason: "streaming".to_owned() });
    let answer = get(endpoint.address, "/readyz").await;
    assert_eq!(status(&answer), "200", "{answer}");

    endpoint.state.send_replace(Health { ready: false, reason: "cannot store: denied".to_owned() });
    let answer = get(endpoint.address, "/readyz").await;
    assert_eq!(status(&answer), "503", "{answer}");
    assert!(answer.ends_with("cannot store: denied\n"), "{answer}");

    // And one cluster alone can be asked for
    let answer = get(endpoint.address, "/readyz/main").await;
    assert!(status(&answer) == "503" && answer.ends_with("cannot store: denied\n"), "{answer}");
    assert_eq!(status(&get(endpoint.address, "/healthz/main").await), "200");
    for path in ["/readyz/other", "/healthz/other", "/readyz/", "/readyz/main/"] {
        assert_eq!(status(&get(endpoint.address, path).await), "404", "{path}");
    }
}

#[tokio::test]
async fn everything_else_is_not_found_or_not_allowed() {
    let endpoint = start(|| Ok("x".repeat(10))).await;
    for path in ["/", "/metrics/", "/metricsx", "/../metrics", "/favicon.ico"] {
        assert_eq!(status(&get(endpoint.address, path).await), "404", "{path}");
    }
    assert_eq!(status(&get(endpoint.address, "/healthz?probe=1").await), "200", "a query changes nothing");
    for method in ["POST", "PUT", "DELETE", "BREW"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: seawall\r\nContent-Length: 0\r\n\r\n");
        let answer = exchange(endpoint.address, &request).await;
        assert_eq!(status(&answer), "405", "{method}");
        assert!(answer.to_lowercase().contains("allow: get, head"), "{answer}");
    }
    let answer = exchange(endpoint.address, "HEAD /metrics HTTP/1.1\r\nHost: seawall\r\n\r\n").await;
    assert_eq!(status(&answer), "200");
    assert!(answer.ends_with("\r\n\r\n"), "HEAD has no body: {answer}");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let endpoint = start(|| Ok(String::new())).await;
    for noise in
        ["\x16\x03\x01 nonsense\r\n\r\n", "GET\r\n\r\n", &format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000))]
    {
        let mut stream = TcpStream::connect(endpoint.address).await.expect("connect");
        // The server may close before it has read all of it.
        let _ = stream.write_all(noise.as_bytes()).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        read.expect("the server closes").ok();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(status(&get(endpoint.address, "/healthz").await), "200", "it goes on");
}

#[tokio::test]
async fn a_connection_serves_one_request() {
    // Given a client that sends two requests and would stay; then one is answered, and the connection ends.
    let endpoint = start(|| Ok(String::new())).await;
    let request = "GET /healthz HTTP/1.1\r\nHost: seawall\r\nConnection: keep-alive\r\n\r\n";
    let answer = exchange(endpoint.address, &request.repeat(2)).await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_keep_others_out() {
    // Given more silent connections than are served at once; then a scrape is still answered, once those have timed out.
    let endpoint = start(|| Ok(String::new())).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(endpoint.address).await.expect("connect"));
    }
    assert_eq!(status(&get(endpoint.address, "/healthz").await), "200");
}

#[tokio::test]
async fn a_failing_page_says_so() {
    let endpoint = start(|| Err(Error::new(Kind::Internal, "cannot write the metrics"))).await;
    assert_eq!(status(&get(endpoint.address, "/metrics").await), "500");
    assert_eq!(status(&get(endpoint.address, "/healthz").await), "200");
}

#[tokio::test]
async fn a_shutdown_ends_it_though_a_client_stays() {
    let endpoint = start(|| Ok(String::new())).await;
    let mut stays = TcpStream::connect(endpoint.address).await.expect("connect");
    stays.write_all(b"GET /healthz HT").await.expect("half a request");
    endpoint.shutdown.cancel();
    tokio::time::timeout(DEADLINE, endpoint.server).await.expect("it ends").expect("without a panic");
    assert!(TcpStream::connect(endpoint.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_a_hint() {
    let endpoint = start(|| Ok(String::new())).await;
    let error = http::bind(endpoint.address).await.expect_err("it is taken");
    assert_eq!(error.kind(), Kind::Local);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("--listen")), "{error:?}");
}
