//! Clusters of one configuration that would get in each other's way, as far as the configuration says it. What only the servers know is
//! found when they are reached (`archive::Claims`).

use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::postgres::ConnInfo;
use crate::store::place_of;

/// Where one cluster's WAL comes from, and goes.
struct Way<'a> {
    cluster: &'a str,
    slot: &'a str,
    servers: Vec<String>,
    repository: String,
    folder: String,
}

impl Way<'_> {
    fn of<'a>(settings: &'a Settings, variable: &dyn Fn(&str) -> Option<String>) -> Result<Way<'a>> {
        let info = ConnInfo::parse(&settings.pg, variable)?;
        let repository = place_of(settings.repo()?, &settings.store.s3, variable)?;
        let folder = format!("{repository}{}/", settings.cluster);
        let (cluster, slot) = (settings.cluster.as_str(), settings.slot.as_str());
        Ok(Way { cluster, slot, servers: info.servers(), repository, folder })
    }
}

/// Compares all with all.
///
/// # Errors
/// Of kind `Config`, if two of them use one slot of one server, or archive one server into one repository, or one has its folder
/// within the other's; or if one of them has no server or repository that can be meant.
pub(super) fn check(all: &[Settings], variable: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    if all.len() < 2 {
        return Ok(());
    }
    let mut ways: Vec<Way<'_>> = Vec::new();
    for settings in all {
        let of_it = |error: Error| error.context(format!("cluster {}", settings.cluster));
        let way = Way::of(settings, variable).map_err(of_it)?;
        for other in &ways {
            compare(other, &way)?;
        }
        ways.push(way);
    }
    Ok(())
}

fn compare(one: &Way<'_>, other: &Way<'_>) -> Result<()> {
    let clash = |what: String, hint: &str| {
        Err(Error::new(Kind::Config, format!("clusters {} and {} {what}", one.cluster, other.cluster)).hint(hint))
    };
    if one.folder.starts_with(&other.folder) || other.folder.starts_with(&one.folder) {
        return clash(
            "have their folders within each other in the repository".to_owned(),
            "Give both the same repo, or one that is beside the other's.",
        );
    }
    let Some(server) = one.servers.iter().find(|server| other.servers.contains(server)) else { return Ok(()) };
    if one.slot == other.slot {
        return clash(
            format!("stream from the same server, {server}, with the same slot"),
            "Give each its own server (pg), or its own slot where one server is archived twice.",
        );
    }
    if one.repository == other.repository {
        return clash(
            format!("archive the same server, {server}, into the same repository"),
            "Take one of the two out, or give it a repo of its own.",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;
    use std::ffi::OsString;

    fn checked(text: &str) -> Result<()> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seawall.toml");
        std::fs::write(&path, text).unwrap();
        let line = ["seawall", "run", "--config"].map(OsString::from).into_iter().chain([path.into()]);
        let all = Settings::load_all(&cli::parse(line).unwrap(), &|_| None).unwrap();
        let variables = [("PGHOST", "db"), ("AWS_ENDPOINT_URL", "http://minio:9000")];
        check(&all, &|name| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn clusters_that_get_in_each_others_way_are_refused() {
        for (text, says) in [
            ("[cluster.a]\npg = \"host=x\"\n[cluster.b]\npg = \"host=x port=5432\"\n", "the same slot"),
            ("[cluster.a]\n[cluster.b]\npg = \"host=y,db\"\n", "the same slot"),
            ("[cluster.a]\npg = \"host=x\"\n[cluster.b]\npg = \"host=x\"\nslot = \"b\"\n", "into the same repository"),
            (
                "[cluster.a]\npg = \"host=x\"\n[cluster.b]\npg = \"host=y\"\nrepo = \"file:///r/a\"\n",
                "within each other",
            ),
            (
                "[cluster.a]\npg = \"host=x\"\nrepo = \"s3://b/a\"\n[cluster.b]\npg = \"host=y\"\nrepo = \"s3://b/a/a\"\n\
                 s3.endpoint = \"http://minio:9000/\"\n",
                "within each other",
            ),
            ("[cluster.a]\npg = \"host=x\"\n[cluster.b]\npg = \"host=y nonsense\"\n", "cluster b"),
        ] {
            let error = checked(&format!("repo = \"file:///r\"\n{text}")).unwrap_err();
            assert!(error.kind() == Kind::Config && error.to_string().contains(says), "{text}: {error}");
        }
        assert!(
            checked("[cluster.a]\npg = \"host=x\"\n[cluster.b]\npg = \"host=y\"\n").is_err(),
            "there is no repository"
        );
    }

    #[test]
    fn clusters_that_do_not_are_taken() {
        for text in [
            "",
            "[cluster.a]\npg = \"host=x\"\n[cluster.ab]\npg = \"host=y\"\n",
            "[cluster.a]\npg = \"host=x\"\n[cluster.b]\npg = \"host=x port=5433\"\n",
            "[cluster.a]\npg = \"host=x\"\n[cluster.b]\npg = \"host=x\"\nslot = \"b\"\nrepo = \"file:///elsewhere\"\n",
        ] {
            checked(&format!("repo = \"file:///r/\"\n{text}")).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }
}
