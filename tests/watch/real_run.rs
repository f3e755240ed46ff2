//! A real `seawall run` with everything that it can show, scraped by a real Prometheus: what it shows is well formed, no
//! panel stays empty, and nothing is alarmed about.

use crate::dashboards::{DASHBOARDS, panels};
use crate::figures::figures;
use crate::prometheus::{Prometheus, promtool};
use crate::s3::S3Server;
use crate::scene::Scene;
use crate::support::postgres::{DEBIAN, Load, pgbench_tables, programs, scratch_directory};
use crate::support::printed::assert_printed;
use crate::support::waiting::{PATIENCE, wait_for};
use crate::{file, read};
use rcgen::{CertificateParams, KeyPair};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

/// A certificate and its key in `directory`, for a server that runs as the directory's owner.
fn certificate(directory: &Path) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let owner = std::fs::metadata(directory).unwrap();
    for (name, text) in [("server.crt", certificate.pem()), ("server.key", key.serialize_pem())] {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// Credentials that end, as a program gives them that the configuration of AWS names.
fn credentials_that_end(directory: &Path) -> Vec<(&'static str, String)> {
    let (given, config) = (directory.join("credentials.json"), directory.join("aws-config"));
    let credentials = serde_json::json!({
        "Version": 1,
        "AccessKeyId": S3Server::ACCESS_KEY,
        "SecretAccessKey": S3Server::SECRET_KEY,
        "Expiration": "2099-01-01T00:00:00Z",
    });
    std::fs::write(&given, credentials.to_string()).unwrap();
    std::fs::write(&config, format!("[default]\ncredential_process = cat {}\n", given.display())).unwrap();
    vec![
        ("AWS_ACCESS_KEY_ID", String::new()),
        ("AWS_SECRET_ACCESS_KEY", String::new()),
        ("AWS_CONFIG_FILE", config.display().to_string()),
    ]
}

/// A query as Grafana sends it.
fn filled(query: &str) -> String {
    query.replace("$cluster", "main").replace("$__rate_interval", "10s")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_every_panel_has_an_answer_and_nothing_is_alarmed_about() {
    // Given a server with TLS and a limit to its slot, archived with credentials that end, with a base backup and a drill
    let places = scratch_directory();
    certificate(places.path());
    let place = |name: &str| places.path().join(name).display().to_string();
    let (certificate, key) = (place("server.crt"), place("server.key"));
    let settings =
        [("max_slot_wal_keep_size", "10GB"), ("ssl", "on"), ("ssl_cert_file", &certificate), ("ssl_key_file", &key)];
    let mut scene = Scene::new(DEBIAN, &settings).await;
    let port = scene.server.port();
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=require");
    scene.environment.push(("SEAWALL_PG", conninfo));
    scene.environment.extend(credentials_that_end(places.path()));
    let mut before = scene.archived().await;
    let scratch = scratch_directory();
    let drill = ["drill", "--scratch", scratch.path().to_str().unwrap()];
    scene.seawall(&drill).env("SEAWALL_PG_BIN", programs(DEBIAN).bin).run_ok().await;
    assert!(before.running.terminate().await.success());
    // When it is archived under load, and scraped
    let archiver = scene.archiver().await;
    pgbench_tables(&scene.server, 1).await;
    let load = Load::start(&scene.server, 1);
    let prometheus = Prometheus::start(archiver.metrics.address(), &file("grafana/rules/seawall.yaml")).await;
    // Then each query of each panel gives something
    let mut waiting: Vec<(String, String)> = DASHBOARDS
        .into_iter()
        .flat_map(panels)
        .flat_map(|panel| panel.queries.into_iter().map(move |query| (panel.place.clone(), query)))
        .map(|(place, query)| (place, filled(&query)))
        .collect();
    let last = std::cell::RefCell::new(String::new());
    let all = async {
        wait_for("the first scrapes", PATIENCE, async || {
            waiting.retain(|(_, query)| tokio::task::block_in_place(|| prometheus.query(query)).is_empty());
            *last.borrow_mut() = format!("{waiting:#?}");
            waiting.is_empty().then_some(())
        })
        .await;
    };
    let answered = tokio::time::timeout(PATIENCE / 2, all).await;
    assert!(answered.is_ok(), "without an answer: {}", last.borrow());
    // and what they show is as the README has it
    let shown = tokio::task::block_in_place(|| figures(&panels(DASHBOARDS[0]), &prometheus, filled));
    println!("{shown}");
    let readme = read("README.md");
    let section = readme.split_once("\n## Watch it\n").unwrap().1.split("\n## ").next().unwrap();
    let block = section.split_once("```text\n").and_then(|(_, block)| block.split_once("```")).unwrap().0;
    assert_printed(block, &shown, "the dashboard of one cluster ");
    // and what is well raises no alarm
    let firing = tokio::task::block_in_place(|| prometheus.query("ALERTS{alertstate=\"firing\"}"));
    assert!(firing.is_empty(), "{firing:#?}");
    // and the text follows the rules that Prometheus has for it
    let text = archiver.metrics.scrape().await.unwrap();
    let said = tokio::task::block_in_place(|| promtool(&["check", "metrics"], text.body()));
    said.unwrap_or_else(|said| panic!("{said}"));
    load.stop();
}
