//! On a second connection: which commits wait for us, where the server is while the stream does not say, and whether it
//! turns others away because it shuts down.

use super::source::{CommitWaits, Observer, Source, SourceErrorKind, Synchronous};
use super::state::{ArchiveState, StateSender};
use crate::postgres::{SlotHealth, WalStatus};
use crate::wal::Lsn;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at the position.
const PAUSE: Duration = Duration::from_secs(1);

/// The settings are looked at in each of so many looks.
const LOOKS_PER_SETTING: u32 = 3;

/// Before the one attempt that shows whether the server shuts down.
const MOMENT: Duration = Duration::from_millis(100);

/// Between the end of one second connection and the next.
const PAUSE_WITHOUT: Duration = Duration::from_secs(5);

/// Looks on for ever, from the first stream on.
pub(super) async fn look_on(source: &dyn Source, state: &StateSender) -> Infallible {
    let mut told = Told::default();
    let mut streams = state.subscribe();
    if streams.wait_for(|state| state.counts.connections > 0).await.is_err() {
        return std::future::pending().await;
    }
    let mut was_thrown_out = false;
    loop {
        match source.observe().await {
            Ok(mut observer) => {
                state.send_if_modified(|state| std::mem::take(&mut state.is_server_leaving));
                was_thrown_out = watch(observer.as_mut(), state, &mut told).await == SourceErrorKind::Leaving;
                show_slot(state, None);
                // A server that shuts down ends this connection first, and says so to the next one. It waits for the
                // stream, so that one attempt is made at once.
                if was_thrown_out {
                    sleep(MOMENT).await;
                    continue;
                }
            }
            Err(error) if error.kind == SourceErrorKind::Leaving && was_thrown_out => {
                state.send_modify(|state| state.is_server_leaving = true);
            }
            Err(_) => {}
        }
        was_thrown_out = false;
        sleep(PAUSE_WITHOUT).await;
    }
}

/// Looks on until the connection fails: why.
async fn watch(observer: &mut dyn Observer, state: &StateSender, told: &mut Told) -> SourceErrorKind {
    for look in 0u32.. {
        if look.is_multiple_of(LOOKS_PER_SETTING) {
            let waits = match observer.commit_waits().await {
                Ok(waits) => waits,
                Err(error) => return error.kind,
            };
            told.tell(waits, state.borrow().flushed, state.borrow().rpo.server_lsn());
            state.send_if_modified(|state| {
                let changed = state.commit_waits != waits;
                state.commit_waits = waits;
                changed
            });
            match observer.slot().await {
                Ok(slot) => show_slot(state, slot),
                Err(error) => return error.kind,
            }
        }
        if is_silent(&state.borrow()) {
            match observer.flush_lsn().await {
                Ok(lsn) => state.send_modify(|state| state.rpo.saw_server(Instant::now(), lsn)),
                Err(error) => return error.kind,
            }
        }
        sleep(PAUSE).await;
    }
    SourceErrorKind::Lost
}

/// The stream does not say where the server is.
fn is_silent(state: &ArchiveState) -> bool {
    state.last_message.is_none_or(|last| last.elapsed() > 2 * PAUSE) || state.is_reading_stopped
}

/// Publishes how the slot is, and says it when it comes into danger.
fn show_slot(state: &StateSender, slot: Option<SlotHealth>) {
    let before = state.borrow().slot.as_ref().and_then(|slot| slot.status);
    let now = slot.as_ref().and_then(|slot| slot.status);
    if now >= Some(WalStatus::Unreserved) && now != before {
        tracing::error!(
            wal_status = now.map(WalStatus::name),
            "the slot holds back more WAL than the server keeps for it (max_slot_wal_keep_size): what is not stored \
             soon is lost"
        );
    }
    state.send_if_modified(|state| {
        let changed = state.slot != slot;
        state.slot = slot;
        changed
    });
}

/// What the operator has been told, so that it is said once.
#[derive(Default)]
struct Told {
    synchronous: Synchronous,
    remote_apply: bool,
    hanging: bool,
    /// Where the server was at the last look.
    server: Lsn,
}

impl Told {
    fn tell(&mut self, waits: CommitWaits, flushed: Lsn, server: Lsn) {
        if self.synchronous != waits.synchronous {
            match waits.synchronous {
                Synchronous::No => tracing::info!("commits no longer wait for this archiver"),
                Synchronous::Named => tracing::info!(
                    "commits wait for this archiver: synchronous_standby_names has its name; WAL is stored at once"
                ),
                Synchronous::Captured => tracing::warn!(
                    hint = "Was that meant? Name the standbys in synchronous_standby_names, with or without the \
                            application_name of this archiver.",
                    "every commit waits for this archiver although nobody named it: synchronous_standby_names has a *, \
                     which is everybody; WAL is stored at once, and commits hang while the store is down"
                ),
            }
            self.synchronous = waits.synchronous;
        }
        let waits_to_apply = waits.synchronous != Synchronous::No && waits.remote_apply;
        if waits_to_apply && !self.remote_apply {
            tracing::error!(
                hint = "Use synchronous_commit = on: it waits until the WAL is in the store. Or name a real standby beside \
                        the archiver, ANY 1 (...), or set treat_archived_as_applied, which reports as applied what is \
                        stored.",
                "commits will hang for ever: synchronous_commit = remote_apply waits until a standby has applied their \
                 WAL, and an archiver applies nothing"
            );
        }
        self.remote_apply = waits_to_apply;
        // All that the server had at the last look is stored and acknowledged, and still they wait.
        let hanging = waits.synchronous != Synchronous::No && waits.hanging > 0 && flushed >= self.server;
        if hanging && !self.hanging && !waits_to_apply {
            tracing::warn!(
                sessions = waits.hanging,
                hint = "Does a session set synchronous_commit = remote_apply? An archiver applies nothing. Or do they wait \
                        for another standby in synchronous_standby_names that is away?",
                "commits wait although their WAL is stored and acknowledged"
            );
        }
        self.hanging = hanging;
        self.server = server;
    }
}
