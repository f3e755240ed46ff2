//! `docs/configuration.md`, rendered from the settings' definitions.

use super::{Key, Way, Written, keys};
use std::fmt::Write as _;

/// `docs/configuration.md`.
pub fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut section = "";
    for key in keys() {
        let (place, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if place != section {
            section = place;
            let _ = write!(text, "\n## `[{place}]`\n");
        }
        let _ = write!(text, "\n### `{name}`\n\n{}\n\n", key.about);
        match key.written {
            Written::Tables => {
                let _ = writeln!(text, "In the file:\n\n```toml\n{}\n```\n", key.example);
            }
            Written::Secret => {
                let elsewhere = elsewhere(name, key);
                let _ = writeln!(text, "* [a secret](#secrets), in the file: `{name} = {}`, {elsewhere}", key.example);
            }
            _ => {
                let _ = writeln!(text, "* in the file: `{name} = {}`", key.example);
            }
        }
        if key.is_reloadable() {
            text.push_str("* taken up by a running `run` on SIGHUP\n");
        }
        if key.is_of_process() && key.name != "cluster" {
            text.push_str("* of the whole process: not in `[cluster.NAME]`\n");
        }
        if let Some(flag) = key.flag {
            let _ = writeln!(text, "* flag: `{flag}`");
        }
        if let Some(variable) = key.variable {
            let _ = match key.written {
                Written::Secret => {
                    let named = |way: Way| format!("`{variable}{}`", way.suffix().to_uppercase());
                    writeln!(text, "* variable: {}", Way::ALL.map(named).join(", "))
                }
                _ => writeln!(text, "* variable: `{variable}`"),
            };
        }
        match key.default {
            Some("") => text.push_str("* default: empty\n"),
            Some(default) => {
                let _ = writeln!(text, "* default: `{default}`");
            }
            None => text.push_str("* default: none\n"),
        }
    }
    text
}

/// How a secret's place is written instead of it.
fn elsewhere(name: &str, key: &Key) -> String {
    let file = key.name.replace('.', "_");
    format!("`{name}_file = \"/run/secrets/{file}\"` or `{name}_command = [\"pass\", \"show\", \"{file}\"]`")
}

/// A file with every setting, each as a comment with its meaning: its default, or an example where it has none.
pub fn example() -> String {
    let mut text = "# Every setting of Seawall. What is not a comment holds; the rest is the default, or an example.\n# Of several \
                    clusters each has a section [cluster.NAME] of its own, in which every setting may stand that is its alone.\n# A secret may be \
                    elsewhere: NAME_file = \"/path\" or NAME_command = [\"program\", \"argument\"].\n"
        .to_owned();
    let mut section = "";
    for key in keys() {
        let (place, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if place != section {
            section = place;
            let _ = write!(text, "\n[{place}]\n");
        }
        text.push('\n');
        for line in wrapped(key.about) {
            let _ = writeln!(text, "# {line}");
        }
        match (key.written, key.default) {
            (Written::Tables, _) => key.example.lines().for_each(|line| _ = writeln!(text, "#{line}")),
            (Written::Boolean, Some(default)) => _ = writeln!(text, "#{name} = {default}"),
            (Written::Text, Some(default)) => _ = writeln!(text, "#{name} = {default:?}"),
            _ => _ = writeln!(text, "#{name} = {}", key.example),
        }
    }
    text
}

/// Lines that fit a terminal.
fn wrapped(text: &str) -> Vec<String> {
    const COLUMNS: usize = 96;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let is_full = !lines[last].is_empty() && lines[last].len() + 1 + word.len() > COLUMNS;
        if is_full {
            lines.push(word.to_owned());
        } else {
            let gap = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{gap}{word}");
        }
    }
    lines
}

const INTRODUCTION: &str = r#"# Configuration

Everything can be said on the command line, so a file is needed only for what has no flag. A flag beats the environment,
which beats the file, which beats the default. An empty variable counts as not set.

The file is TOML and is named by `--config` or `SEAWALL_CONFIG`; none is read unless it is named. A key that does not
exist is an error.

```toml
pg = "host=db.example.org user=seawall"
repo = "s3://backups/postgres"

[run]
flush_interval = "500ms"

[s3]
region = "eu-central-1"
```

Lengths of time have a unit: `500ms`, `2s`, `15m`, `1h 30m`.

## Secrets

PostgreSQL's password, the store's keys and the addresses for notifications are secrets. Each can be said in one of three ways, here for
`password`; two of them in one place are an error.

* `password = "..."`: in the configuration itself.
* `password_file = "/run/secrets/password"`: the only line of this file.
* `password_command = ["pass", "show", "db"]`: what this program prints, one line.

Of these:

* **As variables** they have the same behind the name, in capitals: `SEAWALL_PASSWORD`, `SEAWALL_PASSWORD_FILE`, `SEAWALL_PASSWORD_COMMAND`.
* **A file with a secret**, this one included, is refused if others may read it: `chmod 600`; a group may read it if root owns it,
  which is how secrets are mounted into containers and given by systemd's `LoadCredential`. Its path begins with a slash, as that of a
  command does unless it has no slash at all: a restored server reads the store's keys too, from another directory.
* **A command** is called without a shell: a list of words is taken as it stands; a text is split at its blanks, with quotes as in a shell,
  and refused if it needs one. It has 30 seconds, and is ended with everything that it started. If it fails, what it wrote to standard
  error is shown, and never what it printed. Everybody on the machine sees the arguments of a process: no secret belongs there. It ends
  with the command of Seawall that has called it, also where SIGINT, SIGTERM, SIGQUIT or SIGHUP ends that. A helper that it has left behind when it ended by itself is left alone.
* **When it is read**: when it is first needed, and not by commands that do not need it. It is remembered, and read again when the server or the
  store refuses it, and at once on SIGHUP to `run`, which logs what cannot be read; what was read before is used then, until it is refused or the next SIGHUP. So a secret can be changed
  while `run` streams. That another file or another command has it, or another text in the configuration itself, is taken up at the next start.
* **Each process reads for itself.** A restored server calls `wal-fetch` for each file of WAL, thousands of times, and each of them
  runs the commands of the store's two keys: where one restores, files are better, or what the AWS chain remembers.
* **Two secrets that are made as a pair**, as keys that Vault makes for each who asks, cannot come from two commands: each would be half of another pair. Let
  `credential_process` of an AWS profile give them, which has both, a session's token and an end in one answer; or let an agent write both
  into files, and then send SIGHUP.
* `seawall config check` reads all of them once; `config show` says where they are. No log, error or report has them.

A password may also be in `~/.pgpass` (or the file named by `PGPASSFILE`), and the store's keys may come from the AWS chain: variables, profile
(with a program that prints them, as its `credential_process` says), web identity or instance role.

## Many clusters

One file, and one process of `run`, may be for many clusters. What stands in `[cluster.NAME]` is of that
cluster alone: every setting but those marked as the whole process's, written as at the top, with sections as
`[cluster.NAME.s3]`. Everything else in the file is the default for all of them.

```toml
repo = "s3://backups/postgres"

[schedule]
full = "0 2 * * SUN"
incremental = "0 2 * * *"
jitter = "2h"

[cluster.shop]
pg = "host=shop.example.org user=seawall"

[cluster.mail]
pg = "host=mail.example.org user=seawall"
slot = "seawall_mail"

[cluster.mail.retention]
full = "8"
```

What stands at the top and is not to hold for one of them, `unset` in its section takes back: the setting is then as if nobody had said
anything of it.

```toml
[cluster.test]
pg = "host=test.example.org user=seawall"
unset = ["schedule.drill", "s3.kms_key", "s3.sse"]
```

`--cluster NAME` (or `SEAWALL_CLUSTER`) chooses one of them, and then flags and variables beat what the file says of it; a mistake in the
section of another is nobody's concern. Without, `run`, `status`, `check` and `config` are about all of them; every other command wants to know which. A flag or a variable is then
for all of them, and `--pg` and `SEAWALL_PG`, which would give all of them one server, are refused. The `PG*` variables still fill in what
the `pg` of a cluster leaves out.

Beside these, PostgreSQL's `PG*` variables and the `AWS_*` variables work as in their own tools.

## Before the first section
"#;
