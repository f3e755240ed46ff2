//! One connection's stream: read, cut, store, acknowledge. One task, one loop, numbered priorities. `queue.rs` has what waits to be stored.

mod queue;

use super::ArchiveOptions;
use super::ahead::Ahead;
use super::archiver::Archiver;
use super::budget::Budget;
use super::echo::Echo;
use super::garbage::{Failed, Garbage, Replaced};
use super::latency::Latency;
use super::line::{Job, Line};
use super::link::Link;
use super::pace::Pace;
use super::perform::Finished;
use super::resume::Resume;
use super::source::{Feed, FeedMessage, SourceError, SourceErrorKind, TimelineEnd};
use super::state::{ArchiveState, Phase, StateSender};
use crate::error::{Error, Kind, Result};
use crate::repository::{FORMAT_VERSION, Heartbeat, Key, Writer};
use crate::runtime::{Clock, Shutdown, Tasks};
use crate::store::StoreErrorKind;
use crate::wal::Lsn;
use jiff::SignedDuration;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A connection that says nothing for so long, though asked again and again, is dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A server that shuts down waits for its walsenders. If the store takes nothing for this long, we leave, so that the
/// server can: the slot keeps the WAL.
const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(1000);

/// So many requests for a reply within [`SHUTDOWN_PATIENCE`] are a shutdown. A server asks once we have been silent for
/// half a `wal_sender_timeout`, and during a shutdown after each of our messages (`walsender.c`, `WalSndDone`); once
/// asked we are never silent for longer than [`REPLY_PAUSE`].
const SHUTDOWN_REQUESTS: u32 = 5;

/// Replies to requests are this far apart: a storm is not answered with a storm.
const REPLY_PAUSE: Duration = Duration::from_millis(100);

/// So many tails are deleted at a time: as fast as they are stored, and no storm when many are due.
const DELETIONS_MAX: usize = 8;

/// While somebody waits, what has arrived already goes along with what came before it, for no longer than this.
const GATHER_MAX: Duration = Duration::from_millis(1);

/// What a lost connection brought is stored before the next one is begun; a store that hangs is not waited for longer.
const KEEP_PATIENCE: Duration = Duration::from_secs(10);

/// How long PostgreSQL may take to end a stream when we are done with it.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer that took longer may have lain in buffers, and says too little about the server's clock.
const ANSWER_AT_ONCE: Duration = Duration::from_secs(10);

/// How a stream ended, when nothing is wrong with the data.
#[derive(Debug)]
pub(super) enum Ended {
    /// We were told to stop, and everything received is stored and acknowledged.
    Stopped,
    /// We were told to leave at once.
    Killed,
    /// The timeline is finished, and sealed in the repository.
    Timeline(TimelineEnd),
    /// The server shut down, or is about to and we left.
    ServerShutdown,
    /// The connection is gone.
    Lost(SourceError),
}

pub(super) struct Stream<'a> {
    pub(super) writer: &'a Writer,
    pub(super) options: &'a ArchiveOptions,
    pub(super) clock: &'a Clock,
    pub(super) state: &'a StateSender,
    line: Line,
    /// Still to be proven before anything is acknowledged.
    link: Option<Link>,
    /// Where the timeline is known to end.
    switch: Option<Lsn>,
    /// The open block, compressed as far as it has come.
    ahead: Option<Ahead>,
    /// The block that is not compressed ahead any more: a job needed the memory.
    given_up: Option<Lsn>,
    /// For what is encoded.
    budget: &'a Budget,
    /// A job waits for part of the budget.
    is_short: bool,
    queue: VecDeque<(Job, Option<Ahead>)>,
    running: Tasks<Result<Finished>>,
    /// Comparisons that wait or run.
    comparing: usize,
    in_flight_bytes: u64,
    garbage: &'a Mutex<Garbage>,
    deletions: Tasks<(Replaced, Result<(), StoreErrorKind>)>,
    /// Heartbeats: nothing waits for them.
    errands: Tasks<()>,
    oldest_unsubmitted: Option<Instant>,
    server_end: Lsn,
    server_micros: i64,
    pace: Pace,
    latency: Option<Latency>,
    last_progress: Instant,
    echo: Echo,
    /// The server asked for a reply, and not everything received is durable.
    reply_owed: bool,
    /// Nothing more is read, and somebody waits for the rest to be stored.
    is_ending: bool,
    /// Since when it asks, and how often it has.
    asked: Option<(Instant, u32)>,
    last_status: Instant,
    next_status: Instant,
    quiet_since: Instant,
}

impl<'a> Stream<'a> {
    pub(super) fn new(archiver: &'a Archiver, writer: &'a Writer, resume: &Resume, link: Option<Link>) -> Stream<'a> {
        let Archiver { options, clock, state, garbage, budget, .. } = archiver;
        let size = writer.layout().segment_size();
        let now = Instant::now();
        lock(garbage).forget_from(resume.timeline, resume.start);
        if let Some(indexer) = &options.indexer {
            indexer.begin();
        }
        Stream {
            writer,
            options,
            clock,
            state,
            line: Line::new(size, resume.timeline, resume.start, resume.overlap_end, &resume.known)
                .with_leads(!writer.layout().form().recipients.is_empty())
                .with_common_memory(options.common.as_ref()),
            link,
            switch: resume.switch,
            ahead: None,
            given_up: None,
            budget,
            is_short: false,
            queue: VecDeque::new(),
            running: Tasks::default(),
            comparing: 0,
            in_flight_bytes: 0,
            garbage,
            deletions: Tasks::default(),
            errands: Tasks::default(),
            oldest_unsubmitted: None,
            server_end: Lsn::INVALID,
            server_micros: 0,
            pace: Pace::default(),
            latency: options.latency.clone().map(Latency::new),
            last_progress: now,
            echo: Echo::new(now),
            reply_owed: false,
            is_ending: false,
            asked: None,
            last_status: now,
            next_status: now,
            quiet_since: now,
        }
    }

    /// Runs until the stream ends, and everything it brought is stored as far as the store allows. Dropping the future
    /// drops what is being stored: nothing of that was acknowledged.
    ///
    /// # Errors
    /// Only for what must stop the archiver: a divergence, a damaged repository, a defect.
    pub(super) async fn run(mut self, feed: Box<dyn Feed>, shutdown: &Shutdown) -> Result<Ended> {
        // By the end of it the connection is closed: a server that shuts down does not wait for what comes now.
        let ended = Box::pin(self.follow(feed, shutdown)).await?;
        let keeps = match &ended {
            Ended::ServerShutdown => true,
            // Of a server that is not the right one nothing more is kept.
            Ended::Lost(error) => matches!(error.kind, SourceErrorKind::Lost | SourceErrorKind::Leaving),
            _ => false,
        };
        if keeps {
            self.keep_received(shutdown).await?;
        }
        Ok(ended)
    }

    async fn follow(&mut self, mut feed: Box<dyn Feed>, shutdown: &Shutdown) -> Result<Ended> {
        let mut last_message = Instant::now();
        let mut watched = self.state.subscribe();
        let options = self.options;
        loop {
            self.publish(self.is_ending);
            self.start_jobs();
            if self.is_ending && self.has_nothing_to_store() {
                return Ok(self.end(feed).await);
            }
            let flush_deadline = self.flush_deadline();
            let urgent_deadline = self.urgent_deadline();
            if urgent_deadline.is_some_and(|due| due.elapsed() > GATHER_MAX) {
                self.flush()?;
                continue;
            }
            let (was_urgent, was_leaving) = {
                let state = self.state.borrow();
                (options.is_urgent(&state), state.is_server_leaving)
            };
            let has_place = self.has_place();
            let may_read = !self.is_ending && has_place;
            if !may_read {
                last_message = Instant::now();
            }
            if !has_place && let Some(ahead) = &self.ahead {
                ahead.hurry();
            }
            tokio::select! {
                biased;
                // 1. Leave at once.
                () = shutdown.kill.cancelled() => return Ok(Ended::Killed),
                // 2. What is stored is acknowledged before anything else is read.
                Some(done) = self.running.next(), if !self.running.is_empty() => {
                    if self.confirm(done??)? && let Err(error) = self.send_status(&mut feed, false).await {
                        return Ok(Ended::Lost(error));
                    }
                }
                // 3. Take no more.
                () = shutdown.stop.cancelled(), if !self.is_ending => {
                    self.is_ending = true;
                    self.flush()?;
                }
                // 4. Signs of life, both ways, whatever the store does.
                () = tokio::time::sleep_until(self.next_status) => {
                    if last_message.elapsed() > SILENCE_MAX {
                        return Ok(Ended::Lost(SourceError::lost(format!("the server has said nothing for {} s", SILENCE_MAX.as_secs()))));
                    }
                    // Whoever asks is there, and need not be asked.
                    let ask = self.asked.is_none();
                    self.next_status = Instant::now() + if ask { options.status_interval } else { REPLY_PAUSE };
                    if let Err(error) = self.send_status(&mut feed, ask).await {
                        return Ok(Ended::Lost(error));
                    }
                    self.delete_due();
                    self.heartbeat();
                    // If what was compressed is lost, there may never be room for another message.
                    self.compress_ahead()?;
                }
                // 5. A tail is due.
                () = sleep_until_some(flush_deadline), if flush_deadline.is_some() => self.flush()?,
                // 6. Somebody waits for commits now, or no longer does; or the server turns others away.
                () = wait_until(&mut watched, |state| {
                    options.is_urgent(state) != was_urgent || state.is_server_leaving != was_leaving
                }) => {}
                // 7. A tail is deleted, and the next one may be.
                Some(deleted) = self.deletions.next(), if !self.deletions.is_empty() => {
                    let (tail, deleted) = deleted?;
                    self.deleted(tail, deleted);
                    self.delete_due();
                }
                // 8. More WAL.
                message = feed.next(), if may_read => {
                    last_message = Instant::now();
                    match message {
                        Ok(FeedMessage::EndOfTimeline) => return self.finish_timeline(feed, shutdown).await,
                        Ok(FeedMessage::ServerShutdown) => return Ok(Ended::ServerShutdown),
                        Ok(message) => if let Some(ended) = self.take(message)? {
                            return Ok(ended);
                        },
                        Err(error) => return Ok(Ended::Lost(error)),
                    }
                }
                // 9. There may be room to read again.
                () = self.line.wait_for_room(), if !has_place => {}
                // 10. There may be memory for a job.
                () = self.budget.wait_for_room(), if self.is_short => {}
                // 11. Somebody waits, and nothing more has come that could go along.
                () = until_some(urgent_deadline), if urgent_deadline.is_some() => self.flush()?,
            }
            if self.is_server_leaving() {
                return Ok(Ended::ServerShutdown);
            }
        }
    }

    /// Everything received is stored. Where a stored stretch has come again in part only, it cannot be compared and is
    /// not confirmed, and waiting does not help.
    fn has_nothing_to_store(&self) -> bool {
        let idle = self.queue.is_empty() && self.running.is_empty() && !self.line.has_unsubmitted();
        let is_held = self.running.is_empty() && !self.queue.iter().any(|(job, _)| self.may_start(job));
        idle || self.line.progress().is_settled() || (is_held && !self.queue.is_empty())
    }

    /// Everything that was stored before has come again and been compared.
    fn is_compared(&self) -> bool {
        self.line.progress().is_past_overlap() && self.comparing == 0
    }

    /// Nothing of a server that is not proven to be the right one gets into the repository: what it sends may be another
    /// history, and a whole block of that would hide the right tails from every reader.
    fn may_start(&self, job: &Job) -> bool {
        match job {
            Job::Compare { .. } => true,
            // Compared already, piece by piece.
            Job::Store { range, .. } if range.end <= self.line.progress().durable() => true,
            // Where archiving began, the first object alone may say. What lies behind it does not come before it.
            Job::Store { range, .. }
                if !self.line.progress().is_begun() && range.start > self.line.progress().start() =>
            {
                false
            }
            // A first record that is longer than the memory would wait for ever.
            Job::Store { .. } => self.is_compared() && (self.link.is_none() || self.is_full()),
        }
    }

    /// The connection is gone, and what it brought may be nowhere else any more: stores that before anything else.
    async fn keep_received(&mut self, shutdown: &Shutdown) -> Result<()> {
        self.is_ending = true;
        self.flush()?;
        let until = Instant::now() + KEEP_PATIENCE;
        while !self.has_nothing_to_store() {
            self.start_jobs();
            self.publish(shutdown.stop.is_cancelled());
            tokio::select! {
                biased;
                () = shutdown.kill.cancelled() => return Ok(()),
                Some(done) = self.running.next() => { self.confirm(done??)?; }
                // Told to stop, we have time: nothing waits for the next connection.
                () = tokio::time::sleep_until(until), if !shutdown.stop.is_cancelled() => return Ok(()),
            }
        }
        self.publish(shutdown.stop.is_cancelled());
        Ok(())
    }

    fn take(&mut self, message: FeedMessage) -> Result<Option<Ended>> {
        let now = Instant::now();
        match message {
            FeedMessage::Data { start, server_end, server_micros, bytes } => {
                if let Some(switch) = self.switch.filter(|switch| start + bytes.len() as u64 > *switch) {
                    return Ok(Some(Ended::Lost(self.went_on(switch))));
                }
                self.saw_server(now, server_end, server_micros);
                let mut jobs = Vec::new();
                let submitted = self.line.progress().submitted();
                if let Err(error) = self.line.receive(start, &bytes, &mut jobs) {
                    return match error.kind() {
                        Kind::Postgres => Ok(Some(Ended::Lost(SourceError::lost(error.to_string())))),
                        _ => Err(error),
                    };
                }
                if let Some(link) = &mut self.link
                    && link.crosses(start, &bytes)?
                {
                    self.link = None;
                }
                self.quiet_since = now;
                // What comes again was durable once.
                if let Some(latency) = &mut self.latency
                    && self.line.progress().is_past_overlap()
                {
                    latency.received(self.line.progress().received(), now);
                }
                self.state.send_if_modified(|state| {
                    state.counts.received_bytes += bytes.len() as u64;
                    false
                });
                self.enqueue(jobs)?;
                self.compress_ahead()?;
                // A block that became full took along what was older.
                let oldest = self.oldest_unsubmitted.filter(|_| self.line.progress().submitted() == submitted);
                self.oldest_unsubmitted = self.line.has_unsubmitted().then(|| oldest.unwrap_or(now));
            }
            FeedMessage::Keepalive { server_end, server_micros, reply_requested } => {
                if !reply_requested && let Some(asked) = self.echo.answered(server_micros) {
                    self.compare_clocks(now - asked, server_micros);
                }
                self.saw_server(now, server_end, server_micros);
                if reply_requested {
                    self.be_asked(now);
                }
            }
            FeedMessage::EndOfTimeline | FeedMessage::ServerShutdown => {}
        }
        Ok(None)
    }

    /// The server writes behind the point where the repository knows the timeline to have been left.
    fn went_on(&self, switch: Lsn) -> SourceError {
        let timeline = self.line.progress().timeline();
        let what = format!("the server goes on with timeline {timeline} behind {switch}, where the timeline was left");
        let error = Error::new(Kind::Diverged, what).hint(
            "What it writes there is neither stored nor acknowledged. Is this an old primary that came back after a \
             failover? Stop it, or make it a standby of the promoted server (pg_rewind).",
        );
        SourceError::new(SourceErrorKind::OtherPath, error)
    }

    /// A server that shuts down asks until everything it sent is flushed: that is made so first, and told at once. Until
    /// then it hears the same again at short intervals, so that [`Stream::is_server_leaving`] can tell a shutdown from a
    /// server that merely has not heard from us.
    fn be_asked(&mut self, now: Instant) {
        self.reply_owed = !self.line.progress().is_settled();
        if self.reply_owed {
            let (since, requests) = self.asked.unwrap_or((now, 0));
            self.asked = Some((since, requests + 1));
        }
        self.next_status = self.next_status.min(self.last_status + REPLY_PAUSE);
    }

    /// The server waits for us in order to shut down, and the store takes nothing.
    fn is_server_leaving(&mut self) -> bool {
        if self.line.progress().is_settled() {
            self.asked = None;
            return false;
        }
        let asks = match self.asked {
            Some((since, requests)) if since.elapsed() >= SHUTDOWN_PATIENCE => {
                // Too few: it had not heard from us, and now it has.
                if requests < SHUTDOWN_REQUESTS && since.elapsed() >= 2 * SHUTDOWN_PATIENCE {
                    self.asked = None;
                }
                requests >= SHUTDOWN_REQUESTS
            }
            _ => false,
        };
        // While nothing is read, it cannot ask; but others hear that it shuts down.
        let leaves = asks || self.state.borrow().is_server_leaving;
        leaves && self.last_progress.elapsed() >= SHUTDOWN_PATIENCE
    }

    /// An answer was on its way for no longer than this, and was sent when the server's clock showed `micros`.
    fn compare_clocks(&self, took: Duration, micros: i64) {
        if took > ANSWER_AT_ONCE {
            return;
        }
        let ahead = micros.saturating_sub(self.clock.now_postgres_micros());
        self.state.send_if_modified(|state| {
            state.server_clock_ahead = Some(SignedDuration::from_micros(ahead));
            false
        });
    }

    fn saw_server(&mut self, now: Instant, server_end: Lsn, server_micros: i64) {
        self.server_end = self.server_end.max(server_end);
        self.server_micros = server_micros;
        let sent = self.echo.sent_after(now, server_micros);
        // Nobody is to wake for each message: whoever looks sees it.
        self.state.send_if_modified(|state| {
            state.last_message = Some(now);
            state.rpo.saw_server(sent, server_end);
            false
        });
    }

    /// When the next tail is due. None is while no place is free: those who come meanwhile go together, or a store that
    /// is away for hours would be met with a queue of small objects, two longer for each second.
    fn flush_deadline(&self) -> Option<Instant> {
        let oldest = self.oldest_unsubmitted.filter(|_| self.has_free_place())?;
        Some(oldest + self.options.flush_interval)
    }

    /// More may be read.
    fn has_place(&self) -> bool {
        self.in_flight_bytes < self.options.in_flight_bytes_max && self.line.has_room()
    }

    /// No more will be read before something is stored.
    fn is_full(&self) -> bool {
        self.in_flight_bytes >= self.options.in_flight_bytes_max || self.line.is_full()
    }

    fn has_free_place(&self) -> bool {
        self.running.len() + self.queue.len() < self.options.uploads_max
    }

    /// With somebody waiting, when what came is stored: at once while the store is idle, at even intervals while it is not.
    fn urgent_deadline(&self) -> Option<Instant> {
        let urgent = self.reply_owed || self.options.is_urgent(&self.state.borrow());
        self.pace.next(self.oldest_unsubmitted.filter(|_| urgent)?)
    }

    /// Goes before the blocks and merged tails in the queue, which are large and nobody waits for alone, and has a place of
    /// its own beside them.
    fn flush(&mut self) -> Result<()> {
        let mut jobs = Vec::new();
        self.line.flush(&mut jobs)?;
        self.oldest_unsubmitted = None;
        for job in jobs {
            self.in_flight_bytes += job.range().bytes();
            self.pace.begin(job.range().end, Instant::now());
            let compared = self.queue.iter().rposition(|(job, _)| matches!(job, Job::Compare { .. }));
            self.queue.insert(compared.map_or(0, |last| last + 1), (job, None));
        }
        Ok(())
    }

    /// True if PostgreSQL can be told something new.
    fn confirm(&mut self, Finished { key, range, was_compared, was_stored }: Finished) -> Result<bool> {
        let now = Instant::now();
        self.comparing -= usize::from(was_compared);
        self.in_flight_bytes -= range.bytes();
        if matches!(key, Key::Tail(_)) {
            self.pace.end(range.end, now);
        }
        let (mut jobs, mut garbage) = (Vec::new(), Vec::new());
        let moved = self.line.confirm(&key, range, &mut jobs, &mut garbage)?;
        self.enqueue(jobs)?;
        if moved {
            self.last_progress = now;
        }
        for tail in garbage {
            let due = now + self.options.garbage_age.saturating_sub(tail.covered_for);
            let replaced = Replaced { range: tail.range, ending: tail.ending };
            if !lock(self.garbage).add(due, replaced) {
                self.state.send_modify(|state| state.counts.undeleted += 1);
            }
        }
        let durable = self.line.progress().durable();
        if let Some(latency) = &mut self.latency {
            latency.stored(durable, now);
        }
        self.state.send_modify(|state| {
            match (&key, was_stored) {
                (_, false) => state.counts.compared += 1,
                (Key::Tail(_), true) => state.counts.tails += 1,
                _ => state.counts.blocks += 1,
            }
            state.rpo.stored(durable);
        });
        Ok(moved || (self.reply_owed && self.line.progress().is_settled()))
    }

    async fn send_status(&mut self, feed: &mut Box<dyn Feed>, ask: bool) -> Result<(), SourceError> {
        let progress = self.line.progress();
        let flushed = if self.link.is_some() { Lsn::INVALID } else { progress.flushed() };
        // Where nothing is flushed, a server that shuts down takes what is written for it (`walsender.c`, `WalSndDone`).
        let is_awaited = self.reply_owed && !progress.is_settled() && !flushed.is_valid();
        let written = if is_awaited { Lsn::INVALID } else { progress.received() };
        if progress.is_settled() {
            (self.reply_owed, self.asked) = (false, None);
        }
        self.last_status = Instant::now();
        let ask = ask && self.echo.may_ask();
        if ask {
            self.echo.ask(Instant::now());
        }
        feed.send_status(written, flushed, ask).await?;
        self.state.send_modify(|state| {
            state.flushed = flushed;
            state.counts.turns += 1;
        });
        Ok(())
    }

    /// Everything received is durable: says so, and ends the stream.
    async fn end(&mut self, mut feed: Box<dyn Feed>) -> Ended {
        if let Err(error) = self.send_status(&mut feed, false).await {
            return Ended::Lost(error);
        }
        // The positions are told; that the server also says goodbye is politeness.
        let _ = tokio::time::timeout(END_TIMEOUT, feed.end()).await;
        Ended::Stopped
    }

    /// The server has sent this timeline to its end: seals it, and waits until all of it is permanent.
    async fn finish_timeline(&mut self, feed: Box<dyn Feed>, shutdown: &Shutdown) -> Result<Ended> {
        let end = match feed.finish_timeline().await {
            Ok(end) => end,
            Err(error) => return Ok(Ended::Lost(error)),
        };
        if let Some(switch) = self.switch.filter(|switch| *switch != end.switch) {
            let timeline = self.line.progress().timeline();
            let what =
                format!("timeline {timeline} of the server ends at {}, and is known to end at {switch}", end.switch);
            return Ok(Ended::Lost(SourceError::new(SourceErrorKind::Apart, Error::new(Kind::Diverged, what))));
        }
        let mut jobs = Vec::new();
        if let Err(error) = self.line.seal(end.switch, &mut jobs) {
            return Ok(Ended::Lost(SourceError::lost(error.to_string())));
        }
        self.enqueue(jobs)?;
        // Had there been a record that does not link back, the server's own history would not lead here.
        (self.link, self.is_ending) = (None, true);
        while !self.line.progress().is_settled() || !self.queue.is_empty() || !self.running.is_empty() {
            self.start_jobs();
            self.publish(false);
            tokio::select! {
                biased;
                () = shutdown.kill.cancelled() => return Ok(Ended::Killed),
                Some(done) = self.running.next() => { self.confirm(done??)?; }
                // A store that hangs is waited for, which is a turn too.
                () = tokio::time::sleep(self.options.status_interval) => {}
            }
            self.state.send_modify(|state| state.counts.turns += 1);
        }
        self.publish(false);
        Ok(Ended::Timeline(end))
    }

    fn publish(&self, stopping: bool) {
        let progress = self.line.progress();
        let is_reading_stopped = self.is_full();
        let is_compared = self.is_compared();
        self.state.send_if_modified(|state| {
            state.phase = if stopping { Phase::Stopping } else { Phase::Streaming };
            state.timeline = Some(progress.timeline());
            state.received = progress.received();
            state.in_flight_bytes = self.in_flight_bytes;
            state.live_tails = self.line.live_tails() as u64;
            state.is_reading_stopped = is_reading_stopped;
            let moved = state.durable != progress.durable() || state.is_compared != is_compared;
            state.is_compared = is_compared;
            state.durable = progress.durable();
            moved
        });
    }

    /// Deletes what has been garbage for long enough that no reader is in the middle of it. Best effort: what cannot be
    /// deleted stays for `prune`.
    fn delete_due(&mut self) {
        let now = Instant::now();
        let left = lock(self.garbage).drop_denied(now);
        if left > 0 {
            self.state.send_modify(|state| state.counts.undeleted += left);
        }
        while self.deletions.len() < DELETIONS_MAX
            && let Some(tail) = lock(self.garbage).take_due(now)
        {
            let (store, layout) = (self.writer.store().clone(), self.writer.layout());
            let name = layout.name_in(&Key::Tail(tail.range), tail.ending.unwrap_or(layout.form().ending()));
            self.deletions.start(async move { (tail, store.delete(&name).await.map_err(|error| error.kind)) });
        }
    }

    fn deleted(&mut self, tail: Replaced, deleted: Result<(), StoreErrorKind>) {
        let Err(kind) = deleted else {
            lock(self.garbage).succeeded();
            self.state.send_modify(|state| state.counts.deleted += 1);
            return;
        };
        if let Failed::Denied { is_news } = lock(self.garbage).failed(tail, kind, Instant::now()) {
            self.state.send_modify(|state| state.counts.undeleted += 1);
            if is_news {
                tracing::warn!(
                    reason = ?kind,
                    "the store does not let tails be deleted that larger objects have replaced; they stay, and cost what they \
                     take up (docs/operations.md has the rights that are needed)"
                );
            }
        }
    }

    /// While nothing happens, says now and then in the repository that nothing happened.
    fn heartbeat(&mut self) {
        let progress = self.line.progress();
        let idle = progress.is_settled() && progress.durable() >= self.server_end && progress.flushed().is_valid();
        if !idle || self.quiet_since.elapsed() < self.options.heartbeat_interval {
            return;
        }
        let time = Clock::from_postgres_micros(self.server_micros).unwrap_or_else(|| self.clock.now());
        let (timeline, flush_lsn) = (progress.timeline(), progress.durable());
        let document = Heartbeat { format: FORMAT_VERSION, time, timeline, flush_lsn };
        let key = Key::Heartbeat { timeline, time, flush: flush_lsn };
        // In step, as long as nothing has happened: the moments at which this is asked for are a second apart.
        let in_step = self.quiet_since + self.options.heartbeat_interval;
        let is_in_step = in_step.elapsed() < self.options.heartbeat_interval;
        self.quiet_since = if is_in_step { in_step } else { Instant::now() };
        let (writer, state) = (self.writer.clone(), self.state.clone());
        // Those before are collected without waiting: one that hangs must not hold anything up.
        while let Some(Some(_)) = futures_util::FutureExt::now_or_never(self.errands.next()) {}
        self.errands.start(async move {
            // One that is missing only makes an idle stretch shorter than it was.
            match writer.store_document(&key, &document).await {
                Ok(_) => state.send_modify(|state| state.counts.heartbeats += 1),
                Err(error) => tracing::warn!(%error, "a heartbeat was not stored"),
            }
        });
    }
}

/// Every change under the lock is whole: a panic elsewhere leaves nothing half done.
fn lock(garbage: &Mutex<Garbage>) -> MutexGuard<'_, Garbage> {
    garbage.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state as it is when `condition` holds is of no interest: only that it does.
async fn wait_until(watched: &mut watch::Receiver<ArchiveState>, condition: impl FnMut(&ArchiveState) -> bool) {
    let _ = watched.wait_for(condition).await;
}

/// At once for what is due: a timer takes up to a millisecond even then.
async fn until_some(deadline: Option<Instant>) {
    if let Some(deadline) = deadline.filter(|deadline| *deadline > Instant::now()) {
        tokio::time::sleep_until(deadline).await;
    }
}

async fn sleep_until_some(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}
