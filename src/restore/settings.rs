//! The configuration of a restored cluster: what is taken out of the files that were backed up, and what is put in.
//! Pure.

use super::plan::{Plan, Stop};
use std::collections::BTreeMap;

/// What is taken out of `postgresql.auto.conf`: what made the source a standby, archived its WAL, or steered a recovery of
/// its own. Settings whose name begins so.
const SCRUBBED: [&str; 8] = [
    "archive_",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "restore_command",
];

/// What is commented out of `postgresql.conf`: it would lead the server to the source's data directory, or be a second
/// target beside ours, which PostgreSQL refuses (`error_multiple_recovery_targets`).
const DISARMED: [&str; 6] = [
    "data_directory",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// For clusters whose configuration lies outside the data directory, as on Debian and Ubuntu.
pub(super) const MINIMAL_CONF: &str = "\
# The backup holds no postgresql.conf: the cluster has its own outside of the data directory, as Debian and Ubuntu lay it
# out. This is enough to start; take over what yours says, above all shared_preload_libraries.
# What recovery needs is in postgresql.auto.conf.
";

/// As above. Local connections of the user that runs the server, and passwords for the rest.
pub(super) const MINIMAL_HBA: &str = "\
# The backup holds no pg_hba.conf. Take over what yours says.
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             all                                     peer
host    all             all             127.0.0.1/32            scram-sha-256
host    all             all             ::1/128                 scram-sha-256
";

/// As above.
pub(super) const MINIMAL_IDENT: &str = "# The backup holds no pg_ident.conf.\n";

/// The settings of `plan`, in order.
pub(super) fn settings(plan: &Plan, restore_command: String) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    set("restore_command", restore_command);
    match plan.action.setting() {
        Some(action) => {
            // Never `latest`, which another restore that archives here could change.
            set("recovery_target_timeline", plan.timeline.to_string());
            match plan.stop {
                Stop::After(span) => {
                    set("recovery_target_lsn", span.start.to_string());
                    set("recovery_target_inclusive", "on".to_owned());
                }
                Stop::Immediate => set("recovery_target", "immediate".to_owned()),
                Stop::EndOfWal => {}
            }
            set("recovery_target_action", action.to_owned());
        }
        None => set("recovery_target_timeline", "latest".to_owned()),
    }
    // These may also stand in a postgresql.conf that we do not see: here they count. Nobody stands by for this cluster
    // yet, so a commit would wait for ever; and it must not archive where its source does.
    for (name, value) in [
        ("archive_mode", "off"),
        ("archive_cleanup_command", ""),
        ("recovery_end_command", ""),
        ("recovery_min_apply_delay", "0"),
        ("synchronous_standby_names", ""),
    ] {
        set(name, value.to_owned());
    }
    for (name, value) in &plan.requirements {
        set(name, value.to_string());
    }
    settings
}

/// A new `postgresql.auto.conf` from the one that was backed up.
pub(super) fn auto_conf(old: &[u8], settings: &[(String, String)]) -> Vec<u8> {
    let ours = |name: &str| settings.iter().any(|(set, _)| set == name);
    let scrubbed = |name: &str| ours(name) || SCRUBBED.iter().any(|prefix| name.starts_with(prefix));
    let mut text = Vec::with_capacity(old.len() + 1024);
    for line in old.split_inclusive(|&byte| byte == b'\n') {
        if !setting_name(line).is_some_and(|name| scrubbed(&name)) {
            text.extend_from_slice(line);
        }
    }
    if text.last().is_some_and(|&byte| byte != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(b"# Written by seawall restore.\n");
    for (name, value) in settings {
        // Both quote and backslash are special in a quoted value (guc-file.l, DeescapeQuotedString).
        let value = value.replace('\\', r"\\").replace('\'', "''");
        text.extend_from_slice(format!("{name} = '{value}'\n").as_bytes());
    }
    text
}

/// `postgresql.conf` without what would do harm; `None` if there is nothing of that in it. The names are what was found.
pub(super) fn disarm(old: &[u8]) -> Option<(Vec<u8>, Vec<String>)> {
    let mut found = BTreeMap::new();
    let mut text = Vec::with_capacity(old.len() + 256);
    for line in old.split_inclusive(|&byte| byte == b'\n') {
        if let Some(name) = setting_name(line).filter(|name| DISARMED.contains(&name.as_str())) {
            text.extend_from_slice(b"#seawall restore: ");
            found.insert(name, ());
        }
        text.extend_from_slice(line);
    }
    (!found.is_empty()).then(|| (text, found.into_keys().collect()))
}

/// The setting that a line of a configuration file sets, in lower case: PostgreSQL takes any (`guc-file.l`).
fn setting_name(line: &[u8]) -> Option<String> {
    let line = line.trim_ascii_start();
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_$.".contains(byte);
    let length = line.iter().position(|byte| !is_name(byte)).unwrap_or(line.len());
    (length > 0).then(|| String::from_utf8_lossy(&line[..length]).to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_scrubbed_and_ours_stand_last_and_quoted() {
        let old = b"# Do not edit this file manually!\nwork_mem = '64MB'\nRestore_Command = 'cp old'\n\
            primary_conninfo = 'host=live password=hush'\nprimary_slot_name='x'\narchive_command = 'push'\n\
            recovery_target_time = 'yesterday'\nmax_connections = '7'\nlc_messages = '\xe9'";
        let settings = [("restore_command", r"it's C:\x %f"), ("max_connections", "100")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let new = auto_conf(old, &settings);
        let expected = b"# Do not edit this file manually!\nwork_mem = '64MB'\nlc_messages = '\xe9'\n\
            # Written by seawall restore.\nrestore_command = 'it''s C:\\\\x %f'\nmax_connections = '100'\n";
        assert_eq!(String::from_utf8_lossy(&new), String::from_utf8_lossy(expected));
    }

    #[test]
    fn what_leads_to_the_live_cluster_is_disarmed() {
        let old = b"port = 5433\n  Data_Directory='/var/lib/live'\n#data_directory = 'x'\nrecovery_target_xid 5\n";
        let (new, found) = disarm(old).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&new),
            "port = 5433\n#seawall restore:   Data_Directory='/var/lib/live'\n#data_directory = 'x'\n\
             #seawall restore: recovery_target_xid 5\n"
        );
        assert_eq!(found, ["data_directory", "recovery_target_xid"]);
        assert_eq!(disarm(b"port = 5433\n"), None);
    }
}
