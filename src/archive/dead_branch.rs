//! What a timeline has behind the point where it was left: the work of an old primary that was cut off, or the first half
//! of a record that a promoted standby gave up. It is kept, to its own end, and flagged.

use crate::error::{Error, Kind, Result};
use crate::repository::{Coverage, DeadBranchNote, FORMAT_VERSION, Key, Repository, Stored, WalReader, Writer};
use crate::store::Created;
use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange};

/// Compares what is stored of `timeline` around `switch` with what the surviving branch has, makes permanent what is
/// stored behind it in tails alone, and flags that. Nothing to do, most of the time: then it lists once. The flag that is
/// new, if there is one.
///
/// # Errors
/// [`Kind::Diverged`] if the branches differ before they part; otherwise what the store says.
pub(super) async fn settle(
    writer: &Writer,
    repository: &Repository,
    timeline: TimelineId,
    switch: Lsn,
) -> Result<Option<WalRange>> {
    let coverage = repository.read_coverage(timeline, switch).await?;
    let Some(end) = coverage.end().filter(|end| *end > switch) else { return Ok(None) };
    let branch = WalRange { timeline, start: switch, end };
    let flags = repository.read_dead_branches(timeline).await?;
    if flags.iter().any(|flag| flag.contains(branch)) {
        return Ok(None);
    }
    let reader = WalReader::new(repository.clone(), writer.system_identifier());
    match make_permanent(writer, &reader, &coverage, switch).await {
        Ok(()) => {}
        // It stays in tails, which nobody deletes, as nothing covers them; whoever comes with the key does the rest.
        Err(error) if WalReader::is_sealed_from_us(&error) => {
            tracing::warn!(
                %branch,
                "a dead branch, encrypted for others than this archiver: it is neither compared nor flagged before one \
                 with the key comes"
            );
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    // The flag comes last: without it, all of this is done again.
    let note = DeadBranchNote { format: FORMAT_VERSION, timeline, start: switch, end };
    let created = writer.store_document(&Key::DeadBranch(branch), &note).await?;
    Ok((created == Created::New).then_some(branch))
}

/// Compares the branches up to the switch point, and stores as blocks what lies behind it in tails.
async fn make_permanent(writer: &Writer, reader: &WalReader, coverage: &Coverage, switch: Lsn) -> Result<()> {
    compare_shared(reader, coverage, switch).await?;
    for piece in pieces(coverage, reader.repository().layout.segment_size(), switch) {
        let is_permanent = coverage.chain(piece.start, piece.end).is_ok_and(|chain| chain.iter().all(|it| it.is_block));
        if !is_permanent {
            let window = reader.read_range(piece).await?;
            if window.end < piece.end {
                return Err(Error::new(Kind::Store, format!("{piece} cannot be read beyond {}", window.end)));
            }
            writer.store_wal(&Key::Block(piece), piece, window.pieces.concat().into()).await?;
        }
    }
    Ok(())
}

/// The parts of `coverage` in blocks that have anything behind `switch`.
fn pieces(coverage: &Coverage, size: SegmentSize, switch: Lsn) -> Vec<WalRange> {
    let Some(timeline) = coverage.objects().first().map(|stored| stored.range.timeline) else { return Vec::new() };
    let mut pieces = Vec::new();
    for run in coverage.runs().into_iter().filter(|run| run.end > switch) {
        let mut start = run.start.max(size.block_start(switch));
        while start < run.end {
            let end = size.block_end(start).min(run.end);
            if end > switch {
                pieces.push(WalRange { timeline, start, end });
            }
            start = end;
        }
    }
    pieces
}

/// Objects that reach over the switch point are of the dead branch alone: up to there they must have what the surviving
/// branch has, of which objects end at the switch point at the latest.
async fn compare_shared(reader: &WalReader, coverage: &Coverage, switch: Lsn) -> Result<()> {
    let survives = |stored: &&Stored| stored.range.end <= switch;
    let surviving = Coverage::new(coverage.objects().iter().filter(survives).cloned().collect());
    let reaches_over = |stored: &&Stored| stored.range.start < switch && switch < stored.range.end;
    for dead in coverage.objects().iter().filter(reaches_over) {
        let shared = WalRange { end: switch, ..dead.range };
        let gone = || Error::new(Kind::Store, format!("{} was listed and is gone", dead.name));
        let bytes = reader.read(dead).await?.ok_or_else(gone)?;
        let window = reader.read_covered(&surviving, shared, Vec::new()).await?.ok_or_else(gone)?;
        // Where the surviving branch was recorded as lost there is nothing to compare with.
        let found = window.pieces.concat();
        if bytes[..found.len()] != found[..] {
            return Err(Error::new(
                Kind::Diverged,
                format!("{} and what the promoted server has differ before {switch}, where they parted", dead.name),
            )
            .hint(
                "Nothing was overwritten and nothing acknowledged. Were the two servers ever one cluster, with all of the \
                 old one's WAL replayed before the promotion? Give the promoted one another --cluster name, and take a new \
                 base backup there.",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encryption::generate_identity;
    use crate::codec::{Compression, Form, Identities, Recipients};
    use crate::repository::Layout;
    use crate::store::MemoryStore;
    use age::secrecy::ExposeSecret;
    use bytes::Bytes;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    fn range(start: u64, end: u64) -> WalRange {
        WalRange { timeline: TimelineId(1), start: Lsn(start), end: Lsn(end) }
    }

    fn parts() -> (Repository, Writer) {
        parts_in(Compression::Lz4.into())
    }

    fn parts_in(form: Form) -> (Repository, Writer) {
        let layout = Layout::new("main", SegmentSize::new(MIB).unwrap(), form);
        let store = Arc::new(MemoryStore::new());
        let repository = Repository { store: store.clone(), layout: layout.clone() };
        (repository, Writer::new(store, layout, 7))
    }

    async fn put(writer: &Writer, key: Key, seed: u64) {
        let (Key::Block(range) | Key::Tail(range)) = key else { unreachable!() };
        let bytes: Vec<u8> = (range.start.0..range.end.0).map(|at| ((at ^ seed) % 251) as u8).collect();
        writer.store_wal(&key, range, Bytes::from(bytes)).await.unwrap();
    }

    #[tokio::test]
    async fn tails_behind_the_switch_become_blocks_and_are_flagged_once() {
        // Given a branch that was sealed at its switch point, and tails that reach beyond it into the next block
        let (repository, writer) = parts();
        put(&writer, Key::Block(range(MIB, MIB + 500)), 0).await;
        put(&writer, Key::Tail(range(MIB, MIB + 300)), 0).await;
        put(&writer, Key::Tail(range(MIB + 300, 2 * MIB)), 0).await;
        put(&writer, Key::Tail(range(2 * MIB, 2 * MIB + 10)), 0).await;
        put(&writer, Key::Tail(range(2 * MIB + 20, 2 * MIB + 30)), 0).await;
        let switch = Lsn(MIB + 500);
        // When it is settled
        let flag = settle(&writer, &repository, TimelineId(1), switch).await.unwrap();
        // Then everything behind is permanent, also what lies behind a hole, and the flag says so
        assert_eq!(flag, Some(range(MIB + 500, 2 * MIB + 30)));
        let coverage = repository.read_coverage(TimelineId(1), switch).await.unwrap();
        let blocks: Vec<_> = coverage.objects().iter().filter(|it| it.is_block).map(|it| it.range).collect();
        assert_eq!(
            blocks,
            [
                range(MIB, 2 * MIB),
                range(MIB, MIB + 500),
                range(2 * MIB, 2 * MIB + 10),
                range(2 * MIB + 20, 2 * MIB + 30)
            ]
        );
        assert_eq!(settle(&writer, &repository, TimelineId(1), switch).await.unwrap(), None, "once is enough");
        // And what came later makes it longer
        put(&writer, Key::Tail(range(2 * MIB + 30, 2 * MIB + 40)), 0).await;
        assert!(settle(&writer, &repository, TimelineId(1), switch).await.unwrap().is_some());
        let flags = repository.read_dead_branches(TimelineId(1)).await.unwrap();
        assert_eq!(flags, [range(MIB + 500, 2 * MIB + 40)]);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_waits_for_one_who_can() {
        // Given a branch that is encrypted for somebody else than this archiver, which has another key
        let (secret, public) = generate_identity();
        let identity = |secret: &str| Identities::parse(secret.as_bytes()).unwrap();
        let recipients = Recipients::parse([&*public]).unwrap();
        let identities = identity(generate_identity().0.expose_secret());
        let (mut repository, writer) = parts_in(Form { recipients: recipients.clone(), identities, ..Form::default() });
        put(&writer, Key::Block(range(MIB, MIB + 500)), 0).await;
        put(&writer, Key::Tail(range(MIB, MIB + 700)), 0).await;
        // When it is settled, then it is as it was, and not flagged
        let blocks = async |repository: &Repository| {
            let coverage = repository.read_coverage(TimelineId(1), Lsn(MIB)).await.unwrap();
            coverage.objects().iter().filter(|it| it.is_block).count()
        };
        assert_eq!(settle(&writer, &repository, TimelineId(1), Lsn(MIB + 500)).await.unwrap(), None);
        assert!(repository.read_dead_branches(TimelineId(1)).await.unwrap().is_empty());
        assert_eq!(blocks(&repository).await, 1);
        // And one with the key does it all
        let form = Form { recipients, identities: identity(secret.expose_secret()), ..Form::default() };
        repository.layout = Layout::new("main", SegmentSize::new(MIB).unwrap(), form);
        let flag = settle(&writer, &repository, TimelineId(1), Lsn(MIB + 500)).await.unwrap();
        assert_eq!(flag, Some(range(MIB + 500, MIB + 700)));
        assert_eq!(blocks(&repository).await, 2);
    }

    #[tokio::test]
    async fn branches_that_differ_before_they_part_are_a_divergence() {
        let (repository, writer) = parts();
        put(&writer, Key::Block(range(MIB, MIB + 500)), 0).await;
        put(&writer, Key::Block(range(MIB, 2 * MIB)), 1).await;
        let error = settle(&writer, &repository, TimelineId(1), Lsn(MIB + 500)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Diverged, "{error}");
        assert!(repository.read_dead_branches(TimelineId(1)).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_timeline_that_ends_where_it_was_left_has_no_dead_branch() {
        let (repository, writer) = parts();
        put(&writer, Key::Block(range(MIB, MIB + 500)), 0).await;
        assert_eq!(settle(&writer, &repository, TimelineId(1), Lsn(MIB + 500)).await.unwrap(), None);
    }
}
