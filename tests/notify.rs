//! Who is told when something is wrong: `seawall run` and a receiver of web hooks that is slow, fails, and answers.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use scene::Scene;
use seawall::scratch::StopMode;
use serde_json::Value;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use support::postgres::DEBIAN;
use support::waiting::{PATIENCE, wait_for};
use tokio::net::TcpListener;

/// The first request of all fails.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Received>>);

#[derive(Default)]
struct Received {
    requests: usize,
    /// What was taken, with the path of its request.
    taken: Vec<(String, Value)>,
}

impl Receiver {
    /// Listens, and says where.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let receiver = receiver.clone();
                let service = service_fn(move |request| receiver.clone().take(request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        format!("http://{address}")
    }

    async fn take(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let status = {
            let mut received = self.0.lock().unwrap();
            received.requests += 1;
            match received.requests {
                1 => StatusCode::SERVICE_UNAVAILABLE,
                _ => {
                    received.taken.push((path, serde_json::from_slice(&body).unwrap()));
                    StatusCode::OK
                }
            }
        };
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        Ok(response)
    }

    /// The plain documents of an event that came so far.
    fn plain(&self, event: &str) -> Vec<Value> {
        let received = self.0.lock().unwrap();
        let plain = received.taken.iter().filter(|(path, body)| path == "/plain" && body["event"] == event);
        plain.map(|(_, body)| body.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_is_told_once_and_so_is_its_return() {
    // Given an archiver that tells two receivers, of which the first request fails, and a third that nobody answers
    let mut scene = Scene::new(DEBIAN, &[]).await;
    let receiver = Receiver::default();
    let address = receiver.start().await;
    let file = scene.places.path().join("seawall.toml");
    let text = format!(
        "[notify]\nwebhook = \"{address}/plain?token=secret\"\nslack = \"{address}/slack\"\nstream_after = \"1s\"\n"
    );
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut running = scene.seawall(&["run", "--listen", "off", "--config", file.to_str().unwrap()]).start();
    scene.settle().await;
    assert_eq!(receiver.plain("stream"), Vec::<Value>::new(), "nothing is wrong");
    // When the server is stopped
    scene.server.stop(StopMode::Fast).await.unwrap();
    let told =
        wait_for("the receiver to be told", PATIENCE, async || receiver.plain("stream").into_iter().next()).await;
    // Then that is told, with what it is
    assert_eq!(
        (&told["status"], &told["severity"], &told["cluster"]),
        (&"firing".into(), &"critical".into(), &"main".into())
    );
    // And when it is there again, that is told too, and nothing twice
    scene.server.start().await.unwrap();
    let told = wait_for("the receiver to be told again", PATIENCE, async || {
        Some(receiver.plain("stream")).filter(|told| told.len() > 1)
    })
    .await;
    assert_eq!(told.iter().map(|told| told["status"].as_str().unwrap()).collect::<Vec<_>>(), ["firing", "resolved"]);
    let slack = receiver.0.lock().unwrap().taken.iter().filter(|(path, _)| path == "/slack").count();
    assert_eq!(slack, 2, "Slack is told the same");
    assert!(running.terminate().await.success());
    assert!(!running.stderr().contains("token=secret"), "the address is a secret");
}
