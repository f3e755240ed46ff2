//! What a throwaway server on a restored cluster is started with.
//!
//! The cluster's own `postgresql.conf` is not read: on Debian the backup has none, elsewhere it names libraries, certificates,
//! files and memory that this machine need not have. `postgresql.auto.conf` cannot be left out, and has what recovery
//! needs; what `ALTER SYSTEM` put beside that is beaten by the command line, which these settings become.

/// Small, and for this machine. The caller's settings beat these.
const MODEST: [(&str, &str); 10] = [
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
    ("jit", "off"),
    ("autovacuum", "off"),
    // Not installed here, perhaps; and a library may act by itself: start workers, run jobs, call home.
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("temp_tablespaces", ""),
    ("statement_timeout", "0"),
    ("default_transaction_read_only", "off"),
];

/// What keeps it from reaching out of its directory, and from waiting for others. Nothing beats these.
const GUARDS: [(&str, &str); 13] = [
    ("listen_addresses", ""),
    ("unix_socket_group", ""),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("primary_conninfo", ""),
    // Once it is promoted, its subscriptions would connect to their publishers and take what is the source's.
    ("max_logical_replication_workers", "0"),
    ("synchronous_standby_names", ""),
    // What follows is needed for it to start and to answer.
    ("hot_standby", "on"),
    ("wal_level", "replica"),
    ("logging_collector", "off"),
    ("ssl", "off"),
];

/// Where the server's files are and what its recovery does: this restore's, and nobody's to change. So is every setting whose
/// name begins with `recovery_target`.
const OURS: [&str; 8] = [
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "port",
    "restore_command",
    "unix_socket_directories",
];

/// True for the name of a setting that no caller may set, in any way that the command line takes it: letters of either case,
/// `-` for `_` (`guc.c`, `guc_name_compare` and `ParseLongOption`).
pub fn is_ours(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    name.starts_with("recovery_target") || OURS.contains(&name.as_str())
}

/// The settings of a server of this major version; `wanted` by the caller.
pub(super) fn settings(version: u32, wanted: Vec<(String, String)>, has_in_place: bool) -> Vec<(String, String)> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let mut settings: Vec<(String, String)> = MODEST.map(owned).into();
    let mut set = |since: u32, name: &str, value: &str| {
        if version >= since {
            settings.push((name.to_owned(), value.to_owned()));
        }
    };
    set(14, "min_dynamic_shared_memory", "0");
    set(17, "summarize_wal", "off");
    set(17, "event_triggers", "off");
    // The others need what the machine, or its container, may not give.
    set(18, "io_method", "worker");
    settings.extend(wanted);
    settings.extend(GUARDS.map(owned));
    if version >= 17 {
        // It wants `wal_level = logical`, and a primary to ask.
        settings.push(owned(("sync_replication_slots", "off")));
    }
    if version <= 14 {
        // May lead elsewhere, and was taken out in 15.
        settings.push(owned(("stats_temp_directory", "pg_stat_tmp")));
    }
    if has_in_place {
        // Or recovery ends where it finds a directory among the links to tablespaces (`CheckTablespaceDirectory`).
        settings.push(owned(("allow_in_place_tablespaces", "on")));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_beats_what_is_modest_and_nothing_beats_the_guards() {
        let wanted = [
            ("shared_buffers", "1GB"),
            ("listen_addresses", "*"),
            ("archive_mode", "on"),
            ("sync_replication_slots", "on"),
        ];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = settings(17, wanted.into(), true);
        // The last one on the command line counts.
        let value = |of: &str| settings.iter().rfind(|(name, _)| name == of).map(|(_, value)| value.as_str());
        assert_eq!(value("shared_buffers"), Some("1GB"));
        assert_eq!((value("listen_addresses"), value("archive_mode")), (Some(""), Some("off")));
        assert_eq!(value("sync_replication_slots"), Some("off"));
        assert_eq!((value("io_method"), value("allow_in_place_tablespaces")), (None, Some("on")));
    }

    #[test]
    fn places_and_what_recovery_does_are_ours_however_they_are_written() {
        for name in ["restore_command", "Restore_Command", "data-directory", "recovery_target_lsn", "recovery_target"] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["shared_buffers", "recovery_prefetch", "port_of_call", ""] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
