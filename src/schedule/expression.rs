//! When something is to happen, as cron writes it. Uses `croner` for the syntax and the changes of clocks.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;

/// Five fields, as in a crontab: minute, hour, day of the month, month, day of the week.
///
/// Clock changes are met as Vixie's cron does: what has a fixed time that does not exist on a day happens right after the
/// hour that is left out, and what has a time that exists twice happens once.
#[derive(Clone, PartialEq, Eq)]
pub struct Expression {
    text: String,
    cron: Cron,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.text)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The long-running searches of the library for days such as 30 February begin here; any day will do.
const ANY_DAY: Timestamp = Timestamp::UNIX_EPOCH;

impl Expression {
    /// Reads five fields.
    ///
    /// # Errors
    /// The words that complete "`name` …": for what is none, and for one that never happens, as on 30 February.
    pub fn parse(text: &str) -> Result<Expression, String> {
        let form = "it has five fields, as in a crontab: minute, hour, day of the month, month, day of the week";
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| format!("cannot be {text:?}: {form} ({error})"))?;
        let expression = Expression { text: text.trim().to_owned(), cron };
        match expression.next(ANY_DAY, &TimeZone::UTC) {
            Some(_) => Ok(expression),
            None => Err(format!("cannot be {text:?}: no such day ever comes")),
        }
    }

    /// The last time at or before `at` at which it was to happen.
    pub fn previous(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let found = self.cron.find_previous_occurrence(&at.to_zoned(zone.clone()), true);
        found.ok().map(|found| found.timestamp())
    }

    /// The first time after `after` at which it is to happen.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let found = self.cron.find_next_occurrence(&after.to_zoned(zone.clone()), false);
        found.ok().map(|found| found.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
        let (expression, zone) = (Expression::parse(text).unwrap(), TimeZone::get(zone).unwrap());
        let (mut at, until): (Timestamp, Timestamp) = (from.parse().unwrap(), until.parse().unwrap());
        let mut found = Vec::new();
        while let Some(next) = expression.next(at, &zone).filter(|next| *next <= until) {
            assert_eq!(expression.previous(next, &zone), Some(next), "{next} happened");
            found.push(next.to_string());
            at = next;
        }
        found
    }

    #[test]
    fn the_hour_that_is_left_out_and_the_one_that_comes_twice_lose_and_double_nothing() {
        // Given half past two in Berlin, which did not exist on 29 March 2026, and came twice on 25 October
        let spring = all("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", "2026-03-30T12:00:00Z");
        assert_eq!(spring, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        let autumn = all("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
        assert_eq!(autumn, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        // And what happens every hour happens in every hour
        let hourly = all("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", "2026-10-25T03:30:00Z");
        assert_eq!(hourly.len(), 4);
    }

    #[test]
    fn what_never_happens_and_what_is_none_are_refused() {
        for bad in ["0 0 30 2 *", "", "* * * *", "0 0 0 * * *", "61 * * * *", "every day", "0 0 * * 9"] {
            let problem = Expression::parse(bad).unwrap_err();
            assert!(problem.starts_with("cannot be"), "{bad}: {problem}");
        }
        assert!(Expression::parse("0 0 29 2 *").is_ok(), "a leap day comes");
        assert_eq!(Expression::parse(" 0 2 * * SUN ").unwrap().to_string(), "0 2 * * SUN");
    }
}
