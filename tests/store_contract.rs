//! Every store and every decorator keeps the one contract of `store::Store`: the stories are in `support/contract.rs`.
#![allow(
    clippy::unused_async,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]

#[path = "support/contract.rs"]
mod contract;
#[path = "support/s3/mod.rs"]
mod s3;
#[path = "support/s3_store.rs"]
mod s3_store;

use contract::contract_tests;
use s3::S3Server;
use seawall::runtime::RetryPolicy;
use seawall::store::{FileStore, MemoryStore, NoObserver, ObservedStore, RetryingStore, Store, StoreOptions, open};
use std::sync::Arc;
use tempfile::TempDir;

async fn memory() -> (Arc<dyn Store>, ()) {
    (Arc::new(MemoryStore::new()), ())
}

async fn file() -> (Arc<dyn Store>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Arc::new(FileStore::new(directory.path().to_path_buf())), directory)
}

async fn observed() -> (Arc<dyn Store>, ()) {
    (Arc::new(ObservedStore::new(Arc::new(MemoryStore::new()), Arc::new(NoObserver))), ())
}

async fn retrying() -> (Arc<dyn Store>, ()) {
    (Arc::new(RetryingStore::new(Arc::new(MemoryStore::new()), RetryPolicy::STORE)), ())
}

async fn opened_by_url() -> (Arc<dyn Store>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().display());
    (open(&url, &StoreOptions::default(), Arc::new(NoObserver)).await.unwrap(), directory)
}

async fn s3_server() -> (Arc<dyn Store>, S3Server) {
    let server = S3Server::start();
    (s3_store::store(s3_store::options(&server)).await, server)
}

async fn s3_without_a_prefix() -> (Arc<dyn Store>, S3Server) {
    let server = S3Server::start();
    let url = format!("s3://{}", S3Server::BUCKET);
    (open(&url, &s3_store::options(&server), Arc::new(NoObserver)).await.unwrap(), server)
}

contract_tests!(memory_store, memory());
contract_tests!(file_store, file());
contract_tests!(observed_store, observed());
contract_tests!(retrying_store, retrying());
contract_tests!(store_opened_by_url, opened_by_url());
contract_tests!(s3_store_below_a_prefix, s3_server());
contract_tests!(s3_store_without_a_prefix, s3_without_a_prefix());
