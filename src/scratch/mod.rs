//! Throwaway PostgreSQL servers, for what restores to have a look (`recovery`), for `seawall demo` and for tests: made,
//! started, asked, stopped, gone. May use `error` and `runtime`.
//!
//! PostgreSQL refuses to run as root, so everything here steps down to an unprivileged user first (`Unprivileged`). A server
//! listens on a Unix socket in a directory of its own, so any number of them run side by side.

mod directory;
mod leftovers;
mod marker;
mod process;
mod programs;
mod server;
mod session;
mod user;

pub use directory::Directory;
pub use leftovers::sweep;
pub use programs::Programs;
pub use server::{Server, ServerOptions, StopMode};
pub use session::Session;
pub use user::Unprivileged;
