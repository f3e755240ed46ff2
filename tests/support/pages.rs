//! Whether every page of a server is sound.

use super::postgres::connect;
use async_trait::async_trait;
use seawall::backup::{BackupOptions, BackupProgress, WalWaiter, take};
use seawall::codec::Compression;
use seawall::error::Result;
use seawall::repository::{Findings, Layout, WalNeed, Writer};
use seawall::runtime::Clock;
use seawall::scratch::Server;
use seawall::store::MemoryStore;
use std::sync::Arc;
use tokio::sync::watch;

/// For a backup whose WAL nobody needs.
#[derive(Debug)]
struct Unneeded;

#[async_trait]
impl WalWaiter for Unneeded {
    async fn wait_covered(&self, _: &[WalNeed]) -> Result<()> {
        Ok(())
    }
}

/// Has every page of a server with data checksums looked at: by the server itself, and by a base backup into memory.
pub async fn assert_sound_pages(server: &Server) {
    server.sql("CHECKPOINT").await.unwrap();
    let mut client = connect(&server.conninfo()).await;
    assert_eq!(client.show("data_checksums").await.unwrap(), "on");
    let layout = Layout::new("look", client.wal_segment_size().await.unwrap(), Compression::Lz4);
    let system_identifier = client.identify_system().await.unwrap().system_identifier;
    let writer = Writer::new(Arc::new(MemoryStore::new()), layout, system_identifier);
    let (progress, _) = watch::channel(BackupProgress::default());
    let (options, clock) = (BackupOptions::default(), Clock::system());
    let again = || async { Ok(connect(&server.conninfo()).await) };
    let looked = Box::pin(take(again, &writer, &options, &clock, &Unneeded, progress)).await.unwrap();
    assert_eq!(looked.findings, Findings::default(), "pages of a restored server");
    // And indexes against their tables.
    server.sql("CREATE EXTENSION IF NOT EXISTS amcheck").await.unwrap();
    let check = "SELECT count(bt_index_check(c.oid, true)) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                 JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid";
    server.sql(check).await.unwrap();
    if server.programs().version >= 14 {
        let heaps = "SELECT count(*) FROM pg_class c, verify_heapam(c.oid) WHERE c.relkind IN ('r', 't', 'm')";
        assert_eq!(server.sql(heaps).await.unwrap()[0][0].as_deref(), Some("0"), "verify_heapam found something");
    }
}
