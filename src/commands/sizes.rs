//! How large the repository is, for the metrics of `seawall run`. That takes a listing of everything, so it is done at the
//! start and then once a day, and not at all while nothing comes.

use super::parts;
use crate::archive::{ArchiveState, Phase};
use crate::config::Settings;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two measurements.
const MEASURE_EVERY: Duration = Duration::from_secs(24 * 3600);

/// After a measurement that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Keeps the metrics for as long as the archiver is there; may be dropped at any time.
pub(super) async fn follow(
    settings: Settings,
    store: Arc<dyn Store>,
    metrics: Metrics,
    mut state: watch::Receiver<ArchiveState>,
) {
    // Before that there may be no folder to be measured; and a spare, which sees nothing pass, costs no request.
    if state.wait_for(|state| state.phase == Phase::Streaming).await.is_err() {
        return;
    }
    let mut measured_at = None;
    loop {
        let received = state.borrow().received;
        // A store that fails shows in its own metrics; the numbers here stay as they were.
        let mut pause = MEASURE_EVERY;
        if measured_at != Some(received) {
            match measure(&settings, &store, &metrics).await {
                Ok(()) => measured_at = Some(received),
                Err(_) => pause = AGAIN_AFTER,
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn measure(settings: &Settings, store: &Arc<dyn Store>, metrics: &Metrics) -> Result<()> {
    let (repository, _) = parts::repository_in(settings, store.clone()).await?;
    for (part, size) in repository.sizes().await? {
        metrics.set_repository_part(part.name(), size.objects, size.bytes);
    }
    Ok(())
}
