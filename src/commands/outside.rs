//! What `seawall run` reaches for its jobs beside its store: the server that base backups are taken of, and a machine to drill on. A
//! simulation has others.

use super::drill::{self, PREFIX};
use super::parts;
use crate::config::Settings;
use crate::drill::Drill;
use crate::error::Result;
use crate::postgres::Client;
use crate::repository::{DrillDocument, Repository};
use crate::restore::LocalWal;
use crate::runtime::Clock;
use crate::scratch::{Directory, Programs, StopMode, sweep};
use async_trait::async_trait;
use std::fmt::Debug;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tokio::sync::watch;

/// See the head of the file.
#[async_trait]
pub trait Outside: Send + Sync + Debug {
    /// A connection for replication commands, to the server that base backups are taken of.
    ///
    /// # Errors
    /// What the server says.
    async fn connect(&self, settings: &Settings) -> Result<Client>;

    /// Looks whether a drill of PostgreSQL `version` (such as 17) can be carried out here.
    ///
    /// # Errors
    /// If it cannot.
    async fn check_drill(&self, version: u32) -> Result<()>;

    /// Carries out a drill that is planned, and leaves nothing of it.
    ///
    /// # Errors
    /// What stands in the way of drilling. What the drill finds is in its document.
    async fn drill(
        &self,
        settings: &Settings,
        repository: &Repository,
        drill: Drill,
        clock: &Clock,
    ) -> Result<DrillDocument>;
}

/// The server of the settings, and this machine.
#[derive(Clone, Copy, Debug)]
pub struct Configured;

#[async_trait]
impl Outside for Configured {
    async fn connect(&self, settings: &Settings) -> Result<Client> {
        parts::connect(settings).await
    }

    async fn check_drill(&self, version: u32) -> Result<()> {
        Programs::find(Some(version)).map(|_| ())
    }

    async fn drill(
        &self,
        settings: &Settings,
        repository: &Repository,
        drill: Drill,
        clock: &Clock,
    ) -> Result<DrillDocument> {
        let below = settings.drill.scratch.clone().unwrap_or_else(std::env::temp_dir);
        sweep(&below, PREFIX).await;
        let directory = Directory::create(&below, PREFIX)?;
        let path = directory.path().to_owned();
        let mut place = Place(Some(directory));
        let drilled = async {
            let options = drill::options(settings, drill.version(), LocalWal::default())?;
            // Nobody watches.
            let (progress, _) = watch::channel(Default::default());
            let drilled = Box::pin(drill.run(&path, repository, options, progress, clock)).await;
            // Dropping it would wait on the thread that streams.
            if let Some(mut server) = drilled.server {
                server.stop(StopMode::Immediate).await?;
            }
            Ok(drilled.document)
        };
        let drilled: Result<DrillDocument> = drilled.await;
        // It stays in there until it is gone: this, too, may be given up.
        let left = match &mut place.0 {
            Some(directory) => directory.remove().await,
            None => Ok(()),
        };
        let document = drilled?;
        left.map(|()| document)
    }
}

/// So long whoever gives a drill up waits for its removal: less than a stream may be silent.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// Where a drill is carried out. Where that is given up, it is removed beside whoever did so: that may be the thread that streams, and a
/// whole cluster is not removed at once. At the end of the program there is that much time for it.
struct Place(Option<Directory>);

impl Drop for Place {
    fn drop(&mut self) {
        let Some(directory) = self.0.take() else { return };
        let (done, is_done) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("seawall-scratch".to_owned());
        let _ = thread.spawn(move || {
            directory.remove_blocking();
            drop(done);
        });
        let _ = is_done.recv_timeout(DROP_PATIENCE);
    }
}
