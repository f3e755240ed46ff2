//! A workflow told step by step on standard output: a line a step, aligned, with marks and colours on a terminal. Uses
//! `error` and `print`.

use super::print;
use crate::error::Result;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::time::Instant;

/// Columns of what was done; the details follow.
const LABEL_COLUMNS: usize = 26;
/// A step that took less does not say how long.
const WORTH_SAYING: Duration = Duration::from_millis(100);

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";
/// Back to the first column, and the line is empty.
const ERASE: &str = "\r\x1b[2K";

/// Tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    terminal: bool,
    colours: bool,
}

impl Steps {
    /// For standard output as it is: colours on a terminal alone, and not where `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn new() -> Steps {
        let terminal = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Steps { terminal, colours }
    }

    /// A line of its own, such as a heading.
    pub(super) fn line(self, text: &str) -> Result<()> {
        print::stdout(&format!("{text}\n"))
    }

    /// `text` as the part of a line that counts.
    pub(super) fn strong(self, text: &str) -> String {
        self.painted(BOLD, text)
    }

    /// Begins a step: a terminal shows what is being done until it is.
    pub(super) fn begin(self, doing: &str) -> Step {
        if self.terminal {
            // Only decoration: whoever cannot be shown it misses nothing.
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(self.painted(DIM, &format!("  · {doing} …")).as_bytes()).and_then(|()| out.flush());
        }
        Step { steps: self, begun: Instant::now() }
    }

    fn painted(self, colour: &str, text: &str) -> String {
        if self.colours && !text.is_empty() { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn render(self, mark: &str, colour: &str, label: &str, detail: &str, took: Duration) -> String {
        let erase = if self.terminal { ERASE } else { "" };
        let mark = self.painted(colour, mark);
        let took = if took < WORTH_SAYING { String::new() } else { format!("  ({})", print::duration(took)) };
        format!("{erase}  {mark} {label:<LABEL_COLUMNS$}  {detail}{}\n", self.painted(DIM, &took))
    }
}

/// A step that has begun. Dropped, it leaves nothing on the screen.
#[must_use]
pub(super) struct Step {
    steps: Steps,
    begun: Instant,
}

impl Step {
    /// It is done, and went well.
    pub(super) fn done(self, label: &str, detail: &str) -> Result<()> {
        print::stdout(&self.steps.render("✓", GREEN, label, detail, self.begun.elapsed()))
    }

    /// It is done, and was a disaster.
    pub(super) fn disaster(self, label: &str, detail: &str) -> Result<()> {
        print::stdout(&self.steps.render("✗", RED, label, detail, self.begun.elapsed()))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.steps.terminal {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(ERASE.as_bytes()).and_then(|()| out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_plain_lines_and_a_terminal_colours() {
        let step =
            |terminal, colours, took| Steps { terminal, colours }.render("✓", GREEN, "base backup", "5 MiB", took);
        assert_eq!(step(false, false, Duration::ZERO), "  ✓ base backup                 5 MiB\n");
        assert_eq!(step(false, false, Duration::from_secs(2)), "  ✓ base backup                 5 MiB  (2.00 s)\n");
        let shown = step(true, true, Duration::ZERO);
        assert!(shown.starts_with(ERASE) && shown.contains("\x1b[32m✓\x1b[0m"), "{shown:?}");
        assert!(!step(true, false, Duration::ZERO).contains("\x1b[32m"), "NO_COLOR is kept to");
    }
}
