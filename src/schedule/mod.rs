//! What `seawall run` does by itself and when: what is due (calendar.rs), from expressions as cron has them (expression.rs), by one
//! process at a time (lease.rs), one after the other (runner.rs). Knows nothing of the jobs themselves. May use `repository` and `store`.

mod calendar;
mod expression;
mod lease;
mod runner;

pub use calendar::{LastRuns, Schedule};
pub use expression::Expression;
pub use lease::{Held, Holder, Lease, Tenure};
pub use runner::{Jobs, Runner};
