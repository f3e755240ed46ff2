//! Restores over what is there already: interrupted ones that go on, and stopped clusters that are replaced.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "restore/invented.rs"]
#[allow(dead_code, reason = "shared with tests/restore.rs")]
mod invented;

use invented::{Invented, LARGE, SYSTEM, TABLESPACE, Twist, options};
use nix::fcntl::{Flock, FlockArg};
use seawall::error::{Error, Kind};
use seawall::repository::Repository;
use seawall::restore::{Ground, MARKER_FILE, Plan, RestoreOptions, RestoreProgress, RestoreReport, execute, preview};
use seawall::store::{ObservedStore, Operation, Store, StoreErrorKind, StoreObserver};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;

/// A data directory with a tablespace beside it.
struct Place {
    directory: TempDir,
    data: PathBuf,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        Place { directory, data }
    }

    fn options(&self) -> RestoreOptions {
        options(&self.data)
    }

    fn delta(&self) -> RestoreOptions {
        RestoreOptions { delta: true, ..self.options() }
    }

    /// Everything that is there, and what is in it.
    fn everything(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn below(path: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_owned();
                if path.is_symlink() {
                    found.insert(name, b"a link".to_vec());
                } else if path.is_dir() {
                    found.insert(name, b"a directory".to_vec());
                    below(&path, root, found);
                } else {
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        below(self.directory.path(), self.directory.path(), &mut found);
        found
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.data.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// Restores, and says how many bytes were fetched as well.
async fn restore(invented: &Invented, plan: &Plan, options: &RestoreOptions) -> Result<(RestoreReport, u64), Error> {
    let (progress, seen) = watch::channel(RestoreProgress::default());
    let report = execute(&invented.repository, plan, options, progress).await?;
    let fetched = seen.borrow().total_bytes;
    Ok((report, fetched))
}

fn stored_bytes(invented: &Invented, parts: &[usize]) -> u64 {
    parts.iter().map(|index| invented.document.parts[*index].stored_bytes).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_leaves_what_a_fresh_restore_would_and_fetches_what_differs() {
    let (invented, fresh, place) = (Invented::new().await, Place::new(), Place::new());
    let plan = invented.plan().await;
    restore(&invented, &plan, &fresh.options()).await.unwrap();
    restore(&invented, &plan, &place.options()).await.unwrap();
    // Given a server that has lived in it since: files changed, gone and new, segments, forks, slots, signals, a spool
    let changed = fs::read(place.data.join("base/5/112")).unwrap().len();
    place.write("base/5/112", vec![7; changed]);
    fs::remove_file(place.data.join("base/5/empty")).unwrap();
    for new in ["base/5/16400.1", "base/5/16400_fsm", "base/6/1259", "pg_wal/000000010000000000000009"] {
        place.write(new, "new");
    }
    for new in ["pg_replslot/old/state", "pg_stat_tmp/global.stat", "base/5/pg_internal.init", "standby.signal"] {
        place.write(new, "new");
    }
    place.write("pg_logical/snapshots/0-1.snap", "new");
    place.write("seawall-spool/key/000000010000000000000003", "another restore's");
    let version = place.data.join(format!("pg_tblspc/{TABLESPACE}/PG_15_202209061"));
    fs::write(version.join("5/99999"), "new").unwrap();
    fs::create_dir(place.directory.path().join("elsewhere")).unwrap();
    fs::write(place.directory.path().join("elsewhere/precious"), "x").unwrap();
    std::os::unix::fs::symlink(place.directory.path().join("elsewhere"), place.data.join("log")).unwrap();
    // and a neighbour of another major version in the tablespace's directory
    let neighbour = place.data.with_file_name("fast").join("PG_16_202307071");
    fs::create_dir(&neighbour).unwrap();
    fs::write(neighbour.join("precious"), "x").unwrap();
    let before = place.everything();
    // When a restore over it is looked at, then nothing is written
    let (progress, _) = watch::channel(RestoreProgress::default());
    let seen = preview(&invented.repository, &plan, &place.delta(), progress).await.unwrap();
    assert_eq!(seen.destination.ground, Ground::Cluster);
    assert!(seen.removed.paths().any(|path| path == place.data.join("base/5/16400.1")), "{seen}");
    assert!(seen.to_string().contains("replaces     the stopped cluster"), "{seen}");
    assert_eq!(place.everything(), before, "looking writes nothing");
    // When it is restored over, then it is as if it were fresh
    let (report, fetched) = restore(&invented, &plan, &place.delta()).await.unwrap();
    assert_eq!(fs::read(place.directory.path().join("elsewhere/precious")).unwrap(), b"x", "no link is followed");
    assert_eq!(fs::read(neighbour.join("precious")).unwrap(), b"x");
    fs::remove_dir_all(place.directory.path().join("elsewhere")).unwrap();
    fs::remove_dir_all(neighbour).unwrap();
    let (found, expected) = (place.everything(), fresh.everything());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, content) in expected {
        assert!(found[&path] == content, "{} differs", path.display());
    }
    // and parts in which everything was equal were not fetched: the first has the two files, the third pg_control
    assert_eq!(fetched, stored_bytes(&invented, &[0, 2]), "{report:?}");
    assert_eq!((report.kept_files, seen.kept_files), (4, 4), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_seen_before_anything_of_a_cluster_is_removed() {
    // Given a stopped cluster, changed since, and a backup of it with a file that no disk holds
    let place = Place::new();
    let invented = Invented::new().await;
    restore(&invented, &invented.plan().await, &place.options()).await.unwrap();
    place.write("base/5/112", "changed");
    place.write("base/5/more", "new");
    let before = place.everything();
    let listed = vec![("base/5/17000".to_owned(), 1 << 60)];
    let larger = Invented::twisted(Twist { listed, ..Twist::default() }).await;
    // When that is restored over it, or a look is taken, then it is refused, and all is as it was.
    let plan = larger.plan().await;
    let (progress, _) = watch::channel(RestoreProgress::default());
    let seen = preview(&larger.repository, &plan, &place.delta(), progress).await.unwrap_err();
    for error in [seen, restore(&larger, &plan, &place.delta()).await.unwrap_err()] {
        assert!(error.kind() == Kind::Local && error.to_string().contains("MiB are free"), "{error}");
        assert!(place.everything() == before, "something was written or removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_stopped_half_way_goes_on_with_the_same_command() {
    let (invented, fresh, place) = (Invented::new().await, Place::new(), Place::new());
    let plan = invented.plan().await;
    restore(&invented, &plan, &fresh.options()).await.unwrap();
    // Given a restore that found its third part missing
    let name = invented.part(2);
    let part = invented.read(&name).await;
    invented.store.delete(&name).await.unwrap();
    let one_by_one = RestoreOptions { downloads: 1, ..place.options() };
    restore(&invented, &plan, &one_by_one).await.unwrap_err();
    // and threads of it that are done
    let lock = File::open(&place.data).unwrap();
    drop(tokio::task::spawn_blocking(|| Flock::lock(lock, FlockArg::LockExclusive).unwrap()).await.unwrap());
    assert!(place.data.join(MARKER_FILE).exists() && !place.data.join("global/pg_control").exists());
    // and a file that was torn when it stopped
    place.write("base/5/112", "torn");
    // When the part is back, then the same command completes it, with what was there
    let store = &invented.store;
    let body = seawall::store::Body::from(bytes::Bytes::from(part));
    store.create(&name, body, seawall::store::Metadata::new()).await.unwrap();
    let (report, fetched) = restore(&invented, &plan, &place.options()).await.unwrap();
    assert!(fetched < stored_bytes(&invented, &[0, 1, 2, 3]) + 1, "{fetched}");
    assert!(report.kept_files > 0, "{report:?}");
    assert!(place.everything() == fresh.everything(), "what went on is not what a fresh one is");
    // and a complete one is not taken for an interrupted one.
    let error = restore(&invented, &plan, &place.options()).await.unwrap_err();
    assert!(error.kind() == Kind::Refused && error.hint_text().unwrap().contains("--delta"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_of_use_to_anybody_is_not_restored_over() {
    let invented = Invented::new().await;
    let plan = invented.plan().await;
    let place = Place::new();
    restore(&invented, &plan, &place.options()).await.unwrap();
    let refused = async |options: RestoreOptions, says: &str| {
        let before = place.everything();
        let error = restore(&invented, &plan, &options).await.expect_err(says);
        assert_eq!(error.kind(), Kind::Refused, "{error:?}");
        assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{says:?} is not in: {error:?}");
        assert!(place.everything() == before, "{says}: something was written");
    };
    let control = fs::read(place.data.join("global/pg_control")).unwrap();
    // A server that may run
    place.write("postmaster.pid", "1\n");
    refused(place.delta(), "postmaster.pid").await;
    fs::remove_file(place.data.join("postmaster.pid")).unwrap();
    // another cluster, another version, no cluster
    place.write("global/pg_control", [&(SYSTEM + 1).to_ne_bytes(), &control[8..]].concat());
    refused(place.delta(), &format!("is of cluster {}", SYSTEM + 1)).await;
    place.write("global/pg_control", "cut");
    refused(place.delta(), "is no data directory").await;
    place.write("global/pg_control", &control);
    place.write("PG_VERSION", "16\n");
    refused(place.delta(), "is of PostgreSQL 16").await;
    fs::remove_file(place.data.join("PG_VERSION")).unwrap();
    refused(place.delta(), "is no data directory").await;
    place.write("PG_VERSION", "15\n");
    // a cluster that has a marker from its first or last moment, when nobody said that it may go
    place.write(MARKER_FILE, format!("x\nsystem identifier: {SYSTEM}\n"));
    refused(place.options(), "was not completed").await;
    // another cluster's unfinished restore, or one of which nothing is known
    fs::remove_file(place.data.join("global/pg_control")).unwrap();
    for marker in ["x\nsystem identifier: 8\n", "x\n", ""] {
        place.write(MARKER_FILE, marker);
        refused(place.options(), "was not completed").await;
        refused(place.delta(), "was not completed").await;
    }
    fs::remove_file(place.data.join(MARKER_FILE)).unwrap();
    place.write("global/pg_control", &control);
    // and a directory of a tablespace that is not this cluster's.
    let link = place.data.join(format!("pg_tblspc/{TABLESPACE}"));
    fs::remove_file(&link).unwrap();
    refused(place.delta(), "fast, is not empty").await;
    // Then a delta is one again, when the link is.
    std::os::unix::fs::symlink(place.data.with_file_name("fast"), &link).unwrap();
    restore(&invented, &plan, &place.delta()).await.unwrap();
}

/// Does something once, in the middle of a restore: when so many objects have been read.
struct Meddler {
    reads: AtomicUsize,
    at: usize,
    meddle: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// The manifest is read first, before anything is compared.
const MANIFEST: usize = 1;
/// `backup.json` comes next, then the parts.
const FIRST_PART: usize = 3;

impl fmt::Debug for Meddler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meddler")
    }
}

impl StoreObserver for Meddler {
    fn finished(&self, _: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {
        if self.reads.fetch_add(1, Ordering::Relaxed) + 1 == self.at {
            let meddle = self.meddle.lock().unwrap().take();
            meddle.unwrap()();
        }
    }
}

async fn restore_while(
    invented: &Invented,
    plan: &Plan,
    options: &RestoreOptions,
    at: usize,
    meddle: impl FnOnce() + Send + 'static,
) -> Result<RestoreReport, Error> {
    let meddle: Box<dyn FnOnce() + Send> = Box::new(meddle);
    let meddler = Arc::new(Meddler { reads: AtomicUsize::new(0), at, meddle: Mutex::new(Some(meddle)) });
    let store: Arc<dyn Store> = Arc::new(ObservedStore::new(invented.store.clone(), meddler));
    let repository = Repository { store, layout: invented.repository.layout.clone() };
    execute(&repository, plan, options, watch::channel(RestoreProgress::default()).0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_that_was_compared_before_somebody_else_was_there() {
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    restore(&invented, &plan, &place.options()).await.unwrap();
    let control = place.data.join("global/pg_control");
    let mut contents = fs::read(&control).unwrap();
    // Given a server that is started and stopped while the restore compares: it writes its control file
    contents[100] ^= 1;
    let before = place.everything();
    let started = {
        let (control, contents) = (control.clone(), contents.clone());
        move || fs::write(control, contents).unwrap()
    };
    let error = restore_while(&invented, &plan, &place.delta(), MANIFEST, started).await.unwrap_err();
    // Then nothing is touched
    assert!(error.kind() == Kind::Busy && error.to_string().contains("has changed"), "{error}");
    fs::write(&control, &before[Path::new("data/global/pg_control")]).unwrap();
    assert_eq!(place.everything(), before);
    // When another restore would begin while one compares, then it is refused
    let (other, seen) = (place.data.clone(), Arc::new(Mutex::new(None)));
    let found = seen.clone();
    let begins = move || {
        let lock = Flock::lock(File::open(other).unwrap(), FlockArg::LockExclusiveNonblock);
        *found.lock().unwrap() = Some(lock.is_err());
    };
    restore_while(&invented, &plan, &place.delta(), MANIFEST, begins).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(true), "the directory was free while it was compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_directory_never_takes_the_originals_tablespaces() {
    // Given a cluster whose tablespace lies where the backup had it, and a copy of its data directory, with the link
    let (invented, place) = (Invented::new().await, Place::new());
    let fast = place.directory.path().join("fast");
    let mut plan = invented.plan().await;
    plan.tablespaces[0].location = fast.to_str().unwrap().to_owned();
    let unmapped = RestoreOptions { tablespace_map: Vec::new(), ..place.delta() };
    restore(&invented, &plan, &unmapped).await.unwrap();
    fs::write(fast.join("PG_15_202209061/5/16500"), "newer").unwrap();
    // When it is restored over, then nothing is touched, and the hint says how to name the tablespace
    let error = restore(&invented, &plan, &unmapped).await.unwrap_err();
    let hint = error.hint_text().unwrap_or_default();
    assert!(error.kind() == Kind::Refused && hint.contains("every copy of that directory"), "{error}: {hint}");
    assert!(hint.contains(&format!("--tablespace-map {0}={0}", fast.display())), "{hint}");
    assert_eq!(fs::read(fast.join("PG_15_202209061/5/16500")).unwrap(), b"newer");
    // When it is named, then it is replaced.
    let named = RestoreOptions { tablespace_map: vec![(fast.clone(), fast.clone())], ..place.delta() };
    restore(&invented, &plan, &named).await.unwrap();
    assert_eq!(fs::read(fast.join("PG_15_202209061/5/16500")).unwrap().len(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_has_the_permissions_of_a_servers_files() {
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    restore(&invented, &plan, &place.options()).await.unwrap();
    let file = place.data.join("base/5/112");
    for mode in [0o644, 0o440, 0o777] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let (report, _) = restore(&invented, &plan, &place.delta()).await.unwrap();
        assert!(report.kept_files > 0, "{report:?}");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640, "it had {mode:o}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_writes_through_no_link_that_appears_in_its_way() {
    // Given a restore, and somebody who may write to the data directory and not to what the restore may write to
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    restore(&invented, &plan, &place.options()).await.unwrap();
    let precious = place.directory.path().join("precious");
    fs::write(&precious, "x").unwrap();
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o644)).unwrap();
    let file = place.data.join("base/5/112");
    fs::write(&file, "older").unwrap();
    // When a link takes the place of a file that was removed and is about to be written
    let plants = {
        let (file, precious) = (file.clone(), precious.clone());
        move || std::os::unix::fs::symlink(precious, file).unwrap()
    };
    let error = restore_while(&invented, &plan, &place.delta(), FIRST_PART, plants).await.unwrap_err();
    // Then the restore ends there, and what the link leads to is as it was.
    assert!(error.kind() == Kind::Local && error.to_string().contains("base/5/112"), "{error}");
    assert_eq!(fs::read(&precious).unwrap(), b"x");
    assert_eq!(fs::metadata(&precious).unwrap().permissions().mode() & 0o777, 0o644);
    // What was begun of other parts ends before the directory is free.
    let again = async || match restore(&invented, &plan, &place.delta()).await {
        Err(error) if error.kind() == Kind::Busy => None,
        restored => Some(restored.unwrap()),
    };
    let gets_free = async {
        while again().await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gets_free).await.expect("the directory gets free");
    assert_eq!(fs::read(&file).unwrap().len(), 8192);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_that_moves_leaves_its_old_directory_alone() {
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    restore(&invented, &plan, &place.options()).await.unwrap();
    let new = place.data.with_file_name("new");
    let moved = RestoreOptions { tablespace_map: vec![("/srv/fast".into(), new.clone())], ..place.delta() };
    let (report, _) = restore(&invented, &plan, &moved).await.unwrap();
    let link = place.data.join(format!("pg_tblspc/{TABLESPACE}"));
    assert_eq!(fs::read_link(link).unwrap(), new);
    for place in [new, place.data.with_file_name("fast")] {
        assert!(place.join("PG_15_202209061/5/16500").exists(), "{}", place.display());
    }
    assert!(report.warnings.iter().any(|warning| warning.contains("was left alone")), "{:?}", report.warnings);
    assert!(place.data.join(LARGE).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_restores_never_write_to_one_directory() {
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    fs::create_dir(&place.data).unwrap();
    let held = Flock::lock(File::open(&place.data).unwrap(), FlockArg::LockExclusive).unwrap();
    let error = restore(&invented, &plan, &place.options()).await.unwrap_err();
    assert!(error.kind() == Kind::Busy && error.hint_text().is_some(), "{error:?}");
    assert_eq!(fs::read_dir(&place.data).unwrap().count(), 0, "nothing was written");
    drop(held);
    restore(&invented, &plan, &place.options()).await.unwrap();
}
