//! From a repository to a throwaway server that has recovered: a scratch directory gets the cluster, and a server on a
//! private socket replays to the end of the plan. For whoever wants to look at a restored cluster and throw it away. May use
//! `repository`, `restore` and `scratch`.

mod in_place;
mod settings;

pub use settings::is_ours;

use crate::error::{Error, Kind, Result};
use crate::repository::{BackupTablespace, Repository};
use crate::restore::{self, FetchCommand, LocalWal, Plan, RestoreOptions, RestoreProgress, RestoreReport, Stop};
use crate::runtime;
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
    /// How much of the WAL is fetched before the server starts; all, if replay would create a tablespace.
    pub wal: LocalWal,
    /// Settings of the server. The cluster's own `postgresql.conf` is not read, and of its `postgresql.auto.conf` little counts.
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
/// ([`crate::scratch::Directory`]): a tablespace that replay creates is made inside the data directory. The server archives
/// nothing, subscribes to nothing and listens on a private socket alone.
///
/// # Errors
/// [`Kind::Refused`] if not all WAL up to the target can be read here, and so nobody knows what replay would touch; otherwise
/// as [`restore::execute`] and [`Server::open`].
pub async fn recover(
    directory: &Path,
    repository: &Repository,
    plan: &Plan,
    options: RecoveryOptions,
    progress: watch::Sender<RestoreProgress>,
) -> Result<Recovered> {
    if plan.stop == Stop::EndOfWal {
        let cannot = "the records up to the target cannot be read here, so replay might touch what is not ours";
        return Err(
            Error::new(Kind::Refused, cannot).hint("`seawall restore --dry-run` says why. Choose an earlier target.")
        );
    }
    let is_redirected = !plan.creates.is_empty();
    let is_in_place = |tablespace: &BackupTablespace| !Path::new(&tablespace.location).is_absolute();
    let has_in_place = is_redirected || plan.tablespaces.iter().any(is_in_place);
    let user = Unprivileged::find()?;
    let command =
        FetchCommand { executable: user.runnable(&options.command.executable, directory)?, ..options.command };
    let elsewhere = |oid: u32| directory.join("tablespaces").join(oid.to_string());
    let absolute = plan.tablespaces.iter().filter(|tablespace| Path::new(&tablespace.location).is_absolute());
    let restore_options = RestoreOptions {
        databases: options.databases,
        wal: if is_redirected { LocalWal::All } else { options.wal },
        tablespace_map: absolute.map(|it| ((&it.location).into(), elsewhere(it.oid))).collect(),
        owner: Uid::effective().is_root().then(|| user.name().to_owned()),
        ..RestoreOptions::new(directory.join("data"), command)
    };
    let begun = Instant::now();
    // Where tablespaces were does not matter here: nothing is made there.
    let placed = Plan { creates: Vec::new(), ..plan.clone() };
    let report = Box::pin(restore::execute(repository, &placed, &restore_options, progress)).await?;
    let (data, plan) = (report.data.clone(), plan.clone());
    let superuser = runtime::blocking(move || {
        in_place::redirect(&data.join("pg_wal"), &plan)?;
        restore::superuser(&data)
    });
    let superuser = superuser.await??;
    let restored_in = begun.elapsed();
    let begun = Instant::now();
    let server_options = ServerOptions {
        settings: settings::settings(options.programs.version, options.settings, has_in_place),
        superuser,
        own_configuration: true,
        ..ServerOptions::default()
    };
    let server = Server::open(&options.programs, &report.data, server_options).await?;
    Ok(Recovered { server, report, restored_in, recovered_in: begun.elapsed() })
}
