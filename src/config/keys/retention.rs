//! `[retention]`: what `prune` keeps.

use super::{Key, Written, parse_days};
use crate::config::Settings;
use crate::retention::{LEAST_WINDOW, Period};
use jiff::tz::TimeZone;

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "retention.full",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"4\"",
        about: "`prune` keeps so many full base backups, and the incremental ones behind the first of them. What any of the rules of \
                this section asks for is kept; without any of them `prune` deletes no base backup and no WAL. Only *good* backups \
                count: those on the line that is archived, with which nothing is wrong, and which have all that a restore needs.",
        set: |settings, text| {
            settings.retention.full = Some(count(text)?);
            Ok(())
        },
    },
    Key {
        name: "retention.age",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"30d\"",
        about: "`prune` keeps what is needed to restore to any moment of the last so long: the backups of that time, and the one before.",
        set: |settings, text| {
            settings.retention.age = Some(parse_days(text)?);
            Ok(())
        },
    },
    Key {
        name: "retention.daily",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"30\"",
        about: "`prune` keeps the last backup of each of so many days that have one: the newest so many.",
        set: |settings, text| set_period(settings, Period::Day, text),
    },
    Key {
        name: "retention.weekly",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"90\"",
        about: "The same for weeks, which begin on Monday (ISO 8601).",
        set: |settings, text| set_period(settings, Period::Week, text),
    },
    Key {
        name: "retention.monthly",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"24\"",
        about: "The same for months.",
        set: |settings, text| set_period(settings, Period::Month, text),
    },
    Key {
        name: "retention.yearly",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"10\"",
        about: "The same for years.",
        set: |settings, text| set_period(settings, Period::Year, text),
    },
    Key {
        name: "retention.wal",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"14d\"",
        about: "Every moment of the last so long can be restored. Backups from before keep the WAL that makes them consistent, and are \
                restored to the moment at which they were taken. Without it, WAL is kept from the first backup on that the other rules \
                keep; a backup that is kept by a mark alone (`seawall keep`) never keeps more than it needs itself.",
        set: |settings, text| {
            settings.retention.wal = Some(parse_days(text)?);
            Ok(())
        },
    },
    Key {
        name: "retention.minimum_window",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("7d"),
        example: "\"7d\"",
        about: "Every moment of the last so long can be restored, whatever the other rules say, and every base backup of that time stays. \
                It counts time in which something was archived: a silence of more than a day counts as a day, so that a clock that jumps \
                makes nothing old. At least `1d`. Beside it the last good full backup stays, however old it is.",
        set: |settings, text| {
            let length = parse_days(text)?;
            if length < LEAST_WINDOW {
                return Err(format!("cannot be {text:?}: a day is the least"));
            }
            settings.retention.minimum_window = length;
            Ok(())
        },
    },
    Key {
        name: "retention.time_zone",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"Europe/Berlin\"",
        about: "Whose calendar days, weeks, months and years are of. Without it: that of the machine which prunes.",
        set: |settings, text| {
            let zone = TimeZone::get(text);
            settings.retention.zone = Some(zone.map_err(|_| {
                format!("cannot be {text:?}: it is the name of a time zone such as Europe/Berlin or UTC")
            })?);
            Ok(())
        },
    },
];

fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("cannot be {text:?}: it is a number of backups"))
}

fn set_period(settings: &mut Settings, period: Period, text: &str) -> Result<(), String> {
    settings.retention.set_period(period, count(text)?);
    Ok(())
}
