//! `seawall keep`: a base backup stays whatever retention says, or no longer.

use super::audit::{Begun, Ended};
use super::{parts, print, restore, time};
use crate::cli::KeepArgs;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::repository::{Action, BackupId, Cluster, FORMAT_VERSION, KeepMark, Repository, Writer};
use crate::retention::{Held, Inventory, YOUNG, hold, hold_again, hold_folders, mark, release};
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
    /// Tails that hold WAL of it, and are not held.
    #[serde(skip_serializing_if = "Option::is_none")]
    tails_not_held: Option<u64>,
}

/// Stores the mark. Where the store locks, it then holds what the mark keeps, or releases it.
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
    let change = Change { repository: &repository, cluster: &cluster, writer: &writer, mark: &mark, is_marked, locks };
    let held = match change.apply(now).await {
        Ok(held) => held,
        Err(error) => {
            begun.end(&writer, Ended::failed(&error).of(&mark.backup), &clock).await;
            return Err(error);
        }
    };
    let about = match (mark.keep, mark.until) {
        (false, _) if !is_marked => "had no mark".to_owned(),
        (false, _) => "no longer kept".to_owned(),
        (true, None) => format!("kept: {}", mark.reason),
        (true, Some(until)) => format!("kept until {until}: {}", mark.reason),
    };
    begun.end(&writer, Ended::done(true, about).of(&mark.backup), &clock).await;
    let mut text = match (mark.keep, mark.until) {
        _ if args.json.json => {
            let legal_holds = held.as_ref().map(|it| it.objects);
            let tails_not_held = held.as_ref().filter(|_| mark.keep).map(|it| it.tails);
            print::json(&Report { mark: &mark, legal_holds, tails_not_held })?
        }
        (false, _) if !is_marked => format!("base backup {} had no mark\n", mark.backup),
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
            false if is_marked => format!("legal holds were taken off {} objects\n", held.objects),
            false => format!("{} objects were asked to be free of holds\n", held.objects),
        });
        if held.tails > 0 {
            text.push_str("note: WAL of it lies in tails, which are not held; once there is a block, the same command holds that\n");
        }
    }
    print::stdout(&text)
}

/// A mark that is set, or taken away.
struct Change<'a> {
    repository: &'a Repository,
    cluster: &'a Cluster,
    writer: &'a Writer,
    mark: &'a KeepMark,
    is_marked: bool,
    locks: bool,
}

impl Change<'_> {
    /// First the mark: no hold is without one, and whoever deletes or releases meanwhile finds it.
    async fn apply(&self, now: Timestamp) -> Result<Option<Held>> {
        let (repository, backup) = (self.repository, &self.mark.backup);
        if self.mark.keep || self.is_marked {
            mark(repository, self.writer, self.mark).await?;
        }
        if !self.locks {
            return Ok(None);
        }
        if !self.mark.keep {
            again(hold_again(repository, self.cluster, now, None).await)?;
            let released = release(repository, self.writer, self.cluster, &[backup.clone()].into(), now).await;
            return done(released, "were released; it has no mark, and others may be held still").map(Some);
        }
        let inventory = match Inventory::read(repository, self.cluster.clone()).await {
            Ok(inventory) => inventory,
            Err(error) => {
                let held = done(hold_folders(repository, backup).await, "were held; it is marked")?;
                let objects = held.objects;
                return Err(error.context(format!(
                    "base backup {backup} is marked, and legal holds keep its {objects} objects, but not its WAL: not everything here \
                     can be read"
                )));
            }
        };
        let held = done(hold(repository, &inventory, backup).await, "were held; it is marked")?;
        drop(inventory);
        again(hold_again(repository, self.cluster, now, None).await)?;
        Ok(Some(held))
    }
}

/// Before a prune: what somebody took off who was killed is held again. And backups that are about to go are released: what is deleted
/// under a hold would stay as an older version, for ever. Their marks have ended, or were taken away halfway.
///
/// # Errors
/// What the store says.
pub(super) async fn settle_holds(
    repository: &Repository,
    cluster: &Cluster,
    doomed: &BTreeSet<BackupId>,
    now: Timestamp,
    clock: &Clock,
) -> Result<()> {
    let dead_since = clock.now().saturating_sub(YOUNG).unwrap_or(Timestamp::MIN);
    again(hold_again(repository, cluster, now, Some(dead_since)).await)?;
    // One that was marked again since the look keeps its holds, and stops the prune.
    let marks = repository.read_keep_marks().await?;
    let ended = marks.into_iter().filter(|(backup, mark)| doomed.contains(backup) && !mark.holds(now));
    let ended: BTreeSet<BackupId> = ended.map(|(backup, _)| backup).collect();
    if ended.is_empty() {
        return Ok(());
    }
    let writer = Writer::new(repository.store.clone(), repository.layout.clone(), cluster.system_identifier);
    let released = release(repository, &writer, cluster, &ended, now).await;
    done(released, "were released, and nothing was deleted yet").map(drop)
}

fn again(held: Held) -> Result<()> {
    done(held, "were held again, of what somebody took off who was cut off").map(drop)
}

/// What was held or released, if all of it was.
fn done(mut held: Held, halfway: &str) -> Result<Held> {
    match held.error.take() {
        None => Ok(held),
        Some(error) => Err(error.context(format!("{} objects {halfway}; the same once more goes on", held.objects))),
    }
}
