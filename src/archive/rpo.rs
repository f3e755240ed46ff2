//! How much committed data would be lost if the primary vanished now: 0 when nothing that the server has is un-stored,
//! growing from the last proof while that is unknown.

use crate::wal::Lsn;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A stream that says nothing for so long proves nothing any more.
const SILENCE: Duration = Duration::from_secs(3);

/// Sightings closer together than this are one: bounds the memory.
const GRAIN: Duration = Duration::from_millis(50);

/// At most so many sightings wait to be proven: at one a grain, more than three minutes; later ones are thinned out.
const SIGHTINGS_MAX: usize = 4096;

/// Follows the server's position and ours.
#[derive(Clone, Debug)]
pub struct Rpo {
    /// Where the server was, and when we knew, as far as that is not durable yet.
    sightings: VecDeque<(Instant, Lsn)>,
    server: Lsn,
    durable: Lsn,
    last_word: Option<Instant>,
    /// At this time nothing that the server had was un-stored.
    proven: Instant,
}

impl Rpo {
    /// Begins with nothing known; the clock runs from now.
    pub fn new(now: Instant) -> Rpo {
        Rpo { sightings: VecDeque::new(), server: Lsn::INVALID, durable: Lsn::INVALID, last_word: None, proven: now }
    }

    /// The server was seen at `lsn`.
    pub fn saw_server(&mut self, now: Instant, lsn: Lsn) {
        self.last_word = Some(now);
        self.server = self.server.max(lsn);
        if lsn <= self.durable {
            if self.sightings.is_empty() {
                self.proven = now;
            }
            return;
        }
        let thinned = self.sightings.len() >= SIGHTINGS_MAX;
        match self.sightings.back_mut() {
            // The later position at the earlier time: never better than the truth.
            Some((time, last)) if thinned || now.duration_since(*time) < GRAIN => *last = (*last).max(lsn),
            _ => self.sightings.push_back((now, lsn)),
        }
    }

    /// Everything up to `lsn` is stored.
    pub fn stored(&mut self, lsn: Lsn) {
        self.durable = self.durable.max(lsn);
        while let Some(&(time, seen)) = self.sightings.front()
            && seen <= self.durable
        {
            self.proven = self.proven.max(time);
            self.sightings.pop_front();
        }
    }

    /// Another server or timeline: positions begin anew, the last proof stands.
    pub fn begin_anew(&mut self) {
        *self = Rpo { proven: self.proven, ..Rpo::new(self.proven) };
    }

    /// The connection is gone: nothing is known until the next word.
    pub fn lost(&mut self) {
        self.last_word = None;
    }

    /// Seconds since the last moment at which nothing was un-stored; 0 while that is now.
    pub fn seconds(&self, now: Instant) -> f64 {
        let fresh = self.last_word.is_some_and(|word| now.duration_since(word) < SILENCE);
        if fresh && self.sightings.is_empty() { 0.0 } else { now.duration_since(self.proven).as_secs_f64() }
    }

    /// Bytes that the server was last seen to have and the store has not.
    pub fn bytes(&self) -> u64 {
        self.server - self.durable
    }

    /// Where the server was last seen.
    pub fn server_lsn(&self) -> Lsn {
        self.server
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn it_is_zero_while_nothing_is_outstanding_and_grows_from_the_last_proof() {
        let start = Instant::now();
        let mut rpo = Rpo::new(start);
        // Given a server that was seen and stored completely
        rpo.saw_server(after(start, 100), Lsn(1000));
        rpo.stored(Lsn(1000));
        rpo.saw_server(after(start, 1000), Lsn(1000));
        assert_eq!(rpo.seconds(after(start, 1500)), 0.0);
        // When it writes more that is not stored
        rpo.saw_server(after(start, 2000), Lsn(1500));
        // Then the loss would be what came since the last proof
        assert_eq!(rpo.seconds(after(start, 2500)), 1.5);
        assert_eq!(rpo.bytes(), 500);
        rpo.stored(Lsn(1500));
        assert_eq!(rpo.seconds(after(start, 2600)), 0.0);
    }

    #[test]
    fn silence_and_a_lost_connection_do_not_look_good() {
        let start = Instant::now();
        let mut rpo = Rpo::new(start);
        rpo.saw_server(start, Lsn(10));
        rpo.stored(Lsn(10));
        assert_eq!(rpo.seconds(after(start, 2999)), 0.0);
        assert_eq!(rpo.seconds(after(start, 3000)), 3.0);
        rpo.saw_server(after(start, 4000), Lsn(10));
        rpo.lost();
        assert_eq!(rpo.seconds(after(start, 4500)), 0.5);
    }

    #[test]
    fn thinning_never_makes_it_better() {
        let start = Instant::now();
        let mut rpo = Rpo::new(start);
        for step in 0..3 * SIGHTINGS_MAX as u64 {
            rpo.saw_server(after(start, 100 * step), Lsn(step + 1));
        }
        assert!(rpo.sightings.len() <= SIGHTINGS_MAX);
        let last = 3 * SIGHTINGS_MAX as u64;
        rpo.stored(Lsn(last - 1));
        assert!(rpo.seconds(after(start, 100 * last)) > 0.0, "one byte is outstanding");
        rpo.stored(Lsn(last));
        assert_eq!(rpo.seconds(after(start, 100 * last)), 0.0);
    }
}
