//! Prometheus and its tool, as `tests/run.sh` brings them.

use crate::support::waiting::{PATIENCE, wait_for};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

fn program(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let path = target.join("prometheus/usr/bin").join(name);
    assert!(path.exists(), "there is no {}; `bash tests/run.sh` brings what tests need", path.display());
    path
}

/// Runs `promtool`; what it wrote, if it ended well and complained of nothing.
pub(crate) fn promtool(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(program("promtool"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.current_dir(env!("CARGO_MANIFEST_DIR")).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
    if output.status.success() && stderr.trim().is_empty() { Ok(stdout) } else { Err(stdout + &stderr) }
}

/// A server on loopback that scrapes; ended when dropped.
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Prometheus {
    /// Scrapes `target` every second, and evaluates `rules` as often.
    pub(crate) async fn start(target: SocketAddr, rules: &Path) -> Prometheus {
        let directory = TempDir::new().unwrap();
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs:\n  - job_name: seawall\n    static_configs: [{{targets: ['{target}']}}]\n",
            rules.display()
        );
        std::fs::write(directory.path().join("prometheus.yml"), configuration).unwrap();
        let mut server = Prometheus::spawn(directory);
        wait_for("Prometheus to be ready", PATIENCE, async || {
            if server.child.try_wait().unwrap().is_some() {
                // Somebody else has taken the port meanwhile.
                let directory = std::mem::replace(&mut server.directory, TempDir::new().unwrap());
                server = Prometheus::spawn(directory);
            }
            server.get("/-/ready").ok().filter(|answer| answer.starts_with("HTTP/1.0 200")).map(|_| ())
        })
        .await;
        server
    }

    fn spawn(directory: TempDir) -> Prometheus {
        // It does not say which port it has got, so a free one is picked for it.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let place = |name: &str| directory.path().join(name).display().to_string();
        let log = std::fs::File::create(place("log")).unwrap();
        let child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", place("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", place("data")))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Prometheus { child, address, directory }
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(connection, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        Ok(text)
    }

    /// What a query gives now.
    ///
    /// # Panics
    /// If Prometheus does not understand it.
    pub(crate) fn query(&self, expression: &str) -> Vec<Value> {
        let query = percent_encoding::utf8_percent_encode(expression, percent_encoding::NON_ALPHANUMERIC);
        let answer = self.get(&format!("/api/v1/query?query={query}")).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{expression}: {error}: {answer}"));
        assert_eq!(body["status"], "success", "{expression}: {body:#}");
        body["data"]["result"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default());
        }
    }
}
