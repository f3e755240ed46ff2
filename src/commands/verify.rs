//! `seawall verify`: what is wrong with what is stored, a line each, and how much there is of it.

use super::{parts, print};
use crate::cli::VerifyArgs;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::runtime::Clock;
use crate::verify::{Finding, Report};
use std::fmt::Write as _;
use std::io::IsTerminal;

/// Verifies, prints the report, and fails if something has to be done.
///
/// # Errors
/// [`Kind::Damaged`] if there are problems; otherwise what the store says.
pub(super) async fn verify(args: VerifyArgs, settings: Settings) -> Result<()> {
    let (repository, cluster) = parts::readable_repository(&settings).await?;
    let report = crate::verify::verify(&repository, cluster, Clock::system().now()).await?;
    let text = match args.json.json {
        true => print::json(&report)?,
        false => in_words(&report, std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()),
    };
    print::stdout(&text)?;
    match report.problems {
        0 => Ok(()),
        problems => Err(Error::new(Kind::Damaged, format!("{} found in the repository", counted(problems, "problem")))
            .hint("Each is a line above; docs/operations.md says what to do about which.")),
    }
}

/// `1 object`, `2 objects`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn in_words(report: &Report, colours: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&line(finding, colours));
    }
    let named = report.findings.len() as u64;
    let found: u64 = report.counts.values().sum();
    if found > named {
        let _ = writeln!(text, "... and {} more of the same kinds", found - named);
    }
    if found > 0 {
        let counts = report.counts.iter().filter(|(_, count)| **count > 0);
        let counts: Vec<String> = counts.map(|(kind, count)| format!("{}: {count}", kind.in_words())).collect();
        let _ = writeln!(text, "\n{}", counts.join(", "));
    }
    let checked = &report.checked;
    let _ = writeln!(
        text,
        "cluster {}: {} ({}), {}, {} of WAL on {}",
        report.cluster,
        counted(checked.objects, "object"),
        print::size(checked.object_bytes),
        counted(checked.backups, "finished base backup"),
        print::size(checked.wal_bytes),
        counted(checked.timelines, "timeline"),
    );
    if checked.leftover_objects > 0 {
        let _ = writeln!(
            text,
            "{} ({}) are left of attempts at base backups, and of use to none that is finished",
            counted(checked.leftover_objects, "object"),
            print::size(checked.leftover_bytes)
        );
    }
    if report.is_sound {
        text.push_str("sound: nothing is missing, nothing is unknown, every base backup can be restored\n");
    }
    text
}

/// Red for what is wrong, as errors are on other lines of a terminal; the hint below it.
fn line(finding: &Finding, colours: bool) -> String {
    let (red, plain) = if colours && finding.is_problem { ("\u{1b}[31m", "\u{1b}[0m") } else { ("", "") };
    let note = if finding.is_problem { "" } else { " (note)" };
    let mut text = format!("{red}{}{note}{plain}: {}\n", finding.kind.in_words(), finding.message);
    if let Some(hint) = &finding.hint {
        let _ = writeln!(text, "    {hint}");
    }
    text
}
