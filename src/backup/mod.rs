//! Base backup to repository.
