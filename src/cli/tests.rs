//! What can be typed, and what cannot.

use super::*;

fn parsed(line: &str) -> Result<Cli, clap::Error> {
    parse(line.split(' ').map(OsString::from))
}

fn restore(line: &str) -> Result<RestoreArgs, clap::Error> {
    match parsed(&format!("seawall restore --into /x {line}").trim().replace("  ", " "))?.command {
        Command::Restore(args) => Ok(args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

#[test]
fn every_command_has_examples() {
    let with: Vec<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
    for sub in Cli::command().get_subcommands() {
        assert!(with.contains(&sub.get_name()), "{} has no examples", sub.get_name());
    }
}

#[test]
fn no_line_of_an_example_is_wrapped() {
    let texts = EXAMPLES.iter().map(|(_, text)| *text).chain([FIRST_STEPS]);
    for line in texts.flat_map(str::lines) {
        assert!(line.len() <= 100, "{line}");
    }
}

#[test]
fn a_restore_has_one_target_at_most() {
    assert_eq!(restore("").map(|args| args.target.target()).expect("no target"), Target::End);
    assert_eq!(restore("--to-end").map(|args| args.target.target()).expect("end"), Target::End);
    assert_eq!(restore("--to now").map(|args| args.target.target()).expect("time"), Target::Time("now".to_owned()));
    assert_eq!(restore("--to-lsn 0/1F").map(|args| args.target.target()).expect("lsn"), Target::Lsn(Lsn(0x1F)));
    assert_eq!(restore("--to-xid 7").map(|args| args.target.target()).expect("xid"), Target::Xid(7));
    assert_eq!(restore("--to-name a").map(|args| args.target.target()).expect("name"), Target::Name("a".to_owned()));
    for line in ["--to now --to-lsn 0/1", "--to-xid 7 --to-end", "--to-name a --to-xid 7", "--to now --to now"] {
        assert!(restore(line).is_err(), "{line} was taken");
    }
}

#[test]
fn to_exclusive_needs_a_target_that_has_a_before() {
    assert!(restore("--to-lsn 0/1F --to-exclusive").expect("an LSN").target.to_exclusive);
    for line in ["--to-exclusive", "--to-end --to-exclusive", "--to-name a --to-exclusive"] {
        assert!(restore(line).is_err(), "{line} was taken");
    }
}

#[test]
fn a_standby_has_no_target() {
    assert!(restore("--standby").expect("a standby").standby);
    for line in ["--to now", "--to-end", "--to-lsn 0/1F", "--timeline 2", "--target-action pause"] {
        assert!(restore(&format!("--standby {line}")).is_err(), "{line} was taken");
    }
}

#[test]
fn restore_refuses_values_that_cannot_be() {
    for line in ["--timeline 0", "--to-lsn 12", "--to-xid -1", "--target-action stop", "--tablespace-map /a"] {
        assert!(restore(line).is_err(), "{line} was taken");
    }
}

#[test]
fn a_tablespace_map_is_two_absolute_paths() {
    let map = |old: &str, new: &str| TablespaceMap { old: old.into(), new: new.into() };
    assert_eq!(parse_tablespace_map("/a/b=/c"), Ok(map("/a/b", "/c")));
    assert_eq!(parse_tablespace_map("/a\\=1=/c\\d"), Ok(map("/a=1", "/c\\d")));
    for text in ["", "=", "/a", "/a=", "a=/b", "/a=b", "/a=/b=/c"] {
        assert!(parse_tablespace_map(text).is_err(), "{text:?} was taken");
    }
}

#[test]
fn a_rate_is_read_as_by_pg_basebackup() {
    for (text, kib) in [("32", 32), ("800k", 800), ("50M", 51_200), ("1024M", 1_048_576)] {
        assert_eq!(parse_rate(text), Ok(kib), "{text}");
    }
    for text in ["", "k", "31", "1025M", "-1", "1.5M", "50MB", "4294967295M", "10G"] {
        assert!(parse_rate(text).is_err(), "{text:?} was taken");
    }
}

#[test]
fn a_size_has_the_units_of_settings_or_their_first_letter() {
    for (text, bytes) in
        [("8192", 8192), ("100k", 102_400), ("100kB", 102_400), ("1M", 1 << 20), ("1MB", 1 << 20), ("2GB", 2 << 30)]
    {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for text in ["", "B", "MB", "-1", "1.5M", "1KB", "1mb", "1TB", "99999999999G"] {
        assert!(parse_bytes(text).is_err(), "{text:?} was taken");
    }
}

#[test]
fn what_is_for_everywhere_is_taken_before_and_behind_the_command() {
    for line in ["seawall --cluster a list --json", "seawall list --json --cluster a"] {
        let cli = parsed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(cli.common.cluster.as_deref(), Some("a"));
        assert!(cli.command.json());
    }
}
