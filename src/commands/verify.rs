//! `seawall verify`: what is wrong with what is stored, a line each, and how much there is of it.

use super::audit::{Begun, Ended};
use super::progress::{self, Step};
use super::taking::Taker;
use super::{parts, print};
use crate::cli::VerifyArgs;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{Action, Writer};
use crate::runtime::Clock;
use crate::verify::{Finding, Reading, Report, VerifyOptions, VerifyProgress};
use std::fmt::Write as _;
use std::io::IsTerminal;
use tokio::sync::watch;

/// Verifies, prints the report, and fails if something has to be done.
///
/// # Errors
/// [`Kind::Damaged`] if there are problems; otherwise what the store says.
pub(super) async fn verify(args: VerifyArgs, settings: Settings) -> Result<()> {
    let (repository, cluster) = parts::readable_repository(&settings).await?;
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
    let clock = Clock::system();
    let begun = Begun::now("verify", if args.deep { Action::DeepVerify } else { Action::Verify }, &clock);
    let options = VerifyOptions {
        deep: args.deep,
        bytes_per_second: args.max_rate.map(|kib| u64::from(kib) << 10),
        resume: args.resume,
        ..VerifyOptions::default()
    };
    let (progress, watched) = watch::channel(VerifyProgress::default());
    let now = clock.now();
    let verified = tokio::select! {
        verified = Box::pin(crate::verify::verify(&repository, cluster, &options, now, &progress)) => verified,
        never = progress::show(watched, step) => match never {},
    };
    begun.end(&writer, said(&verified), &clock).await;
    let report = verified?;
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

/// Verifies as `seawall run` does.
///
/// # Errors
/// As [`verify`], but for what it finds.
pub(super) async fn by_itself(taker: &Taker, deep: bool) -> Result<Report> {
    let (repository, _, cluster) = taker.repository().await?;
    let (progress, _seen) = watch::channel(VerifyProgress::default());
    let options = VerifyOptions { deep, ..VerifyOptions::default() };
    Box::pin(crate::verify::verify(&repository, cluster, &options, taker.clock.now(), &progress)).await
}

/// What was found, in the audit trail.
pub(super) fn said(verified: &Result<Report>) -> Ended {
    let report = match verified {
        Ok(report) => report,
        Err(error) => return Ended::failed(error),
    };
    let objects = counted(report.checked.objects, "object");
    let about = match report.findings.iter().find(|finding| finding.is_problem) {
        None => format!("{objects} looked at, nothing is wrong"),
        Some(first) => format!("{}, first: {}", counted(report.problems, "problem"), first.message),
    };
    Ended::done(report.is_sound, about)
}

fn step(progress: &VerifyProgress) -> Step {
    let what = if progress.total_bytes == 0 { "listing" } else { "verifying" };
    Step { what, done_bytes: progress.done_bytes, total_bytes: progress.total_bytes }
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
    if let Some(read) = &report.read {
        text.push_str(&read_in_words(read));
    }
    text.push_str(match (report.is_sound, &report.read) {
        (false, _) => "",
        (true, None) => {
            "sound: nothing is missing, nothing is unknown, every base backup can be restored; contents were not read (--deep)\n"
        }
        (true, Some(Reading { sealed_objects: 0, .. })) => {
            "sound: nothing is missing, nothing is unknown, every base backup can be restored, every object holds what it must\n"
        }
        (true, Some(_)) => {
            "sound as far as it can be seen without the private key: nothing is missing, nothing is unknown, every base backup can be \
             restored\n"
        }
    });
    text
}

fn read_in_words(read: &Reading) -> String {
    let mut text = format!("read {} ({})", counted(read.objects, "object"), print::size(read.bytes));
    if read.resumed_objects > 0 {
        let (objects, bytes) = (counted(read.resumed_objects, "object"), print::size(read.resumed_bytes));
        let _ = write!(text, "; {objects} ({bytes}) were read before the interruption");
    }
    text.push('\n');
    if read.sealed_objects > 0 {
        let (objects, bytes) = (counted(read.sealed_objects, "object"), print::size(read.sealed_bytes));
        let _ = writeln!(
            text,
            "NOT DECRYPTED: {objects} ({bytes}): of these only what is in clear was checked, and of parts of base backups the hash of \
             what is stored; name the private key with --identity"
        );
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
