//! A gap whose base backup fails for hours: tried again by one archiver of the two, one attempt at a time, ever more seldom, and people
//! know.

use super::{HOUR, MINUTE, Week, settings, told};
use crate::counts::Counts;
use crate::simulate;
use crate::wal::SEGMENT_BYTES;
use seawall::notify::Trouble;
use seawall::repository::{Action, ActionResult, AuditEntry};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Nothing is due for weeks.
const NEVER: &str = "[schedule]\ntime_zone = \"UTC\"\nfull = \"0 2 1 1 *\"\n";

#[test]
fn a_base_backup_after_a_gap_is_tried_again_one_at_a_time_and_ever_more_seldom() {
    simulate(9, async {
        // Given two archivers, a base backup, and a server that has thrown WAL away since
        let counts = Arc::new(Counts::default());
        let mut week = Week::new(9, counts);
        week.town.settings = Arc::new(settings(NEVER));
        week.town.store.fail_never();
        week.dead = vec![(1, Instant::now()), (2, Instant::now() + 5 * MINUTE)];
        week.town.server.write(20_000);
        week.town.server.complete_record();
        week.live(HOUR).await;
        let before = week.audit().await.len();
        while !week.processes.is_empty() {
            week.kill(0).await;
        }
        week.town.server.write(3 * SEGMENT_BYTES);
        week.town.server.lose_slot();
        // and that breaks off every base backup for hours
        week.town.bases.cut_all_for(6 * HOUR);
        while week.told.try_recv().is_ok() {}
        // When they come back
        week.live(8 * HOUR).await;
        // Then there were attempts, no two at a time, until one succeeded, and none after it
        let entries = week.audit().await;
        let is_full = |entry: &&AuditEntry| entry.action == Action::Full;
        let attempts: Vec<&AuditEntry> = entries[before..].iter().filter(is_full).collect();
        let said = || told(&entries);
        let (last, failed) = attempts.split_last().unwrap_or_else(|| panic!("none was taken: {}", said()));
        assert_eq!(last.result, ActionResult::Good, "{}", said());
        assert!(failed.iter().all(|entry| entry.result == ActionResult::Failed), "{}", said());
        let pause = |pair: &[&AuditEntry]| Duration::try_from(pair[1].started_at.duration_since(pair[0].ended_at));
        let pauses: Vec<Duration> = attempts
            .windows(2)
            .map(|pair| pause(pair).unwrap_or_else(|_| panic!("two at a time: {}", said())))
            .collect();
        // and the pauses grow from seconds to half an hour at most: each is between half and all of what it may be
        assert!(pauses.len() > 12, "it was given up for long: {}", said());
        let mut longest = Duration::from_secs(10);
        for pause in &pauses {
            // What is asked before an attempt takes a moment.
            let range = longest / 2..=longest + Duration::from_secs(5);
            assert!(range.contains(pause), "{pauses:?}: {}", said());
            longest = (2 * longest).min(30 * MINUTE);
        }
        // and people were told of the gap, by each of the two, and at last that it is answered
        let mut events = Vec::new();
        while let Ok(event) = week.told.try_recv() {
            events.extend((event.trouble == Trouble::Gap).then_some(event.is_resolved));
        }
        let is_told = events.contains(&false) && events.ends_with(&[true]);
        assert!(is_told, "of the gap, people were told whether it is answered: {events:?}");
    });
}
