//! What is kept of a repository and what goes: clause 6 of the contract. May use `repository` and all that it may, and `restore` to judge
//! what can be restored.

mod age;
mod execute;
mod going;
mod hold;
mod inventory;
mod needs;
mod plan;
mod policy;
mod prove;
mod select;

pub use age::{Ages, YOUNG};
pub use execute::{Outcome, execute};
pub use going::mark;
pub use hold::{Held, hold, hold_again, hold_folders, release};
pub use inventory::{Folder, Inventory, Object};
pub use needs::Needs;
pub use plan::{Doomed, Group, Plan, Step, plan};
pub use policy::{LEAST_WINDOW, MINIMUM_WINDOW, Period, Policy};
pub use prove::{after, prove};
pub use select::{Selection, Stay};
