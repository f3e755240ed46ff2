//! `seawall keep`: a base backup stays whatever retention says, or no longer.

use super::audit::{Begun, Ended};
use super::{parts, print, restore, time};
use crate::cli::KeepArgs;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{Action, FORMAT_VERSION, KeepMark, Writer};
use crate::runtime::Clock;

/// The longest reason: a line or two.
const REASON_BYTES_MAX: usize = 1000;

/// Stores the mark.
///
/// # Errors
/// [`Kind::Refused`] if there is no such backup, or no mark to take away; [`Kind::Usage`] for a reason or an end that is none.
pub(super) async fn keep(args: KeepArgs, settings: Settings) -> Result<()> {
    let clock = Clock::system();
    let backup = restore::backup(&args.backup)?;
    let reason = args.reason.unwrap_or_default().trim().to_owned();
    if !args.remove && (reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.contains(char::is_control)) {
        return Err(Error::new(Kind::Usage, "--reason is empty, not one line, or too long")
            .hint("Say why in a few words: somebody will wonder in a year."));
    }
    let now = clock.now();
    let until = match &args.until {
        Some(text) => Some(time::parse_moment(text, &time::local_now(&clock))?.at),
        None => None,
    };
    if let Some(past) = until.filter(|until| *until <= now) {
        return Err(
            Error::new(Kind::Usage, format!("--until {past} is past")).hint("Leave it out to keep it for ever.")
        );
    }
    let (repository, cluster) = parts::repository(&settings).await?;
    let marks = repository.read_keep_marks().await?;
    if args.remove {
        if !marks.get(&backup).is_some_and(|mark| mark.keep) {
            return Err(Error::new(Kind::Refused, format!("base backup {backup} has no mark"))
                .hint("`seawall list` shows which have one."));
        }
    } else if repository.finished_backup(&backup).await?.is_none() {
        return Err(Error::new(Kind::Refused, format!("there is no finished base backup {backup}"))
            .hint("`seawall list` shows them. Is --cluster right?"));
    }
    let begun = Begun::now("keep", Action::Keep, &clock);
    let mark = KeepMark { format: FORMAT_VERSION, backup, keep: !args.remove, reason, until, set_at: now };
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
    writer.store_keep_mark(&repository, &mark).await?;
    // One that a prune deleted in this moment is not kept by it.
    if mark.keep && repository.finished_backup(&mark.backup).await?.is_none() {
        return Err(Error::new(Kind::Busy, format!("base backup {} was deleted in this moment", mark.backup)));
    }
    let about = match (mark.keep, mark.until) {
        (false, _) => "no longer kept".to_owned(),
        (true, None) => format!("kept: {}", mark.reason),
        (true, Some(until)) => format!("kept until {until}: {}", mark.reason),
    };
    begun.end(&writer, Ended::done(true, about).of(&mark.backup), &clock).await;
    let text = match (mark.keep, mark.until) {
        _ if args.json.json => print::json(&mark)?,
        (false, _) => format!("base backup {} is no longer kept: retention decides\n", mark.backup),
        (true, None) => format!("base backup {} is kept until its mark is taken away: {}\n", mark.backup, mark.reason),
        (true, Some(until)) => {
            let zone = time::local_now(&clock).time_zone().clone();
            format!("base backup {} is kept until {}: {}\n", mark.backup, print::time(until, &zone), mark.reason)
        }
    };
    print::stdout(&text)
}
