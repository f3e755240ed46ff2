//! Finds out whether a store keeps the one promise that everything stands on. Uses the contract only.

use super::{Body, Created, Metadata, Store, StoreError};
use bytes::Bytes;

/// What a store makes of a create whose name is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConditionalWrites {
    /// It refuses it: safe.
    Honoured,
    /// It overwrites the object: two archivers, or one and its own lost reply, could destroy each other's bytes.
    Ignored,
}

/// Creates `key` twice with different bytes and looks what became of it, then deletes it (best effort: where deleting
/// is not allowed, one small object stays). `key` must be this caller's own: nobody else may probe with it meanwhile.
///
/// # Errors
/// Whatever the store answers to create and get.
pub async fn probe(store: &dyn Store, key: &str) -> Result<ConditionalWrites, StoreError> {
    let first = Bytes::from_static(b"Written first: must stay.\n");
    let second = Bytes::from_static(b"Written second: if you can read this, the store ignores If-None-Match.\n");
    // Under this name there may already be an object, from a probe that was killed; then its bytes are the first.
    let before = match store.create(key, Body::from(first.clone()), Metadata::new()).await? {
        Created::New => first,
        Created::Exists => store.get(key, None).await?.collect().await?,
    };
    // What a killed probe left may be the second bytes, in a store that overwrites.
    let second = if before == second { Bytes::from_static(b"Written third.\n") } else { second };
    let created = store.create(key, Body::from(second), Metadata::new()).await?;
    let after = store.get(key, None).await?.collect().await?;
    let honoured = created == Created::Exists && after == before;
    // Only tidiness: the answer stands.
    let _ = store.delete(key).await;
    Ok(if honoured { ConditionalWrites::Honoured } else { ConditionalWrites::Ignored })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Level, ListPage, MemoryStore, ObjectHead, ObjectStream, Upload};
    use async_trait::async_trait;
    use std::ops::Range;

    #[tokio::test]
    async fn a_store_that_keeps_the_first_bytes_is_recognised_and_left_clean() {
        let store = MemoryStore::new();
        assert_eq!(probe(&store, "probe/1").await.unwrap(), ConditionalWrites::Honoured);
        assert!(crate::store::list_all(&store, "").await.unwrap().is_empty(), "the probe must be deleted");
    }

    #[tokio::test]
    async fn what_a_killed_probe_left_does_not_mislead() {
        let store = MemoryStore::new();
        store.create("probe/1", Bytes::from_static(b"left").into(), Metadata::new()).await.unwrap();
        assert_eq!(probe(&store, "probe/1").await.unwrap(), ConditionalWrites::Honoured);
    }

    /// As Garage does: the header is accepted and ignored.
    #[derive(Debug)]
    struct Overwriting(MemoryStore);

    #[async_trait]
    impl Store for Overwriting {
        async fn create(&self, key: &str, body: Body, metadata: Metadata) -> Result<Created, StoreError> {
            self.0.delete(key).await?;
            self.0.create(key, body, metadata).await
        }
        async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<ObjectStream, StoreError> {
            self.0.get(key, range).await
        }
        async fn head(&self, key: &str) -> Result<ObjectHead, StoreError> {
            self.0.head(key).await
        }
        async fn list_page(&self, prefix: &str, token: Option<String>) -> Result<ListPage, StoreError> {
            self.0.list_page(prefix, token).await
        }
        async fn list_level(&self, prefix: &str) -> Result<Level, StoreError> {
            self.0.list_level(prefix).await
        }
        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            self.0.delete(key).await
        }
        async fn begin_upload(&self, key: &str, metadata: Metadata) -> Result<Box<dyn Upload>, StoreError> {
            self.0.begin_upload(key, metadata).await
        }
        fn describe(&self) -> String {
            self.0.describe()
        }
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_recognised() {
        let store = Overwriting(MemoryStore::new());
        assert_eq!(probe(&store, "probe/1").await.unwrap(), ConditionalWrites::Ignored);
    }
}
