//! The slot on a real server: found, made, and made anew where it keeps nothing any more. A slot is never a proof of what
//! was archived: what happens to a lost one differs from version to version, and none but 18 says so.
//!
//! * 13 to 15: it loses its position. Whoever streams through it makes it good again, and hides what was lost.
//! * 16 and 17: the same, but it stays dead: it follows the stream and keeps nothing.
//! * 18: nobody can stream through it.
//!
//! `info` is always this one server, of however many are configured.

use super::server::ANSWER_PATIENCE;
use super::source::{SlotPosition, SourceError, SourceErrorKind};
use crate::error::{Error, Kind};
use crate::postgres::{Client, ConnInfo, Mode, PgError, SlotHealth, SlotState};

/// `duplicate_object`: the slot is there.
const DUPLICATE_OBJECT: &str = "42710";

/// `undefined_object`: it is not.
const UNDEFINED_OBJECT: &str = "42704";

/// `object_not_in_prerequisite_state`
const NOT_IN_PREREQUISITE_STATE: &str = "55000";

/// Finds the slot, or makes it. One that is lost is made anew: that takes nothing away, since it keeps nothing.
///
/// # Errors
/// What the server says, or that the slot is a logical one.
pub(super) async fn take(client: &mut Client, info: &ConnInfo, name: &str) -> Result<SlotPosition, SourceError> {
    let (state, health) = look(client, info, name).await?;
    match state {
        SlotState::NotPhysical => {
            let error = Error::new(Kind::Config, format!("the slot {name} is a logical one"))
                .hint("Choose another name with --slot.");
            return Err(SourceError::new(SourceErrorKind::Refused, error));
        }
        SlotState::Present { restart_lsn, .. } => {
            // Somebody else's stream is left alone: the server will say that the slot is busy.
            let is_dead = health.as_ref().is_some_and(|health| health.is_lost() && !health.is_active);
            if let (Some(lsn), false) = (restart_lsn, is_dead) {
                return Ok(SlotPosition { restart_lsn: Some(lsn), created: false });
            }
            let why = health.and_then(|health| health.invalidation);
            tracing::warn!(
                slot = %name,
                why = why.as_deref().unwrap_or("it has no position"),
                "the replication slot keeps no WAL; making it anew"
            );
            drop_if_there(client, name).await?;
        }
        SlotState::Absent | SlotState::Unknown => {}
    }
    create(client, info, name).await
}

/// WAL was removed although the slot is there. Makes it anew where it may be one of the dead ones of 16 and 17 and nobody
/// lets us look.
///
/// # Errors
/// What the server says.
pub(super) async fn renew(client: &mut Client, info: &ConnInfo, name: &str) -> Result<SlotPosition, SourceError> {
    let (_, health) = look(client, info, name).await?;
    if health.is_none() && (160_000..180_000).contains(&client.server_version()) {
        tracing::warn!(slot = %name, "the replication slot may keep nothing, and we may not look; making it anew");
        drop_if_there(client, name).await?;
    }
    take(client, info, name).await
}

/// True if this is how 18 and later refuse a slot that is dead.
pub(super) fn is_refused_as_dead(version: u32, error: &PgError) -> bool {
    version >= 180_000 && error.sqlstate() == Some(NOT_IN_PREREQUISITE_STATE)
}

/// Makes a slot anew that the server has refused as dead, on a connection of its own.
///
/// # Errors
/// What the server says.
pub(super) async fn replace_dead(info: &ConnInfo, name: &str) -> Result<(), SourceError> {
    let mut client = Client::connect(info, Mode::Physical, &[]).await?;
    tracing::warn!(slot = %name, "the server has given up the replication slot; making it anew");
    drop_if_there(&mut client, name).await?;
    create(&mut client, info, name).await?;
    client.close().await;
    Ok(())
}

/// Where the slot is and how it is, as far as the server tells: up to 14 only SQL knows where, from 16 on only SQL knows
/// that one with a position is dead. The role may not be let in for that.
async fn look(client: &mut Client, info: &ConnInfo, name: &str) -> Result<(SlotState, Option<SlotHealth>), PgError> {
    const SHOWS_LOSS: u32 = 15;
    let state = client.read_slot(name).await?;
    let is_all = client.server_version() / 10_000 == SHOWS_LOSS || state == SlotState::NotPhysical;
    if is_all || state == SlotState::Absent {
        return Ok((state, None));
    }
    let Ok(mut sql) = Client::connect_for_sql(info, Mode::Sql).await else {
        return Ok((state, None));
    };
    sql.set_patience(ANSWER_PATIENCE);
    let state = match state {
        SlotState::Unknown => sql.read_slot(name).await?,
        known => known,
    };
    let health = sql.slot_health(name).await?;
    sql.close().await;
    Ok((state, health))
}

async fn create(client: &mut Client, info: &ConnInfo, name: &str) -> Result<SlotPosition, SourceError> {
    match client.create_slot(name).await {
        Ok(()) => {}
        Err(error) if error.sqlstate() == Some(DUPLICATE_OBJECT) => {
            return Ok(SlotPosition { restart_lsn: None, created: false });
        }
        Err(error) => return Err(error.into()),
    }
    tracing::info!(slot = %name, "made the replication slot");
    match look(client, info, name).await? {
        (SlotState::Present { restart_lsn, .. }, _) => Ok(SlotPosition { restart_lsn, created: true }),
        _ => Ok(SlotPosition { restart_lsn: None, created: true }),
    }
}

async fn drop_if_there(client: &mut Client, name: &str) -> Result<(), PgError> {
    match client.drop_slot(name).await {
        Err(error) if error.sqlstate() != Some(UNDEFINED_OBJECT) => Err(error),
        _ => Ok(()),
    }
}
