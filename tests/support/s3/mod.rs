//! An S3 server for tests and benches: in process, on a free port of the loopback, with a runtime and threads of its
//! own, so that asynchronous tests and tests that start the program as a child use it alike.
//!
//! It keeps the promises that the archive rests on, which ready-made test servers do not: of any number of racing
//! creates exactly one wins, checksums are verified before anything is published, and what was refused leaves no
//! trace. What goes wrong goes wrong by script: see [`Fault`].
//!
//! Nothing here knows the program under test; the folder is included by path wherever it is wanted.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test support: each includer uses a part, and failing loudly is what a test wants"
)]

mod bucket;
mod checksum;
mod faults;
mod listing;
mod policy;
mod service;
mod storage;
mod wire;

pub use bucket::{Lock, Settings};
pub use faults::{Fault, Hold, Op, Target};
pub use policy::{Asked, Policy};
pub use storage::StoredObject;

use bytes::Bytes;
use faults::Script;
use policy::Users;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use storage::Storage;
use tokio_util::sync::CancellationToken;

/// A running server. Dropping it closes every connection and forgets (or deletes) what was stored.
pub struct S3Server {
    storage: Arc<Storage>,
    script: Arc<Script>,
    users: Arc<Users>,
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// The owner's access key, for which there are no limits. See [`S3Server::let_in`] for others.
    pub const ACCESS_KEY: &'static str = "AKIASEAWALLTEST00000";
    /// Its secret, and everybody else's.
    pub const SECRET_KEY: &'static str = "seawall/test/secret/0123456789abcdefghij";
    /// A bucket that is there from the start; [`S3Server::snapshot`] and its neighbours speak of this one.
    pub const BUCKET: &'static str = "seawall-test";
    /// The region it says it is in. Signatures for any region are accepted.
    pub const REGION: &'static str = "eu-test-1";

    /// Starts a server that keeps everything in memory.
    pub fn start() -> S3Server {
        S3Server::bind("127.0.0.1:0", None).expect("a free port of the loopback")
    }

    /// Starts a server that keeps bodies as files in `directory`, never in memory, and deletes them when dropped:
    /// for measurements with more data than memory. Names and metadata stay in memory.
    pub fn on_disk(directory: impl Into<PathBuf>) -> S3Server {
        S3Server::bind("127.0.0.1:0", Some(directory.into())).expect("a free port of the loopback")
    }

    /// From now on bodies are synced to disk before an answer, as a store does that is to be relied upon.
    pub fn sync_bodies(&self) {
        self.storage.sync_bodies();
    }

    /// From now on large bodies are verified and forgotten: a store on another machine takes neither this one's memory nor
    /// its disk. To read one is an error.
    pub fn forget_bodies(&self) {
        self.storage.forget_bodies();
    }

    /// Starts a server on `address`: for trials by hand, where a known port is handy.
    pub fn bind(address: &str, directory: Option<PathBuf>) -> std::io::Result<S3Server> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let storage = Arc::new(Storage::new(directory)?);
        storage.create_bucket(S3Server::BUCKET);
        let script = Arc::new(Script::default());
        let stop = CancellationToken::new();
        let users = Arc::new(Users::default());
        let service = service::Service::new(storage.clone(), script.clone(), users.clone());
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(move || service::run(listener, service, stopped))?;
        Ok(S3Server { storage, script, users, address, stop, thread: Some(thread) })
    }

    /// `http://127.0.0.1:port`, to be addressed path-style.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment with which a child process finds this server, and nothing of the machine's own AWS set-up.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        S3Server::env_at(&self.endpoint())
    }

    /// As [`S3Server::env`], for a server in another process.
    pub fn env_at(endpoint: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", endpoint.to_owned()),
            ("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY.to_owned()),
            ("AWS_REGION", S3Server::REGION.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ]
    }

    /// From now on this access key is let in too, as far as a policy goes.
    pub fn let_in(&self, access_key: &str, policy: Policy) {
        self.users.set(access_key, policy);
    }

    /// As [`S3Server::env`], for somebody who was let in.
    pub fn env_of(&self, access_key: &str) -> Vec<(&'static str, String)> {
        let mut env = self.env();
        let key = env.iter_mut().find(|(name, _)| *name == "AWS_ACCESS_KEY_ID").expect("one of them");
        key.1 = access_key.to_owned();
        env
    }

    /// What somebody who was let in has asked for, each once.
    pub fn asked(&self, access_key: &str) -> Vec<Asked> {
        self.users.told(access_key).0
    }

    /// What of it was refused.
    pub fn refused(&self, access_key: &str) -> Vec<Asked> {
        self.users.told(access_key).1
    }

    /// Sets the bucket.
    pub fn configure(&self, settings: Settings) {
        self.storage.visible().settings.insert(S3Server::BUCKET.to_owned(), settings);
    }

    /// What keeps an object from being deleted.
    pub fn lock_of(&self, key: &str) -> Lock {
        self.storage.find(S3Server::BUCKET, key).unwrap_or_else(|| panic!("there is no {key}")).lock.clone()
    }

    /// How many older versions a name has.
    pub fn older_versions(&self, key: &str) -> usize {
        self.storage.visible().older(S3Server::BUCKET, key)
    }

    /// Destroys every version of an object, as somebody does who has all rights but that of going round a lock. False if one is locked.
    pub fn destroy(&self, key: &str) -> bool {
        self.storage.visible().destroy(S3Server::BUCKET, key).is_ok()
    }

    /// The next request that matches meets `fault`. Scripted faults wait in line, one for each request; standing ones
    /// come on top.
    pub fn fault(&self, target: impl Into<Target>, fault: Fault) {
        self.script.once(target.into(), fault);
    }

    /// Every request that matches meets `fault`, until [`S3Server::clear`].
    pub fn always(&self, target: impl Into<Target>, fault: Fault) {
        self.script.always(target.into(), fault);
    }

    /// Takes back all faults, scripted and standing. Holds stay.
    pub fn clear(&self) {
        self.script.clear();
    }

    /// From now on only requests with this session token are let in: all others get [`Fault::EXPIRED_TOKEN`]. `None`
    /// lets in all, as at first.
    pub fn require_token(&self, token: Option<&str>) {
        self.script.require_token(token);
    }

    /// Scripted faults that no request has met yet: a test that scripts some asks at its end that none is left.
    pub fn faults_left(&self) -> usize {
        self.script.left()
    }

    /// Holds every matching request, fully read but not yet carried out, until the hold is released or dropped. Then
    /// it is carried out even if its client has long given up, as a late write would be.
    pub fn hold(&self, target: impl Into<Target>) -> Hold {
        self.script.hold(target.into())
    }

    /// Requests so far, by kind, whatever became of them.
    pub fn counts(&self) -> BTreeMap<Op, usize> {
        self.script.with_log(|log| {
            let mut counts = BTreeMap::new();
            for (op, _) in log {
                *counts.entry(*op).or_default() += 1;
            }
            counts
        })
    }

    /// Requests so far that match: `server.count(Op::Put.at("main/wal/"))`.
    pub fn count(&self, target: impl Into<Target>) -> usize {
        let target = target.into();
        self.script.with_log(|log| log.iter().filter(|(op, key)| target.matches(*op, key)).count())
    }

    /// Every request so far in order of arrival: its kind and key (for listings, the prefix).
    pub fn log(&self) -> Vec<(Op, String)> {
        self.script.with_log(<[(Op, String)]>::to_vec)
    }

    /// Forgets the log and with it the counts.
    pub fn clear_log(&self) {
        self.script.clear_log();
    }

    /// Listings give at most this many names a page (S3's limit is 1000), so that few objects make several pages.
    pub fn set_page_keys(&self, keys: usize) {
        self.storage.set_page_keys(keys);
    }

    /// The bucket as it is at one instant.
    pub fn snapshot(&self) -> BTreeMap<String, StoredObject> {
        self.storage.snapshot(S3Server::BUCKET)
    }

    /// Makes the bucket what it was: nothing that came since remains, uploads in progress included.
    pub fn restore_from(&self, snapshot: &BTreeMap<String, StoredObject>) {
        self.storage.restore(S3Server::BUCKET, snapshot);
    }

    /// Everything that is there was stored so much earlier, with other bytes where `rewrite` gives some.
    pub fn age(&self, by: Duration, rewrite: &dyn Fn(&str, Bytes) -> Option<Bytes>) {
        self.storage.age(S3Server::BUCKET, by, rewrite);
    }

    /// The bytes of one object.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.storage.find(S3Server::BUCKET, key).map(|object| object.read())
    }

    /// Puts an object in place, whatever was there, past script and log.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.storage.put(S3Server::BUCKET, key, StoredObject { bytes: bytes.into(), metadata: BTreeMap::new() });
    }

    /// Flips the lowest bit of one byte of a stored object. Its checksum stays what it was, as when a disk rots.
    pub fn flip_bit(&self, key: &str, offset: usize) {
        self.storage.damage(S3Server::BUCKET, key, |bytes| bytes[offset] ^= 1);
    }

    /// Cuts a stored object to its first `bytes` bytes. Its checksum stays what it was.
    pub fn truncate(&self, key: &str, bytes: usize) {
        self.storage.damage(S3Server::BUCKET, key, |whole| whole.truncate(bytes));
    }

    /// Deletes an object behind everybody's back.
    pub fn remove(&self, key: &str) {
        assert!(self.storage.delete(S3Server::BUCKET, key), "there is no object {key} to remove");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the S3 server's thread panicked");
        }
    }
}
