//! The program from the outside: help, exit codes, what it prints where; and that the documents rendered from
//! definitions are up to date. `SEAWALL_BLESS=1 cargo test --test cli` writes what is there now as what is expected.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use nix::sys::signal::Signal;
use seawall::commands::exit;
use seawall::{cli, config, metrics};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The program in an environment without anything that it reads.
fn seawall(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seawall"));
    command.args(arguments).stdin(Stdio::null()).env_remove("COLUMNS").env_remove("RUST_LOG");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["SEAWALL_", "PG", "AWS_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

fn output(arguments: &[&str]) -> Output {
    seawall(arguments).output().expect("start seawall")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Compares with the file, or writes it when `SEAWALL_BLESS` is set.
fn expect_file(path: &Path, got: &str) {
    if std::env::var_os("SEAWALL_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("make the directory");
        std::fs::write(path, got).expect("write the file");
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        got,
        expected,
        "{} is not up to date: run SEAWALL_BLESS=1 cargo test --test cli, and read the difference",
        path.display()
    );
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_help_text_is_as_expected() {
    let mut commands: Vec<String> = cli::command().get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    commands.push(String::new());
    let golden = root().join("tests/golden/help");
    for name in &commands {
        let arguments: Vec<&str> = [name.as_str(), "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let output = output(&arguments);
        assert_eq!(output.status.code(), Some(0), "{name} --help: {}", text(&output.stderr));
        let file = if name.is_empty() { "seawall.txt".to_owned() } else { format!("{name}.txt") };
        expect_file(&golden.join(file), &text(&output.stdout));
    }
    let files = std::fs::read_dir(&golden).expect("the golden files").count();
    assert_eq!(files, commands.len(), "a help text is kept of a command that is gone");
}

#[test]
fn the_documents_rendered_from_definitions_are_up_to_date() {
    let docs = root().join("docs");
    expect_file(&docs.join("exit-codes.md"), &exit::document());
    expect_file(&docs.join("configuration.md"), &config::document());
    expect_file(&docs.join("metrics.md"), &metrics::document().expect("the metrics"));
}

#[test]
fn the_version_is_the_packages() {
    let output = output(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), format!("seawall {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_mistake_on_the_command_line_ends_with_2() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["run", "--nonsense"],
        &["restore"],
        &["restore", "--into", "/x", "--to-lsn", "13am"],
        &["restore", "--into", "/x", "--to", "now", "--to-end"],
        &["run", "--flush-interval", "500"],
        &["list", "--cluster", "a/b"],
        &["completions", "tcl"],
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
        assert!(!output.stderr.is_empty(), "{arguments:?} said nothing");
    }
}

#[test]
fn a_wrong_configuration_ends_with_3_and_says_where() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("seawall.toml");
    std::fs::write(&file, "[run]\nflush_intervall = \"1s\"\n").expect("write");
    let path = file.display().to_string();
    let output = output(&["--config", &path, "list"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        text(&output.stderr),
        format!(
            "error: {path}, line 2: there is no setting run.flush_intervall\n\
             hint: Is run.flush_interval meant? It is written flush_interval = \"500ms\" under [run].\n"
        )
    );
    let output = seawall(&["list"]).env("SEAWALL_CLUSTER", "a/b").output().expect("start seawall");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}

/// A configuration that nobody else may read; the directory is gone with it.
fn configuration(contents: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("seawall.toml");
    std::fs::write(&file, contents).expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set its rights");
    let path = file.display().to_string();
    (directory, path)
}

#[test]
fn what_holds_is_shown_with_who_said_so_and_without_secrets() {
    let (_place, file) = configuration(
        "pg = \"host=db user=seawall password=s3cret\"\nrepo = \"s3://b/x\"\n[notify]\nwebhook = \"https://h.example/s3cret\"\n\
         slack = \"https://h.example/T0/s3cret\"\npagerduty = \"s3cret\"\nstream_after = \"30s\"\n",
    );
    for json in [&[][..], &["--json"]] {
        let show = [&["config", "show", "--config", &file], json].concat();
        let output = seawall(&show).env("SEAWALL_CLUSTER", "shop").output().expect("start seawall");
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(!shown.contains("s3cret"), "{shown}");
        if !json.is_empty() {
            let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            for (name, value, from) in [
                ("pg", "(with a password, so it is not shown)", &*file),
                ("notify.slack", "(a secret, so it is not shown)", &*file),
                ("cluster", "\"shop\"", "SEAWALL_CLUSTER"),
            ] {
                assert_eq!(shown[name], serde_json::json!({ "value": value, "from": from }), "{name}");
            }
            continue;
        }
        for line in [
            format!("pg = (with a password, so it is not shown)  # {file}"),
            format!("repo = \"s3://b/x\"  # {file}"),
            format!("notify.webhook = (a secret, so it is not shown)  # {file}"),
            format!("notify.slack = (a secret, so it is not shown)  # {file}"),
            format!("notify.pagerduty = (a secret, so it is not shown)  # {file}"),
            format!("notify.stream_after = \"30s\"  # {file}"),
            "cluster = \"shop\"  # SEAWALL_CLUSTER".to_owned(),
            "slot = \"seawall\"  # default".to_owned(),
        ] {
            assert!(shown.lines().any(|it| it == line), "no {line:?} in\n{shown}");
        }
    }
    // What has no password is shown as it is
    let (_place, file) = configuration("pg = \"host=db passfile=/p\"\n");
    let shown = text(&output(&["config", "show", "--config", &file]).stdout);
    assert!(shown.contains("pg = \"host=db passfile=/p\""), "{shown}");
}

#[test]
fn what_would_fail_at_night_is_refused_by_day() {
    let place = tempfile::tempdir().expect("a directory");
    let identity = place.path().join("key").display().to_string();
    let made = output(&["keygen", "--out", &identity]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let recipient = text(&made.stdout).split_whitespace().find(|word| word.starts_with("age1")).map(str::to_owned);
    let recipient = recipient.expect("the public key");
    let closed = format!(
        "repo = \"s3://b/x\"\n[schedule]\ndrill = \"0 6 * * MON\"\n[encryption]\nrecipients = [\"{recipient}\"]\n"
    );
    let opened = format!("{closed}identity_file = \"{identity}\"\n");
    let nowhere = "repo = \"s3://b/x\"\n[drill]\nscratch = \"/nowhere/to/drill\"\n";
    for (contents, said) in [
        (&*closed, Some("schedule.drill cannot open what encryption.recipients closes")),
        (&*opened, None),
        (nowhere, Some("drill.scratch is no directory: /nowhere/to/drill")),
        ("[schedule]\nfull = \"0 2 * * *\"\n", Some("repo")),
    ] {
        let (_place, file) = configuration(contents);
        let checked = output(&["config", "check", "--config", &file]);
        let errors = text(&checked.stderr);
        assert_eq!(checked.status.code(), Some(if said.is_some() { 3 } else { 0 }), "{contents}{errors}");
        assert!(said.is_none_or(|said| errors.contains(said) && errors.contains("hint:")), "{contents}{errors}");
    }
    // Of several it is said whose it is
    let (_place, file) =
        configuration(&format!("{nowhere}[cluster.a]\npg = \"host=a\"\n[cluster.b]\npg = \"host=b\"\n"));
    let errors = text(&output(&["config", "check", "--config", &file]).stderr);
    assert!(errors.contains("cluster a"), "{errors}");
}

#[test]
fn a_secret_is_read_once_to_be_checked_and_never_shown() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |name: &str| directory.path().join(name).display().to_string();
    let file = place("seawall.toml");
    let write = |command: &str| {
        let command = format!("[\"sh\", \"-c\", \"echo run >> {}; {command}\"]", place("runs"));
        let text = format!(
            "repo = \"s3://b/p\"\npassword_command = {command}\n[notify]\nslack_file = \"{}\"\n[s3]\nregion = \"r\"\n\
             access_key_id = \"AKIA\"\nsecret_access_key = \"s3cret\"\n[cluster.a]\npg = \"host=a\"\n[cluster.b]\npg = \"host=b\"\n",
            place("slack")
        );
        std::fs::write(&file, text).expect("write");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set its rights");
    };
    let runs = || std::fs::read_to_string(place("runs")).map_or(0, |text| text.lines().count());
    write("echo s3cret");
    std::fs::write(place("slack"), "https://hooks.example.org/s3cret\n").expect("write");
    std::fs::set_permissions(place("slack"), std::fs::Permissions::from_mode(0o600)).expect("set its rights");
    let said = |arguments: &[&str], code: i32| {
        let output = output(&[arguments, &["--config", &file]].concat());
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(!said.contains("s3cret"), "{arguments:?}: {said}");
        said
    };
    // Given secrets of every kind, when they are shown, then it is said where they are, and none is read
    let shown = said(&["config", "show", "--cluster", "a"], 0);
    for line in [
        format!("password = (a secret, in the command sh)  # {file}\n"),
        format!("notify.slack = (a secret, in the file {})  # {file}\n", place("slack")),
        format!("s3.access_key_id = \"AKIA\"  # {file}\n"),
        format!("s3.secret_access_key = (a secret, so it is not shown)  # {file}\n"),
    ] {
        assert!(shown.contains(&line), "no {line:?} in\n{shown}");
    }
    said(&["config", "show", "--json"], 0);
    assert_eq!(runs(), 0, "what is shown is not read");
    // When they are checked, then each is read once, of how many clusters it may be
    said(&["config", "check"], 0);
    assert_eq!(runs(), 1);
    // And what cannot be had is said
    std::fs::write(place("slack"), "s3cret\n").expect("write");
    assert!(said(&["config", "check"], 3).contains("cluster a: notify.slack: the address for notifications"));
    write("echo s3cret; echo the vault is sealed >&2; exit 2");
    let failed = said(&["config", "check"], 9);
    let is = "error: cluster a: password_command: the command sh failed (exit status: 2): the vault is sealed";
    assert!(failed.contains(is), "{failed}");
}

#[test]
fn a_program_that_is_asked_for_a_secret_ends_with_who_asks() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |name: &str| directory.path().join(name);
    let write = |name: &str| {
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 600; true", place(name).display());
        let text = format!(
            "repo = \"file://{}\"\npg = \"host=127.0.0.1 port=1 user=x\"\npassword_command = [\"sh\", \"-c\", \"{script}\"]\n\
             [s3]\nregion = \"r\"\nendpoint = \"http://127.0.0.1:1\"\naccess_key_id = \"id\"\n\
             secret_access_key_command = [\"sh\", \"-c\", \"{script}\"]\n",
            directory.path().display()
        );
        std::fs::write(place("seawall.toml"), text).expect("write");
        std::fs::set_permissions(place("seawall.toml"), PermissionsExt::from_mode(0o600)).expect("its mode");
    };
    let is_alive = |group: &str| {
        std::fs::read_dir("/proc").expect("/proc").flatten().any(|process| {
            let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            // Behind the name: state, parent, group (proc_pid_stat(5)).
            let facts: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().take(3).collect();
            matches!(facts[..], [state, _, of] if of == group && state != "Z")
        })
    };
    let until = |what: &str, is_so: &mut dyn FnMut() -> bool| {
        let begun = std::time::Instant::now();
        while !is_so() {
            assert!(begun.elapsed().as_secs() < 60, "waiting for {what}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    let file = place("seawall.toml").display().to_string();
    let s3 = ["--repo", "s3://b/p"];
    let wal = place("wal").display().to_string();
    let fetch = [&["wal-fetch", "000000010000000000000001", &wal], &s3[..]].concat();
    let extract =
        [&["extract", "--database", "d", "--table", "t", "--estimate", "--to", "2026-01-01T00:00:00Z"], &s3[..]]
            .concat();
    for (name, arguments, signal, code) in [
        ("configuration", &["config", "check"][..], Signal::SIGINT, Some(130)),
        ("server", &["check"], Signal::SIGTERM, Some(143)),
        ("run", &["run", "--listen", "off"], Signal::SIGTERM, Some(0)),
        // Where SIGTERM and SIGINT begin an orderly stop, the others end it at once
        ("run_again", &["run", "--listen", "off"], Signal::SIGQUIT, Some(131)),
        ("backup", &["backup"], Signal::SIGHUP, Some(129)),
        ("fetch", &fetch, Signal::SIGQUIT, Some(131)),
        ("extract", &extract, Signal::SIGINT, Some(9)),
    ] {
        // Given a command that waits for a secret
        write(name);
        let mut child = seawall(&[arguments, &["--config", &file]].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start seawall");
        until("the program to be asked", &mut || place(name).exists());
        let group = std::fs::read_to_string(place(name)).expect("its number").trim().to_owned();
        assert!(is_alive(&group), "{name}");
        // When it is told to end, then it does, and all that the program has started with it
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a number"));
        nix::sys::signal::kill(pid, signal).expect("tell it");
        let status = child.wait().expect("its end");
        assert_eq!(status.code(), code, "{name}: {status}");
        until("the program to end", &mut || !is_alive(&group));
    }
    // Given one that is to outlive its terminal and the Ctrl-C of others, as nohup and a script's & have it
    write("ignoring");
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP INT; exec \"$0\" check --config \"$1\"", env!("CARGO_BIN_EXE_seawall"), &file])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start seawall");
    until("the program to be asked", &mut || place("ignoring").exists());
    // Then it still ignores these signals, and no others (proc_pid_status(5))
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("its status");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("its signals").trim();
    let ignored = u64::from_str_radix(ignored, 16).expect("bits");
    let ignores = |signal: Signal| ignored >> (signal as i32 - 1) & 1 == 1;
    assert!(ignores(Signal::SIGHUP) && ignores(Signal::SIGINT), "{status}");
    assert!(!ignores(Signal::SIGTERM), "{status}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a number"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("tell it");
    assert_eq!(child.wait().expect("its end").code(), Some(143));
}

#[test]
fn with_json_an_error_is_one_line_of_it() {
    for (arguments, kind, code) in [
        (&["list", "--json", "--nonsense"][..], "usage", 2),
        (&["list", "--json", "--cluster", "a/b"], "usage", 2),
        (&["list", "--json", "--config", "/nowhere/seawall.toml"], "config", 3),
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let line = text(&output.stderr);
        assert_eq!(line.lines().count(), 1, "{line}");
        let document: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(document["error"]["kind"], kind, "{line}");
        assert_eq!(document["error"]["exit_code"], code, "{line}");
        assert!(document["error"]["message"].as_str().is_some_and(|message| !message.starts_with("error")), "{line}");
    }
}

#[test]
fn a_time_that_never_was_or_was_twice_is_refused_by_every_command_before_anything_is_opened() {
    let skipped = (
        "2026-03-29 02:30 Europe/Berlin",
        "never was",
        [
            "\"2026-03-29 01:30:00+01:00\" (2026-03-29 00:30:00 UTC)",
            "\"2026-03-29 03:30:00+02:00\" (2026-03-29 01:30:00 UTC)",
        ],
    );
    let twice = (
        "2026-10-25 02:30 Europe/Berlin",
        "was twice",
        [
            "\"2026-10-25 02:30:00+02:00\" (2026-10-25 00:30:00 UTC)",
            "\"2026-10-25 02:30:00+01:00\" (2026-10-25 01:30:00 UTC)",
        ],
    );
    for command in [
        &["restore", "--into", "/nowhere/x", "--to"][..],
        &["restore", "--into", "/nowhere/x", "--dry-run", "--to"],
        &["history", "--from"],
        &["history", "--to"],
        &["extract", "--database", "shop", "--out", "/nowhere/x.sql", "--to"],
    ] {
        for (time, why, readings) in [&skipped, &twice] {
            // There is no such repository: who looks for it first says so.
            let arguments = [&["--repo", "file:///nowhere/repository"], command, &[*time]].concat();
            let plain = output(&arguments);
            let said = text(&plain.stderr);
            assert_eq!(plain.status.code(), Some(2), "{arguments:?}: {said}");
            assert!(
                said.contains(why) && readings.iter().all(|reading| said.contains(reading)),
                "{arguments:?}: {said}"
            );
            let json = output(&[&arguments[..], &["--json"]].concat());
            let document: serde_json::Value = serde_json::from_str(&text(&json.stderr)).expect("JSON");
            assert_eq!((json.status.code(), &document["error"]["kind"]), (Some(2), &"usage".into()), "{document}");
            let hint = document["error"]["hint"].as_str().expect("a hint");
            assert!(readings.iter().all(|reading| hint.contains(reading)), "{arguments:?}: {hint}");
            // And what is proposed is understood: then it is the repository that is not there.
            let proposed = readings[0].split('"').nth(1).expect("quoted");
            let again = output(&[&arguments[..arguments.len() - 1], &[proposed]].concat());
            assert_ne!(again.status.code(), Some(2), "{proposed}: {}", text(&again.stderr));
        }
    }
}

#[test]
fn wal_fetch_ends_with_255_whatever_is_wrong_before_it_starts() {
    for arguments in [
        &["wal-fetch"][..],
        &["wal-fetch", "000000010000000000000001"],
        &["wal-fetch", "000000010000000000000001", "pg_wal/RECOVERYXLOG", "more"],
        &["wal-fetch", "--nonsense", "a", "b"],
        &["--nonsense", "wal-fetch", "a", "b"],
        &["--cluster", "a/b", "wal-fetch", "a", "b"],
        &["--config", "/nowhere/seawall.toml", "wal-fetch", "a", "b"],
        // No repository at all.
        &["wal-fetch", "000000010000000000000001", "pg_wal/RECOVERYXLOG"],
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(255), "{arguments:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty(), "{arguments:?} said nothing");
    }
    let output = seawall(&["wal-fetch", "a", "b"]).env("SEAWALL_CLUSTER", "a/b").output().expect("start seawall");
    assert_eq!(output.status.code(), Some(255));
}

#[test]
fn a_panic_of_wal_fetch_is_not_taken_for_the_end_of_the_archive() {
    // Given less and less room, threads cannot be started, which panics (Rust's own code for that is 101). PostgreSQL
    // takes 1 to 125 for the end of the archive, and anything above, or a signal, for a failure.
    let program = env!("CARGO_BIN_EXE_seawall");
    let mut panics = 0;
    for kilobytes in (2_000..400_000).step_by(500) {
        // A wait without end would stop recovery as well: `timeout` says 124 then, which is none of what is expected.
        let line = format!("ulimit -v {kilobytes} && exec timeout 60 \"$0\" --repo file:///nowhere wal-fetch a b");
        let mut shell = Command::new("sh");
        let output = shell.args(["-c", &line, program]).env("RUST_BACKTRACE", "0").output().expect("start a shell");
        let said = text(&output.stderr);
        let ended_as_failure = match output.status.code() {
            Some(code) => code > 125,
            None => output.status.signal().is_some(),
        };
        assert!(ended_as_failure, "with {kilobytes} kB it ended with {}: {said}", output.status);
        panics += u32::from(said.contains("panicked"));
        // It had room enough to fail in the ordinary way.
        if said.starts_with("error:") {
            break;
        }
    }
    assert!(panics > 0, "nothing panicked, so nothing was proven");
}

#[test]
fn wal_fetch_says_nothing_and_still_fails_right_when_standard_error_is_gone() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let status = seawall(&["wal-fetch", "a", "b"]).stderr(full).status().expect("start seawall");
    assert_eq!(status.code(), Some(255));
}

#[test]
fn a_key_is_made_for_its_owner_alone_and_never_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("identity.txt");
    let path = file.to_str().unwrap();
    // Given a new key in a file
    let made = output(&["keygen", "--out", path]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let public = text(&made.stdout);
    assert!(public.starts_with("age1") && public.lines().count() == 1, "{public}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains(public.trim()) && written.contains("\nAGE-SECRET-KEY-1"), "its file has both keys");
    // When another is to have that name, then it is refused, and the first one stays
    let again = output(&["keygen", "--out", path]);
    assert_eq!(again.status.code(), Some(6), "{}", text(&again.stderr));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    // And with a passphrase it is itself an age file, for that passphrase
    let protected = place.path().join("protected");
    let mut command = seawall(&["keygen", "--passphrase", "--out", protected.to_str().unwrap()]);
    let made = command.env("SEAWALL_IDENTITY_PASSPHRASE", "open sesame").output().unwrap();
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let bytes = std::fs::read(&protected).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1\n-> scrypt "), "{}", String::from_utf8_lossy(&bytes));
    // And an identity file that others may read is not used
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let repo = format!("file://{}", place.path().display());
    let refused = output(&["wal-fetch", "--repo", &repo, "--identity", path, "000000010000000000000001", "x"]);
    assert_eq!(refused.status.code(), Some(255));
    assert!(text(&refused.stderr).contains("chmod 600"), "{}", text(&refused.stderr));
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = output(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("wal-fetch"), "{shell}");
    }
}

#[test]
fn each_command_has_a_manual_page() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = place.path().join("man1");
    let written = output(&["manpages", directory.to_str().expect("UTF-8")]);
    assert_eq!(written.status.code(), Some(0), "{}", text(&written.stderr));
    for name in ["seawall", "seawall-run", "seawall-restore", "seawall-wal-fetch"] {
        let page = std::fs::read_to_string(directory.join(format!("{name}.1"))).expect("the page is there");
        assert!(page.contains(".TH") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let program = env!("CARGO_BIN_EXE_seawall");
    let line = "{ \"$0\" completions bash; echo \"ended with $?\" >&2; } | head -n 1 > /dev/null";
    let output = Command::new("sh").args(["-c", line, program]).output().expect("start a shell");
    assert_eq!(text(&output.stderr), "ended with 0\n");
}

#[test]
fn no_variable_is_shown_in_a_help_text() {
    let output = seawall(&["run", "--help"]).env("SEAWALL_PG", "password=s3cret").output().expect("start seawall");
    assert!(!text(&output.stdout).contains("s3cret"), "{}", text(&output.stdout));
}
