//! The settings of one cluster of `seawall run`: those that hold, and those that are configured by now, which hold when it begins again.

use crate::config::{Reloaded, Settings};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// See the head of the file.
pub(super) struct Holding {
    holds: watch::Sender<Arc<Settings>>,
    /// As the configuration was read last. Locked while either changes.
    configured: Mutex<Settings>,
}

impl Holding {
    /// They hold, and are configured.
    pub(super) fn new(settings: Settings) -> Holding {
        Holding { holds: watch::Sender::new(Arc::new(settings.clone())), configured: Mutex::new(settings) }
    }

    /// Those that hold now.
    pub(super) fn now(&self) -> Arc<Settings> {
        self.holds.borrow().clone()
    }

    /// To follow those that hold.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Settings>> {
        self.holds.subscribe()
    }

    /// The cluster begins, or begins again: with what is configured.
    pub(super) fn begins(&self) -> Arc<Settings> {
        let configured = self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Arc::new(self.now().begun_again(&configured));
        self.holds.send_replace(begun.clone());
        begun
    }

    /// The configuration was read again: what can be taken up holds from now on, and secrets are read anew by whoever wants them next.
    pub(super) fn take_up(&self, new: &Settings) -> Reloaded {
        let mut configured = self.configured.lock().unwrap_or_else(PoisonError::into_inner);
        *configured = new.knowing(&self.now());
        let (merged, reloaded) = self.now().reload(new.clone());
        merged.secrets().for_each(|secret| secret.expire());
        self.holds.send_replace(Arc::new(merged));
        reloaded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;
    use std::ffi::OsString;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn load(place: &Path, text: &str) -> Settings {
        let path = place.join("seawall.toml");
        fs::write(&path, text).unwrap();
        let line = ["seawall", "run", "--config"].map(OsString::from).into_iter().chain([path.into()]);
        Settings::load(&cli::parse(line).unwrap(), &|_| None).unwrap()
    }

    #[tokio::test]
    async fn secrets_are_read_anew_once_the_configuration_is() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("password");
        let hold = |password: &str| {
            fs::write(&file, password).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        };
        let text = format!("password_file = {file:?}\n");
        // Given a password that whoever has begun has read
        hold("one");
        let holding = Holding::new(load(place.path(), &text));
        let begun = holding.begins();
        let password = async || begun.password.as_ref().unwrap().text().await.unwrap();
        assert_eq!(password().await, "one");
        hold("two");
        assert_eq!(password().await, "one");
        // When the configuration is read again, and is the same, then the password is the one of now
        assert_eq!(holding.take_up(&load(place.path(), &text)), Reloaded::default());
        assert_eq!(password().await, "two");
        // And a cluster that begins again has it as well, when it is where it was and cannot be read any more
        fs::remove_file(&file).unwrap();
        assert_eq!(holding.take_up(&load(place.path(), &text)), Reloaded::default());
        let begun = holding.begins();
        assert_eq!(begun.password.as_ref().unwrap().text().await.unwrap(), "two");
        // But not when it is elsewhere
        holding.take_up(&load(place.path(), &format!("password_file = {:?}\n", place.path().join("other"))));
        assert!(holding.begins().password.as_ref().unwrap().text().await.is_err(), "the password of before");
    }

    #[test]
    fn what_waits_for_the_next_start_holds_when_it_comes() {
        let directory = tempfile::tempdir().unwrap();
        let load = |text: &str| load(directory.path(), text);
        // Given a cluster at work, and a configuration that has changed since
        let holding = Holding::new(load("slot = \"one\"\n"));
        let mut follower = holding.subscribe();
        let reloaded =
            holding.take_up(&load("slot = \"two\"\n[schedule]\nfull = \"0 2 * * *\"\n[run]\nlisten = \"off\"\n"));
        assert_eq!((reloaded.applied, reloaded.at_the_next_start), (vec!["schedule.full"], vec!["slot", "run.listen"]));
        assert_eq!((holding.now().slot.as_str(), holding.now().schedule.jobs.len()), ("one", 1));
        // When it begins again, then all of it holds that is no matter of the process, and whoever follows is told
        assert_eq!(holding.begins().slot, "two");
        assert!(follower.has_changed().unwrap() && follower.borrow_and_update().slot == "two");
        assert!(holding.now().run.listen.is_some());
        // And once more, with nothing new
        assert_eq!((holding.begins().slot.as_str(), holding.now().schedule.jobs.len()), ("two", 1));
    }
}
