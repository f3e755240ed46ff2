//! Wall-clock time. Durations are measured with `tokio::time::Instant`, which a test can pause.

use jiff::Timestamp;
use tokio::time::Instant;

/// Microseconds between the Unix epoch and PostgreSQL's, 2000-01-01 UTC (`src/include/datatype/timestamp.h`).
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Says what time it is.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Moves with tokio's clock, so that a paused test has repeatable dates.
    Simulated {
        epoch: Timestamp,
        origin: Instant,
    },
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Clock {
        Clock(Source::System)
    }

    /// A clock that shows `epoch` now and moves with tokio's.
    pub fn simulated(epoch: Timestamp) -> Clock {
        Clock(Source::Simulated { epoch, origin: Instant::now() })
    }

    /// The time now.
    #[allow(clippy::disallowed_methods)] // the one place that may
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Simulated { epoch, origin } => epoch.checked_add(origin.elapsed()).unwrap_or(*epoch),
        }
    }

    /// The time now as PostgreSQL writes it on the wire: microseconds since 2000-01-01 UTC.
    pub fn now_postgres_micros(&self) -> i64 {
        self.now().as_microsecond() - POSTGRES_EPOCH_MICROS
    }

    /// Reads PostgreSQL's microseconds since 2000-01-01 UTC; `None` beyond the years that can be shown.
    pub fn from_postgres_micros(micros: i64) -> Option<Timestamp> {
        Timestamp::from_microsecond(micros.checked_add(POSTGRES_EPOCH_MICROS)?).ok()
    }
}
