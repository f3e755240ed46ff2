//! What the last drill found, for the metrics of `seawall run`: other processes drill.

use super::parts;
use crate::config::Settings;
use crate::error::Result;
use crate::metrics::{Job, LastDrill, Metrics};
use crate::repository::DrillDocument;
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks. Each is a listing of the folder of drills, whatever else happens or does not.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Keeps the metrics for ever; may be dropped at any time.
pub(super) async fn follow(settings: Settings, store: Arc<dyn Store>, metrics: Metrics) {
    loop {
        // A store that fails shows in its own metrics; the numbers here stay as they were.
        if let Ok(Some(document)) = look(&settings, &store).await {
            metrics.set_last_drill(&shown(&document));
            let took = document.ended_at.duration_since(document.started_at).unsigned_abs();
            metrics.job_ended(Job::Drill, document.ended_at, took, document.passed);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(settings: &Settings, store: &Arc<dyn Store>) -> Result<Option<DrillDocument>> {
    let (repository, _) = parts::repository_in(settings, store.clone()).await?;
    repository.last_drill().await
}

fn shown(document: &DrillDocument) -> LastDrill {
    LastDrill {
        ended_at: document.ended_at,
        passed: document.passed,
        recovery_seconds: document.recovery_seconds,
        recovered_lsn: document.recovered_lsn,
        recovered_at: document.recovered_at,
        rto_met: document.rto.map(|rto| rto.met),
        rpo_met: document.rpo.map(|rpo| rpo.met),
    }
}
