//! What an operator wants to keep, and which backups that is by count, by age and by the calendar. Pure.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use std::collections::BTreeSet;

/// The floor, unless another is configured.
pub const MINIMUM_WINDOW: SignedDuration = SignedDuration::from_hours(7 * 24);

/// No floor is lower: what is younger may be in use, by whoever stored it.
pub const LEAST_WINDOW: SignedDuration = SignedDuration::from_hours(24);

/// What is to be kept. What none of it asks for goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// So many full backups, with the incremental ones behind the first of them.
    pub full: Option<u32>,
    /// Every moment of so long a time, up to now, can be restored.
    pub age: Option<SignedDuration>,
    /// By the calendar: the last backup of each of so many days, weeks and so on that have one.
    pub calendar: Vec<(Period, u32)>,
    /// WAL is kept for so long; older backups keep what makes them consistent. `None`: as far back as backups go.
    pub wal: Option<SignedDuration>,
    /// Every moment of the last so long can be restored, whatever the rest says.
    pub minimum_window: SignedDuration,
    /// Whose calendar; `None`: that of the machine.
    pub zone: Option<TimeZone>,
    /// For so long the store keeps what was stored for good, whoever deletes it (object lock).
    pub locked: Option<SignedDuration>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            full: None,
            age: None,
            calendar: Vec::new(),
            wal: None,
            minimum_window: MINIMUM_WINDOW,
            zone: None,
            locked: None,
        }
    }
}

impl Policy {
    /// False if every backup stays, because nobody said which do.
    pub fn chooses_backups(&self) -> bool {
        self.full.is_some() || self.age.is_some() || !self.calendar.is_empty()
    }

    /// True if whatever was said about backups asks for none of them.
    pub fn keeps_nothing(&self) -> bool {
        self.chooses_backups()
            && self.full.unwrap_or(0) == 0
            && self.age.is_none_or(|age| age.is_zero())
            && self.calendar.iter().all(|(_, count)| *count == 0)
    }

    /// Sets how many of a period are kept.
    pub fn set_period(&mut self, period: Period, count: u32) {
        self.calendar.retain(|(other, _)| *other != period);
        self.calendar.push((period, count));
        self.calendar.sort();
    }
}

/// A stretch of the calendar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday on: ISO 8601.
    Week,
    /// Of the calendar.
    Month,
    /// Of the calendar.
    Year,
}

impl Period {
    /// In a sentence: a `daily` backup.
    pub fn adjective(self) -> &'static str {
        match self {
            Period::Day => "daily",
            Period::Week => "weekly",
            Period::Month => "monthly",
            Period::Year => "yearly",
        }
    }

    /// Which one `at` lies in: equal for two moments of one, and for no others.
    fn holding(self, at: &Zoned) -> (i16, i16) {
        let date = at.date();
        match self {
            Period::Day => (date.year(), date.day_of_year()),
            Period::Week => {
                // The days around the new year belong to the week that has most of its days in one of the two years.
                let week = date.iso_week_date();
                (week.year(), week.week().into())
            }
            Period::Month => (date.year(), date.month().into()),
            Period::Year => (date.year(), 0),
        }
    }

    /// Of `times`, newest first: those that are the newest of their period, for the first `count` periods that there are.
    pub fn newest_of_each(self, times: &[Timestamp], count: u32, zone: &TimeZone) -> Vec<bool> {
        let mut seen = BTreeSet::new();
        let is_first = |at: &Timestamp| {
            let is_open = (seen.len() as u64) < u64::from(count);
            is_open && seen.insert(self.holding(&at.to_zoned(zone.clone())))
        };
        times.iter().map(is_first).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stays of backups at these times of a zone, oldest first.
    fn kept(zone: &str, period: Period, count: u32, times: &[&str]) -> Vec<String> {
        let zone = TimeZone::get(zone).unwrap();
        let at =
            |text: &&str| text.parse::<jiff::civil::DateTime>().unwrap().to_zoned(zone.clone()).unwrap().timestamp();
        let mut newest_first: Vec<(Timestamp, &str)> = times.iter().map(|text| (at(text), *text)).collect();
        newest_first.reverse();
        let moments: Vec<Timestamp> = newest_first.iter().map(|(at, _)| *at).collect();
        let keeps = period.newest_of_each(&moments, count, &zone);
        let mut kept: Vec<String> = newest_first
            .iter()
            .zip(keeps)
            .filter(|(_, keeps)| *keeps)
            .map(|((_, text), _)| (*text).to_owned())
            .collect();
        kept.reverse();
        kept
    }

    #[test]
    fn a_day_is_one_of_the_zones_calendar_also_when_it_has_23_or_25_hours() {
        // In Berlin clocks went forward on 2026-03-29 and back on 2026-10-25.
        let spring =
            ["2026-03-28T23:30", "2026-03-29T00:30", "2026-03-29T03:30", "2026-03-29T23:30", "2026-03-30T00:30"];
        let last_of_days = ["2026-03-28T23:30", "2026-03-29T23:30", "2026-03-30T00:30"];
        assert_eq!(kept("Europe/Berlin", Period::Day, 9, &spring), last_of_days);
        let autumn = ["2026-10-24T23:59", "2026-10-25T00:00", "2026-10-25T23:59", "2026-10-26T00:00"];
        assert_eq!(kept("Europe/Berlin", Period::Day, 2, &autumn), ["2026-10-25T23:59", "2026-10-26T00:00"]);
        // The same moments are other days elsewhere: 23:30 of the 28th in Berlin is 11:30 of the 29th in Auckland.
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let auckland = TimeZone::get("Pacific/Auckland").unwrap();
        let at =
            |text: &str| text.parse::<jiff::civil::DateTime>().unwrap().to_zoned(berlin.clone()).unwrap().timestamp();
        let moments = [at("2026-03-29T00:30"), at("2026-03-28T23:30")];
        assert_eq!(Period::Day.newest_of_each(&moments, 9, &berlin), [true, true]);
        assert_eq!(Period::Day.newest_of_each(&moments, 9, &auckland), [true, false]);
    }

    #[test]
    fn weeks_are_those_of_iso_8601_also_around_the_new_year() {
        // 2027-01-01 is a Friday, of the week 53 of 2026 that began on Monday, 2026-12-28.
        let times = [
            "2026-12-27T12:00",
            "2026-12-28T12:00",
            "2026-12-31T12:00",
            "2027-01-01T12:00",
            "2027-01-03T12:00",
            "2027-01-04T12:00",
        ];
        assert_eq!(kept("UTC", Period::Week, 9, &times), ["2026-12-27T12:00", "2027-01-03T12:00", "2027-01-04T12:00"]);
        assert_eq!(kept("UTC", Period::Year, 9, &times), ["2026-12-31T12:00", "2027-01-04T12:00"]);
        assert_eq!(kept("UTC", Period::Month, 1, &times), ["2027-01-04T12:00"]);
        // 2024-12-30 is a Monday: the first week of 2025, and in another year than the first week of 2024.
        let weeks_1 = ["2024-01-03T12:00", "2024-12-30T12:00", "2025-01-02T12:00"];
        assert_eq!(kept("UTC", Period::Week, 9, &weeks_1), ["2024-01-03T12:00", "2025-01-02T12:00"]);
    }

    #[test]
    fn periods_without_a_backup_do_not_count() {
        let times = ["2026-01-05T01:00", "2026-03-05T01:00", "2026-03-05T02:00", "2026-11-05T01:00"];
        assert_eq!(kept("UTC", Period::Day, 2, &times), ["2026-03-05T02:00", "2026-11-05T01:00"]);
        assert_eq!(kept("UTC", Period::Day, 0, &times), Vec::<String>::new());
    }

    #[test]
    fn a_policy_that_asks_for_no_backup_is_recognised() {
        assert!(!Policy::default().keeps_nothing() && !Policy::default().chooses_backups());
        let none = |change: &dyn Fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            policy.keeps_nothing()
        };
        assert!(none(&|policy| policy.full = Some(0)));
        assert!(none(&|policy| policy.set_period(Period::Day, 0)));
        assert!(!none(&|policy| {
            policy.full = Some(0);
            policy.set_period(Period::Week, 4);
        }));
        assert!(!none(&|policy| policy.wal = Some(SignedDuration::from_hours(48))));
    }
}
