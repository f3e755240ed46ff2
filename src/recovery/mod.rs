//! From a repository to a throwaway server that has recovered: a scratch directory gets the cluster, and a server on a
//! private socket replays to the end of the plan. For whoever wants to look at a restored cluster and throw it away. May use
//! `repository`, `restore` and `scratch`.

use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crate::restore::{self, FetchCommand, LocalWal, Plan, RestoreOptions, RestoreProgress, RestoreReport};
use crate::scratch::{Programs, Server, ServerOptions, Unprivileged};
use nix::unistd::Uid;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How a cluster is brought up.
#[derive(Clone, Debug)]
pub struct RecoveryOptions {
    /// PostgreSQL of the cluster's version.
    pub programs: Programs,
    /// What the server runs to fetch WAL. Its program is copied if the server's user cannot run it where it is.
    pub command: FetchCommand,
    /// The databases to restore, by name or OID; all if there is none.
    pub databases: Vec<String>,
    /// How much of the WAL is fetched before the server starts.
    pub wal: LocalWal,
    /// Settings of the server, on top of the cluster's own.
    pub settings: Vec<(String, String)>,
}

/// A cluster that has recovered, and its server. Dropped, the server stops at once; its files stay where they are.
pub struct Recovered {
    /// The server: it has ended recovery, or paused at its target.
    pub server: Server,
    /// What the restore wrote.
    pub report: RestoreReport,
    /// What the restore took, to a directory that a server can be started on.
    pub restored_in: Duration,
    /// What the server took from its start to the end of recovery.
    pub recovered_in: Duration,
}

/// Executes `plan` into `directory/data`, with every tablespace in `directory/tablespaces`, starts a server on it, and waits
/// until it has arrived. Writes nowhere outside of `directory`, which must belong to the server's user
/// ([`crate::scratch::Directory`]); the server archives nothing and listens on a private socket alone.
///
/// # Errors
/// As [`restore::execute`] and [`Server::open`].
pub async fn recover(
    directory: &Path,
    repository: &Repository,
    plan: &Plan,
    options: RecoveryOptions,
    progress: watch::Sender<RestoreProgress>,
) -> Result<Recovered> {
    if let Some(tablespace) = plan.creates.first() {
        return Err(Error::new(
            Kind::Refused,
            format!("WAL on the way to the target creates a tablespace at {}", tablespace.path),
        )
        .hint("Take a base backup: from it on, that tablespace is one of the backup's, which can go elsewhere."));
    }
    let user = Unprivileged::find()?;
    let command =
        FetchCommand { executable: user.runnable(&options.command.executable, directory)?, ..options.command };
    let elsewhere = |oid: u32| directory.join("tablespaces").join(oid.to_string());
    let absolute = plan.tablespaces.iter().filter(|tablespace| Path::new(&tablespace.location).is_absolute());
    let restore_options = RestoreOptions {
        databases: options.databases,
        wal: options.wal,
        tablespace_map: absolute.map(|it| ((&it.location).into(), elsewhere(it.oid))).collect(),
        owner: Uid::effective().is_root().then(|| user.name().to_owned()),
        ..RestoreOptions::new(directory.join("data"), command)
    };
    let begun = Instant::now();
    let report = Box::pin(restore::execute(repository, plan, &restore_options, progress)).await?;
    let restored_in = begun.elapsed();
    let begun = Instant::now();
    let server_options = ServerOptions { settings: options.settings, ..ServerOptions::default() };
    let server = Server::open(&options.programs, &report.data, server_options).await?;
    Ok(Recovered { server, report, restored_in, recovered_in: begun.elapsed() })
}
