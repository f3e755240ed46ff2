//! `seawall demo` as it is typed: the rows are back, nothing runs as root, and nothing is left behind.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use nix::sys::signal::Signal;
use seawall::error::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::postgres::{scratch_directory, tool};
use support::program::{Running, Seawall};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

/// The demonstration in a temporary directory of its own, and every server that it was seen to run.
struct Demo {
    temporary: TempDir,
    running: Running,
    servers: BTreeMap<u32, SeenServer>,
}

#[derive(Debug)]
struct SeenServer {
    data: PathBuf,
    sockets: PathBuf,
    uid: u32,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let temporary = scratch_directory();
        let seawall = Seawall::new(["demo"].iter().chain(arguments)).env("TMPDIR", temporary.path());
        Demo { running: seawall.start(), temporary, servers: BTreeMap::new() }
    }

    /// Waits for the end, looking at the servers all the while; gives the exit code.
    async fn end(&mut self) -> Option<i32> {
        wait_for("the demonstration to end", PATIENCE * 3, async || {
            self.look();
            (!self.running.is_running()).then_some(())
        })
        .await;
        self.running.wait(Duration::ZERO).await.code()
    }

    /// Notes the servers whose data directory is in our temporary directory.
    fn look(&mut self) {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // Processes come and go while we look.
            let (Ok(line), Ok(status)) = (std::fs::read(entry.path().join("cmdline")), entry.metadata()) else {
                continue;
            };
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<&str> = line.split('\0').collect();
            let after = |word: &str| words.iter().position(|it| *it == word).and_then(|at| words.get(at + 1));
            let sockets = words.iter().find_map(|word| word.strip_prefix("unix_socket_directories="));
            let (Some(data), Some(sockets)) = (after("-D").map(PathBuf::from), sockets.map(PathBuf::from)) else {
                continue;
            };
            if data.starts_with(self.temporary.path()) {
                self.servers.insert(pid, SeenServer { data, sockets, uid: status.uid() });
            }
        }
    }

    fn assert_no_server_was_root(&self) {
        let data: BTreeSet<&Path> = self.servers.values().map(|server| server.data.as_path()).collect();
        assert_eq!(data.len(), 2, "the source and the restored server were to be seen: {:?}", self.servers);
        for (pid, server) in &self.servers {
            assert_ne!(server.uid, 0, "{pid} runs as root: {server:?}");
        }
    }

    fn assert_nothing_is_left(&self) {
        let left: Vec<_> = std::fs::read_dir(self.temporary.path()).unwrap().flatten().map(|it| it.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        for (pid, server) in &self.servers {
            assert!(!is_alive(*pid), "server {pid} is left behind: {server:?}");
            assert!(!server.sockets.exists(), "{} is left behind", server.sockets.display());
        }
    }
}

/// True if the process runs; one that nobody has waited for yet does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The rest of the line that begins with `label`, marks aside.
fn told<'a>(output: &'a str, label: &str) -> &'a str {
    let mut lines = output.lines().map(|line| line.trim_start_matches([' ', '✓', '✗']));
    let line = lines.find_map(|line| line.strip_prefix(label));
    line.unwrap_or_else(|| panic!("no line {label:?} in:\n{output}")).trim()
}

#[tokio::test]
async fn the_rows_are_back_no_server_ran_as_root_and_nothing_is_left() {
    // When the demonstration runs to its end
    let mut demo = Demo::start(&[]);
    let code = demo.end().await;
    let (output, errors) = (demo.running.stdout(), demo.running.stderr());
    assert_eq!(code, Some(0), "{output}{errors}");
    // Then what is back is what was there before the drop, rows and digest
    let contents = "109,000 rows, SHA-256 ";
    let (_, before) = told(&output, "the moment to return to").split_once(contents).expect("what is there before");
    let (_, after) = told(&output, "the rows are back").split_once(contents).expect("what is there after");
    assert!(after.starts_with(before), "{before:?} before, {after:?} after");
    assert!(before.len() > 8, "the digest is {before:?}");
    // and it says what it cost, and what to type next
    assert!(told(&output, "RPO").contains('s') && told(&output, "Restore").contains('s'), "{output}");
    assert!(told(&output, "Now a real one:").starts_with("seawall run --pg"), "{output}");
    // and a pipe gets no colours, and no complaints
    assert!(!output.contains('\x1b'), "{output:?}");
    assert_eq!(errors, "", "it complains");
    // and it leaves nothing behind
    demo.assert_no_server_was_root();
    demo.assert_nothing_is_left();
}

#[tokio::test]
async fn an_interrupted_demonstration_leaves_nothing() {
    for (moment, signal) in [("a throwaway server", Signal::SIGINT), ("base backup", Signal::SIGTERM)] {
        // Given a demonstration in the middle of it
        let mut demo = Demo::start(&[]);
        demo.running.wait_for_text(moment).await;
        demo.look();
        assert!(!demo.servers.is_empty(), "no server was seen");
        // When somebody has had enough
        demo.running.signal(signal);
        // Then it says so and cleans up
        assert_eq!(demo.end().await, Some(Kind::Local.exit_code().into()), "{}", demo.running.stderr());
        assert!(demo.running.stderr().contains("interrupted"), "{}", demo.running.stderr());
        demo.assert_nothing_is_left();
    }
}

#[tokio::test]
async fn keep_leaves_two_servers_to_look_at_and_says_how_to_be_rid_of_them() {
    // When it is told to keep everything
    let mut demo = Demo::start(&["--keep"]);
    let code = demo.end().await;
    let (output, errors) = (demo.running.stdout(), demo.running.stderr());
    assert_eq!(code, Some(0), "{output}{errors}");
    demo.look();
    // Then the restored server has the table and the other one has not
    let count = |label: &str| {
        let conninfo = told(&output, label).trim_start_matches("psql ").trim_matches('\'').to_owned();
        let psql = tool("psql").args(["-XAtc", "SELECT count(*) FROM orders", &conninfo]).output().unwrap();
        (psql.status.success(), String::from_utf8_lossy(&psql.stdout).trim().to_owned())
    };
    assert_eq!(count("restored  "), (true, "109000".to_owned()));
    assert!(!count("without the table").0, "the dropped table is there");
    // and what it says about being rid of them is right
    run(told(&output, "to stop them"));
    for pid in demo.servers.keys() {
        wait_for("a server to stop", PATIENCE, async || (!is_alive(*pid)).then_some(())).await;
    }
    run(told(&output, "to remove it all"));
    demo.assert_nothing_is_left();
}

fn run(line: &str) {
    assert!(Command::new("sh").args(["-ec", line]).status().unwrap().success(), "`{line}` failed");
}

#[tokio::test]
async fn without_postgresql_it_says_how_to_get_it() {
    let nowhere = scratch_directory();
    let demo = Seawall::new(["demo"]).env("SEAWALL_PG_BIN", nowhere.path());
    let failed = demo.run_err(Kind::Local.exit_code().into()).await;
    assert!(failed.stderr.contains("initdb") && failed.stderr.contains("hint: "), "{}", failed.stderr);
}
