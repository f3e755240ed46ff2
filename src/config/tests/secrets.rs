//! Secrets that are said in one of three ways, sections of many clusters that are judged alone, and what they take back.

use super::*;

/// Where the secret of a setting is.
fn source(settings: &Settings, setting: &str) -> Option<Source> {
    settings.secrets().find(|secret| secret.setting() == setting).map(|secret| secret.source().clone())
}

fn command(words: &[&str]) -> Option<Source> {
    Some(Source::Command(words.iter().map(|word| (*word).to_owned()).collect()))
}

/// A file with this setting in it.
fn file_with(setting: &str, suffix: &str, value: &str) -> String {
    match setting.split_once('.') {
        Some((section, name)) => format!("[{section}]\n{name}{suffix} = {value}\n"),
        None => format!("{setting}{suffix} = {value}\n"),
    }
}

#[test]
fn every_secret_is_said_in_one_of_three_ways_and_by_variables_too() {
    let secret = keys().filter(|key| key.written == Written::Secret).collect::<Vec<_>>();
    assert_eq!(secret.len(), 6, "every one of them, and those alone");
    let load = |text: &str| Place::new().with_file(text, 0o600).load_without_checks();
    for key in &secret {
        let said = |suffix, value: &str| source(&load(&file_with(key.name, suffix, value)), key.name);
        assert!(said("", "\"s3cret\"") == Some(Source::Given("s3cret".to_owned())), "{}", key.name);
        assert!(said("_file", "\"/run/s\"") == Some(Source::File("/run/s".into())), "{}", key.name);
        assert!(said("_command", "\"a 'b c'\"") == command(&["a", "b c"]), "{}", key.name);
        assert!(said("_command", "[\"a\", \"b c\"]") == command(&["a", "b c"]), "{}", key.name);
        let variable = key.variable.expect("a secret has a variable");
        for (suffix, value, is) in [
            ("", "s3cret", Some(Source::Given("s3cret".to_owned()))),
            ("_FILE", "/run/s", Some(Source::File("/run/s".into()))),
            ("_COMMAND", "a 'b c'", command(&["a", "b c"])),
        ] {
            // It beats what the file says in another way
            let mut place = Place::new().with_file(&file_with(key.name, "_file", "\"/other\""), 0o600);
            place.variables.insert(format!("{variable}{suffix}").leak(), value.to_owned());
            assert!(source(&place.load_without_checks(), key.name) == is, "{variable}{suffix}");
        }
    }
}

impl Place {
    /// Half of a key is none, and is refused in the end: here it is as good as a whole one.
    fn load_without_checks(&self) -> Settings {
        let mut place =
            Place { directory: tempfile::tempdir().expect("a directory"), variables: self.variables.clone() };
        for half in ["SEAWALL_S3_ACCESS_KEY_ID", "SEAWALL_S3_SECRET_ACCESS_KEY"] {
            let text = std::fs::read_to_string(self.file()).expect("the file");
            let name = half.trim_start_matches("SEAWALL_S3_").to_lowercase();
            if !text.contains(&name) && text.contains("[s3]") {
                place.variables.insert(half, "other".to_owned());
            }
        }
        let text = std::fs::read_to_string(self.file()).expect("the file");
        place.with_file(&text, 0o600).load("seawall --config FILE run").expect(&text)
    }
}

#[test]
fn a_secret_that_is_said_twice_or_cannot_be_is_refused_where_it_stands() {
    for (text, says) in [
        ("password = \"s3cret\"\npassword_file = \"/f\"", "line 2: password_file and password say the same"),
        ("password_command = \"a\"\npassword_file = \"/f\"", "password_file and password_command say the same"),
        (
            "[cluster.a]\npassword = \"s3cret\"\npassword_file = \"/f\"",
            "cluster.a.password_file and cluster.a.password say",
        ),
        ("password = \"\"", "is empty"),
        ("password_file = \"\"", "is empty"),
        ("password_command = \"\"", "is empty"),
        ("password_file = \"secrets/password\"", "password_file is a path that does not begin with a slash"),
        ("password_command = \"./give\"", "names a program by a path that does not begin with a slash"),
        ("password_command = [\"bin/give\"]", "names a program by a path that does not begin with a slash"),
        ("password_command = []", "is empty"),
        ("password_command = [\"\"]", "is empty"),
        ("password_command = [7]", "wrong type"),
        ("password_file = [\"/f\"]", "wrong type"),
        ("password = [\"s3cret\"]", "wrong type"),
        ("password_command = \"echo s3cret | cat\"", "needs a shell"),
        ("password = \"s3cret\\n\"", "control characters"),
        ("pasword_file = \"/f\"", "Is password meant?"),
        ("repo_file = \"/f\"", "there is no setting repo_file"),
        ("password_files = \"s3cret\"", "there is no setting password_files"),
        ("pg = \"password=s3cret\"\npassword_file = \"/f\"", "pg has a password in it"),
        ("[s3]\naccess_key_id = \"AKIA\"", "only one is given"),
        ("[s3]\nsecret_access_key_file = \"/f\"", "only one is given"),
    ] {
        let error = Place::new().with_file(text, 0o600).refusal("seawall --config FILE run");
        let said = format!("{error:?} {error} {}", error.hint_text().unwrap_or_default());
        assert!(error.kind() == Kind::Config && said.contains(says), "{text:?}: {said}");
        assert!(!said.contains("s3cret"), "{text:?}: {said}");
    }
    let place = Place::new().with_variable("SEAWALL_PASSWORD", "s3cret").with_variable("SEAWALL_PASSWORD_FILE", "/f");
    let error = place.refusal("seawall run");
    assert!(error.to_string().starts_with("SEAWALL_PASSWORD and SEAWALL_PASSWORD_FILE say the same"), "{error}");
    let error = Place::new().with_variable("SEAWALL_PASSWORD_FILE", "s").refusal("seawall run");
    assert!(error.to_string().starts_with("SEAWALL_PASSWORD_FILE is a path that does not begin"), "{error}");
    let place = Place::new().with_variable("SEAWALL_PASSWORD_COMMAND", "echo $s3cret");
    let error = place.refusal("seawall run");
    assert!(error.to_string().starts_with("SEAWALL_PASSWORD_COMMAND needs a shell"), "{error}");
}

#[test]
fn who_may_read_the_file_matters_where_a_secret_stands_in_it() {
    let open = |text: &str| Place::new().with_file(text, 0o644).load("seawall --config FILE --cluster a run");
    for text in ["password = \"s3cret\"\n", "[s3]\naccess_key_id = \"AKIA\"\nsecret_access_key = \"s3cret\"\n"] {
        let error = open(text).expect_err(text);
        assert!(
            error.hint_text().is_some_and(|hint| hint.contains("chmod 600") && hint.contains("_file")),
            "{error:?}"
        );
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    // Not where it says where they are, nor for the half of a key that may be seen
    let elsewhere = "password_command = [\"pass\"]\n[s3]\naccess_key_id = \"AKIA\"\nsecret_access_key_file = \"/f\"\n";
    let settings = open(elsewhere).expect("no secret is in it");
    assert!(!format!("{settings:?} {:?}", settings.store).contains("AKIA"));
    // And another cluster's secret is one too
    assert!(open("[cluster.a]\n[cluster.b]\npassword = \"s3cret\"\n").is_err());
}

#[test]
fn each_cluster_has_its_own_secret_or_the_one_of_all() {
    let text = "password_file = \"/all\"\n[cluster.a]\n[cluster.b]\npassword_command = \"b\"\n[cluster.c]\nunset = [\"password\"]\n";
    let all = Place::new().with_file(text, 0o644).load_all("seawall --config FILE run").expect("three");
    let sources: Vec<Option<Source>> = all.iter().map(|settings| source(settings, "password")).collect();
    assert!(sources == [Some(Source::File("/all".into())), command(&["b"]), None], "{sources:?}");
}

#[test]
fn a_mistake_in_another_clusters_section_is_nobody_elses_concern() {
    for mistake in
        ["solt = \"x\"", "slot = 7", "slot = \"A\"", "password = \"x\"\npassword_file = \"y\"", "s3.kms_key = \"k\""]
    {
        let text = format!("slot = \"all\"\n[cluster.a]\nslot = \"a\"\n[cluster.b]\n{mistake}\n");
        let place = Place::new().with_file(&text, 0o600);
        assert_eq!(place.load("seawall list --config FILE --cluster a").expect("its own is right").slot, "a");
        for line in ["seawall run --config FILE", "seawall list --config FILE --cluster b"] {
            assert_eq!(place.load_all(line).expect_err(mistake).kind(), Kind::Config, "{mistake}: {line}");
        }
    }
    // What is wrong for all is wrong for each
    let place = Place::new().with_file("solt = \"x\"\n[cluster.a]\n[cluster.b]\n", 0o600);
    assert!(place.load("seawall list --config FILE --cluster a").is_err());
}

#[test]
fn a_section_takes_back_what_is_said_of_all() {
    let text = "slot = \"all\"\n[schedule]\ndrill = \"0 3 * * *\"\nfull = \"0 2 * * *\"\n[s3]\nsse = \"aws:kms\"\nkms_key = \"k\"\n\
                object_lock_days = \"9\"\n[cluster.a]\n[cluster.b]\nslot = \"b\"\n\
                unset = [\"schedule.drill\", \"s3.kms_key\", \"s3.sse\", \"s3.object_lock_days\", \"slot\"]\n";
    let all = Place::new().with_file(text, 0o644).load_all("seawall --config FILE run").expect("two");
    let [a, b] = &all[..] else { panic!("{} clusters", all.len()) };
    assert!(a.store.s3.kms_key.is_some() && b.store.s3.kms_key.is_none() && b.store.s3.sse.is_none());
    assert_eq!((a.schedule.jobs.len(), b.schedule.jobs.len()), (2, 1));
    assert_eq!((a.store.s3.lock.days, b.store.s3.lock.days), (9, 30), "the default holds again");
    assert_eq!(b.slot, "b", "what the section itself says holds");
    assert!(!b.given.contains_key("schedule.drill"));
    for bad in ["\"schedule.drill\"", "[7]", "[\"schedule.dril\"]", "[\"run.listen\"]", "[\"schedule\"]"] {
        let text = format!("[cluster.a]\nunset = {bad}\n");
        let error = Place::new().with_file(&text, 0o644).load_all("seawall --config FILE run").expect_err(bad);
        assert!(error.kind() == Kind::Config && error.to_string().contains("cluster.a.unset"), "{bad}: {error}");
    }
}
