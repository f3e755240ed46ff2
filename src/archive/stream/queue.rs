//! What waits to be stored: how it is compressed ahead of its turn, and whose turn it is, with a permit for the memory.

use super::Stream;
use crate::archive::ahead::Ahead;
use crate::archive::budget::Permit;
use crate::archive::line::Job;
use crate::archive::perform::Task;
use crate::error::Result;
use crate::repository::{Key, Piece, wal_held_bytes_max};

impl Stream<'_> {
    pub(super) fn enqueue(&mut self, jobs: Vec<Job>) -> Result<()> {
        let size = self.writer.layout().segment_size();
        for job in jobs {
            if let (Some(indexer), Job::Store { key: Key::Block(range), pieces, .. }) = (&self.options.indexer, &job)
                && range.is_whole_block(size)
            {
                // One more block waits at the server.
                let catches_up = self.server_end > range.end + size.block_bytes();
                indexer.push(size, *range, pieces.clone(), catches_up);
            }
            self.in_flight_bytes += job.range().bytes();
            self.comparing += usize::from(matches!(job, Job::Compare { .. }));
            let mut ahead = if self.is_of_ahead(&job) { self.ahead.take() } else { None };
            if let (Some(room), true) = (self.line.room(), self.is_whole_block(&job)) {
                // None of its pieces is to be kept as it came until it is the job's turn. It may have come all at once.
                let new = || Ahead::new(self.writer.clone(), job.range().start, job.lead(), self.budget, Some(room));
                ahead.get_or_insert_with(new).push(job.pieces())?;
            }
            let is_packed = self.is_whole_block(&job) && job.pieces().iter().any(Piece::is_packed);
            self.state.send_if_modified(|state| {
                state.counts.packed += u64::from(is_packed);
                false
            });
            // Of a block that is there already nothing else is needed.
            let ahead = ahead.filter(|_| matches!(job, Job::Store { .. }));
            self.queue.push_back((job, ahead));
        }
        Ok(())
    }

    /// A block that a timeline's end cuts short is another one than the one that grew.
    fn is_of_ahead(&self, job: &Job) -> bool {
        let start = job.range().start;
        self.is_whole_block(job) && self.ahead.as_ref().is_some_and(|ahead| ahead.start() == start)
    }

    fn is_whole_block(&self, job: &Job) -> bool {
        let is_whole = job.range().bytes() == self.writer.layout().segment_size().block_bytes();
        is_whole && matches!(job.key(), Key::Block(_))
    }

    /// Of what is stored already, and comes again, whole blocks are most: that is done for where pieces are packed, and not else.
    pub(super) fn compress_ahead(&mut self) -> Result<()> {
        let ((start, pieces), room) = (self.line.settled(), self.line.room());
        let is_wanted = room.is_some() || self.line.progress().is_past_overlap();
        if pieces.is_empty() || !is_wanted || self.given_up == Some(start) {
            return Ok(());
        }
        if self.ahead.as_ref().is_none_or(|ahead| ahead.start() != start) {
            self.ahead = Some(Ahead::new(self.writer.clone(), start, self.line.lead(), self.budget, room));
        }
        match &mut self.ahead {
            Some(ahead) => ahead.push(pieces),
            None => Ok(()),
        }
    }

    pub(super) fn start_jobs(&mut self) {
        let is_urgent = self.is_ending || self.reply_owed || self.options.is_urgent(&self.state.borrow());
        self.is_short = false;
        while self.running.len() < self.options.uploads_max + self.pace.under_way()
            && let Some(next) = self.queue.iter().position(|(job, _)| self.may_start(job))
        {
            let permit = self.permit_for(next);
            self.is_short = permit.is_none();
            let Some((permit, (job, ahead))) = permit.and_then(|permit| Some((permit, self.queue.remove(next)?)))
            else {
                return;
            };
            let is_unproven = self.link.is_some() && matches!(job, Job::Store { .. });
            self.state.send_if_modified(|state| {
                state.counts.unproven += u64::from(is_unproven);
                false
            });
            let (writer, state, budget) = (self.writer.clone(), self.state.clone(), self.budget.clone());
            let task = Task { writer, job, ahead, permit, budget, is_urgent, state };
            self.running.start(task.perform());
        }
    }

    /// A permit for the most that the job at this place of the queue can become, or for what its block is short of; `None` as
    /// long as it has to wait for those that run, which need nothing more. What is compressed ahead for others gives way.
    fn permit_for(&mut self, next: usize) -> Option<Permit> {
        let (job, ahead) = self.queue.get(next)?;
        // Nothing becomes of what is compared.
        let Job::Store { range, pieces, .. } = job else { return Some(self.budget.nothing()) };
        let is_sealed = !self.writer.layout().form().recipients.is_empty();
        let bytes = match ahead {
            Some(ahead) => ahead.missing_bytes(*range),
            None if is_sealed => wal_held_bytes_max(range.bytes()),
            // What is packed is stored as it lies.
            None => {
                let as_they_came = pieces.iter().filter(|piece| piece.frames().is_none());
                wal_held_bytes_max(as_they_came.map(|piece| piece.len() as u64).sum())
            }
        };
        if let Some(permit) = self.budget.try_take(bytes) {
            return Some(permit);
        }
        let is_alone = self.running.is_empty();
        let spare = self.ahead.as_ref().map_or(0, Ahead::held_bytes);
        if (is_alone || self.budget.would_fit(bytes, spare))
            && let Some(ahead) = self.ahead.take_if(|ahead| !ahead.packs())
        {
            self.given_up = Some(ahead.start());
        }
        if !is_alone {
            return self.budget.try_take(bytes);
        }
        for (_, other) in self.queue.iter_mut().enumerate().filter(|(place, _)| *place != next) {
            other.1 = other.1.take().filter(Ahead::packs);
        }
        Some(self.budget.take(bytes))
    }
}
