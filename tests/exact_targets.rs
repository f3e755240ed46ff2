//! Where Seawall's translated restores stop, and where PostgreSQL's own `recovery_target_time` does over the same archive: at the
//! same record, for hundreds of random moments of a random workload, wherever both answer.
//!
//! `SEAWALL_EXACT_SEED` takes another seed than the one that is printed, `SEAWALL_EXACT_TARGETS` so many moments.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;
#[macro_use]
#[path = "support/versions.rs"]
mod versions;

#[path = "exact_targets/clock.rs"]
mod clock;
#[path = "exact_targets/ends.rs"]
mod ends;
#[path = "exact_targets/moment.rs"]
mod moment;
#[path = "exact_targets/scene.rs"]
mod scene;
#[path = "exact_targets/walk.rs"]
mod walk;
#[path = "exact_targets/workload.rs"]
mod workload;

use clock::SteppedClock;
use jiff::Timestamp;
use moment::Moment;
use scene::Scene;
use seawall::error::{Error, Kind};
use seawall::restore::Target;
use seawall::wal::Lsn;
use std::collections::{BTreeMap, BTreeSet};
use support::postgres::DEBIAN;
use walk::{Arrival, Rows, Walk, rows};
use workload::{BEHIND, doomed_rows};

/// Of all moments one in so many is looked at: the rows there are compared as well.
const LOOK_AT_ONE_IN: usize = 8;

/// The moment from which on, a refusal says, every one can be reached.
fn certain_from(refusal: &Error) -> Timestamp {
    let hint = refusal.hint_text().unwrap();
    let (_, rest) = hint.split_once("can certainly be reached is ").unwrap_or_else(|| panic!("{refusal:?}"));
    rest.split(';').next().unwrap().parse().unwrap()
}

/// Goes from moment to moment, each with its settings, and looks at the rows of those that are to be looked at.
async fn walked(walk: &Walk, targets: &[(usize, Vec<(&'static str, String)>)], looks: &BTreeSet<usize>) -> Walked {
    let mut walked = Walked::new();
    let mut last: Option<(&[(&str, String)], Arrival)> = None;
    for (number, target) in targets {
        let found = match last {
            _ if looks.contains(number) => {
                let (arrival, rows) = walk.look_at(target).await;
                (arrival, Some(rows))
            }
            // Moments between two records.
            Some((settings, arrival)) if settings == target.as_slice() => (arrival, None),
            _ => (walk.go_to(target).await, None),
        };
        last = Some((target, found.0));
        walked.insert(*number, found);
    }
    walked
}

type Walked = BTreeMap<usize, (Arrival, Option<Rows>)>;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

async fn both_stop_at_the_same_record(version: u32, clock: Option<SteppedClock>, count: usize) {
    let seed = variable("SEAWALL_EXACT_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
    let count = variable("SEAWALL_EXACT_TARGETS").map_or(count, |count| usize::try_from(count).unwrap());
    eprintln!("SEAWALL_EXACT_SEED={seed}");
    // Given a workload of everything that ends transactions, archived, with a base backup before it
    let scene = Box::pin(Scene::new(version, seed, clock)).await;
    let backup = &scene.everything.backup;
    let from = backup.start_lsn;

    if scene.clock.is_some() {
        let pairs = || scene.ends.0.windows(2);
        let back = pairs().filter(|pair| pair[1].time < pair[0].time).count();
        let same = pairs().filter(|pair| pair[1].time == pair[0].time).count();
        assert!(
            back > 5 && same > 5,
            "seed {seed}: {back} steps back, {same} at the same time: was the clock stepped?"
        );
    }

    // When hundreds of moments are asked for
    let newest = scene.catalog.heartbeats.iter().map(|(time, ..)| *time).max().expect("an idle archiver says so");
    let mut moments = Vec::new();
    for (time, inclusive) in Moment::random(&scene, count, newest) {
        let plan = scene.plan(Target::Time(time), !inclusive).await;
        let lost = scene.ends.first_later(from, time, !inclusive);
        moments.push(Moment { time, inclusive, lost, plan });
    }
    // of both, each in a directory that goes forward through them,
    let ours = scene.restore("ours", &["--to-end"]).await;
    let theirs = scene.restore("theirs", &["--to-end"]).await;
    let shelf = scene.lay_out(&ours).await;
    let (ours, theirs) = (Walk::new(version, ours, &shelf), Walk::new(version, theirs, &shelf));
    let numbered = || moments.iter().enumerate();
    let is_early = |moment: &Moment| scene.before.iter().any(|(time, _)| *time == moment.time);
    let looked = |(number, it): &(usize, &Moment)| (number % LOOK_AT_ONE_IN == 0 && it.lost.is_some()) || is_early(it);
    let looks: BTreeSet<usize> = numbered().filter(looked).map(|(number, _)| number).collect();
    let to_theirs: Vec<_> = numbered().map(|(number, it)| (number, it.settings().to_vec())).collect();
    let to_ours: Vec<_> = numbered().filter_map(|(number, it)| Some((number, it.translated()?.to_vec()))).collect();
    let (by_ours, by_theirs) =
        futures_util::join!(walked(&ours, &to_ours, &looks), walked(&theirs, &to_theirs, &looks));

    // Then both stop at the same record, which is the right one, and have the same rows there
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut count = |what| *counts.entry(what).or_default() += 1;
    for (number, moment) in numbered() {
        let Moment { time, inclusive, lost, plan } = moment;
        let (theirs, their_rows) = &by_theirs[&number];
        let ours = by_ours.get(&number);
        let story = format!(
            "PostgreSQL {version}, seed {seed}, target {number}: {time}{}: PostgreSQL: {theirs:?}; Seawall: {:?}, {}; the first to be lost: {:?}, behind {:?}",
            if *inclusive { "" } else { ", exclusive" },
            ours.map(|(arrival, _)| arrival),
            plan.as_ref().map_or_else(|error| format!("{error:?}"), ToString::to_string),
            lost.map(|lost| scene.ends.0[lost]),
            lost.unwrap_or(scene.ends.0.len()).checked_sub(1).map(|last| scene.ends.0[last]),
        );
        // PostgreSQL does what its source says,
        let expected = lost.map_or(Arrival::NotReached, |lost| {
            let end = scene.ends.0[lost];
            Arrival::Before(end.xid, end.time)
        });
        assert_eq!(*theirs, expected, "{story}");
        if let Some((arrival, our_rows)) = ours {
            // and Seawall keeps and loses the same,
            let Arrival::After(stop) = *arrival else { panic!("{story}") };
            assert_eq!(Some(stop), moment.stop(), "{story}");
            assert_eq!(scene.ends.first_behind(stop), *lost, "{story}");
            let rest = lost.map_or(&[][..], |lost| &scene.ends.0[lost..]);
            let first_lost = rest.iter().find(|end| end.committed && end.xid != 0).map(|end| (end.xid, end.lsn));
            let told = plan.as_ref().unwrap().first_lost.map(|it| (it.xid, it.record.start));
            assert_eq!(told, first_lost, "{story}");
            // with nothing later, not even from before the backup,
            let mut kept = scene.ends.0[..lost.unwrap_or(scene.ends.0.len())].iter();
            assert!(kept.all(|end| end.time <= *time), "{story}");
            if let (Some(our_rows), Some(their_rows)) = (our_rows, their_rows) {
                assert_eq!(our_rows, their_rows, "{story}");
                assert_eq!(*our_rows, scene.expected(*lost), "{story}");
                count("both, rows compared");
            }
            count(if lost.is_some() { "both answer" } else { "Seawall alone answers" });
            continue;
        }
        // or refuses:
        assert_eq!(plan.as_ref().unwrap_err().kind(), Kind::Refused, "{story}");
        if lost.is_none() {
            assert!(*time > newest, "nothing is refused up to the last heartbeat at {newest}: {story}");
            count("neither answers");
            continue;
        }
        // what PostgreSQL answers with commits from before the backup that are later than the moment asked for.
        let mut known = scene.ends.0.iter().filter(|end| end.lsn < from && end.committed);
        let last_known = known.clone().next_back().unwrap();
        if let Some(later) = known.find(|end| end.time > *time) {
            eprintln!("PostgreSQL alone answers {time}, with a commit of {}", later.time);
            count("PostgreSQL alone answers, with a later commit");
        } else {
            // Nothing happened then that shows on which side of the backup's beginning it lies.
            assert!(last_known.time <= *time && *time < certain_from(plan.as_ref().unwrap_err()), "{story}");
            count("PostgreSQL alone answers, while the backup began");
        }
        if let Some((_, row)) = scene.before.iter().find(|(before, _)| before == time) {
            assert!(their_rows.as_ref().unwrap().contains_key(row), "{story}");
        }
    }
    eprintln!("{counts:#?}");
    assert!(counts["both answer"] * 4 > moments.len(), "{counts:?}");
    assert!(counts["both, rows compared"] * 40 > moments.len(), "{counts:?}");
    for what in ["Seawall alone answers", "neither answers", "PostgreSQL alone answers, with a later commit"] {
        assert!(counts.contains_key(what) || scene.clock.is_some(), "never {what}: {counts:?}");
    }

    // The program writes that position, and a cluster that it restored opens with those rows,
    let answered: Vec<&Moment> = moments.iter().filter(|it| it.lost.is_some() && it.plan.is_ok()).collect();
    for part in [3, 5] {
        let moment = answered[answered.len() * part / 7];
        let time = moment.time.to_string();
        let exclusive = if moment.inclusive { None } else { Some("--to-exclusive") };
        let target: Vec<&str> = ["--to", &time].into_iter().chain(exclusive).collect();
        let (restored, data) = scene.restored(&format!("part-{part}"), &target).await;
        let settings = std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
        let expected = format!("recovery_target_lsn = '{}'", moment.stop().unwrap());
        assert!(settings.contains(&expected), "seed {seed}, {target:?}: no {expected} in\n{settings}");
        assert_eq!(rows(&restored).await, scene.expected(moment.lost), "seed {seed}, {target:?}");
    }
    drops_are_found_and_undone(&scene).await;
}

/// Every table that was dropped comes back with all that was committed before, and nothing that was committed later.
async fn drops_are_found_and_undone(scene: &Scene) {
    let (seed, dropped) = (scene.seed, scene.workload.dropped());
    assert!(!dropped.is_empty(), "seed {seed}: nothing was dropped");
    for (number, xid) in &dropped {
        let plan = scene.dry_run(&["--before-drop", &format!("public.doomed_{number}")]).await;
        let lost = scene.ends.0.iter().position(|end| end.xid == *xid).unwrap();
        let story = format!("seed {seed}, table {number} dropped by {:?}: {plan:#}", scene.ends.0[lost]);
        assert_eq!(plan["target"]["lsn"], scene.ends.0[lost].lsn.to_string(), "{story}");
        assert_eq!(plan["exclusive"], true, "{story}");
        let stop: Lsn = plan["stop"]["after"]["start"].as_str().unwrap().parse().unwrap();
        assert_eq!(scene.ends.first_behind(stop), Some(lost), "{story}");
    }
    let (number, xid) = dropped.iter().nth(dropped.len() / 2).unwrap();
    let (restored, _) = scene.restored("undone", &["--before-drop", &format!("public.doomed_{number}")]).await;
    let count = restored.sql(&format!("SELECT count(*) FROM doomed_{number}")).await.unwrap()[0][0].clone();
    assert_eq!(count, Some(doomed_rows(*number).to_string()), "seed {seed}, table {number}");
    let lost = scene.ends.0.iter().position(|end| end.xid == *xid);
    assert_eq!(rows(&restored).await, scene.expected(lost), "seed {seed}, table {number}");
}

async fn seawall_and_recovery_target_time_stop_at_the_same_record(version: u32) {
    Box::pin(both_stop_at_the_same_record(version, None, if version == DEBIAN { 240 } else { 40 })).await;
}

for_every_version!(seawall_and_recovery_target_time_stop_at_the_same_record:
    the_same_record_on_13 = 13, the_same_record_on_14 = 14, the_same_record_on_15 = 15,
    the_same_record_on_16 = 16, the_same_record_on_17 = 17, the_same_record_on_18 = 18);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_do_so_where_the_clock_was_stepped() {
    Box::pin(both_stop_at_the_same_record(DEBIAN, Some(SteppedClock::new(BEHIND)), 140)).await;
}
