//! Names of databases and relations, kept for whoever reads a history later: once a base backup is complete, and now and then while
//! `seawall run` streams.

use super::parts;
use crate::archive::{ArchiveState, Phase};
use crate::backup::read_names;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{NAMED_RELATIONS_MAX, Writer};
use crate::runtime::Clock;
use crate::store::Store;
use crate::wal::{Lsn, TimelineId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A server that does not answer for so long will not be asked further: names are a help, and nothing waits for them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks while `run` streams. What is made and dropped in between has no name.
const LOOK_PAUSE: Duration = Duration::from_secs(10 * 60);

/// Relations that are named while `run` streams, in the little memory that it has; base backups name more.
const RELATIONS_MAX: usize = 30_000;

/// Until the first look: an archiver that is started again and again costs its server nothing.
const FIRST_PAUSE: Duration = Duration::from_secs(20);

/// A look that takes long is had so much more rarely: less than half a per cent of the time.
const PAUSE_FACTOR: u32 = 250;

/// Stores what databases and relations are called now. What fails is told in the log.
pub(super) async fn keep(settings: &Settings, writer: &Writer, timeline: TimelineId, clock: &Clock) {
    let kept = in_time(async {
        let read = read_names(&parts::connection(settings)?, clock, NAMED_RELATIONS_MAX).await?;
        read.warnings.iter().for_each(|warning| tell(warning));
        writer.store_names(timeline, &read.names).await.map(|_| ())
    });
    if let Err(error) = kept.await {
        tell(&error.to_string());
    }
}

fn tell(why: &str) {
    tracing::warn!(why, "`seawall history` will show numbers instead of names");
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Err(Error::new(Kind::Postgres, "the server takes too long to name its relations"));
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| late())
}

/// Keeps names up to what the server of `run` has.
pub(super) struct NameKeeper {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) state: watch::Receiver<ArchiveState>,
    pub(super) clock: Clock,
    /// What was stored last, and what was said last.
    pub(super) stored: Option<(TimelineId, [u8; 32])>,
    pub(super) told: Vec<String>,
}

impl NameKeeper {
    /// Runs for ever; may be dropped at any time.
    pub(super) async fn run(mut self) {
        let (mut pause, mut looked_at) = (FIRST_PAUSE, Lsn(0));
        loop {
            tokio::time::sleep(pause).await;
            pause = LOOK_PAUSE;
            let seen = {
                let state = self.state.borrow();
                let is_ours = state.phase == Phase::Streaming && state.is_compared;
                state.timeline.filter(|_| is_ours).map(|timeline| (timeline, state.received))
            };
            // Without WAL nothing was made.
            let Some((timeline, received)) = seen.filter(|(_, received)| *received != looked_at) else { continue };
            let begun = Instant::now();
            match in_time(self.look(timeline)).await {
                Ok(warnings) => {
                    looked_at = received;
                    self.tell_once(warnings);
                }
                Err(error) => self.tell_once(vec![error.to_string()]),
            }
            pause = LOOK_PAUSE.max(begun.elapsed() * PAUSE_FACTOR);
        }
    }

    /// Stores names if they are others than those that were stored last.
    async fn look(&mut self, timeline: TimelineId) -> Result<Vec<String>> {
        let read = read_names(&parts::connection(&self.settings)?, &self.clock, RELATIONS_MAX).await?;
        let now = Some((timeline, read.names.digest()));
        if self.stored != now {
            let (repository, cluster) = parts::repository_in(&self.settings, self.store.clone()).await?;
            let writer = Writer::new(repository.store, repository.layout, cluster.system_identifier);
            writer.store_names(timeline, &read.names).await?;
            self.stored = now;
        }
        Ok(read.warnings)
    }

    /// The same warning every ten minutes would hide others.
    fn tell_once(&mut self, warnings: Vec<String>) {
        warnings.iter().filter(|warning| !self.told.contains(warning)).for_each(|warning| tell(warning));
        self.told = warnings;
    }
}
