//! What a day costs on which nothing happens and nothing is due, by all that asks the store in these processes.

use super::{HOUR, Week, settings, told};
use crate::counts::Counts;
use crate::simulate;
use seawall::repository::Action;
use seawall::store::{Store, list_all};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// A full base backup is taken at once, because there is none; then nothing is due for weeks.
const MONTHLY: &str =
    "[schedule]\ntime_zone = \"UTC\"\nfull = \"0 2 1 * *\"\nverify = \"0 2 1 * *\"\nprune = \"0 2 1 * *\"\n";

#[test]
fn an_idle_day_costs_its_heartbeats_and_one_look_at_what_others_did_and_a_spare_nothing() {
    simulate(3, async {
        // Given two archivers of one cluster, of which the first took the base backup that was due, and a server that does nothing
        let counts = Arc::new(Counts::default());
        let mut week = Week::new(3, counts.clone());
        week.town.settings = Arc::new(settings(MONTHLY));
        week.town.store.fail_never();
        week.dead = vec![(1, Instant::now()), (2, Instant::now() + HOUR)];
        week.town.server.write(20_000);
        week.town.server.complete_record();
        week.live(30 * HOUR).await;
        assert_eq!(week.audit().await.len(), 2, "a base backup, and a look at what is stored");
        // When a day goes by
        let before = counts.all();
        week.live(24 * HOUR).await;
        // Then four heartbeats an hour are stored, it is looked once what others did, and nothing else is asked
        let asked = |what| counts.get(what) - before.get(what).copied().unwrap_or(0);
        let words = ["to store", "to list", "to read", "to look at", "to delete"];
        let asked: BTreeMap<&str, u64> = words
            .into_iter()
            .zip([
                asked("asked: to store"),
                asked("asked: to list"),
                asked("asked: to read"),
                asked("asked: to look at"),
                asked("asked: to delete"),
            ])
            .collect();
        assert!((24 * 4 - 1..=24 * 4 + 1).contains(&asked["to store"]), "{asked:?}");
        // Two years of the audit trail and the drills; and the document that says whose folder it is
        assert_eq!((asked["to list"], asked["to read"]), (3, 1), "{asked:?}");
        assert_eq!((asked["to look at"], asked["to delete"]), (0, 0), "{asked:?}");
        // When the one that streams dies, and nobody has looked at what is stored since the base backup
        let trail = list_all(&week.memory, &week.judge.layout.audit_root()).await.unwrap();
        let look = trail.iter().find(|object| object.key.contains("verify")).unwrap();
        week.memory.delete(&look.key).await.unwrap();
        assert_eq!(week.audit().await.len(), 1);
        week.kill(0).await;
        week.live(HOUR).await;
        // Then the one that follows does
        let entries = week.audit().await;
        assert!(entries.len() == 2 && entries[1].action == Action::Verify, "{}", told(&entries));
    });
}
