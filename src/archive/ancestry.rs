//! Is the server's past the repository's? Fetches its history, compares it with what is stored, stores what is new.

use super::resume::ResumeError;
use super::source::{ServerIdentity, Session, SourceError, SourceErrorKind};
use crate::error::{Error, Kind};
use crate::repository::{Key, Repository, Writer};
use crate::wal::{History, Lsn, TimelineId};
use bytes::Bytes;

/// The server's past, which is the repository's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ancestry {
    /// The path from the first timeline to the server's.
    pub history: History,
    /// The repository has a later timeline, which left the server's here: the server has not come as far, and whatever
    /// it has behind this point is no part of what is followed.
    pub left_at: Option<(Lsn, TimelineId)>,
}

/// Reads the server's history, compares it with all that is stored, and stores it and those of its ancestors, so that
/// they are there before the first byte of their timelines. Stores nothing of a server that is refused.
///
/// # Errors
/// [`SourceErrorKind::Apart`] and [`SourceErrorKind::OtherPath`] if the server's past is not the repository's; otherwise
/// what the server or the store says.
pub(super) async fn establish(
    session: &mut dyn Session,
    writer: &Writer,
    repository: &Repository,
) -> Result<Ancestry, ResumeError> {
    let identity = session.identity();
    let timeline = identity.timeline;
    let text = match timeline.0 {
        0 | 1 => None,
        _ => Some(session.history_file(timeline).await?),
    };
    let history = match &text {
        None => History::root(timeline),
        Some(text) => parse(timeline, text)?,
    };
    let mut missing = Vec::new();
    for entry in &history.ancestors {
        match stored_history(repository, entry.parent).await? {
            Some((_, stored)) if !history.ancestors.starts_with(&stored.ancestors) => {
                return Err(apart(entry.parent).into());
            }
            None if entry.parent > TimelineId(1) => missing.push(entry.parent),
            _ => {}
        }
    }
    let known = match &text {
        Some(text) => match stored_history(repository, timeline).await? {
            Some((stored, _)) if stored != *text => return Err(apart(timeline).into()),
            known => known.is_some(),
        },
        None => true,
    };
    let left_at = follow_on(repository, identity, &history).await?;
    if let Some(text) = text.filter(|_| !known || !missing.is_empty()) {
        // The older first: numbers without a gap are what PostgreSQL looks for.
        for parent in missing {
            let text = ancestors_file(session, parent, &text, &history).await?;
            store(writer, repository, parent, text).await?;
        }
        store(writer, repository, timeline, text).await?;
    }
    Ok(Ancestry { history, left_at })
}

fn parse(timeline: TimelineId, text: &[u8]) -> Result<History, Error> {
    History::parse(timeline, text).map_err(|error| {
        Error::new(Kind::Postgres, format!("the server's {} cannot be read", timeline.history_name())).because(error)
    })
}

/// A stored history; `None` if there is none.
async fn stored_history(
    repository: &Repository,
    timeline: TimelineId,
) -> Result<Option<(Bytes, History)>, ResumeError> {
    let Some(text) = repository.read_history_file(timeline).await? else { return Ok(None) };
    let history = History::parse(timeline, &text)
        .map_err(|error| Error::new(Kind::Damaged, format!("{} is damaged", timeline.history_name())).because(error))?;
    Ok(Some((text, history)))
}

/// Stores a history file, and reads it back: nothing of a timeline is stored before this is certain.
async fn store(writer: &Writer, repository: &Repository, timeline: TimelineId, text: Bytes) -> Result<(), ResumeError> {
    match writer.store_plain(&Key::History(timeline), text.clone()).await {
        Ok(_) => {}
        Err(error) if error.kind() == Kind::Diverged => return Err(apart(timeline).into()),
        Err(error) => return Err(error.into()),
    }
    match repository.read_history_file(timeline).await? {
        Some(stored) if stored == text => Ok(()),
        _ => {
            Err(Error::new(Kind::Store, format!("{} was stored and reads differently", timeline.history_name())).into())
        }
    }
}

/// The history of an ancestor that was never archived while it lasted. A server that was made of a backup may not have
/// the file; then it is the part of the descendant's that comes before the ancestor's own line, for that is how
/// PostgreSQL writes the next one: a copy of the last, an empty line, one more line (`timeline.c`,
/// `writeTimeLineHistory`).
async fn ancestors_file(
    session: &mut dyn Session,
    parent: TimelineId,
    text: &Bytes,
    history: &History,
) -> Result<Bytes, ResumeError> {
    let file = match session.history_file(parent).await {
        Ok(file) => file,
        Err(error) if error.kind == SourceErrorKind::Refused => derived(parent, text),
        Err(error) => return Err(error.into()),
    };
    let found = parse(parent, &file)?;
    let count = found.ancestors.len();
    let agrees = history.ancestors.starts_with(&found.ancestors)
        && history.ancestors.get(count).is_some_and(|entry| entry.parent == parent);
    match agrees {
        true => Ok(file),
        false => Err(apart(parent).into()),
    }
}

fn derived(parent: TimelineId, text: &Bytes) -> Bytes {
    let mut start = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let first = String::from_utf8_lossy(line).split_whitespace().next().and_then(|word| word.parse().ok());
        if first == Some(parent.0) {
            let before = text.slice(..start);
            return if before.ends_with(b"\n\n") { before.slice(..start - 1) } else { before };
        }
        start += line.len();
    }
    Bytes::new()
}

/// Where the repository goes on from the server's timeline, if it does.
async fn follow_on(
    repository: &Repository,
    identity: ServerIdentity,
    history: &History,
) -> Result<Option<(Lsn, TimelineId)>, ResumeError> {
    let timelines = repository.read_timelines().await?;
    for &newest in timelines.iter().rev().take_while(|timeline| **timeline > identity.timeline) {
        let Some((_, theirs)) = stored_history(repository, newest).await? else { continue };
        let switch = theirs.switch_from(identity.timeline).filter(|_| theirs.ancestors.starts_with(&history.ancestors));
        // A standby that has not replayed the promotion yet is on the path and before the switch point.
        return match switch.filter(|switch| identity.flush_lsn <= *switch) {
            Some(switch) => Ok(Some((switch, newest))),
            None => Err(other_path(identity, newest).into()),
        };
    }
    Ok(None)
}

/// An old primary, most likely.
fn other_path(identity: ServerIdentity, newest: TimelineId) -> SourceError {
    let what = format!(
        "the server is on timeline {} at {}, but the repository follows timeline {newest}",
        identity.timeline, identity.flush_lsn
    );
    let error = Error::new(Kind::Diverged, what).hint(
        "Nothing was stored or acknowledged. Is this an old primary that came back after a failover? Stop it, or make it a \
         standby of the promoted server (pg_rewind). With all hosts in the connection string and \
         target_session_attrs=primary, the promoted one is found. A cluster that is to go its own way needs another \
         --cluster name.",
    );
    SourceError::new(SourceErrorKind::OtherPath, error)
}

fn apart(timeline: TimelineId) -> SourceError {
    let error = Error::new(Kind::Diverged, format!("timeline {timeline} of this server is not the one in the repository"))
        .hint(
            "Two servers were promoted to the same timeline. Nothing of this one was stored or acknowledged. Find out which \
             one is the real one; give the other another --cluster name, and take a new base backup there.",
        );
    SourceError::new(SourceErrorKind::Apart, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ancestors_history_is_the_beginning_of_its_descendants() {
        let two = "1\t0/3000110\tno recovery target specified\n";
        let three = format!("{two}\n2\t0/5000000\tno recovery target specified\n");
        let four = Bytes::from(format!("{three}\n3\t0/7000000\tbefore transaction 3\n"));
        assert_eq!(derived(TimelineId(3), &four), three);
        assert_eq!(derived(TimelineId(2), &four), two);
        assert_eq!(derived(TimelineId(9), &four), "");
    }
}
