//! Moments that are asked for: random ones, and what becomes of them.

use crate::scene::Scene;
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use seawall::error::Error;
use seawall::restore::{Plan, Stop};
use seawall::wal::Lsn;
use std::collections::BTreeSet;

/// A microsecond is the smallest step of a timestamp of PostgreSQL.
const MICROSECOND: SignedDuration = SignedDuration::from_micros(1);

/// A moment that is asked for.
pub(crate) struct Moment {
    pub(crate) time: Timestamp,
    pub(crate) inclusive: bool,
    /// The first end of a transaction that must not be there, by its number in [`Ends`].
    pub(crate) lost: Option<usize>,
    pub(crate) plan: Result<Plan, Error>,
}

impl Moment {
    /// Random moments: those at which transactions ended, a microsecond beside them, between them, in the widest gaps, and
    /// some behind the last, around `newest`. In order: what is left out comes before what is not.
    pub(crate) fn random(scene: &Scene, count: usize, newest: Timestamp) -> BTreeSet<(Timestamp, bool)> {
        let (mut rng, from) = (Rng::with_seed(scene.seed), scene.everything.backup.start_lsn);
        let mut times: Vec<Timestamp> = scene.ends.0.iter().filter(|end| end.lsn >= from).map(|end| end.time).collect();
        times.sort();
        let mut gaps: Vec<(SignedDuration, Timestamp)> =
            times.windows(2).map(|pair| (pair[1].duration_since(pair[0]), pair[0])).collect();
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.0));
        let ties: Vec<Timestamp> = times.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        let (first, last) = (times[0], times[times.len() - 1]);
        let between = |rng: &mut Rng, from: Timestamp, span: SignedDuration| {
            from + SignedDuration::from_micros(rng.i64(0..=i64::try_from(span.as_micros()).unwrap()))
        };
        let mut moments: BTreeSet<(Timestamp, bool)> = scene.before.iter().map(|(time, _)| (*time, true)).collect();
        moments.extend([last, last + MICROSECOND, newest, newest + MICROSECOND].map(|time| (time, true)));
        moments.insert((between(&mut rng, last, newest.duration_since(last).abs()), true));
        while moments.len() < count {
            let ended = *rng.choice(&times).unwrap();
            let gap = gaps[rng.usize(0..gaps.len())];
            let time = match rng.u32(0..10) {
                0..3 => ended,
                3 => ended + MICROSECOND,
                4 => ended - MICROSECOND,
                5..7 => between(&mut rng, first, last.duration_since(first)),
                7 => between(&mut rng, gap.1, gap.0),
                8 => {
                    let wide = gaps[rng.usize(0..20)];
                    between(&mut rng, wide.1, wide.0)
                }
                _ => *rng.choice(&ties).unwrap_or(&ended),
            };
            moments.insert((time, rng.u32(0..4) > 0));
        }
        moments
    }

    /// Where Seawall has the server stop.
    pub(crate) fn stop(&self) -> Option<Lsn> {
        match self.plan.as_ref().ok()?.stop {
            Stop::After(span) => Some(span.start),
            other => panic!("{other:?} where every record can be read"),
        }
    }

    /// What PostgreSQL calls it.
    pub(crate) fn settings(&self) -> [(&'static str, String); 3] {
        let inclusive = if self.inclusive { "on" } else { "off" };
        [
            ("recovery_target_lsn", String::new()),
            // Names of zones are not known yet when a command line is read.
            ("recovery_target_time", self.time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
            ("recovery_target_inclusive", inclusive.to_owned()),
        ]
    }

    /// What Seawall makes of it.
    pub(crate) fn translated(&self) -> Option<[(&'static str, String); 2]> {
        let stop = self.stop()?.to_string();
        Some([("recovery_target_lsn", stop), ("recovery_target_inclusive", "on".to_owned())])
    }
}
