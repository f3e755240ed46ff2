//! Locks and legal holds, as the store asks for them.

use crate::s3::{Lock, S3Server, Settings};
use crate::s3_store::{options, store};
use bytes::Bytes;
use seawall::repository::is_permanent;
use seawall::store::{Created, LockMode, Metadata, ObjectLock, Store, StoreErrorKind, StoreOptions};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

async fn locking(server: &S3Server) -> Arc<dyn Store> {
    let mut options: StoreOptions = options(server);
    options.s3.lock = ObjectLock { mode: Some(LockMode::Compliance), days: 30, is_permanent };
    store(options).await
}

async fn create(store: &dyn Store, name: &str, bytes: &'static [u8]) -> Result<Created, StoreErrorKind> {
    store.create(name, Bytes::from_static(bytes).into(), Metadata::new()).await.map_err(|error| error.kind)
}

#[tokio::test]
async fn what_is_stored_for_good_is_locked_and_what_passes_is_not() {
    let server = S3Server::start();
    server.configure(Settings::good());
    let store = locking(&server).await;
    assert!(store.lock_period().is_some());
    // When objects of both kinds are stored, in one request and in pieces
    let permanent = ["main/wal/a", "main/base/b/backup.json", "main/index/c", "main/keep/d", "main/cluster.json"];
    let passing = ["main/open/a", "main/open/00000001/b", "main/open/lease-1"];
    for name in permanent.iter().chain(&passing) {
        assert_eq!(create(store.as_ref(), name, b"bytes").await, Ok(Created::New));
    }
    let mut upload = store.begin_upload("main/wal/large", Metadata::new()).await.unwrap();
    upload.put_piece(Bytes::from_static(b"piece").into()).await.unwrap();
    assert_eq!(upload.complete().await.unwrap(), Created::New);
    // Then those that stay are locked for thirty days from now, give or take the time of the test
    for name in permanent.iter().chain(&["main/wal/large"]) {
        let lock = server.lock_of(&format!("repo/{name}"));
        let left = lock.until.unwrap().duration_since(SystemTime::now()).unwrap();
        assert!(left <= 30 * DAY && left > 29 * DAY, "{name}: {left:?}");
        assert_eq!((lock.mode.as_deref(), lock.is_held), (Some("COMPLIANCE"), false), "{name}");
    }
    for name in passing {
        assert_eq!(server.lock_of(&format!("repo/{name}")), Lock::default(), "{name}");
    }
    // And who deletes one hides it, but cannot destroy it
    store.delete("main/wal/a").await.unwrap();
    assert_eq!(store.head("main/wal/a").await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert!(!server.destroy("repo/main/wal/a"), "its version is locked");
    assert!(server.destroy("repo/main/open/a"));
    assert_eq!(server.older_versions("repo/main/wal/a"), 1);
    // Until its time is over
    server.put("repo/main/wal/a", "");
    server.remove("repo/main/wal/a");
    assert_eq!(create(store.as_ref(), "main/wal/b", b"bytes").await, Ok(Created::New));
    server.age(31 * DAY, &|_, _| None);
    assert!(server.destroy("repo/main/wal/b"));
}

#[tokio::test]
async fn a_legal_hold_stays_until_it_is_taken_off_and_both_may_be_asked_for_twice() {
    let server = S3Server::start();
    server.configure(Settings::good());
    let store = store(options(&server)).await;
    assert_eq!(create(store.as_ref(), "main/wal/a", b"bytes").await, Ok(Created::New));
    for on in [true, true, false, false, true] {
        store.set_legal_hold("main/wal/a", on).await.unwrap();
        assert_eq!(server.lock_of("repo/main/wal/a").is_held, on);
    }
    assert!(!server.destroy("repo/main/wal/a"));
    let error = store.set_legal_hold("main/wal/nothing", true).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error:?}");
}

#[tokio::test]
async fn a_bucket_without_locks_says_so_as_soon_as_something_is_stored() {
    let server = S3Server::start();
    let store = locking(&server).await;
    assert_eq!(create(store.as_ref(), "main/wal/a", b"bytes").await, Err(StoreErrorKind::Permanent));
    assert_eq!(create(store.as_ref(), "main/open/a", b"bytes").await, Ok(Created::New));
    assert!(store.set_legal_hold("main/open/a", true).await.is_err());
}
