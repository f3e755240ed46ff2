//! Restores of an invented backup: what is written, what is refused, and what becomes of damage.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "restore/invented.rs"]
mod invented;

use bytes::Bytes;
use invented::{Entry, Invented, LARGE, MIB, TABLESPACE, Twist, files, header, hex, options, wal_bytes};
use seawall::error::{Error, Kind};
use seawall::restore::wal_fetch::{Fetched, fetch};
use seawall::restore::{
    Destination, MARKER_FILE, NewTablespacePath, Phase, Pin, Plan, RestoreOptions, RestoreProgress, RestoreReport,
    execute,
};
use seawall::store::Metadata;
use seawall::wal::{Lsn, TimelineId, WalRange};
use sha2::{Digest, Sha256};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tokio::sync::watch;

/// A place for a data directory that is not there yet.
struct Place {
    _directory: TempDir,
    data: PathBuf,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        Place { _directory: directory, data }
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8(std::fs::read(self.data.join(path)).unwrap()).unwrap()
    }
}

async fn restore(invented: &Invented, plan: &Plan, options: &RestoreOptions) -> Result<RestoreReport, Error> {
    let (progress, seen) = watch::channel(RestoreProgress::default());
    let report = execute(&invented.repository, plan, options, progress).await?;
    let seen = *seen.borrow();
    assert!(seen.phase == Phase::Syncing && seen.done_bytes == seen.total_bytes && seen.total_bytes > 0, "{seen:?}");
    Ok(report)
}

/// Every file has its bytes, except those that tell of a life before, and there is no other.
fn assert_whole(place: &Place) {
    let left_out = ["tablespace_map", "standby.signal", "postgresql.auto.conf"];
    for entry in files().iter().filter(|entry| !left_out.contains(&entry.path.as_str())) {
        let path = place.data.join(entry.full_path());
        assert!(std::fs::read(&path).unwrap() == entry.content, "{} differs", path.display());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640, "{}", path.display());
    }
    assert_eq!(std::fs::read_dir(place.data.join("base/5")).unwrap().count(), 3, "there is a file too many");
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_comes_back_with_what_a_server_needs_to_recover() {
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    let report = restore(&invented, &plan, &options(&place.data)).await.unwrap();

    assert_whole(&place);
    assert!(!place.data.join("tablespace_map").exists() && !place.data.join("standby.signal").exists());
    assert!(!place.data.join(MARKER_FILE).exists());
    // and the tablespace is where it was mapped to
    let link = std::fs::read_link(place.data.join(format!("pg_tblspc/{TABLESPACE}"))).unwrap();
    assert_eq!(link, place.data.with_file_name("fast"));
    // and directories that a server needs are there
    for directory in ["pg_wal/archive_status", "pg_replslot", "pg_notify"] {
        let found = std::fs::metadata(place.data.join(directory)).unwrap();
        assert_eq!((found.is_dir(), found.permissions().mode() & 0o777), (true, 0o750), "{directory}");
    }
    assert_eq!(std::fs::metadata(&place.data).unwrap().permissions().mode() & 0o777, 0o750);
    // and it recovers, as planned, and archives nowhere
    assert_eq!(place.read("recovery.signal"), "");
    let settings = place.read("postgresql.auto.conf");
    assert!(settings.starts_with("# by hand\nwork_mem = '64MB'\n# Written by"), "{settings}");
    assert!(!settings.contains("hush"), "{settings}");
    for line in [
        "restore_command = '/usr/bin/seawall wal-fetch --repo ''s3://bucket/50%%'' \"%f\" \"%p\"'",
        "recovery_target_timeline = '1'",
        "recovery_target_action = 'promote'",
        "archive_mode = 'off'",
        "synchronous_standby_names = ''",
        "max_connections = '123'",
    ] {
        assert!(settings.lines().any(|found| found == line), "no line {line} in\n{settings}");
    }
    // and can be started although its configuration was not in the backup
    assert!(place.data.join("postgresql.conf").exists() && place.read("pg_hba.conf").contains("peer"));
    assert!(
        report.warnings.iter().any(|warning| warning.contains("shared_preload_libraries")),
        "{:?}",
        report.warnings
    );
    assert_eq!((report.files, report.end_lsn), (files().len(), Lsn(5 * MIB + 5000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn root_gives_everything_to_the_owner_and_others_need_not_say_one() {
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    let nobody = RestoreOptions { owner: None, ..options(&place.data) };
    if is_root() {
        let error = restore(&invented, &plan, &nobody).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.hint_text().unwrap().contains("--owner"), "{error:?}");
        assert!(!place.data.exists(), "nothing was written");
        let root = RestoreOptions { owner: Some("root".into()), ..options(&place.data) };
        assert_eq!(restore(&invented, &plan, &root).await.unwrap_err().kind(), Kind::Usage);
    }
    restore(&invented, &plan, &options(&place.data)).await.unwrap();
    let owner = if is_root() {
        nix::unistd::User::from_name("nobody").unwrap().unwrap().uid
    } else {
        nix::unistd::Uid::effective()
    };
    let everything = std::process::Command::new("find").arg("-L").arg(&place.data).output().unwrap();
    let everything = String::from_utf8(everything.stdout).unwrap();
    assert!(everything.lines().count() > 20, "{everything}");
    for path in everything.lines() {
        assert_eq!(std::fs::symlink_metadata(path).unwrap().uid(), owner.as_raw(), "{path}");
    }
    let unknown = RestoreOptions { owner: Some("no-such-user".into()), ..options(&Place::new().data) };
    assert_eq!(restore(&invented, &plan, &unknown).await.unwrap_err().kind(), Kind::Usage);
}

/// Restores where one has just failed: threads of it may still be at work there, and keep others out as long.
async fn restore_again(invented: &Invented, plan: &Plan, options: &RestoreOptions) -> Result<RestoreReport, Error> {
    for _ in 0..1000 {
        match restore(invented, plan, options).await {
            Err(error) if error.kind() == Kind::Busy => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            ended => return ended,
        }
    }
    panic!("the restore that failed never ends");
}

/// What is damaged, how the error speaks of it.
async fn is_found_out(invented: &Invented, plan: &Plan, says: &str) {
    let place = Place::new();
    let error = restore(invented, plan, &options(&place.data)).await.expect_err(says);
    assert!(matches!(error.kind(), Kind::Damaged | Kind::Diverged), "{error:?}");
    assert!(error.to_string().contains(says), "{says:?} is not in: {error}");
    assert!(error.hint_text().is_some(), "{error}");
    assert!(!place.data.join("global/pg_control").exists(), "a server could start on half a restore: {error}");
    // And the second time it is found out as well, unless what is there by then is exactly what the manifest lists.
    match restore_again(invented, plan, &options(&place.data)).await {
        Ok(_) => assert_whole(&place),
        Err(again) => {
            assert!(matches!(again.kind(), Kind::Damaged | Kind::Diverged), "{again:?}");
            assert!(!place.data.join("global/pg_control").exists(), "{again}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_objects_are_named_and_nothing_starts_on_them() {
    for index in 0..4 {
        let invented = Invented::new().await;
        let plan = invented.plan().await;
        let name = invented.part(index);
        let good = invented.read(&name).await;

        invented.replace(&name, good[..good.len() - 1].to_vec()).await;
        is_found_out(&invented, &plan, &name).await;

        for at in [5, good.len() / 2, good.len() - 1] {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            invented.replace(&name, flipped).await;
            is_found_out(&invented, &plan, &name).await;
        }
        invented.store.delete(&name).await.unwrap();
        is_found_out(&invented, &plan, &format!("{name} is missing")).await;
    }
    // Two parts that changed places.
    let invented = Invented::new().await;
    let plan = invented.plan().await;
    let (one, other) = (invented.read(&invented.part(0)).await, invented.read(&invented.part(2)).await);
    invented.replace(&invented.part(0), other).await;
    invented.replace(&invented.part(2), one).await;
    is_found_out(&invented, &plan, "tar.lz4").await;
    // The manifest.
    let invented = Invented::new().await;
    let plan = invented.plan().await;
    let name = invented.manifest();
    let mut manifest = invented.read(&name).await;
    let middle = manifest.len() / 2;
    manifest[middle] ^= 1;
    invented.replace(&name, manifest).await;
    let place = Place::new();
    let error = restore(&invented, &plan, &options(&place.data)).await.unwrap_err();
    assert!(error.kind() == Kind::Damaged && error.to_string().contains("backup_manifest"), "{error}");
    assert!(!place.data.exists(), "the manifest comes first");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_an_encrypted_backup_with_which_backup_json_agrees_is_never_data() {
    let invented = Invented::twisted(Twist { is_encrypted: true, ..Twist::default() }).await;
    let mut parts = Vec::new();
    for index in 0..4 {
        parts.push(invented.read(&invented.part(index)).await);
    }
    for index in 0..4 {
        // Given a part that is not what it was, with the length and the hash that are expected
        let (name, good) = (invented.part(index), &parts[index]);
        assert!(name.ends_with(".tar.lz4.age"), "{name}");
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let cut = |bytes: usize| good[..bytes].to_vec();
        let header_end = good.windows(5).position(|bytes| bytes == b"\n--- ").unwrap();
        let damages = [
            flipped(header_end - 1),
            flipped(header_end + 10),
            flipped(good.len() / 2),
            flipped(good.len() - 1),
            cut(good.len() - 1),
            cut(header_end),
            // another's
            parts[(index + 1) % 4].clone(),
            parts[(index + 2) % 4].clone(),
        ];
        for (number, damaged) in damages.into_iter().enumerate() {
            let mut plan = invented.plan().await;
            plan.document.parts[index].stored_bytes = damaged.len() as u64;
            plan.document.parts[index].sha256 = hex(&Sha256::digest(&damaged));
            invented.replace(&name, damaged).await;
            // When it is restored, then it is an error that names it, and nothing starts.
            let place = Place::new();
            let error = restore(&invented, &plan, &options(&place.data)).await.expect_err("damage passed");
            assert!(error.to_string().contains(&name), "{number}: {name} is not in: {error}");
            assert!(!place.data.join("global/pg_control").exists(), "{number}: {error}");
        }
        invented.store.delete(&name).await.unwrap();
        is_found_out(&invented, &invented.plan().await, &format!("{name} is missing")).await;
        invented.store.create(&name, Bytes::from(good.clone()).into(), Metadata::new()).await.unwrap();
    }
    // When all is as it was, then it restores.
    let place = Place::new();
    restore(&invented, &invented.plan().await, &options(&place.data)).await.unwrap();
    assert_whole(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_whole_but_not_what_the_manifest_lists_are_found_out() {
    let with = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut files = files();
        change(&mut files);
        Twist { files: Some(files), ..Twist::default() }
    };
    let at = |files: &[Entry], path: &str| files.iter().position(|entry| entry.path == path).unwrap();
    let cases: [(&str, Twist); 6] = [
        (
            "base/5/112 of the backup does not have the CRC-32C",
            with(&|files| {
                let at = at(files, "base/5/112");
                files[at].content[100] ^= 1;
            }),
        ),
        (
            "base/5/16400 of the backup does not have the CRC-32C",
            with(&|files| {
                let at = at(files, LARGE);
                files[at].content.reverse();
            }),
        ),
        (
            "base/5/112 of the backup has 8000 bytes instead of 8192",
            with(&|files| {
                let at = at(files, "base/5/112");
                files[at].content.truncate(8000);
            }),
        ),
        (
            "PG_VERSION of the backup is in the manifest and in no part",
            with(&|files| {
                let at = at(files, "PG_VERSION");
                files.remove(at);
            }),
        ),
        (
            "base/5/extra of the backup is not in the manifest",
            with(&|files| {
                files.insert(0, Entry { path: "base/5/extra".into(), content: vec![1], in_tablespace: false })
            }),
        ),
        (
            "base/5/112 of the backup is not whole",
            with(&|files| {
                let twice = files[at(files, "base/5/112")].clone();
                files.insert(0, twice);
            }),
        ),
    ];
    for (says, twist) in cases {
        let invented = Invented::twisted(twist).await;
        let plan = invented.plan().await;
        is_found_out(&invented, &plan, says).await;
    }
    let another = Invented::twisted(Twist { system: Some(8), ..Twist::default() }).await;
    let plan = another.plan().await;
    is_found_out(&another, &plan, "belongs to the cluster 8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_would_write_outside_of_its_directory_is_refused() {
    for (header, says) in [
        (header("../evil", b'0', 0, ""), "tar"),
        (header("base/../../evil", b'5', 0, ""), "tar"),
        (header("/tmp/seawall-evil", b'0', 0, ""), "tar"),
        (header("base/5/link", b'2', 0, "/etc"), "is a link"),
        (header("pg_tblspc/16385", b'2', 0, "/etc"), "is a link"),
    ] {
        let twist = Twist { headers: vec![header], ..Twist::default() };
        let invented = Invented::twisted(twist).await;
        let plan = invented.plan().await;
        is_found_out(&invented, &plan, says).await;
        assert!(!Path::new("/tmp/seawall-evil").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ever_written_over() {
    let invented = Invented::new().await;
    let plan = invented.plan().await;
    let refused = async |options: &RestoreOptions, says: &str| {
        let error = restore(&invented, &plan, options).await.expect_err(says);
        assert!(matches!(error.kind(), Kind::Refused | Kind::Usage), "{error:?}");
        assert!(error.to_string().contains(says) && error.hint_text().is_some(), "{says:?} is not in: {error:?}");
        error.hint_text().unwrap().to_owned()
    };
    // A directory with something in it
    let place = Place::new();
    std::fs::create_dir(&place.data).unwrap();
    std::fs::write(place.data.join("precious"), "x").unwrap();
    refused(&options(&place.data), "is not empty").await;
    // a server's
    std::fs::write(place.data.join("postmaster.pid"), "1\n").unwrap();
    refused(&options(&place.data), "postmaster.pid").await;
    // a file
    refused(&options(&place.data.join("precious")), "is not a directory").await;
    assert_eq!(std::fs::read_dir(&place.data).unwrap().count(), 2);
    // a tablespace's directory with something in it
    let place = Place::new();
    let fast = place.data.with_file_name("fast");
    std::fs::create_dir(&fast).unwrap();
    std::fs::write(fast.join("precious"), "x").unwrap();
    let hint = refused(&options(&place.data), "is not empty").await;
    assert!(hint.contains("--tablespace-map /srv/fast=NEW"), "{hint}");
    std::fs::remove_file(fast.join("precious")).unwrap();
    // a map that means nothing, or something impossible
    let mapped =
        |from: &str, to: PathBuf| RestoreOptions { tablespace_map: vec![(from.into(), to)], ..options(&place.data) };
    let hint = refused(&mapped("/srv/typo", fast.clone()), "is not where a tablespace").await;
    assert!(hint.contains("/srv/fast"), "{hint}");
    refused(&mapped("/srv/fast", place.data.join("inside")), "and the data directory is").await;
    // An empty directory is fine, and so is an empty tablespace.
    std::fs::create_dir(&place.data).unwrap();
    restore(&invented, &plan, &options(&place.data)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_never_creates_a_tablespace_where_something_lives() {
    let (invented, place) = (Invented::new().await, Place::new());
    let live = place.data.with_file_name("live");
    std::fs::create_dir(&live).unwrap();
    std::fs::write(live.join("PG_15_202209061"), "the live cluster's").unwrap();
    let mut plan = invented.plan().await;
    let creates = |path: &Path| vec![NewTablespacePath { oid: 17_000, path: path.display().to_string(), lsn: Lsn(0) }];
    plan.creates = creates(&live);
    let error = restore(&invented, &plan, &options(&place.data)).await.unwrap_err();
    assert!(error.kind() == Kind::Refused && error.to_string().contains("would destroy"), "{error}");
    assert!(!place.data.exists(), "nothing was written");
    // Where there is nothing, PostgreSQL wants an empty directory.
    let fresh = place.data.with_file_name("fresh");
    plan.creates = creates(&fresh);
    restore(&invented, &plan, &options(&place.data)).await.unwrap();
    assert_eq!(std::fs::read_dir(&fresh).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_seen_before_anything_is_written() {
    // Given a backup whose files, one way or another, are more than any disk holds
    for path in ["base/5/17000".to_owned(), format!("pg_tblspc/{TABLESPACE}/PG_15_202209061/5/17000")] {
        let twist = Twist { listed: vec![(path, 1 << 60)], ..Twist::default() };
        let (invented, place) = (Invented::twisted(twist).await, Place::new());
        let plan = invented.plan().await;
        // When it is restored to two places on one file system, then both are named, with sizes, and what the room is for
        let error = restore(&invented, &plan, &options(&place.data)).await.unwrap_err();
        assert!(error.kind() == Kind::Local && error.to_string().contains("MiB are free"), "{error}");
        for named in [place.data.clone(), place.data.with_file_name("fast")] {
            assert!(error.to_string().contains(&named.display().to_string()), "{error}");
        }
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("Nothing was written") && hint.contains("132 MiB of it are for WAL"), "{hint}");
        assert_eq!(std::fs::read_dir(place.data.parent().unwrap()).unwrap().count(), 0, "nothing was written");
    }
    let place = Place::new();
    let destination = Destination::check(&Invented::new().await.plan().await, &options(&place.data)).unwrap();
    assert!(destination.to_string().contains("tablespace 16384"), "{destination}");
    assert!(!place.data.exists(), "looking writes nothing");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn each_tablespace_has_the_room_of_its_own_disk() {
    // Given a tablespace that goes to a file system of its own, and more in it than any holds
    let (memory, place) = (tempfile::tempdir_in("/dev/shm").unwrap(), Place::new());
    let listed = vec![(format!("pg_tblspc/{TABLESPACE}/PG_15_202209061/5/17000"), 1 << 60)];
    let invented = Invented::twisted(Twist { listed, ..Twist::default() }).await;
    let own = vec![("/srv/fast".into(), memory.path().to_owned())];
    let apart = RestoreOptions { tablespace_map: own, ..options(&place.data) };
    // When it is restored, then that is what is too small, and not the other.
    let error = restore(&invented, &invented.plan().await, &apart).await.unwrap_err();
    assert!(error.to_string().contains(&format!("MiB for {}, and", memory.path().display())), "{error}");
    assert!(!error.hint_text().unwrap().contains("for WAL"), "{error:?}");
    assert!(!place.data.exists() && std::fs::read_dir(memory.path()).unwrap().count() == 0, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_restored_directory_pins_what_wal_fetch_serves() {
    let (invented, place) = (Invented::new().await, Place::new());
    let plan = invented.plan().await;
    restore(&invented, &plan, &options(&place.data)).await.unwrap();
    let pin = Pin::read(&place.data).unwrap().expect("a pin");
    let (reader, destination) = (invented.reader(), place.data.join("pg_wal/RECOVERYXLOG"));
    let get = async |name: &str| fetch(&reader, name, &destination, Some(&pin), &place.data).await;

    assert_eq!(get("000000010000000000000003").await.unwrap(), Fetched::Written);
    let range = WalRange { timeline: TimelineId(1), start: Lsn(3 * MIB), end: Lsn(4 * MIB) };
    assert!(std::fs::read(&destination).unwrap() == wal_bytes(range));
    // The last one ends in zeros,
    assert_eq!(get("000000010000000000000005").await.unwrap(), Fetched::Written);
    let last = std::fs::read(&destination).unwrap();
    assert!(last.len() as u64 == MIB && last[4999] != 0 && last[5000..].iter().all(|byte| *byte == 0));
    // and behind it is nothing, whatever is stored later.
    assert_eq!(get("000000010000000000000006").await.unwrap(), Fetched::Absent);
    assert_eq!(get("00000002.history").await.unwrap(), Fetched::Absent);
    // When recovery is over, or the directory follows a primary, then nothing is pinned
    std::fs::rename(place.data.join("recovery.signal"), place.data.join("standby.signal")).unwrap();
    assert_eq!(Pin::read(&place.data).unwrap(), None);
    std::fs::remove_file(place.data.join("standby.signal")).unwrap();
    assert_eq!(Pin::read(&place.data).unwrap(), None);
}
