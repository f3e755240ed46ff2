//! What of the settings can change while `run` streams: the configuration is read again, and what is for the archiver itself stays as
//! it was until it is started again.

use super::{Key, NotifySettings, RunSettings, Settings, Written, keys};
use crate::secret::Secret;

/// What became of reading it again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reloaded {
    /// Settings that hold from now on.
    pub applied: Vec<&'static str>,
    /// Settings that were changed, and hold when `run` is started again.
    pub at_the_next_start: Vec<&'static str>,
}

impl Key {
    /// True if `run` takes it up on SIGHUP.
    pub fn is_reloadable(&self) -> bool {
        let section = self.name.split_once('.').map_or("", |(section, _)| section);
        let is_reloadable =
            ["schedule", "retention", "drill"].contains(&section) || self.name == "run.backup_after_gap";
        is_reloadable && !self.is_of_process()
    }

    /// True if one of many clusters does not take it up when it begins again, but with the next process: whoever notifies goes on.
    fn outlasts_a_cluster(&self) -> bool {
        self.is_of_process() || (self.name.starts_with("notify.") && self.written == Written::Secret)
    }
}

impl Settings {
    /// These settings with what of `new` can be taken up.
    pub fn reload(&self, new: Settings) -> (Settings, Reloaded) {
        let mut reloaded = Reloaded::default();
        let mut given = self.given.clone();
        for key in keys() {
            let (before, now) = (self.given.get(key.name), new.given.get(key.name));
            if before.map(|given| &given.text) == now.map(|given| &given.text) {
                continue;
            }
            if !key.is_reloadable() {
                reloaded.at_the_next_start.push(key.name);
                continue;
            }
            reloaded.applied.push(key.name);
            match now {
                Some(now) => _ = given.insert(key.name, now.clone()),
                None => _ = given.remove(key.name),
            }
        }
        let run = RunSettings { backup_after_gap: new.run.backup_after_gap, ..self.run.clone() };
        let (schedule, retention, drill) = (new.schedule, new.retention, new.drill);
        (Settings { given, run, schedule, retention, drill, ..self.clone() }, reloaded)
    }

    /// These settings, with the secrets of `before` that are where these have them: what was read there stays known.
    pub fn knowing(&self, before: &Settings) -> Settings {
        let mut settings = self.clone();
        let s3 = &mut settings.store.s3;
        let s3 = [&mut s3.access_key_id, &mut s3.secret_access_key];
        let all =
            settings.password.iter_mut().chain(settings.notify.hooks.values_mut()).chain(s3.into_iter().flatten());
        for secret in all {
            let is_it = |known: &&Secret| known.setting() == secret.setting() && known.source() == secret.source();
            if let Some(known) = before.secrets().find(is_it) {
                *secret = known.clone();
            }
        }
        settings
    }

    /// With what a cluster begins again that had these settings, where it is configured as `new`.
    pub fn begun_again(&self, new: &Settings) -> Settings {
        let mut given = new.given.clone();
        for key in keys().filter(|key| key.outlasts_a_cluster()) {
            match self.given.get(key.name) {
                Some(before) => _ = given.insert(key.name, before.clone()),
                None => _ = given.remove(key.name),
            }
        }
        let run = RunSettings { listen: self.run.listen, jobs_at_once: self.run.jobs_at_once, ..new.run.clone() };
        let notify = NotifySettings { hooks: self.notify.hooks.clone(), ..new.notify.clone() };
        let (cluster, log_format) = (self.cluster.clone(), self.log_format);
        Settings { given, cluster, log_format, run, notify, ..new.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;
    use std::ffi::OsString;
    use std::fs;

    #[test]
    fn what_is_scheduled_changes_and_what_is_streamed_stays() {
        // Given settings of a file that is changed then
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seawall.toml");
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            let cli =
                cli::parse(["seawall", "run", "--config"].map(OsString::from).into_iter().chain([path.clone().into()]));
            Settings::load(&cli.unwrap(), &|_| None).unwrap()
        };
        let before = load("slot = \"one\"\n[schedule]\nfull = \"0 2 * * *\"\ndrill = \"0 3 * * *\"\n");
        let after = load("slot = \"two\"\n[schedule]\nfull = \"0 4 * * *\"\n[run]\nbackup_after_gap = false\n");
        let (settings, reloaded) = before.reload(after.clone());
        // Then what is scheduled is what the file says now, and the slot is the one that it was
        assert_eq!(reloaded.applied, ["run.backup_after_gap", "schedule.full", "schedule.drill"]);
        assert_eq!(reloaded.at_the_next_start, ["slot"]);
        assert_eq!(settings.schedule, after.schedule);
        assert!(!settings.run.backup_after_gap);
        assert_eq!(settings.slot, "one");
        // And it is said again the next time, as long as it is not taken up
        let again = settings.reload(after.clone()).1;
        assert_eq!(again, Reloaded { applied: Vec::new(), at_the_next_start: vec!["slot"] });
        // which it is when the cluster begins again, but for what the process has
        let mut after = after;
        after.run.listen = None;
        let begun = settings.begun_again(&after);
        assert_eq!((begun.slot.as_str(), begun.run.listen), ("two", before.run.listen));
        assert_eq!(begun.reload(after).1, Reloaded::default());
    }
}
