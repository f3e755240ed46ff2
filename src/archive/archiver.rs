//! The loop around connections: connect, find the position, stream, and again, for ever.

mod holes;

use super::budget::Budget;
use super::claims::Claim;
use super::divergence::{Behind, behind};
use super::garbage::Garbage;
use super::link::Link;
use super::lookout;
use super::resume::{self, Resume, ResumeError};
use super::share::CommonMemory;
use super::source::{
    SPARE_PAUSE, ServerIdentity, Session, Source, SourceError, SourceErrorKind, Started, Synchronous, TimelineEnd,
};
use super::state::{ArchiveState, Phase, StateSender};
use super::stream::{Ended, Stream};
use crate::codec::Form;
use crate::error::{Error, Kind, Result};
use crate::history::index::Indexer;
use crate::metrics::DurableLatency;
use crate::repository::{Cluster, FORMAT_VERSION, Layout, Repository, WalReader, Writer};
use crate::runtime::{Backoff, Clock, RetryPolicy, Shutdown};
use crate::store::Store;
use crate::wal::{Lsn, TimelineId};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A server that ends the stream is left alone for so long: coming back at once would find it still shutting down, and
/// hold that up. A restart takes about as long, and commits that wait for us wait through it.
const LEAVING_PAUSE: Duration = Duration::from_secs(5);

/// A server whose past is not the repository's is left alone for so long in favour of others.
const OTHER_PATH_PAUSE: Duration = Duration::from_secs(30);

/// With several servers to choose from, they are asked at least so often: commits may wait for us on a new primary.
const SEARCH_PAUSE_MAX: Duration = Duration::from_secs(3);

/// A stream that has lasted so long was healthy: the next pause is the first one again.
const HEALTHY: Duration = Duration::from_secs(10);

/// How an archiver works.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// A byte waits at most so long before it is handed to the store; 0: not at all.
    pub flush_interval: Duration,
    /// So many objects are stored at a time.
    pub uploads_max: usize,
    /// With so many bytes on their way into the store, reading stops.
    pub in_flight_bytes_max: u64,
    /// So much memory is taken by what is encoded, from before it is on its way until it is stored. One block, whatever it
    /// takes, is always stored.
    pub encoded_bytes_max: u64,
    /// So often PostgreSQL hears from us, and is asked to answer.
    pub status_interval: Duration,
    /// While idle, one heartbeat in so long.
    pub heartbeat_interval: Duration,
    /// A tail that something larger has replaced is deleted after so long.
    pub garbage_age: Duration,
    /// How new objects are stored.
    pub form: Form,
    /// Gets to see every full block.
    pub indexer: Option<Indexer>,
    /// Is told how long WAL waited to become durable.
    pub latency: Option<DurableLatency>,
    /// Where other archivers of the process take memory from, too: this one has little beside it.
    pub common: Option<CommonMemory>,
    /// Its claim to the slot, among the archivers of the process.
    pub claim: Option<Claim>,
}

impl Default for ArchiveOptions {
    fn default() -> ArchiveOptions {
        ArchiveOptions {
            flush_interval: Duration::from_millis(500),
            uploads_max: 4,
            in_flight_bytes_max: 32 << 20,
            encoded_bytes_max: 18 << 20,
            status_interval: Duration::from_millis(500),
            heartbeat_interval: Duration::from_secs(15 * 60),
            garbage_age: Duration::from_secs(5 * 60),
            form: Form::default(),
            indexer: None,
            latency: None,
            common: None,
            claim: None,
        }
    }
}

impl ArchiveOptions {
    /// True if whatever comes is to be stored at once.
    pub(super) fn is_urgent(&self, state: &ArchiveState) -> bool {
        state.commit_waits.synchronous != Synchronous::No || self.flush_interval.is_zero()
    }
}

/// Streams one cluster into one folder of a store.
#[derive(Debug)]
pub struct Archiver {
    pub(super) source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    cluster: String,
    pub(super) options: ArchiveOptions,
    pub(super) clock: Clock,
    pub(super) state: StateSender,
    /// What `cluster.json` says, once it was read: it never changes.
    known: OnceLock<Cluster>,
    pub(super) garbage: Mutex<Garbage>,
    /// Of one connection's jobs some may end only after the next has begun.
    pub(super) budget: Budget,
    /// Timelines that are stored up to their switch point, which the server no longer has, and whose end cannot be opened to be
    /// made permanent.
    kept_in_tails: Mutex<BTreeSet<(TimelineId, Lsn)>>,
}

/// What a connection led to.
enum Outcome {
    /// Come back at once: there is more to do.
    Again,
    /// Come back at once: this timeline is finished up to there, and another one goes on.
    Next(TimelineId, TimelineEnd),
    /// The server was promoted apart: ask the others, and if none will do, that is the end.
    Elsewhere(Error),
    /// Come back at once, and ask from this position on: what is before it was stored, and the server has it no more.
    AgainAt(TimelineId, Lsn),
    /// Come back after a pause.
    Pause(SourceError),
    /// Nothing more to do.
    Done,
}

impl Archiver {
    /// An archiver that has not begun.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn Store>,
        cluster: impl Into<String>,
        options: ArchiveOptions,
        clock: Clock,
    ) -> Archiver {
        let (state, _) = watch::channel(ArchiveState::new());
        let (cluster, known) = (cluster.into(), OnceLock::new());
        let (garbage, kept_in_tails) = (Mutex::default(), Mutex::default());
        let budget = Budget::new(options.encoded_bytes_max, options.common.as_ref());
        Archiver { source, store, cluster, options, clock, state, known, garbage, budget, kept_in_tails }
    }

    /// What it shows of itself.
    pub fn state(&self) -> watch::Receiver<ArchiveState> {
        self.state.subscribe()
    }

    /// Runs until it is told to stop. Servers, networks and stores that go away are waited for, for ever.
    ///
    /// # Errors
    /// What waiting cannot mend: before the first stream whatever the server refuses, later only a divergence, a
    /// damaged repository, or a defect.
    pub async fn run(&self, shutdown: &Shutdown) -> Result<()> {
        let looking_on = lookout::look_on(self.source.as_ref(), &self.state);
        let streaming = self.run_connections(shutdown);
        tokio::pin!(looking_on, streaming);
        tokio::select! {
            biased;
            ended = &mut streaming => {
                if let Err(error) = &ended {
                    self.show_end(error);
                }
                ended
            }
            never = &mut looking_on => match never {},
        }
    }

    /// Other archivers of this process may go on, and be looked at, for years: what a disaster would cost grows from now on.
    fn show_end(&self, error: &Error) {
        self.state.send_modify(|state| {
            state.rpo.lost();
            state.phase = Phase::Connecting;
            state.is_compared = false;
            state.last_error = Some(error.to_string());
        });
    }

    async fn run_connections(&self, shutdown: &Shutdown) -> Result<()> {
        let mut backoff = Backoff::new(RetryPolicy::RECONNECT);
        let mut last_told = None;
        let mut removed_before = None;
        let mut finished = None;
        let mut apart = None;
        let mut farthest = None;
        while !shutdown.stop.is_cancelled() {
            let begun = Instant::now();
            let outcome = tokio::select! {
                biased;
                () = shutdown.kill.cancelled() => return Ok(()),
                outcome = self.connect_and_stream(removed_before.take(), &mut apart, shutdown) => outcome?,
            };
            self.state.send_modify(|state| {
                state.rpo.lost();
                state.phase = Phase::Connecting;
                state.is_compared = false;
            });
            let error = match outcome {
                Outcome::Done => return Ok(()),
                Outcome::Again => continue,
                Outcome::AgainAt(timeline, lsn) => {
                    removed_before = Some((timeline, lsn));
                    continue;
                }
                // A server that ends one timeline twice has not told us of the next: a standby that lags.
                Outcome::Next(timeline, end) if finished.replace((timeline, end)) != Some((timeline, end)) => continue,
                Outcome::Next(timeline, end) => SourceError::lost(format!(
                    "timeline {timeline} has ended at {}, once more: has the server not followed yet?",
                    end.switch
                )),
                Outcome::Elsewhere(error) => {
                    self.state.send_modify(|state| state.counts.interrupt(SourceErrorKind::Apart));
                    tracing::error!(%error, hint = error.hint_text().unwrap_or_default(), "trying the other servers");
                    apart = Some(error);
                    continue;
                }
                Outcome::Pause(error) => error,
            };
            // A connection that breaks again and again, but brings something new each time, is worth having.
            let reached = farthest_stored(&self.state.borrow());
            let is_farther = reached > farthest;
            farthest = farthest.max(reached);
            if begun.elapsed() > HEALTHY || is_farther {
                backoff.reset();
            }
            let pause = self.pause_after(error.kind, &mut backoff);
            let text = error.to_string();
            if error.kind == SourceErrorKind::SlotBusy {
                self.state.send_modify(|state| {
                    state.phase = Phase::HotSpare;
                    state.counts.spare += 1;
                });
            }
            // What goes on unchanged is said once.
            let is_news = last_told.as_ref() != Some(&text);
            if is_news && error.kind == SourceErrorKind::SlotBusy {
                tracing::info!(reason = %text, "another archiver holds the slot; waiting to take over");
            } else if is_news {
                let hint = error.error.hint_text().unwrap_or_default();
                tracing::warn!(error = %text, hint, pause_seconds = pause.as_secs_f64(), "not streaming; trying again");
            }
            self.state.send_modify(|state| {
                state.counts.interrupt(error.kind);
                state.last_error = Some(text.clone());
            });
            last_told = Some(text);
            tokio::select! {
                () = shutdown.stop.cancelled() => {}
                () = self.wait(error.kind, pause) => {}
            }
        }
        Ok(())
    }

    /// A hot spare waits for the slot, without a request to the store; everybody else for a while.
    async fn wait(&self, kind: SourceErrorKind, pause: Duration) {
        if kind != SourceErrorKind::SlotBusy || self.source.wait_for_slot().await.is_err() {
            tokio::time::sleep(pause).await;
        }
    }

    /// How long to wait before the next connection. Another server, where there is one, need not be waited for.
    fn pause_after(&self, kind: SourceErrorKind, backoff: &mut Backoff) -> Duration {
        let pause = match kind {
            SourceErrorKind::SlotBusy => return SPARE_PAUSE,
            SourceErrorKind::Leaving if !self.source.pass_over(LEAVING_PAUSE) => {
                return LEAVING_PAUSE.max(backoff.next_pause());
            }
            SourceErrorKind::OtherPath => {
                self.source.pass_over(OTHER_PATH_PAUSE);
                backoff.next_pause()
            }
            _ => backoff.next_pause(),
        };
        if self.source.has_others() { pause.min(SEARCH_PAUSE_MAX) } else { pause }
    }

    async fn connect_and_stream(
        &self,
        removed_before: Option<(TimelineId, Lsn)>,
        apart: &mut Option<Error>,
        shutdown: &Shutdown,
    ) -> Result<Outcome> {
        let connected = tokio::select! {
            biased;
            () = shutdown.stop.cancelled() => return Ok(Outcome::Done),
            connected = self.source.connect() => connected,
        };
        let mut session = match connected {
            Ok(session) => session,
            Err(error) => match apart.take() {
                Some(apart) => return Err(apart),
                None => return self.judge(error),
            },
        };
        let identity = session.identity();
        let certificate_end = session.certificate_end();
        self.state.send_modify(|state| state.certificate_end = certificate_end);
        // Nothing is begun yet that would have to be finished: a stop need not wait for a server or a store that hangs.
        let prepared = tokio::select! {
            biased;
            () = shutdown.stop.cancelled() => return Ok(Outcome::Done),
            prepared = self.prepare(session.as_mut(), identity) => prepared,
        };
        match prepared {
            Ok((writer, repository, mut resume)) => {
                *apart = None;
                let is_linked = removed_before == Some((resume.timeline, resume.overlap_end));
                if let Some((timeline, lsn)) = removed_before
                    && timeline == resume.timeline
                {
                    resume.begin_at(lsn);
                }
                self.stream_from(session, &writer, &repository, resume, is_linked, shutdown).await
            }
            Err(ResumeError::Source(error)) => self.judge(error),
            // The store is waited for like the server, once it has answered at all.
            Err(ResumeError::Other(error)) if self.has_begun() => wait_for_store(error),
            Err(ResumeError::Other(error)) => Err(error),
        }
    }

    /// Before the first stream, what the server refuses is for the operator; later it is waited out. So is a server that
    /// is not on the repository's path, if there is another one to try.
    fn judge(&self, error: SourceError) -> Result<Outcome> {
        let is_wrong = error.error.kind() == Kind::Diverged;
        match error.kind {
            SourceErrorKind::Refused if !self.has_begun() => Err(error.error),
            SourceErrorKind::OtherPath if is_wrong && !self.source.has_others() && !self.has_begun() => {
                Err(error.error)
            }
            SourceErrorKind::Apart if self.source.pass_over(OTHER_PATH_PAUSE) => Ok(Outcome::Elsewhere(error.error)),
            SourceErrorKind::Apart => Err(error.error),
            _ => Ok(Outcome::Pause(error)),
        }
    }

    /// It has streamed, or waited for another one to leave: everything was right once.
    fn has_begun(&self) -> bool {
        let state = self.state.borrow();
        state.counts.connections > 0 || state.counts.spare > 0
    }

    async fn prepare(
        &self,
        session: &mut dyn Session,
        identity: ServerIdentity,
    ) -> Result<(Writer, Repository, Resume), ResumeError> {
        match self.known.get() {
            Some(cluster) => check_identity(cluster, &self.cluster, identity)?,
            None => {
                let cluster = ensure_cluster(self.store.as_ref(), &self.cluster, identity, &self.clock).await?;
                let _ = self.known.set(cluster);
            }
        }
        let layout = Layout::new(self.cluster.clone(), identity.segment_size, self.options.form.clone());
        let repository = Repository { store: self.store.clone(), layout: layout.clone() };
        let writer = Writer::new(self.store.clone(), layout, identity.system_identifier);
        let writer = match &self.options.common {
            Some(common) => writer.with_encoders(common.encoders()),
            None => writer,
        };
        // The slot comes first: from now on the server keeps what the listing is about to miss. On a new primary nothing
        // else keeps it, also while the store is away.
        let slot = session.take_slot().await?;
        let kept_in_tails = self.kept_in_tails.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = match resume::find(session, &writer, &repository, slot.restart_lsn, &kept_in_tails).await {
            Ok(resume) => check_standing(session, resume).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(resume) => Ok((writer, repository, resume)),
            Err(ResumeError::Source(error)) if slot.created && error.error.kind() == Kind::Diverged => {
                // Nobody would ever move it, and the server's disk would fill.
                if let Err(error) = session.drop_slot().await {
                    tracing::warn!(%error, "the slot that was just made on this server was not dropped again");
                }
                Err(error.into())
            }
            Err(error) => Err(error),
        }
    }

    async fn stream_from(
        &self,
        session: Box<dyn Session>,
        writer: &Writer,
        repository: &Repository,
        resume: Resume,
        is_linked: bool,
        shutdown: &Shutdown,
    ) -> Result<Outcome> {
        let (timeline, start) = (resume.timeline, resume.start);
        let claim = self.options.claim.as_ref();
        let claimed = claim.map(|claim| claim.take(writer.system_identifier(), &self.cluster, session.backend()));
        let claimed = claimed.transpose()?;
        let feed = match session.start(start, timeline).await {
            Ok(Started::Streaming(feed)) => feed,
            Err(error) if error.kind == SourceErrorKind::SlotBusy => {
                claimed.as_ref().map_or(Ok(()), |claimed| claimed.busy(error.slot_holder))?;
                return self.judge(error);
            }
            Ok(Started::TimelineEnded(end)) => {
                let what = format!("timeline {timeline} ended at {} before anything of it could be read", end.switch);
                return Ok(Outcome::Pause(SourceError::lost(what)));
            }
            Err(error) => return self.judge(error),
        };
        // The slot is ours only now: until then another archiver may have stored more than the listing shows, and have
        // acknowledged it. Less than that must not be reported.
        let resume = match resume::look_again(repository, resume).await {
            Ok(resume) => resume,
            Err(error) => return wait_for_store(error),
        };
        tracing::info!(%timeline, %start, stored_up_to = %resume.overlap_end, "streaming");
        self.state.send_modify(|state| {
            state.counts.connections += 1;
            state.stream_start = start;
            state.last_error = None;
            state.is_server_leaving = false;
            // What was told on another connection, perhaps of another timeline, says nothing of this one.
            state.flushed = Lsn::INVALID;
            state.rpo.begin_anew();
            // Where nothing comes before the first byte, nothing is outstanding.
            state.rpo.stored(if resume.overlap_end == start && !is_linked { start } else { Lsn::INVALID });
        });
        // Nothing comes again: the first record has to prove that it follows what is stored.
        let link = match is_linked {
            true => {
                let reader = WalReader::new(repository.clone(), writer.system_identifier());
                Link::from_stored(&reader, timeline, start).await?
            }
            false => None,
        };
        let stream = Stream::new(self, writer, &resume, link);
        match Box::pin(stream.run(feed, shutdown)).await? {
            Ended::Stopped | Ended::Killed => Ok(Outcome::Done),
            Ended::Timeline(end) => {
                tracing::info!(%timeline, next = %end.next, switch = %end.switch, "the timeline has ended");
                Ok(Outcome::Next(timeline, end))
            }
            Ended::ServerShutdown => {
                let error = Error::new(Kind::Postgres, "the server shuts down");
                Ok(Outcome::Pause(SourceError::new(SourceErrorKind::Leaving, error)))
            }
            Ended::Lost(error) if error.kind == SourceErrorKind::WalRemoved => {
                self.pass_over_removed(writer, repository, &resume, error, shutdown).await
            }
            Ended::Lost(error) if error.kind == SourceErrorKind::Apart => self.judge(error),
            Ended::Lost(error) => Ok(Outcome::Pause(error)),
        }
    }
}

/// How far the archive goes. What is stored once more, like the rest of a timeline that has ended, does not count.
fn farthest_stored(state: &ArchiveState) -> Option<(TimelineId, Lsn)> {
    state.timeline.map(|timeline| (timeline, state.durable))
}

/// A server that is behind what is stored is a standby that lags, or has lost WAL.
async fn check_standing(session: &mut dyn Session, resume: Resume) -> Result<Resume, ResumeError> {
    let identity = session.identity();
    let standing = session.standing().await?;
    match behind(identity, standing, &resume) {
        Behind::No => Ok(resume),
        Behind::Changed(error) => Err(error.into()),
        // Another of several hosts may be the right one.
        Behind::Diverged(error) => Err(SourceError::new(SourceErrorKind::Apart, error).into()),
        Behind::Standby { flush, stored } if flush < resume.start => {
            let identity = ServerIdentity { flush_lsn: flush, ..identity };
            Err(resume::behind(identity, resume.timeline, stored).into())
        }
        Behind::Standby { flush, stored } => {
            tracing::warn!(%flush, %stored, "this standby is behind what is stored; nothing is acknowledged until it is proven equal");
            Ok(resume)
        }
    }
}

/// A store that fails is waited for like a server; anything else ends the archiver.
fn wait_for_store(error: Error) -> Result<Outcome> {
    match error.kind() {
        Kind::Store => Ok(Outcome::Pause(SourceError::new(SourceErrorKind::Lost, error))),
        _ => Err(error),
    }
}

/// Finds the cluster's folder, or makes it.
///
/// # Errors
/// If the folder is another cluster's.
pub async fn ensure_cluster(store: &dyn Store, name: &str, identity: ServerIdentity, clock: &Clock) -> Result<Cluster> {
    let cluster = match Repository::read_cluster(store, name).await? {
        Some(cluster) => cluster,
        None => {
            let cluster = Cluster {
                format: FORMAT_VERSION,
                system_identifier: identity.system_identifier,
                postgres_version: identity.version,
                segment_bytes: identity.segment_size.bytes(),
                created_at: clock.now(),
            };
            let json = serde_json::to_vec_pretty(&cluster)
                .map_err(|error| Error::new(Kind::Internal, "cannot write a document").because(error))?;
            store.create(&Layout::cluster_key(name), bytes::Bytes::from(json).into(), Default::default()).await?;
            // Whoever was first: what is there now counts.
            let stored = Repository::read_cluster(store, name).await?;
            stored.ok_or_else(|| Error::new(Kind::Store, "cluster.json was stored and is not there"))?
        }
    };
    check_identity(&cluster, name, identity)?;
    Ok(cluster)
}

/// Fails if the server is not the one whose folder this is.
fn check_identity(cluster: &Cluster, name: &str, identity: ServerIdentity) -> Result<()> {
    if cluster.system_identifier != identity.system_identifier {
        return Err(Error::new(
            Kind::Diverged,
            format!(
                "the folder {name:?} of the repository belongs to the cluster {}, and the server is {}",
                cluster.system_identifier, identity.system_identifier
            ),
        )
        .hint("Was the server made anew (initdb, pg_upgrade)? Give it a folder of its own with --cluster NAME."));
    }
    if cluster.segment_bytes != identity.segment_size.bytes() {
        return Err(Error::new(
            Kind::Diverged,
            format!("the repository has segments of {} bytes, the server of {}", cluster.segment_bytes, identity.segment_size.bytes()),
        )
        .hint("Was pg_resetwal --wal-segsize used? Give the cluster a new folder with --cluster NAME, and take a new base backup."));
    }
    Ok(())
}
