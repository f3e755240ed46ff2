//! Compressed frames: independent, and readable by standard tools. Knows nothing of PostgreSQL or stores.
