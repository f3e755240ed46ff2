//! How large a repository is, part by part: one listing of everything, a page in memory at a time.

use super::Repository;
use crate::error::Result;
use std::collections::BTreeMap;

/// A folder of a cluster, as the sizes name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RepositoryPart {
    /// Blocks, and the history files of timelines.
    Wal,
    /// Parts of blocks that nothing larger has replaced, or that are about to be deleted.
    Tails,
    /// What is known of the WAL.
    Index,
    /// Base backups, unfinished ones included.
    Backups,
    /// Reports of drills.
    Drills,
    /// Anything else.
    Other,
}

impl RepositoryPart {
    /// Every part.
    pub const ALL: [RepositoryPart; 6] = [
        RepositoryPart::Wal,
        RepositoryPart::Tails,
        RepositoryPart::Index,
        RepositoryPart::Backups,
        RepositoryPart::Drills,
        RepositoryPart::Other,
    ];

    /// What it is called in a metric: lower case, stable.
    pub fn name(self) -> &'static str {
        match self {
            RepositoryPart::Wal => "wal",
            RepositoryPart::Tails => "tails",
            RepositoryPart::Index => "index",
            RepositoryPart::Backups => "backups",
            RepositoryPart::Drills => "drills",
            RepositoryPart::Other => "other",
        }
    }

    /// By the folder's name, as [`super::Layout`] gives it.
    fn of_folder(folder: &str) -> RepositoryPart {
        match folder {
            "wal" => RepositoryPart::Wal,
            "open" => RepositoryPart::Tails,
            "index" => RepositoryPart::Index,
            "base" => RepositoryPart::Backups,
            "drills" => RepositoryPart::Drills,
            _ => RepositoryPart::Other,
        }
    }
}

/// What a part holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PartSize {
    /// Objects.
    pub objects: u64,
    /// Their bytes, as stored.
    pub bytes: u64,
}

impl Repository {
    /// What each part holds. One request to the store for each thousand objects.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn sizes(&self) -> Result<BTreeMap<RepositoryPart, PartSize>> {
        let mut sizes: BTreeMap<_, PartSize> = RepositoryPart::ALL.map(|part| (part, PartSize::default())).into();
        let prefix = format!("{}/", self.layout.cluster());
        let mut token = None;
        loop {
            let page = self.store.list_page(&prefix, token).await?;
            for object in &page.objects {
                let folder = object.key.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'));
                let part = folder.map_or(RepositoryPart::Other, |(folder, _)| RepositoryPart::of_folder(folder));
                let size = sizes.entry(part).or_default();
                size.objects += 1;
                size.bytes += object.bytes;
            }
            token = page.next;
            if token.is_none() {
                return Ok(sizes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Compression;
    use crate::repository::{BackupId, Key, Layout};
    use crate::store::{MemoryStore, Metadata, Store};
    use crate::wal::{Lsn, SegmentSize, TimelineId, WalRange};
    use bytes::Bytes;
    use jiff::Timestamp;
    use std::sync::Arc;

    #[tokio::test]
    async fn every_object_counts_once_with_the_part_that_its_name_says() {
        // Given one object of each part, and the neighbour's
        let store = Arc::new(MemoryStore::new());
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let timeline = TimelineId(1);
        let range = |start, end| WalRange { timeline, start: Lsn(start), end: Lsn(end) };
        let id = BackupId::parse("20261120T140300Z").unwrap();
        let keys = [
            (RepositoryPart::Other, Key::Cluster),
            (RepositoryPart::Wal, Key::Block(range(0x100_0000, 0x200_0000))),
            (RepositoryPart::Tails, Key::Tail(range(0x200_0000, 0x200_1000))),
            (RepositoryPart::Index, Key::Gap(range(0x100, 0x200))),
            (RepositoryPart::Backups, Key::BackupBegin(id)),
            (RepositoryPart::Drills, Key::Drill(Timestamp::UNIX_EPOCH)),
        ];
        let put = async |name: &str, bytes: usize| {
            store.create(name, Bytes::from(vec![0; bytes]).into(), Metadata::new()).await.unwrap();
        };
        for (bytes, (_, key)) in keys.iter().enumerate() {
            put(&layout.name(key), bytes + 1).await;
        }
        put("mainland/wal/x", 1000).await;
        // When it is measured, then each part has its own
        let repository = Repository { store: store.clone(), layout };
        let expected =
            keys.iter().enumerate().map(|(at, (part, _))| (*part, PartSize { objects: 1, bytes: at as u64 + 1 }));
        assert_eq!(repository.sizes().await.unwrap(), expected.collect());
    }
}
