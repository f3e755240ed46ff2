//! One restored directory that recovers from target to target, each behind the one before: where the server says that it stopped,
//! and the rows that it has there.

use crate::support::postgres::{programs, scratch_directory};
use jiff::Timestamp;
use seawall::scratch::{Server, ServerOptions, StopMode, Unprivileged};
use seawall::wal::Lsn;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;

/// What a server logs of the end of its recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arrival {
    /// In front of the end of this transaction, which is dated so.
    Before(u32, Timestamp),
    /// Behind the record that begins here.
    After(Lsn),
    /// Nowhere: there is no such record.
    NotReached,
}

/// The rows of table `kept`, with the transactions that made them.
pub(crate) type Rows = BTreeMap<i64, u32>;

pub(crate) async fn rows(server: &Server) -> Rows {
    let rows = server.sql("SELECT row, xid FROM kept").await.unwrap();
    let number = |value: &Option<String>| value.as_deref().unwrap().parse::<i64>().unwrap();
    rows.iter().map(|row| (number(&row[0]), u32::try_from(number(&row[1])).unwrap())).collect()
}

pub(crate) struct Walk {
    version: u32,
    data: PathBuf,
    settings: Vec<(String, String)>,
    sockets: TempDir,
}

impl Walk {
    /// Over a restored directory and every file that its recovery may ask for.
    pub(crate) fn new(version: u32, data: PathBuf, shelf: &Path) -> Walk {
        let shelf = shelf.display();
        let settings = [
            ("restore_command", format!("test -e {shelf}/%f && cp {shelf}/%f %p")),
            ("fsync", "off".to_owned()),
            ("timezone", "UTC".to_owned()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Walk { version, data, settings, sockets: scratch_directory() }
    }

    fn settings(&self, target: &[(&str, String)], action: &str) -> Vec<(String, String)> {
        let target = target.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let action = ("recovery_target_action".to_owned(), action.to_owned());
        self.settings.iter().cloned().chain(target).chain([action]).collect()
    }

    /// Goes on to a target, and tells where that is.
    pub(crate) async fn go_to(&self, target: &[(&str, String)]) -> Arrival {
        let mut command = Unprivileged::owner_of(&self.data).unwrap().command(&programs(self.version).path("postgres"));
        command.arg("-D").arg(&self.data).arg("-c").arg("hot_standby=off").args(["-c", "listen_addresses="]);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.sockets.path().display()));
        for (name, value) in self.settings(target, "shutdown") {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.current_dir(&self.data).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        arrival(&String::from_utf8_lossy(&output.stderr))
    }

    /// The same, and tells what is there.
    pub(crate) async fn look_at(&self, target: &[(&str, String)]) -> (Arrival, Rows) {
        let mut settings = self.settings(target, "pause");
        settings.push(("hot_standby".to_owned(), "on".to_owned()));
        let options = ServerOptions { settings, ..ServerOptions::default() };
        let mut server = Server::open(&programs(self.version), &self.data, options).await.unwrap();
        let found = (arrival(&server.log()), rows(&server).await);
        server.stop(StopMode::Fast).await.unwrap();
        found
    }
}

fn arrival(log: &str) -> Arrival {
    let behind = |text: &str| log.split_once(text).map(|(_, rest)| rest.lines().next().unwrap().to_owned());
    let before = behind("recovery stopping before commit of transaction ");
    if let Some(rest) = before.or_else(|| behind("recovery stopping before abort of transaction ")) {
        let (xid, time) = rest.split_once(", time ").unwrap();
        return Arrival::Before(xid.parse().unwrap(), time.replace(' ', "T").parse().unwrap());
    }
    if let Some(rest) = behind("recovery stopping after WAL location (LSN) \"") {
        return Arrival::After(rest.trim_end_matches('"').parse().unwrap());
    }
    if log.contains("recovery ended before configured recovery target was reached") {
        return Arrival::NotReached;
    }
    panic!("a recovery that says nothing of its end:\n{log}");
}
