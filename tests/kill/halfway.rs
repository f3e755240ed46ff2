//! A backup or a restore that is killed in the middle.
