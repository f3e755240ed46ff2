//! Verifications that `seawall run` makes by itself: on schedule, and after every base backup, whoever took it.

use super::audit::Begun;
use super::results::Done;
use super::taking::Taker;
use super::verify;
use crate::archive::{ArchiveState, Phase};
use crate::error::Result;
use crate::metrics::Job;
use crate::repository::{Action, ActionResult, AuditKey, BackupId};
use crate::runtime::{Backoff, RetryPolicy};
use jiff::Timestamp;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Between a verification that could not be made and the next attempt.
const PAUSES: RetryPolicy =
    RetryPolicy { first_pause: Duration::from_secs(60), longest_pause: Duration::from_secs(3600), budget: None };

/// A finished base backup: its name, and when it ended.
pub(super) type Finished = (BackupId, Timestamp);

/// Sees to it that the newest base backup is followed by a verification: one that answered a gap, one that was taken by hand, and one
/// whose taker died before it could verify. For as long as the archiver is there; may be dropped at any time.
pub(super) async fn follow(
    taker: &Taker,
    mut state: watch::Receiver<ArchiveState>,
    mut newest: watch::Receiver<Option<Finished>>,
) {
    let (mut backoff, mut seen) = (Backoff::new(PAUSES), None);
    loop {
        if newest.wait_for(|newest| newest.is_some() && *newest != seen).await.is_err() {
            return;
        }
        // A spare leaves it to the one that streams.
        if state.wait_for(|state| state.phase == Phase::Streaming && state.is_compared).await.is_err() {
            return;
        }
        let backup = newest.borrow_and_update().clone();
        let verified = match &backup {
            Some(backup) if taker.settings().schedule.verify_after => taker.verify_in_turn(backup).await,
            _ => Ok(()),
        };
        match verified {
            Ok(()) => {
                seen = backup;
                backoff.reset();
            }
            Err(error) => {
                let pause = backoff.next_pause();
                tracing::error!(%error, pause_seconds = pause.as_secs(), "cannot verify after a base backup; trying again");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// True if somebody has looked at what is stored since then. The keys have whole seconds.
fn is_followed(keys: &[AuditKey], ended_at: Timestamp) -> bool {
    keys.iter().any(|key| {
        let has_looked =
            matches!(key.action, Action::Verify | Action::DeepVerify) && key.result != ActionResult::Failed;
        has_looked && key.started_at.as_second() >= ended_at.as_second()
    })
}

impl Taker {
    async fn verify_in_turn(&self, backup: &Finished) -> Result<()> {
        if self.is_verified(backup).await? {
            return Ok(());
        }
        let _turn = self.turns.take().await;
        self.verify_after(backup).await
    }

    /// Looks at what is stored, unless somebody has since this base backup ended.
    ///
    /// # Errors
    /// If that cannot be done.
    pub(super) async fn verify_after(&self, backup: &Finished) -> Result<()> {
        let _one = self.results.following.lock().await;
        if !self.is_verified(backup).await? {
            self.in_time(Job::Verify, Action::Verify, self.verify(Action::Verify)).await?;
            self.results.followed(&backup.0);
        }
        Ok(())
    }

    async fn is_verified(&self, (id, ended_at): &Finished) -> Result<bool> {
        if self.results.has_followed(id) {
            return Ok(true);
        }
        let (repository, ..) = self.repository().await?;
        Ok(is_followed(&self.learn(&repository).await?, *ended_at))
    }

    /// Verifies, notes what was found, and shows it. That something is wrong is no error: it was done.
    ///
    /// # Errors
    /// If it cannot be done.
    pub(super) async fn verify(&self, action: Action) -> Result<()> {
        let (started_at, begun_at) = (self.clock.now(), Instant::now());
        let begun = Begun::at("run", action, started_at);
        let (_, writer, _) = self.repository().await?;
        let verified = verify::by_itself(self, action == Action::DeepVerify).await;
        let ended = verify::said(&verified);
        if let Some(first) = verified.as_ref().ok().and_then(|report| report.findings.iter().find(|it| it.is_problem)) {
            tracing::error!(problems = ended.about, first = first.message, "what is stored is not as it should be");
        }
        let wrong = (ended.result != ActionResult::Good).then(|| ended.about.clone());
        begun.end(&writer, ended, &self.clock).await;
        self.ended(action, Done { started_at, ended_at: self.clock.now(), took: begun_at.elapsed(), wrong });
        verified.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_backup_is_followed_by_what_began_in_its_last_second_or_later_and_was_done() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let key = |time, action, result| AuditKey { started_at: at(time), action, result };
        let ended_at = at("2026-11-22T12:00:00.7Z");
        for (key, expected) in [
            (key("2026-11-22T12:00:00Z", Action::Verify, ActionResult::Good), true),
            (key("2026-11-22T12:30:00Z", Action::DeepVerify, ActionResult::Bad), true),
            (key("2026-11-22T12:30:00Z", Action::Verify, ActionResult::Failed), false),
            (key("2026-11-22T11:59:59Z", Action::Verify, ActionResult::Good), false),
            (key("2026-11-22T12:30:00Z", Action::Drill, ActionResult::Good), false),
        ] {
            assert_eq!(is_followed(&[key], ended_at), expected, "{key:?}");
        }
    }
}
