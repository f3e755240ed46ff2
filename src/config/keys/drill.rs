//! `[drill]`: where a drill happens, what it checks and what it is held against.

use super::{Key, Written, parse_duration};
use crate::drill::SqlCheck;
use crate::recovery;
use crate::repository::OWN_CHECKS;

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "drill.scratch",
        flag: Some("--scratch"),
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"/var/lib/seawall\"",
        about: "Where `drill` makes the directory that it restores into, which needs room for the whole cluster, and which \
                the user `postgres` must be able to reach if root drills. Without it: where temporary files go (`TMPDIR`, \
                or `/tmp`).",
        set: |settings, text| {
            if text.is_empty() {
                return Err("is empty: give the path of a directory".to_owned());
            }
            settings.drill.scratch = Some(text.into());
            Ok(())
        },
    },
    Key {
        name: "drill.rto",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"30m\"",
        about: "How long a restore may take, from the decision to a server that takes writes. A drill that takes longer fails.",
        set: |settings, text| {
            settings.drill.rto = Some(parse_duration(text)?);
            Ok(())
        },
    },
    Key {
        name: "drill.rpo",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"20m\"",
        about: "How old the newest moment that can be restored may be when a drill begins; it fails if that is older. On a server \
                that writes nothing, what is stored says so every 15 minutes: a shorter time is for servers that are busy. \
                While `run` is up, `seawall_rpo_seconds` tells this all the time.",
        set: |settings, text| {
            settings.drill.rpo = Some(parse_duration(text)?);
            Ok(())
        },
    },
    Key {
        name: "drill.settings",
        flag: None,
        variable: None,
        written: Written::Words,
        default: None,
        example: "[\"shared_buffers=1GB\", \"shared_preload_libraries=timescaledb\"]",
        about: "Settings of the drill's server, each `name=value`. It does not read the cluster's `postgresql.conf`, takes \
                128 MB of `shared_buffers`, and loads no library unless it is named here: an extension that needs to be \
                loaded at the start, for its tables or for the replay of its own WAL, must be. The drill's server neither \
                listens on TCP nor archives, whatever is said here. What says where its files are, such as \
                `data_directory` and `unix_socket_directories`, and what its recovery does, `restore_command` and \
                `recovery_target_…`, is the drill's own and refused here.",
        set: |settings, text| {
            let pair = |word: &str| {
                let (name, value) =
                    word.split_once('=').ok_or_else(|| format!("has {word:?} in it, which is not name=value"))?;
                if recovery::is_ours(name) {
                    return Err(format!("has {name} in it, which is the drill's own to set: take it out"));
                }
                Ok((name.to_owned(), value.to_owned()))
            };
            settings.drill.settings = text.split_whitespace().map(pair).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Key {
        name: "drill.check",
        flag: None,
        variable: None,
        written: Written::Tables,
        default: None,
        example: "[[drill.check]]\nname = \"orders are recent\"\ndatabase = \"shop\"\n\
                  sql = \"SELECT max(placed) > now() - interval '1 day' FROM orders\"",
        about: "What a drill asks the restored cluster, beside its own checks; as many as you like. `sql` gives one row with one \
                value, which is true if all is well; anything else, an error too, fails the drill by the check's `name`, and \
                the others go on. `database` is where it is asked: `postgres` if it is left out.",
        set: |settings, text| {
            settings.drill.checks = parse_checks(text)?;
            Ok(())
        },
    },
];

/// Reads the tables of `drill.check`.
fn parse_checks(json: &str) -> Result<Vec<SqlCheck>, String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        name: String,
        #[serde(default = "postgres")]
        database: String,
        sql: String,
    }
    fn postgres() -> String {
        "postgres".to_owned()
    }
    let tables: Vec<Table> = serde_json::from_str(json).map_err(|error| {
        let text = error.to_string();
        format!("cannot be read: {}", text.split(" at line").next().unwrap_or_default())
    })?;
    let mut checks: Vec<SqlCheck> = Vec::new();
    for Table { name, database, sql } in tables {
        let is_taken = OWN_CHECKS.contains(&name.as_str()) || checks.iter().any(|it| it.name == name);
        if name.is_empty() || is_taken {
            return Err(format!("has the name {name:?}, which is empty, taken, or one of the drill's own"));
        }
        checks.push(SqlCheck { name, database, sql });
    }
    Ok(checks)
}
