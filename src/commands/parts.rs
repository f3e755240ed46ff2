//! The parts that several commands build from the settings: connection, store, repository.

use super::keys;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, ConnInfo, Mode};
use crate::repository::{Cluster, Layout, Repository};
use crate::store::{ConditionalWrites, NoObserver, Store, open, probe};
use crate::wal::SegmentSize;
use std::sync::Arc;

/// Where the server is.
///
/// # Errors
/// Of kind `Config`, if the connection string is wrong.
pub(super) fn connection(settings: &Settings) -> Result<ConnInfo> {
    let info = ConnInfo::parse(&settings.pg, &|name| std::env::var(name).ok())?;
    Ok(match &settings.password {
        Some(password) => info.with_password(password.clone()),
        None => info,
    })
}

/// A connection to the server that does not stream.
///
/// # Errors
/// What the server says.
pub(super) async fn connect(settings: &Settings) -> Result<Client> {
    Ok(Client::connect(&connection(settings)?, Mode::Physical, &[]).await?)
}

/// A connection to the server in which SQL can be asked, without the right to replicate.
///
/// # Errors
/// What the server says.
pub(super) async fn connect_for_sql(settings: &Settings) -> Result<Client> {
    /// What `pg_hba.conf` refuses (`invalid_authorization_specification`).
    const NOT_LET_IN: &str = "28000";
    let connected = Client::connect_for_sql(&connection(settings)?, Mode::Sql).await;
    connected.map_err(|error| {
        let is_not_let_in = error.sqlstate() == Some(NOT_LET_IN);
        let error = Error::from(error).context("a session for SQL");
        match is_not_let_in {
            true => error.hint("pg_hba.conf needs a line for the database, beside the one for replication."),
            false => error,
        }
    })
}

/// The store of the repository, watched by nobody.
///
/// # Errors
/// If none was given, or its URL is wrong.
pub(super) async fn store(settings: &Settings) -> Result<Arc<dyn Store>> {
    open(settings.repo()?, &settings.store, Arc::new(NoObserver)).await
}

/// The names in the cluster's folder, whose segments have this size. What is encrypted cannot be read with it.
pub(super) fn layout(settings: &Settings, size: SegmentSize) -> Layout {
    Layout::new(settings.cluster.clone(), size, keys::writing_form(settings))
}

/// The cluster's folder, which must be there.
///
/// # Errors
/// If it is not, or the store fails.
pub(super) async fn repository(settings: &Settings) -> Result<(Repository, Cluster)> {
    let store = store(settings).await?;
    repository_in(settings, store).await
}

/// As [`repository`], with what opens encrypted objects, if it was named.
///
/// # Errors
/// As [`repository`], or if the identity file cannot be read.
pub(super) async fn readable_repository(settings: &Settings) -> Result<(Repository, Cluster)> {
    let form = keys::reading_form(settings)?;
    let (mut repository, cluster) = repository(settings).await?;
    let size = repository.layout.segment_size();
    repository.layout = Layout::new(settings.cluster.clone(), size, form);
    Ok((repository, cluster))
}

/// As [`repository`], in a store that is open already.
///
/// # Errors
/// As [`repository`].
pub(super) async fn repository_in(settings: &Settings, store: Arc<dyn Store>) -> Result<(Repository, Cluster)> {
    let name = &settings.cluster;
    let cluster = Repository::read_cluster(store.as_ref(), name).await?.ok_or_else(|| {
        Error::new(Kind::Refused, format!("there is no cluster {name:?} in {}", store.describe()))
            .hint("Is --cluster right? `seawall run` or `seawall backup` makes the folder when it first runs.")
    })?;
    let size = SegmentSize::new(cluster.segment_bytes).ok_or_else(|| {
        Error::new(Kind::Damaged, format!("cluster.json has segments of {} bytes", cluster.segment_bytes))
    })?;
    Ok((Repository { store, layout: layout(settings, size) }, cluster))
}

/// Fails unless the store keeps the rule that a name never gets second bytes.
///
/// # Errors
/// If it does not, or fails.
pub(super) async fn require_conditional_writes(settings: &Settings, store: &dyn Store, unique: &str) -> Result<()> {
    let name = layout(settings, SegmentSize::DEFAULT).name(&crate::repository::Key::Probe(unique.to_owned()));
    match probe(store, &name).await? {
        ConditionalWrites::Honoured => Ok(()),
        ConditionalWrites::Ignored => Err(Error::new(
            Kind::Store,
            format!("{} ignores If-None-Match: a second writer could overwrite what is stored", store.describe()),
        )
        .hint(
            "Use a store that honours it (docs/stores.md), or set conditional_writes = \"head\" and make sure that only \
             one archiver writes there.",
        )),
    }
}
