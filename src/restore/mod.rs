//! Repository to data directory. Never needs the source alive.
