//! When a message was sent, at the earliest. What is read now may have waited in buffers on the way for many seconds, and
//! says nothing about the server as it is now; clocks of two machines cannot be compared. But an answer was sent after
//! its question, and what follows was sent after the answer by as much as the server's own clock says.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Questions that may be under way: at two a second, more than a minute. Behind a connection that is slower than that,
/// nobody need be asked again.
const QUESTIONS_MAX: usize = 128;

/// Follows the questions on one connection.
#[derive(Debug)]
pub(super) struct Echo {
    /// When the questions without an answer were asked. A walsender answers each with one keepalive, in order, and sends
    /// no other that does not ask itself (`walsender.c`, `ProcessStandbyReplyMessage`).
    asked: VecDeque<Instant>,
    /// A moment, and the server's clock in a message that was sent later than that.
    anchor: (Instant, Option<i64>),
}

impl Echo {
    /// Begins before the first message was sent.
    pub(super) fn new(now: Instant) -> Echo {
        Echo { asked: VecDeque::new(), anchor: (now, None) }
    }

    /// True if one more question is of use.
    pub(super) fn may_ask(&self) -> bool {
        self.asked.len() < QUESTIONS_MAX
    }

    /// A question is sent.
    pub(super) fn ask(&mut self, now: Instant) {
        self.asked.push_back(now);
    }

    /// An answer came, sent when the server's clock showed `micros`; says when its question was asked.
    pub(super) fn answered(&mut self, micros: i64) -> Option<Instant> {
        let asked = self.asked.pop_front()?;
        self.anchor = (asked, Some(micros));
        Some(asked)
    }

    /// A message that is read now was sent when the server's clock showed `micros`: not before this moment of ours.
    pub(super) fn sent_after(&mut self, now: Instant, micros: i64) -> Instant {
        let (moment, anchor) = self.anchor;
        let anchor = *self.anchor.1.insert(anchor.unwrap_or(micros));
        let later = u64::try_from(micros.saturating_sub(anchor)).unwrap_or(0);
        moment.checked_add(Duration::from_micros(later)).map_or(now, |moment| moment.min(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The server's clock, which has nothing to do with ours.
    fn clock(millis: i64) -> i64 {
        -7_000_000 + 1000 * millis
    }

    #[test]
    fn a_message_is_as_old_as_the_answer_before_it_says() {
        let begun = Instant::now();
        let mut echo = Echo::new(begun);
        // Given a connection without delay
        assert_eq!(echo.sent_after(begun + millis(5), clock(0)), begun);
        echo.ask(begun + millis(1000));
        echo.answered(clock(1001));
        assert_eq!(echo.sent_after(begun + millis(1002), clock(1001)), begun + millis(1000));
        assert_eq!(echo.sent_after(begun + millis(1300), clock(1290)), begun + millis(1289));
        // When everything comes ten seconds late
        echo.ask(begun + millis(2000));
        assert_eq!(echo.sent_after(begun + millis(11_500), clock(1500)), begun + millis(1499));
        echo.answered(clock(2001));
        assert_eq!(echo.sent_after(begun + millis(12_100), clock(2050)), begun + millis(2049));
    }

    #[test]
    fn a_server_whose_clock_is_set_is_neither_believed_for_long_nor_from_the_future() {
        let begun = Instant::now();
        let mut echo = Echo::new(begun);
        echo.sent_after(begun, clock(0));
        assert_eq!(echo.sent_after(begun + millis(10), clock(3_600_000)), begun + millis(10));
        assert_eq!(echo.sent_after(begun + millis(20), clock(-3_600_000)), begun);
        echo.ask(begun + millis(500));
        echo.answered(clock(-3_600_000));
        assert_eq!(echo.sent_after(begun + millis(600), clock(-3_599_950)), begun + millis(550));
    }

    #[test]
    fn questions_are_bounded() {
        let now = Instant::now();
        let mut echo = Echo::new(now);
        while echo.may_ask() {
            echo.ask(now);
        }
        assert_eq!(echo.asked.len(), QUESTIONS_MAX);
        echo.answered(clock(0));
        assert!(echo.may_ask());
    }
}
