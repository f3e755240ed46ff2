//! Rows as CSV, by the server's own `COPY`: a header, then a line for each row, in UTF-8.

use super::package::{Package, Written};
use super::relations::Relation;
use super::run::Progress;
use crate::error::Result;
use crate::scratch::Session;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt, stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Rows are written in pieces of about this.
const PIECE_BYTES: usize = 1 << 16;

/// Writes each table as a file of its own.
///
/// # Errors
/// What the server says, or the disk.
pub(super) async fn tables(
    session: &Session,
    mut package: Package,
    relations: &[Relation],
    progress: &watch::Sender<Progress>,
) -> Result<(Package, Vec<Written>)> {
    let mut files = Vec::new();
    for relation in relations {
        let name = package.name(&relation.shown(), "csv");
        let written;
        // `COPY` of a relation takes neither views nor partitioned tables.
        (package, written) =
            rows(session, package, &name, &format!("SELECT * FROM {}", relation.quoted()), progress).await?;
        files.push(written);
    }
    Ok((package, files))
}

/// Writes the rows of a query as `name`.
///
/// # Errors
/// What the server says, or the disk.
pub(super) async fn rows(
    session: &Session,
    package: Package,
    name: &str,
    query: &str,
    progress: &watch::Sender<Progress>,
) -> Result<(Package, Written)> {
    let query = query.trim_end().trim_end_matches(';');
    // A line of its own for the parenthesis, or a comment at the query's end would take it.
    let copied = session.copy_out(&format!("COPY (\n{query}\n) TO STDOUT (FORMAT csv, HEADER)")).await?;
    let count = Arc::new(AtomicU64::new(0));
    let pieces = in_pieces(copied, count.clone());
    let pieces = pieces.inspect_ok(|piece| progress.send_modify(|progress| progress.done_bytes += piece.len() as u64));
    let (package, written) = package.store(name, pieces).await?;
    // The first is the header.
    let rows = count.load(Ordering::Relaxed).checked_sub(1);
    Ok((package, Written { rows, ..written }))
}

/// Rows together in larger pieces, counted: the server sends each in a message of its own (protocol: "COPY Operations").
fn in_pieces(rows: impl Stream<Item = Result<Bytes>>, count: Arc<AtomicU64>) -> impl Stream<Item = Result<Bytes>> {
    stream::try_unfold(Box::pin(rows), move |mut rows| {
        let count = count.clone();
        async move {
            let mut piece = BytesMut::new();
            while let Some(row) = rows.try_next().await? {
                count.fetch_add(1, Ordering::Relaxed);
                piece.extend_from_slice(&row);
                if piece.len() >= PIECE_BYTES {
                    break;
                }
            }
            Ok((!piece.is_empty()).then(|| (piece.freeze(), rows)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_come_together_and_are_counted() {
        let row = Bytes::from(vec![b'x'; 1000]);
        let rows = stream::iter((0..1000).map(|_| Ok(row.clone())).collect::<Vec<Result<Bytes>>>());
        let count = Arc::new(AtomicU64::new(0));
        let pieces: Vec<Bytes> = in_pieces(rows, count.clone()).try_collect().await.unwrap();
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 1_000_000);
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES + 1000), "{}", pieces.len());
        assert_eq!(count.load(Ordering::Relaxed), 1000);
    }
}
