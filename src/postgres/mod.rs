//! The wire to PostgreSQL. Knows nothing of repositories.
