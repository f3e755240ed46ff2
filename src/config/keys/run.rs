//! `[run]`: how `seawall run` streams.

use super::{Key, Written, parse_duration};
use std::net::SocketAddr;
use std::time::Duration;

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "run.flush_interval",
        flag: Some("--flush-interval"),
        variable: None,
        written: Written::Text,
        default: Some("500ms"),
        example: "\"500ms\"",
        about: "`run` stores what it received after at most this time, so that a disaster costs about as much. Shorter \
                costs more requests while the server is busy, and none while it is idle. `0` stores at once. At most \
                `1h`.",
        set: |settings, text| {
            let length = parse_duration(text)?;
            if length > Duration::from_secs(3600) {
                return Err(format!("cannot be {text:?}: an hour is the most"));
            }
            settings.run.flush_interval = length;
            Ok(())
        },
    },
    Key {
        name: "run.treat_archived_as_applied",
        flag: Some("--treat-archived-as-applied"),
        variable: None,
        written: Written::Boolean,
        default: Some("false"),
        example: "true",
        about: "Reports to PostgreSQL as applied what is stored. An archiver applies nothing, so without this a commit with \
                `synchronous_commit = remote_apply` that waits for it waits for ever; with this it returns when its WAL is \
                stored, and says nothing of what can be read where. For those who cannot change the setting of a role, \
                database or application.",
        set: |settings, text| {
            settings.run.treat_archived_as_applied =
                text.parse().map_err(|_| format!("cannot be {text:?}: it is true or false"))?;
            Ok(())
        },
    },
    Key {
        name: "run.listen",
        flag: Some("--listen"),
        variable: None,
        written: Written::Text,
        default: Some("127.0.0.1:8432"),
        example: "\"0.0.0.0:8432\"",
        about: "Where `run` serves `/metrics`, `/healthz` and `/readyz`: an IP address with a port (0: any free one, \
                named in the log), or `off`. There is no password: listen beyond loopback only where the network is \
                trusted.",
        set: |settings, text| {
            settings.run.listen = match text {
                "off" => None,
                _ => {
                    let bad = |_| {
                        format!("cannot be {text:?}: it is an IP address with a port, such as 127.0.0.1:8432, or off")
                    };
                    Some(text.parse::<SocketAddr>().map_err(bad)?)
                }
            };
            Ok(())
        },
    },
    Key {
        name: "run.backup_after_gap",
        flag: None,
        variable: None,
        written: Written::Boolean,
        default: Some("true"),
        example: "false",
        about: "When WAL was lost (the server removed it before it was stored), nothing behind the gap can be restored \
                until a base backup is taken. `run` then takes one by itself, one at a time, again and again until one \
                is finished. `false` leaves that to you: `seawall_backup_needed` is 1 until it is done.",
        set: |settings, text| {
            settings.run.backup_after_gap =
                text.parse().map_err(|_| format!("cannot be {text:?}: it is true or false"))?;
            Ok(())
        },
    },
];
