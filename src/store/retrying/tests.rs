//! Tests of retrying.
