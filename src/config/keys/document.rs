//! `docs/configuration.md`, rendered from the settings' definitions.

use super::{Written, keys};
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
            let _ = writeln!(text, "* variable: `{variable}`");
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

/// A file with every setting, each as a comment with its meaning: its default, or an example where it has none.
pub fn example() -> String {
    let mut text = "# Every setting of Seawall. What is not a comment holds; the rest is the default, or an example.\n# Of several \
                    clusters each has a section [cluster.NAME] of its own, in which every setting may stand that is its alone.\n"
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

**Secrets.** PostgreSQL's password belongs into `~/.pgpass` (or the file named by `PGPASSFILE`). A configuration file
with a password in `pg` is refused if others may read it: `chmod 600`; a group may read it if root owns it, which is how
secrets are mounted into containers. Credentials for S3 come from the AWS chain alone: variables, profile (with a file or a
program of yours, as its `credential_process` says), web identity or instance role.

**Many clusters.** One file, and one process of `run`, may be for many clusters. What stands in `[cluster.NAME]` is of that
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

`--cluster NAME` (or `SEAWALL_CLUSTER`) chooses one of them, and then flags and variables beat what the file says of it. Without,
`run`, `status`, `check` and `config` are about all of them; every other command wants to know which. A flag or a variable is then
for all of them, and `--pg` and `SEAWALL_PG`, which would give all of them one server, are refused. The `PG*` variables still fill in what
the `pg` of a cluster leaves out.

Beside these, PostgreSQL's `PG*` variables and the `AWS_*` variables work as in their own tools.
"#;
