//! What the running program shows at `/metrics`.

use super::program::Running;
use super::waiting::{PATIENCE, wait_for};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Where one process of `seawall run --listen 127.0.0.1:0` serves.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint(SocketAddr);

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Endpoint {
    /// Waits until the process says where it serves.
    pub async fn of(running: &mut Running) -> Endpoint {
        running.wait_for_text("metrics at").await;
        wait_for("the address of the metrics", PATIENCE, async || {
            let log = running.stderr();
            let word = log.split("address=").nth(1)?.split_whitespace().next()?.to_owned();
            log.contains("metrics at").then(|| Endpoint(word.parse().unwrap()))
        })
        .await
    }

    /// The address.
    pub fn address(self) -> SocketAddr {
        self.0
    }

    /// Scrapes; `None` if the process is gone or does not answer in time.
    pub async fn scrape(self) -> Option<Metrics> {
        tokio::task::spawn_blocking(move || self.get()).await.unwrap().ok().map(Metrics)
    }

    fn get(self) -> std::io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&self.0, Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Metrics {
    /// The text itself, without the head of the answer.
    pub fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or(&self.0, |(_, body)| body)
    }

    /// The sum of a metric over all of its labels.
    pub fn sum(&self, name: &str) -> f64 {
        let of_this_name = self.0.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        of_this_name.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The value of a metric that has no label but the cluster's.
    ///
    /// # Panics
    /// If it is not there.
    pub fn value(&self, name: &str) -> f64 {
        let line = self.0.lines().find(|line| line.starts_with(&format!("{name}{{")));
        let line = line.unwrap_or_else(|| panic!("{name} is not in\n{}", self.0));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
    /// The sum of a metric's values with these labels, as they are written; `None` if there is none.
    pub fn labelled(&self, name: &str, labels: &str) -> Option<f64> {
        let of_it = |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(labels);
        let values = self.0.lines().filter(of_it).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        values.reduce(|sum, value| sum + value)
    }
}
