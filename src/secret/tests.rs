//! Where secrets come from, and that they go nowhere else.

use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn holding(place: &Path, text: &[u8], mode: u32) -> Secret {
    let path = place.join("secret");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    Secret::new("password", Source::File(path))
}

#[tokio::test]
async fn a_file_holds_one_line_that_nobody_else_may_read() {
    let place = tempfile::tempdir().unwrap();
    for text in ["s3cret", "s3cret\n", "s3cret\r\n"] {
        assert_eq!(holding(place.path(), text.as_bytes(), 0o600).text().await.unwrap(), "s3cret");
    }
    let is_root = nix::unistd::geteuid().is_root();
    for (text, mode, says) in [
        (&b"s3cret"[..], 0o604, Some("others may read it")),
        (b"s3cret", 0o640, (!is_root).then_some("others may read it")),
        (b"s3cret", 0o400, None),
        (b"", 0o600, Some("is empty")),
        (b"\n", 0o600, Some("is empty")),
        (b"s3cret\nmore", 0o600, Some("several lines")),
        (b"s3cret\0", 0o600, Some("control characters")),
        (b"s3cret\xFF", 0o600, Some("not UTF-8")),
        (&[b'x'; BYTES_MAX as usize + 1], 0o600, Some("over 64 KiB")),
    ] {
        let read = holding(place.path(), text, mode).text().await;
        match (read, says) {
            (Ok(read), None) => assert_eq!(read, "s3cret"),
            (Err(error), Some(says)) => {
                let message = format!("{error:?}");
                assert!(message.contains(says) && message.contains("password_file"), "{message}");
                assert!(!message.contains("s3cret"), "the secret is in the message: {message}");
            }
            (read, says) => panic!("{mode:o}: {read:?}, not {says:?}"),
        }
    }
    let absent = Secret::new("password", Source::File(place.path().join("absent"))).text().await.unwrap_err();
    assert!(absent.kind() == Kind::Config && absent.hint_text().is_some(), "{absent:?}");
    assert!(Secret::new("password", Source::File(place.path().into())).text().await.is_err(), "a directory");
    // And a pipe is not waited for
    let pipe = place.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap().success());
    let error = Secret::new("password", Source::File(pipe)).text().await.unwrap_err();
    assert!(error.to_string().contains("no plain file"), "{error}");
}

#[tokio::test]
async fn it_is_read_once_and_again_when_it_is_wanted_anew() {
    let place = tempfile::tempdir().unwrap();
    let count = place.path().join("count");
    let script = format!("echo run >> '{0}'; wc -l < '{0}'", count.display());
    let secret = Secret::new("password", Source::Command(["sh", "-c", &script].map(str::to_owned).to_vec()));
    // Given many who want it at once, it is read once
    let (first, second, other) = (secret.clone(), secret.clone(), secret.clone());
    let (first, second) = tokio::join!(first.text(), second.text());
    assert_eq!((first.unwrap().trim().to_owned(), second.unwrap().trim().to_owned()), ("1".into(), "1".into()));
    // When one of them says that it has expired, then all get it anew, and again once
    other.expire();
    assert_eq!((secret.text().await.unwrap().trim(), other.text().await.unwrap().trim()), ("2", "2"));
    assert_eq!(secret.read_anew().await.unwrap().trim(), "3");
    // When it cannot be read any more, then what was read before is used, as long as it is tried again
    fs::remove_file(&count).unwrap();
    fs::create_dir(&count).unwrap();
    secret.expire();
    assert_eq!(secret.text().await.unwrap().trim(), "3");
    assert!(secret.read_anew().await.is_err(), "there is none now");
    fs::remove_dir(&count).unwrap();
    secret.expire();
    assert_eq!(secret.text().await.unwrap().trim(), "1");
    // And whoever is dropped while it is read leaves that to the next
    let none = Secret::new("password", secret.source().clone());
    let dropped = tokio::time::timeout(Duration::ZERO, none.text()).await;
    assert!(dropped.is_err() && none.text().await.is_ok(), "{dropped:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_tried_again_after_a_while_and_not_by_each_who_wants_it() {
    let place = tempfile::tempdir().unwrap();
    let secret = Secret::new("password", Source::File(place.path().join("secret")));
    let error = secret.text().await.unwrap_err();
    // Given one that is there the moment after, then whoever wants it hears what the one before him heard
    holding(place.path(), b"one", 0o600);
    let again = secret.text().await.unwrap_err();
    assert_eq!(
        (again.to_string(), again.kind(), again.hint_text()),
        (error.to_string(), error.kind(), error.hint_text())
    );
    // And has it a little later, or at once when somebody says that it has changed
    tokio::time::sleep(PAUSE).await;
    assert_eq!(secret.text().await.unwrap(), "one");
    // When there is one from before, then that is used until somebody refuses it, or says once more that it has changed
    fs::remove_file(place.path().join("secret")).unwrap();
    secret.expire();
    assert_eq!(secret.text().await.unwrap(), "one");
    holding(place.path(), b"two", 0o600);
    tokio::time::sleep(100 * PAUSE).await;
    assert_eq!(secret.text().await.unwrap(), "one");
    secret.expire();
    assert_eq!(secret.text().await.unwrap(), "two");
}

/// One that is "one" the first time, and from then on waits for a file, which it is told where; then it is "two".
async fn one_that_hangs_then(place: &Path) -> (Secret, PathBuf) {
    let (asked, ends) = (place.join("asked"), place.join("ends"));
    let script = format!(
        "[ -e '{0}' ] || {{ touch '{0}'; echo one; exit; }}; while [ ! -e '{1}' ]; do sleep 0.1; done; echo two",
        asked.display(),
        ends.display()
    );
    let secret = Secret::new("password", Source::Command(["sh", "-c", &script].map(str::to_owned).to_vec()));
    assert_eq!(secret.text().await.unwrap(), "one");
    (secret, ends)
}

#[tokio::test]
async fn nobody_who_has_one_waits_for_long_for_a_program_that_hangs() {
    let place = tempfile::tempdir().unwrap();
    let (secret, ends) = one_that_hangs_then(place.path()).await;
    secret.expire();
    // Given that it is read anew, and that this takes its time, then nobody waits until that has passed, who begins it included
    for _ in 0..2 {
        let text = tokio::time::timeout(Duration::from_secs(20), secret.text()).await.expect("it waits");
        assert_eq!(text.unwrap(), "one");
    }
    let another = tokio::time::timeout(Duration::from_secs(20), secret.instead_of("one")).await;
    assert_eq!(another.expect("it waits"), None);
    // And it is read nevertheless, for whoever has the time, and though nobody has waited
    let patient = tokio::time::timeout(Duration::from_secs(60), secret.other_than("one"));
    let (other, ()) = tokio::join!(patient, async { fs::write(ends, "").unwrap() });
    assert_eq!(other.expect("it ends").as_deref(), Some("two"));
    let begun = Instant::now();
    while secret.text().await.unwrap() != "two" {
        assert!(begun.elapsed() < Duration::from_secs(60), "what was begun was given up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_read_again_once_by_all_who_were_refused() {
    let place = tempfile::tempdir().unwrap();
    let secret = holding(place.path(), b"one", 0o600);
    assert_eq!(secret.text().await.unwrap(), "one");
    assert_eq!(secret.instead_of("one").await, None, "it is what it was");
    holding(place.path(), b"two", 0o600);
    assert_eq!(secret.instead_of("one").await.as_deref(), Some("two"));
    // Given another who was refused before that, then he has what is known, without a reading
    fs::remove_file(place.path().join("secret")).unwrap();
    assert_eq!(secret.instead_of("one").await.as_deref(), Some("two"));
    // Where it cannot be read there is nothing else, and what was read stays
    assert_eq!(secret.instead_of("two").await, None);
    assert_eq!(secret.text().await.unwrap(), "two");
    holding(place.path(), b"three", 0o600);
    assert_eq!(secret.instead_of("two").await, None, "it is not tried again so soon");
    tokio::time::sleep(PAUSE).await;
    assert_eq!(secret.instead_of("two").await.as_deref(), Some("three"));
    assert_eq!(Secret::new("password", Source::Given("one".to_owned())).instead_of("one").await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_of_no_use_is_read_again_with_pauses_also_where_that_is_in_vain() {
    // Given one that was read long ago, is of no use, and cannot be read any more
    let place = tempfile::tempdir().unwrap();
    let secret = holding(place.path(), b"one", 0o600);
    assert_eq!(secret.text().await.unwrap(), "one");
    tokio::time::sleep(2 * PAUSE).await;
    fs::remove_file(place.path().join("secret")).unwrap();
    secret.is_of_no_use();
    assert_eq!(secret.text().await.unwrap(), "one");
    // When it is there again, then it is not tried at once, and is after a pause
    holding(place.path(), b"two", 0o600);
    secret.is_of_no_use();
    assert_eq!(secret.text().await.unwrap(), "one");
    tokio::time::sleep(PAUSE).await;
    secret.is_of_no_use();
    assert_eq!(secret.text().await.unwrap(), "two");
}

#[test]
fn nothing_shows_it() {
    let command = Source::Command(vec!["vault".to_owned(), "--token=s3cret".to_owned()]);
    for source in [Source::Given("s3cret".to_owned()), command.clone()] {
        let secret = Secret::new("notify.slack", source.clone());
        let shown = format!("{secret:?} {source:?} {source}");
        assert!(shown.contains("notify.slack") && !shown.contains("s3cret"), "{shown}");
    }
    assert_eq!(command.to_string(), "the command vault");
}
