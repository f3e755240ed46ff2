//! A moment as a person writes it. Nothing is guessed: what can be read in two ways is refused, and what was read is
//! said back in full. Uses `error` and `runtime`.

use crate::error::{Error, Kind, Result};
use crate::runtime::Clock;
use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::friendly::SpanParser;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SpanRelativeTo, Timestamp, ToSpan, Zoned};
use std::fmt;

/// What every refusal ends with.
const EXAMPLES: &str = "Write it like \"2026-11-20 14:03:00+01:00\", \"2026-11-20 14:03 Europe/Berlin\", \
    \"2026-11-20 14:03\" (this machine's zone), \"today 14:03\", \"10 minutes ago\" or \"now\".";

/// A moment, and the zone in which it was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The moment, in whole microseconds, as PostgreSQL's timestamps are.
    pub at: Timestamp,
    /// The zone it was given in.
    pub zone: TimeZone,
    /// True if no zone was given and the one of `now` was taken.
    pub zone_assumed: bool,
}

impl fmt::Display for Moment {
    /// In full: local time, offset, zone, and the same in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.at.to_zoned(self.zone.clone());
        write!(f, "{}", local.strftime("%Y-%m-%d %H:%M:%S%.f%:z"))?;
        if let Some(name) = self.zone.iana_name().filter(|_| !self.zone.is_unknown()) {
            write!(f, " {name}")?;
        }
        if !local.offset().is_zero() {
            write!(f, " = {} UTC", self.at.strftime("%Y-%m-%d %H:%M:%S%.f"))?;
        }
        if self.zone_assumed {
            f.write_str(" (no zone given: this machine's)")?;
        }
        Ok(())
    }
}

/// The time now in this machine's zone: `TZ`, else `/etc/localtime`, else UTC.
pub fn local_now(clock: &Clock) -> Zoned {
    clock.now().to_zoned(TimeZone::system())
}

/// Reads a moment. `now` gives the time that "ago" counts from and the zone of a time without one.
///
/// Taken: RFC 3339 (the `T` may be a space, seconds may be missing), PostgreSQL's own output, a zone name behind the
/// time or in brackets, `today` and `yesterday` with a time, `now`, and `ago` with units up to weeks (a day is
/// 24 hours there).
///
/// # Errors
/// Of kind `Usage`, with examples: everything else; a local time that clocks skipped or passed twice; a zone
/// abbreviation, since several zones share most of them.
pub fn parse_moment(text: &str, now: &Zoned) -> Result<Moment> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let relative = |at: Timestamp| moment(at, now.time_zone().clone(), false, text);
    match words.as_slice() {
        [] => Err(refused(text, "it is empty")),
        ["now"] => relative(now.timestamp()),
        [_, .., "ago"] => relative(ago(text, now)?),
        ["today", rest @ ..] => read(text, Day::Ago(0), rest, now),
        ["yesterday", rest @ ..] => read(text, Day::Ago(1), rest, now),
        [first, rest @ ..] => match first.split_once(['T', 't']).filter(|(date, _)| is_date(date)) {
            Some((date, time)) => {
                let mut words = vec![time];
                words.extend(rest);
                read(text, Day::Given(date), &words, now)
            }
            None => read(text, Day::Given(first), rest, now),
        },
    }
}

enum Day<'a> {
    /// As written.
    Given(&'a str),
    /// Days before today in the zone that was meant.
    Ago(i64),
}

/// Where a local time is read.
enum Place {
    /// This far from UTC.
    Offset(Offset),
    /// By the rules of a zone.
    Zone(TimeZone),
    /// Both, which must agree.
    Both(Offset, TimeZone),
    /// Not said.
    Unsaid,
}

fn read(text: &str, day: Day<'_>, words: &[&str], now: &Zoned) -> Result<Moment> {
    let (clock, place) = match words {
        [] => return Err(refused(text, "it has no time of day")),
        [clock] => split_clock(text, clock)?,
        [clock, place] => match split_clock(text, clock)? {
            (clock, Place::Unsaid) => (clock, parse_place(text, place)?),
            _ => return Err(refused(text, "it has two zones")),
        },
        [_, _, third, ..] => return Err(refused(text, &format!("{third:?} is one word too many"))),
    };
    let time = parse_time(text, clock)?;
    let zone = match &place {
        Place::Offset(offset) => TimeZone::fixed(*offset),
        Place::Zone(zone) | Place::Both(_, zone) => zone.clone(),
        Place::Unsaid => now.time_zone().clone(),
    };
    let date = match day {
        Day::Given(date) => parse_date(text, date)?,
        Day::Ago(days) => {
            let today = now.with_time_zone(zone.clone()).date();
            today.checked_sub(days.days()).map_err(|error| refused(text, "there is no such day").because(error))?
        }
    };
    let local = date.to_datetime(time);
    let at = match place {
        Place::Both(offset, _) => {
            let at = offset.to_timestamp(local).map_err(|error| out_of_range(text).because(error))?;
            if zone.to_offset(at) != offset {
                return Err(refused(text, "the offset is not the zone's at that time"));
            }
            at
        }
        _ => resolve(text, local, &zone)?,
    };
    moment(at, zone, matches!(place, Place::Unsaid), text)
}

fn moment(at: Timestamp, zone: TimeZone, zone_assumed: bool, text: &str) -> Result<Moment> {
    let at = Timestamp::from_microsecond(at.as_microsecond()).map_err(|error| out_of_range(text).because(error))?;
    Ok(Moment { at, zone, zone_assumed })
}

/// The one moment at which clocks in `zone` showed `local`.
fn resolve(text: &str, local: DateTime, zone: &TimeZone) -> Result<Timestamp> {
    let at = |offset: Offset| offset.to_timestamp(local).map_err(|error| out_of_range(text).because(error));
    let shown = |at: Timestamp| {
        let local = at.to_zoned(zone.clone());
        format!("\"{}\" ({} UTC)", local.strftime("%Y-%m-%d %H:%M:%S%.f%:z"), at.strftime("%Y-%m-%d %H:%M:%S%.f"))
    };
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => at(offset),
        AmbiguousOffset::Gap { before, after } => {
            let (later, earlier) = (shown(at(before)?), shown(at(after)?));
            Err(Error::new(Kind::Usage, format!("{text:?} never was: clocks were put forward over it"))
                .hint(format!("Did you mean {earlier} or {later}?")))
        }
        AmbiguousOffset::Fold { before, after } => {
            let (first, second) = (shown(at(before)?), shown(at(after)?));
            Err(Error::new(Kind::Usage, format!("{text:?} was twice: clocks were put back over it"))
                .hint(format!("Did you mean the first, {first}, or the second, {second}?")))
        }
    }
}

fn ago(text: &str, now: &Zoned) -> Result<Timestamp> {
    let bad = || refused(text, "what stands before \"ago\" is not a length of time in weeks, days, hours, …");
    let span = SpanParser::new().parse_span(text.trim()).map_err(|_| bad())?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| bad())?;
    if length.is_positive() {
        return Err(refused(text, "it is in the future"));
    }
    now.timestamp().checked_add(length).map_err(|error| out_of_range(text).because(error))
}

/// Splits what may be glued behind a time of day: `14:03+01:00`, `14:03Z`, `14:03[Europe/Berlin]`.
fn split_clock<'a>(text: &str, word: &'a str) -> Result<(&'a str, Place)> {
    match word.find(['Z', 'z', '+', '-', '[']) {
        Some(at) => Ok((&word[..at], parse_place(text, &word[at..])?)),
        None => Ok((word, Place::Unsaid)),
    }
}

fn parse_place(text: &str, word: &str) -> Result<Place> {
    if let Some((offset, rest)) = word.split_once('[') {
        let zone = rest.strip_suffix(']').ok_or_else(|| refused(text, "a bracket is not closed"))?;
        let zone = parse_zone(text, zone)?;
        return match offset {
            "" => Ok(Place::Zone(zone)),
            // RFC 9557: with Z the offset is not known, and the zone says how to show the time.
            "Z" | "z" => Ok(Place::Offset(Offset::UTC)),
            _ => Ok(Place::Both(parse_offset(text, offset)?, zone)),
        };
    }
    match word {
        "Z" | "z" => Ok(Place::Offset(Offset::UTC)),
        _ if word.starts_with(['+', '-']) => Ok(Place::Offset(parse_offset(text, word)?)),
        _ => Ok(Place::Zone(parse_zone(text, word)?)),
    }
}

fn parse_zone(text: &str, name: &str) -> Result<TimeZone> {
    if matches!(name, "UTC" | "GMT") {
        return Ok(TimeZone::UTC);
    }
    let short = name.len() <= 5 && name.bytes().all(|byte| byte.is_ascii_uppercase());
    if short {
        return Err(refused(text, &format!("several zones call themselves {name}")));
    }
    TimeZone::get(name).map_err(|_| {
        let why = format!("{name:?} is not a zone that this machine knows");
        refused(text, &why).hint(format!("Is it written as in Europe/Berlin, and is tzdata installed? {EXAMPLES}"))
    })
}

/// `+HH`, `+HHMM` or `+HH:MM`, with either sign.
fn parse_offset(text: &str, word: &str) -> Result<Offset> {
    let bad = || refused(text, &format!("{word:?} is not an offset from UTC such as +01:00"));
    let (sign, digits) = match word.split_at_checked(1) {
        Some(("+", digits)) => (1, digits),
        Some(("-", digits)) => (-1, digits),
        _ => return Err(bad()),
    };
    let (hours, minutes) = match (digits.len(), digits.split_once(':')) {
        (5, Some((hours, minutes))) => (hours, minutes),
        (4, None) => digits.split_at_checked(2).ok_or_else(bad)?,
        (2, None) => (digits, "00"),
        _ => return Err(bad()),
    };
    let (hours, minutes) = (number(hours, 2).ok_or_else(bad)?, number(minutes, 2).ok_or_else(bad)?);
    // Civil time has been within 14 hours of UTC wherever it was in use since PostgreSQL exists.
    if hours > 14 || minutes > 59 {
        return Err(bad());
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).map_err(|_| bad())
}

fn is_date(word: &str) -> bool {
    word.len() == 10
        && word.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() })
}

fn parse_date(text: &str, word: &str) -> Result<Date> {
    if !is_date(word) {
        return Err(refused(text, &format!("{word:?} is not a date such as 2026-11-20")));
    }
    word.parse().map_err(|_| refused(text, &format!("there is no {word}")))
}

/// `HH:MM`, `HH:MM:SS` or with a fraction of up to six digits, which is what PostgreSQL's timestamps hold.
fn parse_time(text: &str, word: &str) -> Result<Time> {
    let bad = || refused(text, &format!("{word:?} is not a time of day from 00:00 to 23:59:59.999999"));
    let mut parts = word.split(':');
    let (hour, minute) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(bad)?);
    let (second, fraction) = match parts.next() {
        Some(seconds) => match seconds.split_once('.') {
            Some((second, fraction)) => (second, fraction),
            None => (seconds, "0"),
        },
        None => ("00", "0"),
    };
    if parts.next().is_some() || !(1..=6).contains(&fraction.len()) {
        return Err(bad());
    }
    let two = |part| number(part, 2).and_then(|value| i8::try_from(value).ok()).ok_or_else(bad);
    let nanos = number(&format!("{fraction:0<6}"), 6).ok_or_else(bad)? * 1000;
    Time::new(two(hour)?, two(minute)?, two(second)?, nanos).map_err(|_| bad())
}

/// Exactly `digits` decimal digits; a sign is none.
fn number(text: &str, digits: usize) -> Option<i32> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn refused(text: &str, why: &str) -> Error {
    Error::new(Kind::Usage, format!("{text:?} is not a time: {why}")).hint(EXAMPLES)
}

fn out_of_range(text: &str) -> Error {
    refused(text, "it is beyond the years that can be shown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Friday, 2026-11-20, 13:30 in Berlin.
    fn now() -> Zoned {
        "2026-11-20T13:30:00+01:00[Europe/Berlin]".parse().expect("this machine has tzdata")
    }

    fn utc(text: &str) -> String {
        match parse_moment(text, &now()) {
            Ok(moment) => moment.at.to_string(),
            Err(error) => panic!("{text:?} was refused: {error:?}"),
        }
    }

    fn refusal(text: &str) -> Error {
        match parse_moment(text, &now()) {
            Ok(moment) => panic!("{text:?} was read as {moment}"),
            Err(error) => error,
        }
    }

    #[test]
    fn every_documented_way_to_write_a_time_is_understood() {
        for text in [
            "2026-11-20T13:03:00Z",
            "2026-11-20t13:03:00z",
            "2026-11-20T13:03Z",
            "2026-11-20 13:03:00.000 UTC",
            "2026-11-20 14:03:00+01:00",
            "2026-11-20 14:03:00.000000+01",
            "2026-11-20 14:03 +0100",
            "2026-11-20 07:33-05:30",
            "  2026-11-20   14:03  Europe/Berlin ",
            "2026-11-20T14:03:00+01:00[Europe/Berlin]",
            "2026-11-20T14:03[Europe/Berlin]",
            "2026-11-20T13:03Z[Europe/Berlin]",
            "2026-11-20 08:03 America/New_York",
            "2026-11-20 14:03",
            "today 14:03",
            "today 14:03:00",
            "today 08:03 America/New_York",
        ] {
            assert_eq!(utc(text), "2026-11-20T13:03:00Z", "{text:?}");
        }
    }

    #[test]
    fn relative_times_count_from_now() {
        assert_eq!(utc("now"), "2026-11-20T12:30:00Z");
        assert_eq!(utc("10 minutes ago"), "2026-11-20T12:20:00Z");
        assert_eq!(utc("1h 30m ago"), "2026-11-20T11:00:00Z");
        assert_eq!(utc("90s ago"), "2026-11-20T12:28:30Z");
        assert_eq!(utc("2 days ago"), "2026-11-18T12:30:00Z");
        assert_eq!(utc("yesterday 14:03"), "2026-11-19T13:03:00Z");
    }

    #[test]
    fn today_is_the_day_in_the_zone_that_was_named() {
        // 13:30 in Berlin on the 20th is already the 21st in Kiritimati.
        assert_eq!(utc("today 00:30 Pacific/Kiritimati"), "2026-11-20T10:30:00Z");
    }

    #[test]
    fn microseconds_are_kept() {
        assert_eq!(utc("2026-11-20 14:03:00.123456+01"), "2026-11-20T13:03:00.123456Z");
        assert_eq!(utc("2026-11-20 14:03:00.5+01"), "2026-11-20T13:03:00.5Z");
    }

    #[test]
    fn what_was_read_is_said_back_in_full() {
        let said = |text| parse_moment(text, &now()).map(|moment| moment.to_string()).expect("a time");
        assert_eq!(
            said("2026-11-20 14:03"),
            "2026-11-20 14:03:00+01:00 Europe/Berlin = 2026-11-20 13:03:00 UTC (no zone given: this machine's)"
        );
        assert_eq!(said("2026-11-20 14:03:00.25-05:00"), "2026-11-20 14:03:00.25-05:00 = 2026-11-20 19:03:00.25 UTC");
        assert_eq!(said("2026-11-20 14:03 UTC"), "2026-11-20 14:03:00+00:00 UTC");
    }

    #[test]
    fn what_is_malformed_is_refused_with_examples() {
        for text in [
            "",
            "   ",
            "13am",
            "1pm",
            "today 13am",
            "today 1:03pm",
            "today",
            "tomorrow 14:03",
            "14:03",
            "2026-11-20",
            "2026-11-20T",
            "2026-11-20T14",
            "2026-11-20 14",
            "2026-11-20 24:00",
            "2026-11-20 14:60",
            "2026-11-20 14:03:60",
            "2026-11-20 4:03",
            "2026-11-20 14:03:00.1234567",
            "2026-11-20 14:03:00.",
            "2026-11-20 14:03:00:00",
            "2026-11-20 +4:03",
            "2026-11-20 14:03 25:00",
            "2026-11-20 14:03+25:00",
            "2026-11-20 14:03+1",
            "2026-11-20 14:03 Europe/Atlantis",
            "2026-11-20 14:03[Europe/Berlin",
            "2026-11-20 14:03+01:00 Europe/Berlin",
            "2026-11-20 14:03 Europe/Berlin please",
            "2026-11-20 14:03:00+02:00[Europe/Berlin]",
            "2026-02-30 14:03",
            "2026-13-01 14:03",
            "20.11.2026 14:03",
            "11/20/2026 14:03",
            "20261120T140300Z",
            "ago",
            "minutes ago",
            "10 ago",
            "-10 minutes ago",
            "2 months ago",
            "99999999 weeks ago",
            "latest",
            "１４:０３",
            "\u{1F418}",
        ] {
            let error = refusal(text);
            assert_eq!(error.kind(), Kind::Usage, "{text:?}: {error:?}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("10 minutes ago")), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn an_abbreviation_that_several_zones_share_is_refused() {
        for zone in ["CET", "CEST", "EST", "IST", "BST"] {
            let error = refusal(&format!("2026-11-20 14:03 {zone}"));
            assert!(error.to_string().contains("several zones"), "{zone}: {error:?}");
        }
    }

    #[test]
    fn a_time_that_clocks_skipped_is_refused_with_its_neighbours() {
        let error = refusal("2026-03-29 02:30 Europe/Berlin");
        assert!(error.to_string().contains("never was"), "{error:?}");
        assert_eq!(
            error.hint_text(),
            Some(
                "Did you mean \"2026-03-29 01:30:00+01:00\" (2026-03-29 00:30:00 UTC) or \"2026-03-29 03:30:00+02:00\" \
                 (2026-03-29 01:30:00 UTC)?"
            )
        );
    }

    #[test]
    fn a_time_that_clocks_passed_twice_is_refused_with_both() {
        let error = refusal("2026-10-25 02:30 Europe/Berlin");
        assert!(error.to_string().contains("was twice"), "{error:?}");
        assert_eq!(
            error.hint_text(),
            Some(
                "Did you mean the first, \"2026-10-25 02:30:00+02:00\" (2026-10-25 00:30:00 UTC), or the second, \
                 \"2026-10-25 02:30:00+01:00\" (2026-10-25 01:30:00 UTC)?"
            )
        );
        // and a fraction of a second is not lost on the way.
        let hint = refusal("2026-10-25 02:30:00.25 Europe/Berlin").hint_text().expect("a hint").to_owned();
        assert!(hint.contains("02:30:00.25+02:00") && hint.contains("01:30:00.25 UTC"), "{hint}");
        // With its offset either one is plain.
        assert_eq!(utc("2026-10-25 02:30+02:00[Europe/Berlin]"), "2026-10-25T00:30:00Z");
        assert_eq!(utc("2026-10-25 02:30+01:00[Europe/Berlin]"), "2026-10-25T01:30:00Z");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC{0,40}") {
            let _ = parse_moment(&text, &now());
        }

        #[test]
        fn any_text_of_the_right_letters_is_read_or_refused(text in "[-0-9TZz:+. /a-z\\[\\]]{0,32}") {
            let _ = parse_moment(&text, &now());
        }

        #[test]
        fn every_moment_survives_being_said_and_read(micros in 946_684_800_000_000_i64..4_102_444_800_000_000) {
            let at = Timestamp::from_microsecond(micros).expect("in range");
            for zone in ["Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "UTC"] {
                let zone = TimeZone::get(zone).expect("this machine has tzdata");
                let written = at.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S%.f%:z").to_string();
                prop_assert_eq!(parse_moment(&written, &now()).map(|read| read.at).ok(), Some(at), "{}", written);
            }
        }
    }
}
