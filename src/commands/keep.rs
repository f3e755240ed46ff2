//! `seawall keep`: a base backup stays whatever retention says, or no longer.

use super::audit::{Begun, Ended};
use super::{parts, print, restore, time};
use crate::cli::KeepArgs;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{Action, BackupId, FORMAT_VERSION, KeepMark, Repository, Writer};
use crate::retention::{Held, Inventory, hold, release};
use crate::runtime::Clock;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;

/// The longest reason: a line or two.
const REASON_BYTES_MAX: usize = 1000;

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    mark: &'a KeepMark,
    /// Objects on which the store has put a legal hold, or from which it took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    legal_holds: Option<u64>,
}

/// Stores the mark. Where the store locks, it holds what the mark keeps: before there is a mark, and until there is none.
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
    let locks = repository.store.lock_period().is_some();
    let is_marked = marks.get(&backup).is_some_and(|mark| mark.keep);
    let is_there = repository.finished_backup(&backup).await?.is_some();
    if args.remove {
        // What was cut off halfway has left holds, and no mark.
        let may_hold = locks && is_there;
        if !is_marked && !may_hold {
            return Err(Error::new(Kind::Refused, format!("base backup {backup} has no mark"))
                .hint("`seawall list` shows which have one."));
        }
    } else if !is_there {
        return Err(Error::new(Kind::Refused, format!("there is no finished base backup {backup}"))
            .hint("`seawall list` shows them. Is --cluster right?"));
    }
    let begun = Begun::now("keep", Action::Keep, &clock);
    let mark = KeepMark { format: FORMAT_VERSION, backup, keep: !args.remove, reason, until, set_at: now };
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
    let inventory = match locks {
        true => Some(Inventory::read(&repository, cluster).await?),
        false => None,
    };
    let mut held = None;
    if let Some(inventory) = inventory.as_ref().filter(|_| mark.keep) {
        held = Some(done(hold(&repository, inventory, &mark.backup).await, "were held; the backup has no mark yet")?);
    }
    if mark.keep || is_marked {
        writer.store_keep_mark(&repository, &mark).await?;
    }
    if let Some(inventory) = inventory.as_ref().filter(|_| !mark.keep) {
        let released = release(&repository, inventory, &mark.backup, now).await;
        held = Some(done(released, "were released; the mark is taken away, and the others are held still")?);
    }
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
    let mut text = match (mark.keep, mark.until) {
        _ if args.json.json => print::json(&Report { mark: &mark, legal_holds: held.as_ref().map(|it| it.objects) })?,
        (false, _) => format!("base backup {} is no longer kept: retention decides\n", mark.backup),
        (true, None) => format!("base backup {} is kept until its mark is taken away: {}\n", mark.backup, mark.reason),
        (true, Some(until)) => {
            let zone = time::local_now(&clock).time_zone().clone();
            format!("base backup {} is kept until {}: {}\n", mark.backup, print::time(until, &zone), mark.reason)
        }
    };
    if let Some(held) = held.filter(|_| !args.json.json) {
        text.push_str(&match mark.keep {
            true => format!("legal holds keep {} objects\n", held.objects),
            false => format!("legal holds were taken off {} objects\n", held.objects),
        });
        if held.tails > 0 {
            text.push_str("note: WAL of it lies in tails, which are not held; once there is a block, the same command holds that\n");
        }
    }
    print::stdout(&text)
}

/// Of backups that are about to go: what is deleted under a hold would stay as an older version, for ever. Their marks have ended, or
/// were taken away halfway.
///
/// # Errors
/// What the store says.
pub(super) async fn release_doomed(
    repository: &Repository,
    inventory: &Inventory,
    doomed: &BTreeSet<BackupId>,
    now: Timestamp,
) -> Result<()> {
    // One that was marked again since the look keeps its holds, and stops the prune.
    let marks = repository.read_keep_marks().await?;
    let ended = marks.iter().filter(|(backup, mark)| doomed.contains(backup) && !mark.holds(now));
    for (backup, _) in ended {
        done(release(repository, inventory, backup, now).await, "were released, and nothing was deleted yet")?;
    }
    Ok(())
}

/// What was held or released, if all of it was.
fn done(mut held: Held, halfway: &str) -> Result<Held> {
    match held.error.take() {
        None => Ok(held),
        Some(error) => Err(error.context(format!("{} objects {halfway}; the same once more goes on", held.objects))),
    }
}
