//! What somebody is about to do to a base backup that a mark forbids, said before it is done. Who says so looks for marks afterwards; who
//! marks looks for this afterwards: of two in the same moment, one sees the other. That needs no clock, and no two of them count.
//!
//! Somebody may be killed between the two. So it counts for an hour, by the store's clock, and whoever said it acts within a quarter of
//! that or not at all. A store carries out what it was sent at once; S3 refuses a request that was signed more than 15 minutes ago.

use super::layout::{BackupId, Intent, Key};
use super::{FORMAT_VERSION, Repository, Writer};
use crate::error::{Error, Kind, Result};
use crate::store::{Created, list_all};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who has said what is coming does it so soon, or not at all.
pub const ACTS_WITHIN: Duration = Duration::from_secs(15 * 60);

/// What was said counts for so long.
const COUNTS_FOR: SignedDuration = SignedDuration::from_hours(1);

/// Others may say it in the same microsecond; nobody does so often.
const NUMBERS_TRIED: u64 = 100;

/// `keep/<backup>.<what>-<when>.json`: somebody is about to do this.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IntentNote {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// The backup.
    pub backup: BackupId,
    /// When it was said, by the clock of whoever did.
    pub said_at: Timestamp,
}

/// One that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// What.
    pub intent: Intent,
    /// Of which backup.
    pub backup: BackupId,
    /// Its name.
    pub name: String,
    /// When, by the store's clock.
    pub stored_at: Timestamp,
}

impl Repository {
    /// All that is said: one listing.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read_intents(&self) -> Result<Vec<Said>> {
        let objects = list_all(self.store.as_ref(), &self.layout.keep_prefix()).await?;
        let said = objects.into_iter().filter_map(|object| match self.layout.parse(&object.key) {
            Ok(Key::Intent(backup, intent, _)) => {
                Some(Said { intent, backup, name: object.key, stored_at: object.modified })
            }
            _ => None,
        });
        Ok(said.collect())
    }

    /// True if somebody was about to delete this backup when something was stored, at `stored_at` by the store's clock, or may be since.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn is_going(&self, backup: &BackupId, stored_at: Timestamp) -> Result<bool> {
        let since = stored_at.saturating_sub(COUNTS_FOR).unwrap_or(Timestamp::MIN);
        let is_it = |said: &Said| said.intent == Intent::Going && said.backup == *backup && said.stored_at > since;
        Ok(self.read_intents().await?.iter().any(is_it))
    }
}

impl Writer {
    /// Says what is coming, under a name that nobody else has; `now` is about now.
    ///
    /// # Errors
    /// What the store says; [`Kind::Busy`] if others say it all the time.
    pub async fn store_intent(&self, intent: Intent, backup: &BackupId, now: Timestamp) -> Result<Key> {
        let note = IntentNote { format: FORMAT_VERSION, backup: backup.clone(), said_at: now };
        let first = now.as_microsecond().unsigned_abs();
        for number in first..first + NUMBERS_TRIED {
            let key = Key::Intent(backup.clone(), intent, number);
            match self.store_document(&key, &note).await {
                Ok(Created::New) => return Ok(key),
                // Somebody else's, who may take it back: or our own, whose reply was lost, and which then counts for its hour.
                Ok(Created::Exists) => {}
                Err(error) if error.kind() == Kind::Diverged => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Kind::Busy, format!("too many are about to delete or release base backup {backup}")))
    }
}
