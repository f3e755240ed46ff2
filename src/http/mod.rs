//! The HTTP endpoint: metrics and health, read from a watch of the state.
