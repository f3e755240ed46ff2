//! `seawall index`: reads the WAL that has no index, and makes one.

use super::progress::{self, Step};
use super::{parts, print};
use crate::config::Settings;
use crate::error::Result;
use crate::history::index::{Filled, IndexWriter};
use crate::repository::{Catalog, Writer};
use crate::wal::WalRange;
use tokio::sync::watch;

/// Indexes, and prints what was done.
///
/// # Errors
/// What the store says, or what is wrong with what is stored.
pub(super) async fn index(as_json: bool, settings: Settings) -> Result<()> {
    let (repository, cluster) = parts::readable_repository(&settings).await?;
    let system_identifier = cluster.system_identifier;
    let catalog = Catalog::read(&repository, cluster).await?;
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), system_identifier);
    let index = IndexWriter::new(writer);
    let (progress, watched) = watch::channel(Step { what: "indexing", done_bytes: 0, total_bytes: 0 });
    let filled = tokio::select! {
        filled = Box::pin(fill(&catalog, &index, &progress)) => filled?,
        never = progress::show(watched, Clone::clone) => match never {},
    };
    print::stdout(&match as_json {
        true => print::json(&filled)?,
        false => in_words(filled),
    })
}

async fn fill(catalog: &Catalog, index: &IndexWriter, progress: &watch::Sender<Step>) -> Result<Filled> {
    let followed = catalog.followed_timeline();
    let runs = catalog.coverage.iter().flat_map(|(&timeline, coverage)| {
        let runs = coverage.runs().into_iter();
        runs.map(move |run| WalRange { timeline, start: run.start, end: run.end })
    });
    let runs: Vec<WalRange> = runs.collect();
    progress.send_modify(|step| step.total_bytes = runs.iter().map(|run| run.bytes()).sum());
    let mut all = Filled::default();
    for run in runs {
        let seen = |bytes| progress.send_modify(|step| step.done_bytes += bytes);
        let filled = index.fill(run, Some(run.timeline) == followed, seen).await?;
        all.wal_bytes += filled.wal_bytes;
        all.stored += filled.stored;
        all.left_bytes += filled.left_bytes;
    }
    Ok(all)
}

fn in_words(filled: Filled) -> String {
    let Filled { wal_bytes, stored, left_bytes } = filled;
    let left = match left_bytes {
        0 => String::new(),
        _ => format!(
            "; {} have none: they are too few yet, or cannot be read here, and are read whenever they matter",
            print::size(left_bytes)
        ),
    };
    match stored {
        0 => format!("nothing to index{left}\n"),
        _ => format!("indexed {} of WAL in {stored} objects{left}\n", print::size(wal_bytes)),
    }
}
