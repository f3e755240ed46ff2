//! What the settings take and refuse, from wherever they are said.

mod secrets;

use super::file::FILE_BYTES_MAX;
use super::*;
use crate::cli;
use crate::store::{Checksum, Conditional, LockMode};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

struct Place {
    directory: tempfile::TempDir,
    variables: BTreeMap<&'static str, String>,
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::tempdir().expect("a directory"), variables: BTreeMap::new() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("seawall.toml")
    }

    fn with_file(self, text: &str, mode: u32) -> Place {
        std::fs::write(self.file(), text).expect("write the file");
        std::fs::set_permissions(self.file(), std::fs::Permissions::from_mode(mode)).expect("set its rights");
        self
    }

    fn with_variable(mut self, name: &'static str, value: &str) -> Place {
        self.variables.insert(name, value.to_owned());
        self
    }

    fn load(&self, line: &str) -> Result<Settings> {
        let line = line.replace("FILE", &self.file().display().to_string());
        let cli = cli::parse(line.split(' ').map(OsString::from)).unwrap_or_else(|error| panic!("{line}: {error}"));
        Settings::load(&cli, &|name| self.variables.get(name).map(OsString::from))
    }

    fn load_all(&self, line: &str) -> Result<Vec<Settings>> {
        let line = line.replace("FILE", &self.file().display().to_string());
        let cli = cli::parse(line.split(' ').map(OsString::from)).unwrap_or_else(|error| panic!("{line}: {error}"));
        Settings::load_all(&cli, &|name| self.variables.get(name).map(OsString::from))
    }

    fn refusal(&self, line: &str) -> Error {
        match self.load(line) {
            Ok(settings) => panic!("taken: {settings:?}"),
            Err(error) => error,
        }
    }
}

#[test]
fn without_a_word_the_defaults_hold() {
    let settings = Place::new().load("seawall run").expect("defaults");
    assert_eq!((settings.cluster.as_str(), settings.slot.as_str(), settings.pg.as_str()), ("main", "seawall", ""));
    assert_eq!(settings.run.flush_interval, Duration::from_millis(500));
    assert_eq!(settings.run.listen, Some(SocketAddr::from(([127, 0, 0, 1], 8432))));
    assert_eq!(settings.store.s3.conditional_writes, Conditional::Header);
    assert_eq!(settings.store.s3.checksum, Checksum::Crc32c);
    let error = settings.repo().expect_err("there is none");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("SEAWALL_REPO")), "{error:?}");
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let place = Place::new().with_file("cluster = \"file\"", 0o644);
    assert_eq!(place.load("seawall --config FILE list").expect("file").cluster, "file");
    let place = place.with_variable("SEAWALL_CLUSTER", "variable");
    assert_eq!(place.load("seawall --config FILE list").expect("variable").cluster, "variable");
    assert_eq!(place.load("seawall --config FILE --cluster flag list").expect("flag").cluster, "flag");
    let place = place.with_variable("SEAWALL_CLUSTER", "");
    assert_eq!(place.load("seawall --config FILE list").expect("empty is not set").cluster, "file");
}

#[test]
fn the_file_is_found_by_the_variable_too() {
    let place = Place::new().with_file("repo = \"file:///r\"", 0o644);
    let path = place.file().display().to_string();
    let place = place.with_variable("SEAWALL_CONFIG", &path);
    let settings = place.load("seawall list").expect("the file");
    assert_eq!(settings.repo().expect("a repository"), "file:///r");
    assert_eq!(settings.file, Some(place.file()));
}

#[test]
fn every_key_can_be_written_as_its_example() {
    let mut text = String::new();
    let mut section = "";
    for key in keys() {
        let (place, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if place != section {
            section = place;
            text.push_str(&format!("[{place}]\n"));
        }
        text.push_str(&match key.written {
            Written::Tables => format!("{}\n", key.example),
            _ => format!("{name} = {}\n", key.example),
        });
    }
    // Two that exclude each other: a lock needs a checksum.
    let text = text.replace("checksum = \"off\"\n", "");
    let settings = Place::new().with_file(&text, 0o600).load("seawall --config FILE run").expect(&text);
    assert_eq!(settings.store.s3.sse, Some(ServerSideEncryption::Kms));
    assert_eq!(settings.store.s3.path_style, Some(true));
    assert_eq!(settings.store.s3.conditional_writes, Conditional::Head);
    assert_eq!(settings.log_format, LogFormat::Json);
    assert_eq!((settings.drill.checks.len(), settings.drill.settings.len()), (1, 2));
}

#[test]
fn a_drill_has_checks_with_names_of_their_own() {
    let one = |name: &str| format!("[[drill.check]]\nname = \"{name}\"\nsql = \"SELECT true\"\n");
    let load = |text: &str| Place::new().with_file(text, 0o644).load("seawall --config FILE drill");
    let checks = load(&(one("a") + &one("b"))).expect("two").drill.checks;
    assert_eq!((checks.len(), checks[0].database.as_str(), checks[1].name.as_str()), (2, "postgres", "b"));
    for (text, says) in [
        (one("a") + &one("a"), "taken"),
        (one("amcheck"), "one of the drill's own"),
        (one("a") + "databse = \"x\"\n", "databse"),
        ("[[drill.check]]\nname = \"a\"\n".to_owned(), "sql"),
        ("[[drill.check]]\nname = 7\nsql = \"\"\n".to_owned(), "wrong type"),
        ("[drill.check]\nname = \"a\"\n".to_owned(), "wrong type"),
        ("[drill]\nsettings = [\"jit\"]\n".to_owned(), "not name=value"),
        ("[drill]\nsettings = [\"jit=on\", \"data_directory=/srv\"]\n".to_owned(), "data_directory in it"),
        ("[drill]\nsettings = [\"Restore-Command=true\"]\n".to_owned(), "the drill's own"),
        ("[drill]\nsettings = [\"recovery_target_xid=7\"]\n".to_owned(), "the drill's own"),
        ("[drill]\nrto = \"soon\"\n".to_owned(), "length of time"),
    ] {
        let error = load(&text).expect_err(&text);
        assert_eq!(error.kind(), Kind::Config, "{text}: {error}");
        assert!(error.to_string().contains(says) && error.to_string().contains("line "), "{text}: {error}");
    }
}

#[test]
fn a_key_that_does_not_exist_is_refused_with_the_nearest() {
    for (text, line, nearest) in [
        ("clutser = \"a\"", 1, "Is cluster meant?"),
        ("\n[run]\nflush_intervall = \"1s\"", 3, "Is run.flush_interval meant?"),
        ("flush_interval = \"1s\"", 1, "under [run]"),
        ("[s33]\nregion = \"a\"", 2, "Is s3.region meant?"),
        ("[wombat]\n", 1, "docs/configuration.md"),
        ("[run.listen.deep]\na = 1", 1, ""),
    ] {
        let error = Place::new().with_file(text, 0o644).refusal("seawall --config FILE run");
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains(&format!("line {line}")), "{text:?}: {error:?}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains(nearest)), "{text:?}: {error:?}");
    }
    Place::new().with_file("[run]\n[s3]\n", 0o644).load("seawall --config FILE run").expect("empty sections");
}

#[test]
fn a_value_that_cannot_be_is_refused_where_it_stands() {
    for text in [
        "cluster = \"\"",
        "cluster = \"a/b\"",
        "cluster = \"über\"",
        "cluster = 7",
        "slot = \"Seawall\"",
        "repo = \"\"",
        "log_format = \"xml\"",
        "run = 7",
        "[run]\nflush_interval = 500",
        "[run]\nflush_interval = \"500\"",
        "[run]\nflush_interval = \"-1s\"",
        "[run]\nflush_interval = \"2 weeks\"",
        "[run]\nflush_interval = \"2h\"",
        "[run]\nlisten = \"8432\"",
        "[run]\nlisten = \"localhost:8432\"",
        "[s3]\npath_style = \"true\"",
        "[s3]\nsse = \"kms\"",
        "[s3]\nendpoint = \"minio:9000\"",
        "[s3]\nregion = \"a b\"",
        "[s3]\nconditional_writes = \"no\"",
        "[s3]\nchecksum = \"md5\"",
        "cluster = \"a\"\ncluster = \"b\"",
        "cluster",
    ] {
        let error = Place::new().with_file(text, 0o644).refusal("seawall --config FILE run");
        assert_eq!(error.kind(), Kind::Config, "{text:?}: {error:?}");
        assert!(error.to_string().contains("line "), "{text:?}: {error:?}");
    }
}

#[test]
fn a_bad_flag_is_a_matter_of_usage_and_is_named() {
    for line in ["--cluster a/b", "--listen here", "--flush-interval 5", "--slot A"] {
        let error = Place::new().refusal(&format!("seawall run {line}"));
        assert_eq!(error.kind(), Kind::Usage, "{error:?}");
        assert!(error.to_string().starts_with(line.split(' ').next().unwrap_or_default()), "{error:?}");
    }
    let error = Place::new().with_variable("SEAWALL_CLUSTER", "a/b").refusal("seawall list");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().starts_with("SEAWALL_CLUSTER"), "{error:?}");
}

#[test]
fn lengths_of_time_are_read() {
    for (text, length) in [
        ("0", Duration::ZERO),
        ("0s", Duration::ZERO),
        ("500ms", Duration::from_millis(500)),
        ("2s", Duration::from_secs(2)),
        ("15m", Duration::from_secs(900)),
        ("1h", Duration::from_secs(3600)),
        ("1.5s", Duration::from_millis(1500)),
    ] {
        let settings = Place::new().load(&format!("seawall run --flush-interval {text}")).expect(text);
        assert_eq!(settings.run.flush_interval, length, "{text}");
    }
}

#[test]
fn the_endpoint_can_be_off() {
    assert_eq!(Place::new().load("seawall run --listen off").expect("off").run.listen, None);
}

#[test]
fn a_password_in_a_file_that_others_may_read_is_refused() {
    let with = "pg = \"host=db password=s3cret\"";
    let uri = "pg = \"postgres://seawall:s3cret@db/x\"";
    for text in [with, uri, "pg = \"host=db password = 's3cret'\"", "pg = \"postgres://db/?password=s3cret\""] {
        let error = Place::new().with_file(text, 0o644).refusal("seawall --config FILE list");
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.hint_text().is_some_and(|hint| hint.contains("chmod 600")), "{error:?}");
        assert!(!format!("{error:?}").contains("s3cret"), "the password is in the message: {error:?}");
        let settings = Place::new().with_file(text, 0o600).load("seawall --config FILE list").expect("0600");
        assert!(!format!("{settings:?}").contains("s3cret"), "the password is in the settings' text");
    }
    let without = "pg = \"postgres://seawall@[::1]:5432/x?require_auth=password\"";
    Place::new().with_file(without, 0o644).load("seawall --config FILE list").expect("no password in it");
}

#[test]
fn no_message_quotes_the_line_with_the_password() {
    for text in ["pg = \"password=s3cret", "pg = password=s3cret", "pgg = \"password=s3cret\"", "pg = [\"s3cret\"]"] {
        let error = Place::new().with_file(text, 0o600).refusal("seawall --config FILE list");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_an_error() {
    let error = Place::new().refusal("seawall --config FILE list");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.hint_text().is_some(), "{error:?}");
    let place = Place::new();
    std::fs::write(place.file(), b"cluster = \"\xFF\"").expect("write");
    assert_eq!(place.refusal("seawall --config FILE list").kind(), Kind::Config);
    std::fs::write(place.file(), vec![b'#'; (FILE_BYTES_MAX + 1) as usize]).expect("write");
    assert_eq!(place.refusal("seawall --config FILE list").kind(), Kind::Config);
    // A directory.
    let place = Place::new();
    std::fs::create_dir(place.file()).expect("a directory");
    assert_eq!(place.refusal("seawall --config FILE list").kind(), Kind::Local);
}

#[test]
fn a_key_for_kms_needs_kms() {
    let text = "[s3]\nkms_key = \"k\"";
    assert_eq!(Place::new().with_file(text, 0o644).refusal("seawall --config FILE list").kind(), Kind::Config);
    let text = "[s3]\nkms_key = \"k\"\nsse = \"aws:kms\"";
    Place::new().with_file(text, 0o644).load("seawall --config FILE list").expect("both");
}

#[test]
fn what_is_kept_is_read_and_a_retention_that_keeps_nothing_is_refused() {
    use crate::retention::Period;
    let load = |text: &str| Place::new().with_file(text, 0o644).load("seawall prune --config FILE");
    // Given every rule, then all of them are there
    let text = "[retention]\nfull = \"4\"\nage = \"30d\"\nweekly = \"90\"\ndaily = \"30\"\nwal = \"2 weeks\"\n\
                minimum_window = \"36h\"\ntime_zone = \"Europe/Berlin\"\n";
    let policy = load(text).expect("a policy").retention;
    assert_eq!(policy.full, Some(4));
    assert_eq!(policy.age.map(|age| age.as_hours()), Some(30 * 24));
    assert_eq!(policy.calendar, [(Period::Day, 30), (Period::Week, 90)]);
    assert_eq!(policy.wal.map(|wal| wal.as_hours()), Some(14 * 24));
    assert_eq!(policy.minimum_window.as_hours(), 36);
    assert!(policy.zone.is_some());
    // And without any, the floor is a week, and no rule chooses
    let policy = load("").expect("no policy").retention;
    assert!(policy.minimum_window.as_hours() == 168 && !policy.chooses_backups());
    // What keeps nothing, or cannot be, is refused
    for text in ["full = \"0\"", "age = \"0d\"", "daily = \"0\"\nyearly = \"0\""] {
        let error = load(&format!("[retention]\n{text}\n")).expect_err("it keeps nothing");
        assert_eq!(error.kind(), Kind::Config, "{text}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("full = \"4\"")), "{error:?}");
    }
    for text in [
        "full = \"-1\"",
        "full = \"many\"",
        "age = \"a month\"",
        "minimum_window = \"23h\"",
        "wal = \"-3d\"",
        "time_zone = \"Mars\"",
    ] {
        assert_eq!(load(&format!("[retention]\n{text}\n")).expect_err("it cannot be").kind(), Kind::Config, "{text}");
    }
}

#[test]
fn the_example_of_everything_is_a_file_that_can_be_used_and_changes_nothing() {
    // Given the example as it is printed
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("seawall.toml");
    std::fs::write(&path, example()).unwrap();
    let cli = cli::parse(["seawall", "status", "--config", path.to_str().unwrap()].map(OsString::from));
    let settings = Settings::load(&cli.unwrap(), &|_| None).unwrap();
    // Then what it says is what holds without it
    assert!(settings.given == Settings::defaults().unwrap().given, "the example changes what holds");
    // And every setting in it can be taken in, by taking away the mark of a comment
    for key in keys() {
        let (_, name) = key.name.split_once('.').unwrap_or(("", key.name));
        let written = example()
            .lines()
            .any(|line| line.starts_with(&format!("#{name} = ")) || line.contains(&format!("#[[{}]]", key.name)));
        assert!(written, "{} is not in the example", key.name);
    }
}

#[test]
fn an_address_for_notifications_is_a_secret() {
    let text = "[notify]\nslack = \"https://hooks.example.org/T0/secret\"\n";
    // Given a file that others may read, it is refused; as a variable the same is taken
    let refused = Place::new().with_file(text, 0o644).refusal("seawall --config FILE run");
    assert!(refused.to_string().contains("notify.slack") && !refused.to_string().contains("secret"), "{refused}");
    Place::new().with_file(text, 0o600).load("seawall --config FILE run").expect("nobody else may read it");
    let place = Place::new().with_variable("SEAWALL_NOTIFY_SLACK", "https://hooks.example.org/T0/secret");
    let settings = place.load("seawall run").expect("a variable");
    // And nothing shows it
    assert!(!format!("{settings:?}").contains("T0/secret"));
    let refused =
        Place::new().with_file("[notify]\nslack = \"a secret\"\n", 0o600).refusal("seawall --config FILE run");
    assert!(!refused.to_string().contains("a secret"), "{refused}");
}

#[test]
fn a_lock_has_a_mode_and_days_and_needs_a_checksum() {
    let load = |text: &str| Place::new().with_file(text, 0o600).load("seawall --config FILE list");
    let lock = load("[s3]\nobject_lock_mode = \"governance\"").expect("a mode alone").store.s3.lock;
    assert_eq!((lock.mode, lock.days), (Some(LockMode::Governance), 30));
    assert!((lock.is_permanent)("main/wal/x") && !(lock.is_permanent)("main/open/x"));
    let lock = load("[s3]\nobject_lock_days = \"365\"").expect("days alone lock nothing").store.s3.lock;
    assert_eq!((lock.mode, lock.days), (None, 365));
    for bad in ["mode = \"strict\"", "days = \"0\"", "days = \"36501\"", "days = \"a month\""] {
        let error = load(&format!("[s3]\nobject_lock_{bad}")).expect_err(bad);
        assert_eq!(error.kind(), Kind::Config, "{bad}");
    }
    let error = load("[s3]\nchecksum = \"off\"\nobject_lock_mode = \"compliance\"").expect_err("no checksum");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("checksum")), "{error:?}");
}

/// A file for two clusters, of which one has nearly everything of its own.
const TWO: &str = "repo = \"file:///srv\"\n[run]\nflush_interval = \"1s\"\n[schedule]\nfull = \"0 2 * * *\"\n\
    [cluster.shop]\npg = \"host=shop\"\n\
    [cluster.mail]\npg = \"host=mail\"\nslot = \"two\"\nrepo = \"s3://b/p\"\nrun.flush_interval = \"2s\"\n\
    [cluster.mail.s3]\nregion = \"r\"\n[cluster.mail.retention]\nfull = \"4\"\n";

#[test]
fn each_cluster_has_what_is_said_of_all_and_what_is_said_of_it() {
    let all = Place::new().with_file(TWO, 0o644).load_all("seawall run --config FILE").expect("two");
    let [shop, mail] = &all[..] else { panic!("{} clusters", all.len()) };
    assert_eq!((shop.cluster.as_str(), shop.pg.as_str(), shop.slot.as_str()), ("shop", "host=shop", "seawall"));
    assert_eq!((mail.cluster.as_str(), mail.pg.as_str(), mail.slot.as_str()), ("mail", "host=mail", "two"));
    assert_eq!((shop.repo().unwrap(), mail.repo().unwrap()), ("file:///srv", "s3://b/p"));
    assert_eq!((shop.run.flush_interval.as_secs(), mail.run.flush_interval.as_secs()), (1, 2));
    assert_eq!((shop.retention.full, mail.retention.full), (None, Some(4)));
    assert!(shop.store.s3.region.is_none() && mail.store.s3.region.as_deref() == Some("r"));
    assert_eq!(shop.schedule, mail.schedule);
}

#[test]
fn a_cluster_need_not_have_what_all_have() {
    let text = "[schedule]\nfull = \"0 2 * * *\"\ndrill = \"0 3 * * *\"\n[cluster.a]\n[cluster.b]\nschedule.drill = \"never\"\n";
    let all = Place::new().with_file(text, 0o644).load_all("seawall run --config FILE").expect("two");
    let jobs: Vec<usize> = all.iter().map(|settings| settings.schedule.jobs.len()).collect();
    assert_eq!(jobs, [2, 1]);
}

#[test]
fn of_several_clusters_one_is_chosen_by_its_name() {
    let place = Place::new().with_file(TWO, 0o644);
    assert_eq!(place.load("seawall list --config FILE --cluster mail").expect("it").slot, "two");
    // Without a choice the names are told
    let error = place.refusal("seawall list --config FILE");
    assert!(
        error.kind() == Kind::Usage && error.hint_text().is_some_and(|hint| hint.contains("shop, mail")),
        "{error:?}"
    );
    let error = place.refusal("seawall list --config FILE --cluster shpo");
    assert!(
        error.kind() == Kind::Config && error.hint_text().is_some_and(|hint| hint.contains("shop, mail")),
        "{error:?}"
    );
    // The variable chooses too, and a flag beats it
    let place = place.with_variable("SEAWALL_CLUSTER", "mail");
    assert_eq!(place.load("seawall list --config FILE").expect("mail").cluster, "mail");
    assert_eq!(place.load("seawall list --config FILE --cluster shop").expect("shop").cluster, "shop");
}

#[test]
fn nothing_gives_several_clusters_the_same_server() {
    let place = Place::new().with_file(TWO, 0o644).with_variable("SEAWALL_PG", "host=other");
    for (line, kind) in
        [("seawall run --config FILE", Kind::Config), ("seawall run --config FILE --pg host=x", Kind::Config)]
    {
        let error = place.load_all(line).expect_err(line);
        assert!(error.kind() == kind && error.to_string().contains("SEAWALL_PG"), "{error:?}");
    }
    let place = Place::new().with_file(TWO, 0o644);
    assert_eq!(place.load_all("seawall run --config FILE --pg host=x").expect_err("a flag").kind(), Kind::Usage);
    // What is chosen has the server that was said
    assert_eq!(place.load("seawall run --config FILE --cluster shop --pg host=x").expect("one").pg, "host=x");
    // And a repository is one for all
    let place = place.with_variable("SEAWALL_REPO", "file:///other");
    let repos: Vec<_> =
        place.load_all("seawall run --config FILE").expect("two").into_iter().map(|it| it.repo).collect();
    assert_eq!(repos, [Some("file:///other".to_owned()), Some("file:///other".to_owned())]);
}

#[test]
fn what_is_wrong_in_a_clusters_section_is_refused_where_it_stands() {
    for (text, says) in [
        ("[cluster.a]\nsolt = \"x\"", "Is cluster.a.slot meant?"),
        ("[cluster.a.rnu]\nflush_intervall = \"1s\"", "Is cluster.a.run.flush_interval meant?"),
        ("[cluster.a]\nrun.listen = \"off\"", "whole process"),
        ("[cluster.a]\nlog_format = \"json\"", "whole process"),
        ("[cluster.a]\ncluster = \"b\"", "whole process"),
        ("[cluster.a]\nslot = 7", "wrong type"),
        ("[cluster.a]\nslot = \"A\"", "cluster.a.slot cannot be"),
        ("[cluster]\npg = \"host=a\"", "[cluster.NAME]"),
        ("[cluster.\"a/b\"]\n", "name of a cluster cannot be"),
        ("[cluster]\n", "wrong type"),
        ("[cluster.a.retention]\nfull = \"0\"\n[cluster.b]", "cluster a"),
    ] {
        let error = Place::new().with_file(text, 0o644).load_all("seawall run --config FILE").expect_err(text);
        let said = format!("{error} {}", error.hint_text().unwrap_or_default());
        assert!(error.kind() == Kind::Config && said.contains(says), "{text:?}: {said}");
    }
    // A secret is one in a section too, and above them if each has another
    for text in [
        "[cluster.a]\npg = \"host=a password=s3cret\"\n[cluster.b]\n",
        "pg = \"password=s3cret\"\n[cluster.a]\npg = \"\"\n",
    ] {
        let error = Place::new().with_file(text, 0o644).refusal("seawall list --config FILE --cluster a");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("chmod 600")), "{error:?}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

proptest::proptest! {
    /// Whatever stands in a file, it is taken or refused.
    #[test]
    fn no_file_makes_it_panic(
        pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "[cluster.a]\n", "[cluster.b]\n", "[cluster]\n", "[[cluster.a]]\n", "[cluster.a.s3]\n", "cluster.c.slot = \"x\"\n",
                "cluster = \"a\"\n", "slot = \"x\"\n", "[run]\n", "[cluster.a.run]\n", "flush_interval = \"1s\"\n", "pg = \"\"\n",
                "region = \"r\"\n", "a.b.c = 1\n", "[cluster.\"\"]\n", "cluster = {}\n", "cluster.a = {}\n", "=",
            ]),
            0..8,
        ),
    ) {
        let place = Place::new().with_file(&pieces.concat(), 0o600);
        if let Ok(all) = place.load_all("seawall run --config FILE") {
            assert!(!all.is_empty());
        }
    }
}
