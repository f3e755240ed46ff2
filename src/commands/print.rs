//! What commands write: units, times, tables, JSON. Results go to standard output, everything else to standard error.
//! Uses `error`.

use crate::error::{Error, Kind, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// Bytes with a binary unit and three significant digits: `999 B`, `1.50 KiB`, `16.0 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.5 would be shown as 1024.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A length of time with its two largest units: `0.4 ms`, `250 ms`, `1.50 s`, `2 min 5 s`, `3 h 2 min`, `2 d 4 h`.
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    let pair = |large: u64, large_unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{large} {large_unit}") } else { format!("{large} {large_unit} {small} {small_unit}") }
    };
    match seconds {
        0 if length.is_zero() => "0 s".to_owned(),
        0 if length < Duration::from_millis(10) => format!("{:.1} ms", length.as_secs_f64() * 1e3),
        0 => format!("{} ms", length.as_millis()),
        1..=9 => format!("{:.2} s", length.as_millis() as f64 / 1e3),
        10..=59 => format!("{:.1} s", (length.as_millis() / 100) as f64 / 10.0),
        60..=3599 => pair(seconds / 60, "min", seconds % 60, "s"),
        3600..=86_399 => pair(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// A moment in a zone, to the second, with its offset: `2026-11-20 14:03:00+01:00`. Where every microsecond counts,
/// `time::Moment` shows them.
pub fn time(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

/// How long before `now` something was: `12 min 5 s ago`; `just now` within a second, and for what is not past.
pub fn age(at: Timestamp, now: Timestamp) -> String {
    match Duration::try_from(now.duration_since(at)) {
        Ok(length) if length >= Duration::from_secs(1) => format!("{} ago", duration(length)),
        _ => "just now".to_owned(),
    }
}

/// Which side of its column a cell stands on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows in aligned columns, two spaces apart, without lines.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&str, Align)]) -> Table {
        Table { columns: columns.iter().map(|(name, align)| ((*name).to_owned(), *align)).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty, and what is beyond the last heading is left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().take(self.columns.len()).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// True if there is no row under the headings.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, a line a row, no space at any line's end.
    pub fn render(&self) -> String {
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let cells = line.iter().zip(&widths).zip(&self.columns);
            let padded = cells.map(|((cell, &width), (_, align))| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A document for scripts: indented, with a line feed at its end.
///
/// # Errors
/// Of kind `Internal`, if the document cannot be JSON.
pub fn json(document: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Error::new(Kind::Internal, "cannot write the result as JSON").because(error))?;
    Ok(text + "\n")
}

/// Writes a result to standard output. A reader that has left (`| head`) has had enough, which is no error.
///
/// # Errors
/// If it cannot be written, to a full disk for example.
pub fn stdout(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Local, "cannot write to standard output").because(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (16 << 20, "16.0 MiB"),
            (100 << 20, "100 MiB"),
            ((1 << 30) - 1, "1.00 GiB"),
            (1 << 40, "1.00 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        for (millis, text) in [
            (0, "0 s"),
            (4, "4.0 ms"),
            (250, "250 ms"),
            (1500, "1.50 s"),
            (59_999, "59.9 s"),
            (125_000, "2 min 5 s"),
            (10_920_000, "3 h 2 min"),
            (187_200_000, "2 d 4 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration(Duration::from_micros(400)), "0.4 ms");
    }

    #[test]
    fn an_age_is_never_negative() {
        let now: Timestamp = "2026-11-20T13:03:00Z".parse().expect("a time");
        let at = |text: &str| age(text.parse().expect("a time"), now);
        assert_eq!(at("2026-11-20T13:01:00Z"), "2 min ago");
        assert_eq!(at("2026-11-20T13:02:59.5Z"), "just now");
        assert_eq!(at("2026-11-21T13:03:00Z"), "just now");
    }

    #[test]
    fn a_table_lines_up_words_and_numbers() {
        let mut table = Table::new(&[("backup", Align::Left), ("size", Align::Right), ("note", Align::Left)]);
        assert!(table.is_empty());
        table.row(["20261120T130300Z".to_owned(), size(1 << 30), String::new()]);
        table.row(["é".to_owned(), "5 B".to_owned()]);
        assert_eq!(
            table.render(),
            "backup                size  note\n20261120T130300Z  1.00 GiB\né                      5 B\n"
        );
    }
}
