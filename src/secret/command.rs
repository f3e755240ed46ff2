//! A secret that a program prints. The program has its time; where that passes, where nobody wants the secret any more and where this
//! process ends, what the program has started ends with it.

use super::{BYTES_MAX, Source};
use crate::error::{Error, Kind, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// So long it may take: whoever connects waits for it.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// When it has ended, its last complaints are waited for: a helper that it has left behind may keep them open for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// So much is kept of what it complains of, in bytes: the last of it.
const COMPLAINTS_BYTES: usize = 1024;

/// What the program prints, and at most one byte more than a secret may have. The first of `words` is its name.
///
/// # Errors
/// If it cannot be started, fails, or takes too long; with what it complained of, and nothing of what it printed.
pub(super) async fn output(words: &[String]) -> Result<Vec<u8>> {
    within(TIME_LIMIT, words).await
}

async fn within(limit: Duration, words: &[String]) -> Result<Vec<u8>> {
    let failed = |kind, how: &str| Error::new(kind, format!("{} {how}", Source::Command(words.to_vec())));
    let (program, arguments) = words.split_first().ok_or_else(|| failed(Kind::Config, "has no words"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // It and whatever it starts can be ended together, and a Ctrl-C in the terminal is for us.
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => {
            failed(Kind::Config, "cannot be run").because(error).hint("No shell is used: name a program, by its path.")
        }
        // Too many processes, or too little memory: that passes.
        _ => failed(Kind::Local, "cannot be run").because(error),
    })?;
    let mut group = Group::new(child.id());
    let (printed, complaints) = (child.stdout.take(), child.stderr.take());
    let (mut said, mut all_said) = (Vec::new(), false);
    let ended = {
        let mut complaints = pin!(keep_the_last(complaints, &mut said));
        let ended = tokio::time::timeout(limit, async {
            // It is reaped only when nobody prints any more, so that its group is no other's as long as we may end it.
            let ending = async { (most_of(printed).await, child.wait().await) };
            let never = async {
                complaints.as_mut().await;
                all_said = true;
                std::future::pending().await
            };
            let (printed, status) = tokio::select! {
                ended = ending => ended,
                ended = never => ended,
            };
            group.is_over();
            Ok::<_, std::io::Error>((printed?, status?))
        });
        let ended = ended.await;
        if ended.is_err() {
            drop(group);
        }
        if !all_said {
            let _ = tokio::time::timeout(LAST_WORDS, complaints).await;
        }
        ended
    };
    let said = String::from_utf8_lossy(&said);
    let said: Vec<&str> =
        said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let because = |error: Error| if said.is_empty() { error } else { error.because(said.join(" ")) };
    match ended {
        Ok(Ok((printed, status))) if status.success() => Ok(printed),
        Ok(Ok((_, status))) => Err(because(failed(Kind::Local, &format!("failed ({status})")))),
        Ok(Err(error)) => Err(failed(Kind::Local, "cannot be listened to").because(error)),
        Err(_) => {
            let how = format!("was ended: it took longer than {} s", limit.as_secs_f64());
            Err(because(failed(Kind::Local, &how)))
        }
    }
}

/// The processes of commands that are at work, by the number of their group.
static AT_WORK: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn at_work() -> MutexGuard<'static, BTreeSet<i32>> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills all commands that are at work: for a process that ends without waiting for what it does.
pub fn end_all() {
    for group in at_work().iter() {
        let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
    }
}

/// The processes of a command. Dropped before the first of them was reaped, they are killed.
struct Group(Option<i32>);

impl Group {
    fn new(leader: Option<u32>) -> Group {
        let leader = leader.and_then(|id| i32::try_from(id).ok());
        at_work().extend(leader);
        Group(leader)
    }

    /// The first of them was reaped: the number may become another's.
    fn is_over(&mut self) {
        if let Some(group) = self.0.take() {
            at_work().remove(&group);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            self.is_over();
        }
    }
}

async fn most_of(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(BYTES_MAX + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

async fn keep_the_last(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut piece = [0; 512];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        kept.extend_from_slice(&piece[..count]);
        let surplus = kept.len().saturating_sub(COMPLAINTS_BYTES);
        kept.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn what_it_prints_is_the_secret_and_in_no_message() {
        assert_eq!(output(&shell("echo s3cret; echo warning >&2")).await.unwrap(), b"s3cret\n");
        let error = output(&shell("echo s3cret; printf 'no such\\n\\033[1mentry\\n' >&2; exit 3")).await.unwrap_err();
        assert_eq!(error.to_string(), "the command sh failed (exit status: 3): no such [1mentry");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        // Its complaints are bounded, and so is what it prints: a program that never ends meets a closed pipe
        let error = output(&shell("seq 100000 >&2; exit 1")).await.unwrap_err().to_string();
        assert!(error.ends_with("99999 100000") && error.len() < 2 * COMPLAINTS_BYTES, "{error}");
        let printed = output(&shell("yes; exit 0")).await.unwrap();
        assert_eq!(printed.len() as u64, BYTES_MAX + 1);
        // And what is not there is named
        let error = output(&["/nonexistent/program".to_owned(), "s3cret".to_owned()]).await.unwrap_err();
        assert!(error.kind() == Kind::Config && error.to_string().contains("/nonexistent/program"), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_ended_with_all_that_it_started() {
        let place = tempfile::tempdir().unwrap();
        let alive = place.path().join("alive");
        // Given a command that leaves a child with its pipes, which shows by a named pipe that it lives
        assert!(std::process::Command::new("mkfifo").arg(&alive).status().unwrap().success());
        let script = format!(
            "echo waiting for the vault >&2; (exec 3<>'{0}'; echo up >&3; sleep 600) & sleep 600",
            alive.display()
        );
        let begun = Instant::now();
        let error = within(Duration::from_millis(500), &shell(&script)).await.unwrap_err();
        // Then it is ended in its time, and says what it complained of
        assert!(error.to_string().ends_with("longer than 0.5 s: waiting for the vault"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60), "it was waited for");
        // And nobody has the other end any more: a write that does not wait finds no reader
        let is_gone = || {
            let opened = std::os::unix::fs::OpenOptionsExt::custom_flags(
                std::fs::OpenOptions::new().write(true),
                nix::fcntl::OFlag::O_NONBLOCK.bits(),
            )
            .open(&alive);
            opened.is_err()
        };
        while !is_gone() {
            assert!(begun.elapsed() < Duration::from_secs(60), "what it started lives on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    #[tokio::test]
    async fn a_helper_that_it_leaves_behind_keeps_nobody_waiting() {
        let place = tempfile::tempdir().unwrap();
        let ends = place.path().join("ends");
        // Given a helper that keeps standard error open, as agents do, until it is told to end
        let script = format!("(while [ ! -e '{}' ]; do sleep 0.1; done) >/dev/null & echo s3cret", ends.display());
        let words = shell(&script);
        let printed = within(Duration::from_secs(600), &words);
        let printed = tokio::time::timeout(Duration::from_secs(60), printed).await.expect("it has ended");
        assert_eq!(printed.unwrap(), b"s3cret\n");
        std::fs::write(ends, "").unwrap();
    }
}
