//! `docs/runbook.md`, and what the README says to do about a drop, typed line by line: each section on a machine that had its
//! disaster, and what it says is printed is printed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use support::postgres::{DEBIAN, programs, scratch_directory};
use support::printed::assert_printed;
use support::program::{Running, Seawall, path_for_server};
use support::waiting::{PATIENCE, wait_for};
use tempfile::TempDir;

const RUNBOOK: &str = include_str!("../docs/runbook.md");
const README: &str = include_str!("../README.md");

/// Accounts in the table; for the times on the page more (`SEAWALL_TEST_ACCOUNTS`).
const ACCOUNTS: u64 = 50_000;

/// A block to be typed, and what it says comes back.
struct Block {
    script: String,
    printed: Option<String>,
}

/// A page's sections with commands, in order.
fn sections(page: &str) -> Vec<(String, Vec<Block>)> {
    let mut sections: Vec<(String, Vec<Block>)> = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some((language, text)), Some(_)) => {
                let (_, blocks) = sections.last_mut().expect("a block stands below a heading");
                match *language {
                    "sh" => blocks.push(Block { script: std::mem::take(text), printed: None }),
                    "text" if blocks.is_empty() => text.clear(), // what no command prints
                    "text" => blocks.last_mut().expect("commands come first").printed = Some(std::mem::take(text)),
                    "toml" => text.clear(), // read, and not typed
                    other => panic!("a block of {other:?}"),
                }
                open = None;
            }
            (Some((_, text)), None) => writeln!(text, "{line}").unwrap(),
            (None, Some(language)) => open = Some((language, String::new())),
            (None, None) => {
                sections.extend(line.strip_prefix("## ").map(|heading| (heading.to_owned(), Vec::new())));
            }
        }
    }
    sections
}

/// A machine with PostgreSQL, a repository, and an archiver, as the page describes it.
struct Machine {
    places: TempDir,
    archiver: Option<Running>,
}

impl Machine {
    async fn new() -> Machine {
        let machine = Machine { places: scratch_directory(), archiver: None };
        let place = |name: &str| machine.place(name);
        let socket = place("socket");
        std::fs::create_dir(&socket).unwrap();
        std::fs::create_dir(place("bin")).unwrap();
        let program = path_for_server(machine.places.path());
        std::os::unix::fs::symlink(program, place("bin/seawall")).unwrap();
        let config = format!(
            "pg = \"host={} user=postgres dbname=shop\"\nrepo = \"file://{}\"\n\n[run]\nlisten = \"off\"\n",
            socket.display(),
            place("repository").display()
        );
        std::fs::write(place("seawall.toml"), config).unwrap();
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nshared_buffers = 32MB\ntimezone = UTC\n\
             autovacuum = off\n",
            socket.display()
        );
        std::fs::write(place("settings"), settings).unwrap();
        nix::unistd::Uid::effective().is_root().then(|| machine.give_all());
        machine.sh("mkdir repository; initdb -D main -U postgres -A trust --no-sync --data-checksums >/dev/null; \
             cat settings >> main/postgresql.conf; pg_ctl -D main -l log -w start >/dev/null; createdb shop");
        let accounts = std::env::var("SEAWALL_TEST_ACCOUNTS").map_or(ACCOUNTS, |count| count.parse().unwrap());
        machine.sh(&format!(
            "psql -qXc \"CREATE TABLE accounts (id int PRIMARY KEY, name text, balance int NOT NULL); \
             INSERT INTO accounts SELECT n, 'account ' || md5(n::text), n FROM generate_series(1, {accounts}) n\" shop"
        ));
        let mut machine = machine;
        machine.archive();
        machine.settle().await;
        machine.sh("seawall backup --config seawall.toml --fast");
        machine.sh("psql -qXc \"UPDATE accounts SET name = 'first' WHERE id = 1\" shop");
        machine.settle().await;
        machine
    }

    fn place(&self, name: &str) -> PathBuf {
        self.places.path().join(name)
    }

    fn give_all(&self) {
        seawall::scratch::Unprivileged::find().unwrap().give_all(self.places.path()).unwrap();
    }

    fn archive(&mut self) {
        let seawall = Seawall::new(["run", "--config", self.place("seawall.toml").to_str().unwrap()]);
        self.archiver = Some(seawall.program(&self.place("bin/seawall")).by_server_user().start());
    }

    /// Waits until all that was committed is stored.
    async fn settle(&self) {
        let question =
            "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= (SELECT pg_current_wal_flush_lsn())";
        wait_for("everything to be archived", PATIENCE * 2, async || {
            (self.sh(&format!("psql -XAtc '{question}' shop")).trim() != "0").then_some(())
        })
        .await;
    }

    /// Runs a script as the page's user, which must end well. Gives what it printed, errors too.
    fn sh(&self, script: &str) -> String {
        let user = seawall::scratch::Unprivileged::find().unwrap();
        let mut command: Command = user.command(Path::new("/bin/sh"));
        let path = format!("{}:{}:/usr/bin:/bin", self.place("bin").display(), programs(DEBIAN).bin.display());
        command.arg("-euc").arg(format!("exec 2>&1; {script}")).current_dir(self.places.path());
        command.env_clear().env("PATH", path).env("PGHOST", self.place("socket")).env("PGUSER", "postgres");
        command.env("TZ", "UTC").env("LC_ALL", "C").env("HOME", self.places.path()).env("TMPDIR", self.places.path());
        // Into a file: a server that is started keeps a pipe open.
        let output = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap());
        let status = command.status().unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut &output).unwrap();
        std::io::Read::read_to_string(&mut &output, &mut text).unwrap();
        assert!(status.success(), "{status}: {script}\n{text}");
        text
    }

    /// Types a section of a page, with `xid` as the transaction that did the damage.
    fn follow(&self, page: &str, heading: &str, xid: Option<&str>) {
        let (_, blocks) = sections(page).into_iter().find(|(it, _)| it == heading).expect("the page has that section");
        assert!(!blocks.is_empty(), "{heading:?} has no commands");
        let begun = Instant::now();
        for block in blocks {
            let mut script = block.script.replace("742", xid.unwrap_or("742"));
            for (there, here) in [
                ("/etc/seawall.toml", "seawall.toml"),
                ("/var/lib/postgresql/15/main", "main"),
                ("/var/lib/postgresql/", ""),
                ("/mnt/copy", "copy"),
            ] {
                script = script.replace(there, self.place(here).to_str().unwrap());
            }
            let printed = self.sh(&script);
            let printed = printed.replace(self.place("seawall.toml").to_str().unwrap(), "/etc/seawall.toml");
            println!("{printed}");
            if let Some(expected) = &block.printed {
                assert_printed(expected, &printed, &script);
            }
        }
        println!("{heading}: {:.1?}", begun.elapsed());
    }

    /// The number of the transaction that a statement is.
    fn transaction(&self, statement: &str) -> String {
        let script = format!("psql -qXAtc \"BEGIN; {statement}; SELECT pg_current_xact_id(); COMMIT\" shop");
        self.sh(&script).trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.archiver.take());
        for data in ["main", "restored"].map(|name| self.place(name)) {
            if data.join("postmaster.pid").exists() {
                self.sh(&format!("pg_ctl -D {} -m immediate stop >/dev/null || true", data.display()));
            }
        }
    }
}

#[test]
fn every_section_is_followed_by_a_test() {
    let headings: Vec<String> =
        sections(RUNBOOK).into_iter().filter(|(_, blocks)| !blocks.is_empty()).map(|(heading, _)| heading).collect();
    let followed = [
        "First: what is there",
        "A table was dropped",
        "A wrong deployment",
        "The server is lost",
        "The region is lost",
        "A page is corrupted",
        "Ransomware",
        "Before it happens",
    ];
    assert_eq!(headings, followed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_was_dropped() {
    let machine = Machine::new().await;
    machine.follow(RUNBOOK, "First: what is there", None);
    machine.sh("psql -qXc 'DROP TABLE accounts' shop");
    machine.settle().await;
    machine.follow(README, "Something was dropped", None);
    machine.follow(RUNBOOK, "A table was dropped", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_it_happens() {
    Machine::new().await.follow(RUNBOOK, "Before it happens", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_deployment() {
    let machine = Machine::new().await;
    let xid = machine.transaction("UPDATE accounts SET balance = 0");
    machine.settle().await;
    machine.follow(RUNBOOK, "A wrong deployment", Some(&xid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_lost() {
    let machine = Machine::new().await;
    machine.sh("pg_ctl -D main -m immediate stop >/dev/null; rm -r main");
    machine.follow(RUNBOOK, "The server is lost", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_region_is_lost() {
    let mut machine = Machine::new().await;
    machine.archiver = None;
    machine.sh("pg_ctl -D main -m immediate stop >/dev/null; mv repository copy; rm -r main");
    machine.follow(RUNBOOK, "The region is lost", None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_corrupted() {
    let machine = Machine::new().await;
    machine.sh("psql -qXc CHECKPOINT shop");
    machine.settle().await;
    let file = machine.sh("psql -XAtc \"SELECT pg_relation_filepath('accounts')\" shop");
    // The middle of a page, which the server has in memory as it was.
    machine.sh(&format!("printf garbage | dd of=main/{} bs=1 seek=100000 conv=notrunc status=none", file.trim()));
    machine.follow(RUNBOOK, "A page is corrupted", None);
    let pages = machine.sh("psql -XAtc 'SELECT count(*) FROM accounts WHERE name IS NOT NULL' shop");
    assert_ne!(pages.trim(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ransomware() {
    let mut machine = Machine::new().await;
    let xid = machine.transaction("UPDATE accounts SET name = 'pay', balance = -balance");
    machine.sh("psql -qXc 'DROP TABLE accounts' shop");
    machine.settle().await;
    machine.archiver = None;
    machine.sh("pg_ctl -D main -m immediate stop >/dev/null; rm -r main");
    machine.follow(RUNBOOK, "Ransomware", Some(&xid));
}
