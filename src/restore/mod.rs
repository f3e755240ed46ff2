//! Repository to data directory. Never needs the source alive.

mod pin;

pub use pin::{PIN_FILE, Pin, PinnedTimeline};
