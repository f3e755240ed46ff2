//! Who is told when something is wrong: `seawall run`, a receiver of web hooks that fails, and answers, and one that hangs.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/scene.rs"]
mod scene;
mod support;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3::Op;
use scene::Scene;
use seawall::scratch::StopMode;
use serde_json::Value;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use support::metrics::Endpoint;
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
        // Somebody asks whether anybody is there.
        if request.method() == Method::OPTIONS {
            return Ok(Response::new(Full::default()));
        }
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

/// What is wrong, and right again, as it was told.
fn statuses(told: &[Value]) -> Vec<&str> {
    told.iter().map(|told| told["status"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_once_and_so_is_its_end_and_nothing_waits_for_who_does_not_listen() {
    // Given an archiver that tells a receiver, of which the first request fails, and one that takes connections and never answers
    let mut scene = Scene::new(DEBIAN, &[]).await;
    let receiver = Receiver::default();
    let address = receiver.start().await;
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = scene.places.path().join("seawall.toml");
    let text = format!(
        "[notify]\nwebhook_command = \"cat '{}'\"\nslack = \"http://{}/T0/secret\"\nstream_after = \"1s\"\nrpo_above = \"5s\"\n",
        scene.places.path().join("plain").display(),
        deaf.local_addr().unwrap()
    );
    std::fs::write(scene.places.path().join("plain"), format!("{address}/plain?token=secret\n")).unwrap();
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let mut running = scene.seawall(&[&["run", "--listen", "127.0.0.1:0"], &config[..]].concat()).start();
    let metrics = Endpoint::of(&mut running).await;
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
    assert_eq!(statuses(&told), ["firing", "resolved"]);
    // When the store hangs while the stream comes
    scene.settle().await;
    let before = receiver.plain("rpo").len();
    let held = scene.bucket.hold(Op::Put);
    scene.server.sql("CREATE TABLE held ()").await.unwrap();
    let told = wait_for("the receiver to be told of the store", PATIENCE, async || {
        Some(receiver.plain("rpo")).filter(|told| told.len() > before)
    })
    .await;
    // Then that is told, although no slot is in danger, and so is its end
    assert!(told[before]["summary"].as_str().unwrap().contains("does not become durable"), "{told:?}");
    drop(held);
    let told = wait_for("the receiver to be told of its end", PATIENCE, async || {
        Some(receiver.plain("rpo")).filter(|told| told.len() > before + 1)
    })
    .await;
    assert_eq!(statuses(&told[before..]), ["firing", "resolved"]);
    // And who looks is told that the other does not listen, and what became of the messages
    let looking = ["status", "check"].map(|command| scene.seawall(&[&[command], &config[..]].concat()).run_ok());
    let [status, checked] = futures_util::future::join_all(looking).await.try_into().unwrap();
    let (status, checked) = (status.stdout, checked.stdout);
    assert!(status.contains("notifications  slack at 127.0.0.1: no answer within 5 s"), "{status}");
    assert!(status.contains("a receiver of notifications does not answer"), "{status}");
    let line = |verdict: &str, found: &str| {
        checked.lines().any(|line| line.starts_with(verdict) && line.contains("notifications") && line.ends_with(found))
    };
    assert!(line("ok", "webhook at 127.0.0.1 answers") && line("warning", "no answer within 5 s"), "{checked}");
    let scraped = metrics.scrape().await.unwrap();
    let counted = |receiver: &str, result: &str| {
        let series =
            format!("seawall_notifications_total{{receiver=\"{receiver}\",result=\"{result}\",cluster=\"main\"}} ");
        scraped.body().lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse::<u64>().unwrap()
    };
    assert!(counted("webhook", "delivered") >= 4 && counted("webhook", "failed") == 0, "{}", scraped.body());
    assert_eq!(counted("slack", "delivered"), 0);
    // When something else lies where the next block belongs
    let of_now = "SELECT pg_walfile_name(pg_current_wal_lsn())";
    let first = scene.server.value(of_now).await;
    scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
    let block = wait_for("a block", PATIENCE, async || {
        scene.bucket.snapshot().into_iter().find(|(name, _)| name.contains("/wal/") && name.contains(&first))
    })
    .await;
    scene.server.sql("CREATE TABLE behind_the_switch ()").await.unwrap();
    let second = scene.server.value(of_now).await;
    scene.bucket.put(&block.0.replace(&first, &second), block.1.bytes);
    scene.server.sql("SELECT pg_switch_wal()").await.unwrap();
    // Then the archiver ends, and that is told before
    let ended = running.wait(PATIENCE).await;
    assert!(!ended.success());
    let told = receiver.plain("stopped");
    assert_eq!(statuses(&told), ["firing"]);
    assert!(
        !running.stderr().contains("token=secret") && !running.stderr().contains("T0"),
        "the addresses are secrets"
    );
}
