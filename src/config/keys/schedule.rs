//! `[schedule]`: what `seawall run` does by itself, and when.

use super::{Key, Written, parse_duration};
use crate::config::Settings;
use crate::metrics::Job;
use crate::schedule::Expression;
use jiff::tz::TimeZone;
use std::time::Duration;

/// What is written where a cluster is not to have what the others have.
const NEVER: &str = "never";

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "schedule.full",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"0 2 * * SUN\"",
        about: "When `run` takes a full base backup, as cron writes it: minute, hour, day of the month, month, day of the \
                week. A cluster that has none gets one at once. Without this key `run` takes none by itself, but for a gap \
                (`run.backup_after_gap`). What was missed while `run` was not up is caught up once, and what fails is tried \
                again. One archiver does it at a time, also where several run; a backup that somebody took by hand in the \
                meantime counts. `never`, here and in the other times, is for one of many clusters that is not to have what all have.",
        set: |settings, text| set(settings, Job::Full, text),
    },
    Key {
        name: "schedule.incremental",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"0 2 * * *\"",
        about: "When `run` takes an incremental base backup: or a full one where the server cannot (before PostgreSQL 17, \
                or without summaries of its WAL). A full one that was due at the same time is enough.",
        set: |settings, text| set(settings, Job::Incremental, text),
    },
    Key {
        name: "schedule.verify",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"0 5 1 * *\"",
        about: "When `run` reads everything that is stored and checks it, as `seawall verify --deep` does. Reading costs what \
                the store charges for it.",
        set: |settings, text| set(settings, Job::Verify, text),
    },
    Key {
        name: "schedule.drill",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"0 6 * * MON\"",
        about: "When `run` restores for real onto a throwaway server, as `seawall drill` does: with the settings of \
                `[drill]`, on this machine, which needs PostgreSQL of the cluster's version and room for the cluster.",
        set: |settings, text| set(settings, Job::Drill, text),
    },
    Key {
        name: "schedule.prune",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"30 4 * * *\"",
        about: "When `run` deletes what need not be kept, as `seawall prune` does. The role of `run` needs the right to \
                delete then; where it has not, prune from another machine, on that one's own schedule.",
        set: |settings, text| set(settings, Job::Prune, text),
    },
    Key {
        name: "schedule.time_zone",
        flag: None,
        variable: None,
        written: Written::Text,
        default: None,
        example: "\"Europe/Berlin\"",
        about: "Whose clock these times mean; without it the machine's. What has a time that a change of clocks leaves out \
                happens right after it, and what has one that comes twice happens once.",
        set: |settings, text| {
            settings.schedule.time_zone = TimeZone::get(text)
                .map_err(|_| format!("cannot be {text:?}: it is a name such as UTC or Europe/Berlin"))?;
            Ok(())
        },
    },
    Key {
        name: "schedule.jitter",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("0"),
        example: "\"10m\"",
        about: "Everything happens up to so much later than written: by the cluster's name, and always the same. A hundred \
                clusters with one schedule do not begin at once then. At most a day.",
        set: |settings, text| {
            let jitter = parse_duration(text)?;
            if jitter > Duration::from_secs(24 * 3600) {
                return Err(format!("cannot be {text:?}: at most a day"));
            }
            settings.schedule.jitter = jitter;
            Ok(())
        },
    },
    Key {
        name: "schedule.time_limit",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("24h"),
        example: "\"48h\"",
        about: "A verification, a drill or a prune that takes longer is given up until its next time: others wait for it, for one \
                thing is done at a time. A base backup may take as long as it likes, but not get any farther for so long. At least a minute.",
        set: |settings, text| {
            let limit = parse_duration(text)?;
            if limit < Duration::from_secs(60) {
                return Err(format!("cannot be {text:?}: at least a minute"));
            }
            settings.schedule.time_limit = limit;
            Ok(())
        },
    },
    Key {
        name: "schedule.at_once",
        flag: None,
        variable: None,
        written: Written::Text,
        default: Some("2"),
        example: "\"4\"",
        about: "Where one process archives several clusters, so many of them at once take a base backup, verify, drill or prune; the \
                others wait for their turn, in the order in which they came. A base backup that answers a gap goes first. What has lasted for six hours keeps nobody off any more.",
        set: |settings, text| {
            let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
            settings.run.jobs_at_once =
                number.ok_or_else(|| format!("cannot be {text:?}: it is a number from 1 to 1000"))?;
            Ok(())
        },
    },
    Key {
        name: "schedule.verify_after",
        flag: None,
        variable: None,
        written: Written::Boolean,
        default: Some("true"),
        example: "false",
        about: "Every base backup is followed by a look at what is stored, as `seawall verify` does: nothing missing, nothing \
                unknown, no hole, every backup restorable. It lists and reads no contents. `run` does so after its own base \
                backups, and after those that it finds, such as one taken by hand.",
        set: |settings, text| {
            settings.schedule.verify_after =
                text.parse().map_err(|_| format!("cannot be {text:?}: it is true or false"))?;
            Ok(())
        },
    },
];

fn set(settings: &mut Settings, job: Job, text: &str) -> Result<(), String> {
    match text {
        NEVER => _ = settings.schedule.jobs.remove(&job),
        _ => _ = settings.schedule.jobs.insert(job, Expression::parse(text)?),
    }
    Ok(())
}
