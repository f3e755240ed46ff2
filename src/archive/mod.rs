//! PostgreSQL to repository, and the acknowledgement back.
