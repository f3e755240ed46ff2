//! What only a directory can be tested for.

use super::*;
use crate::store::{Opener, list_all};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn body(text: &'static str) -> Body {
    Bytes::from_static(text.as_bytes()).into()
}

async fn create(store: &FileStore, key: &str, text: &'static str) -> Result<Created, StoreError> {
    store.create(key, body(text), Metadata::new()).await
}

fn files_in(path: &Path) -> Vec<String> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn an_object_is_a_plain_file_and_nothing_else_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(root.path().to_path_buf());

    create(&store, "wal/1/a.lz4", "hello").await.unwrap();

    let path = root.path().join("wal/1/a.lz4");
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 1, "the temporary name must be gone");
    assert_eq!(files_in(&root.path().join(".tmp")), Vec::<String>::new());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o007, 0, "others must not read a backup");
}

#[tokio::test]
async fn a_missing_root_is_not_an_empty_store() {
    let parent = tempfile::tempdir().unwrap();
    let store = FileStore::new(parent.path().join("not-mounted"));

    let errors = [
        create(&store, "a", "x").await.unwrap_err(),
        store.get("a", None).await.unwrap_err(),
        store.head("a").await.unwrap_err(),
        store.list_page("", None).await.unwrap_err(),
        store.list_level("a/").await.unwrap_err(),
        store.delete("a").await.unwrap_err(),
        store.begin_upload("a", Metadata::new()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::NoBucket, "{error:?}");
    }
    assert!(files_in(parent.path()).is_empty(), "nothing may be made where a disk is not mounted");
}

#[tokio::test]
async fn what_others_put_there_is_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(root.path().to_path_buf());
    create(&store, "a", "x").await.unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    fs::write(root.path().join(".tmp/killed-1"), "half").unwrap();
    fs::write(root.path().join(".hidden"), "x").unwrap();

    let keys: Vec<_> = list_all(&store, "").await.unwrap().into_iter().map(|info| info.key).collect();
    let level = store.list_level("").await.unwrap();

    assert_eq!(keys, ["a"]);
    assert_eq!((level.objects.len(), level.prefixes.len()), (1, 0));
}

#[tokio::test]
async fn files_that_killed_writers_left_go_after_a_day() {
    let root = tempfile::tempdir().unwrap();
    let temp = root.path().join(".tmp");
    fs::create_dir(&temp).unwrap();
    let now = fs::metadata(&temp).unwrap().modified().unwrap();
    for (name, hours) in [("stale", 25), ("fresh", 23)] {
        let file = File::create(temp.join(name)).unwrap();
        file.set_modified(now - std::time::Duration::from_secs(hours * 3600)).unwrap();
    }

    create(&FileStore::new(root.path().to_path_buf()), "a", "x").await.unwrap();

    assert_eq!(files_in(&temp), ["fresh"]);
}

#[tokio::test]
async fn a_temporary_name_that_is_taken_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let temp = root.path().join(".tmp");
    fs::create_dir(&temp).unwrap();
    let taken = format!("{}-0", std::process::id());
    fs::write(temp.join(&taken), "another process of the same id").unwrap();

    create(&FileStore::new(root.path().to_path_buf()), "a", "x").await.unwrap();

    assert_eq!(fs::read(temp.join(&taken)).unwrap(), b"another process of the same id");
    assert_eq!(fs::read(root.path().join("a")).unwrap(), b"x");
}

#[tokio::test]
async fn a_name_is_an_object_or_a_directory_but_not_both() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(root.path().to_path_buf());
    create(&store, "a/b", "x").await.unwrap();

    for key in ["a", "a/b/c", "a/b/c/d"] {
        let error = create(&store, key, "y").await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Permanent, "{key}: {error:?}");
    }
    assert_eq!(store.get("a/b", None).await.unwrap().collect().await.unwrap(), "x");
}

#[tokio::test]
async fn directories_go_with_their_last_object_but_the_root_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(root.path().to_path_buf());
    create(&store, "a/b/c", "x").await.unwrap();
    create(&store, "a/d", "x").await.unwrap();

    store.delete("a/b/c").await.unwrap();
    assert!(!root.path().join("a/b").exists() && root.path().join("a").exists());
    store.delete("a/d").await.unwrap();
    assert!(!root.path().join("a").exists() && root.path().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_and_deleting_in_one_directory_do_not_hurt_each_other() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(root.path().to_path_buf());
    let churn = |name: &'static str| {
        let store = store.clone();
        crate::runtime::spawn(async move {
            for _ in 0..300 {
                let key = format!("d/e/{name}");
                let created = create(&store, &key, "x").await;
                assert!(matches!(created, Ok(Created::New)), "{created:?}");
                store.delete(&key).await.unwrap();
            }
        })
    };
    for task in [churn("a"), churn("b"), churn("c")] {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_shorter_than_announced_is_an_error_not_an_end() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(root.path().to_path_buf());
    create(&store, "a", "hello").await.unwrap();

    let stream = store.get("a", None).await.unwrap();
    File::options().write(true).open(root.path().join("a")).unwrap().set_len(3).unwrap();

    assert_eq!(stream.collect().await.unwrap_err().kind, StoreErrorKind::Corrupt);
}

#[tokio::test]
async fn a_piece_that_failed_half_way_may_be_given_again() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(root.path().to_path_buf());
    let temp = Arc::new(store.writer.open_temp().unwrap());
    temp.write_at(&body("0123"), 0).unwrap();
    // What a failed attempt got through to the disk, which is more than what is given instead.
    temp.write_at(&body("garbage"), 4).unwrap();
    let temp = Growing { temp: Some(temp), store: store.clone() };
    let mut upload = FileUpload { store: store.clone(), key: "a".into(), temp: Some(temp), bytes: 4 };

    upload.put_piece(body("45")).await.unwrap();
    upload.complete().await.unwrap();

    assert_eq!(store.get("a", None).await.unwrap().collect().await.unwrap(), "012345");
    assert_eq!(upload.put_piece(body("more")).await.unwrap_err().kind, StoreErrorKind::Permanent);
}

#[test]
fn a_full_disk_and_missing_rights_are_told_apart() {
    use nix::errno::Errno;
    let table = [
        (Errno::ENOSPC, StoreErrorKind::Full),
        (Errno::EDQUOT, StoreErrorKind::Full),
        (Errno::EACCES, StoreErrorKind::Denied),
        (Errno::EROFS, StoreErrorKind::Denied),
        (Errno::ENOENT, StoreErrorKind::NotFound),
        (Errno::ENOTDIR, StoreErrorKind::NotFound),
        (Errno::EIO, StoreErrorKind::Transient),
        (Errno::ESTALE, StoreErrorKind::Transient),
        (Errno::EMFILE, StoreErrorKind::Transient),
        (Errno::EISDIR, StoreErrorKind::Permanent),
        (Errno::EXDEV, StoreErrorKind::Permanent),
    ];
    for (errno, kind) in table {
        assert_eq!(kind_of(&io::Error::from_raw_os_error(errno as i32)), kind, "{errno}");
    }
}

#[test]
fn a_file_system_that_hangs_leaves_threads_to_others() {
    // Given few threads more than a store may have, and one whose file system does not answer, as a pipe that nobody writes into
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(DiskThreads::MOST + 1)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (hung, healthy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pipe = hung.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let threads = DiskThreads::default();
        let store = FileStore::new(hung.path().to_path_buf()).with_threads(Some(threads.clone()));
        // When it is asked for more than that at once, and somebody has stopped waiting
        let ask = |store: FileStore| crate::runtime::spawn(async move { store.get("pipe", None).await.map(|_| ()) });
        let asked: Vec<_> = (0..2 * DiskThreads::MOST).map(|_| ask(store.clone())).collect();
        while threads.0.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        asked[0].abort();
        // Then another store answers
        let other = FileStore::new(healthy.path().to_path_buf());
        let created = tokio::time::timeout(std::time::Duration::from_secs(60), create(&other, "a", "x"));
        let created = created.await;
        // And when the first one's file system does, then it has all of its threads again
        let opened = File::options().read(true).write(true).open(&pipe).unwrap();
        for answer in asked.into_iter().skip(1) {
            assert_eq!(answer.await.unwrap().unwrap_err().kind, StoreErrorKind::NotFound, "a pipe is no object");
        }
        while threads.0.available_permits() < DiskThreads::MOST {
            tokio::task::yield_now().await;
        }
        drop(opened);
        assert_eq!(created.expect("it waits for the one that hangs").unwrap(), Created::New);
    });
}

#[tokio::test]
async fn whoever_drops_an_upload_does_not_wait_for_the_file_system() {
    // Given uploads to a file system that answers nobody any more
    let root = tempfile::tempdir().unwrap();
    let threads = DiskThreads::default();
    let store = FileStore::new(root.path().to_path_buf()).with_threads(Some(threads.clone()));
    let mut upload = store.begin_upload("a", Metadata::new()).await.unwrap();
    upload.put_piece(body("x")).await.unwrap();
    let hung = threads.0.clone().acquire_many_owned(DiskThreads::MOST as u32).await.unwrap();
    // When one is dropped
    drop(upload);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    // Then that its file goes is left to a thread that may wait
    let temp = root.path().join(".tmp");
    assert_eq!(files_in(&temp).len(), 1, "the file system was waited for by whoever dropped it");
    drop(hung);
    let gone = async {
        while !files_in(&temp).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.expect("nobody removed it");
    // And one that has ended leaves nothing to be put away
    for is_wanted in [true, false] {
        let mut upload = store.begin_upload("b", Metadata::new()).await.unwrap();
        upload.put_piece(body("x")).await.unwrap();
        if is_wanted {
            assert_eq!(upload.complete().await.unwrap(), Created::New);
        } else {
            upload.abort().await.unwrap();
        }
        assert_eq!(files_in(&temp), Vec::<String>::new());
    }
}

#[tokio::test]
async fn who_opens_a_directory_settles_what_is_in_it_for_itself() {
    let root = tempfile::tempdir().unwrap();
    let process = Opener::default();
    let open = |opener: &Opener| opener.directory(root.path().to_path_buf());
    // Given a process that opens a directory twice for one user, and once for another
    let (one, other) = (process.for_one_of_several(), process.for_one_of_several());
    let (first, second, others) = (open(&one), open(&one), open(&other));
    for (name, store) in [("a", &first), ("b", &second)] {
        create(store, name, "x").await.unwrap();
    }
    // When the first lists, then the second has not, and does so by itself
    list_all(&first, "").await.unwrap();
    assert!(first.writer.has_settled() && !second.writer.has_settled());
    list_all(&second, "").await.unwrap();
    assert!(second.writer.has_settled());
    // And a user's threads are its own, wherever it has them; one that is alone has all that it likes
    let threads = |store: &FileStore| Arc::as_ptr(&store.threads.as_ref().unwrap().0);
    assert_eq!(threads(&first), threads(&second));
    assert_ne!(threads(&first), threads(&others));
    assert!(open(&process).threads.is_none());
}
