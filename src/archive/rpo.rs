//! How much committed data would be lost if the primary vanished now: 0 when nothing that the server has is un-stored,
//! growing from the last proof while that is unknown.

use crate::wal::Lsn;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// What the server said so long ago proves nothing any more: less than this may be lost beyond what is published. It is
/// asked twice as often.
const SILENCE: Duration = Duration::from_secs(1);

/// Sightings closer together than this are one: bounds the memory.
const GRAIN: Duration = Duration::from_millis(50);

/// At most so many sightings wait to be proven: at one a grain, more than three minutes; later ones are thinned out.
const SIGHTINGS_MAX: usize = 4096;

/// Follows the server's position and ours.
#[derive(Clone)]
pub struct Rpo {
    /// Where the server was, and when we knew, as far as that is not durable yet.
    sightings: VecDeque<(Instant, Lsn)>,
    server: Lsn,
    durable: Lsn,
    last_word: Option<Instant>,
    /// At this time nothing that the server had was un-stored. None is known to a process that has just begun: how long
    /// nobody has archived before it, nobody knows.
    proven: Option<Instant>,
}

impl fmt::Debug for Rpo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rpo { sightings, server, durable, last_word, proven } = self;
        let count = sightings.len();
        write!(f, "Rpo {{ server: {server}, durable: {durable}, {count} sightings, {last_word:?}, {proven:?} }}")
    }
}

impl Default for Rpo {
    fn default() -> Rpo {
        Rpo::new()
    }
}

impl Rpo {
    /// Begins with nothing known.
    pub fn new() -> Rpo {
        Rpo { sightings: VecDeque::new(), server: Lsn::INVALID, durable: Lsn::INVALID, last_word: None, proven: None }
    }

    /// The server was at `lsn` at some time that was not before `then`.
    pub fn saw_server(&mut self, then: Instant, lsn: Lsn) {
        self.last_word = self.last_word.max(Some(then));
        self.server = self.server.max(lsn);
        // It never goes back: a message from before does not take back what is known.
        let lsn = self.server;
        if lsn <= self.durable {
            if self.sightings.is_empty() {
                self.proven = self.proven.max(Some(then));
            }
            return;
        }
        let thinned = self.sightings.len() >= SIGHTINGS_MAX;
        match self.sightings.back_mut() {
            // The later position at the earlier time: never better than the truth.
            Some((time, last)) if thinned || then.duration_since(*time) < GRAIN => *last = (*last).max(lsn),
            _ => self.sightings.push_back((then, lsn)),
        }
    }

    /// Everything up to `lsn` is stored.
    pub fn stored(&mut self, lsn: Lsn) {
        self.durable = self.durable.max(lsn);
        while let Some(&(time, seen)) = self.sightings.front()
            && seen <= self.durable
        {
            self.proven = self.proven.max(Some(time));
            self.sightings.pop_front();
        }
    }

    /// Another server or timeline: positions begin anew, the last proof stands.
    pub fn begin_anew(&mut self) {
        *self = Rpo { proven: self.proven, ..Rpo::new() };
    }

    /// The connection is gone: nothing is known until the next word.
    pub fn lost(&mut self) {
        self.last_word = None;
    }

    /// Seconds since the last moment at which nothing was un-stored; 0 while that is now, infinite while none is known.
    pub fn seconds(&self, now: Instant) -> f64 {
        let Some(proven) = self.proven else { return f64::INFINITY };
        let fresh = self.last_word.is_some_and(|word| now.duration_since(word) < SILENCE);
        if fresh && self.sightings.is_empty() { 0.0 } else { now.duration_since(proven).as_secs_f64() }
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
        let mut rpo = Rpo::new();
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
        let mut rpo = Rpo::new();
        rpo.saw_server(start, Lsn(10));
        rpo.stored(Lsn(10));
        assert_eq!(rpo.seconds(after(start, 999)), 0.0);
        assert_eq!(rpo.seconds(after(start, 1000)), 1.0);
        rpo.saw_server(after(start, 4000), Lsn(10));
        rpo.lost();
        assert_eq!(rpo.seconds(after(start, 4500)), 0.5);
    }

    #[test]
    fn a_process_that_has_just_begun_does_not_know_since_when_nobody_archives() {
        let start = Instant::now();
        let mut rpo = Rpo::new();
        assert_eq!(rpo.seconds(start), f64::INFINITY);
        rpo.saw_server(start, Lsn(10));
        assert_eq!(rpo.seconds(after(start, 100)), f64::INFINITY);
        rpo.stored(Lsn(10));
        assert_eq!(rpo.seconds(after(start, 200)), 0.0);
    }

    #[test]
    fn a_message_that_was_long_on_its_way_does_not_take_back_what_is_known() {
        let start = Instant::now();
        let mut rpo = Rpo::new();
        rpo.saw_server(start, Lsn(10));
        rpo.stored(Lsn(10));
        // Given another connection that has seen the server far ahead
        rpo.saw_server(after(start, 5000), Lsn(500));
        // When everything up to an older sighting is stored
        rpo.saw_server(after(start, 5100), Lsn(20));
        rpo.stored(Lsn(20));
        // Then the last proof is still the first
        assert_eq!(rpo.seconds(after(start, 6000)), 6.0);
    }

    #[test]
    fn thinning_never_makes_it_better() {
        let start = Instant::now();
        let mut rpo = Rpo::new();
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
