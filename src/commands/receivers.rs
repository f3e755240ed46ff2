//! Whether whoever is to be told what is wrong answers.

use crate::config::Settings;
use crate::error::Result;
use crate::notify::{Failure, hooks};
use futures_util::future::join_all;

/// A receiver of notifications, by its form and, where its address can be had, its host; and whether it answered.
pub(super) struct Asked {
    pub(super) who: String,
    pub(super) answered: std::result::Result<(), Failure>,
}

/// Asks all that are configured at once. They are told nothing by it.
///
/// # Errors
/// As [`hooks`].
pub(super) async fn ask(settings: &Settings) -> Result<Vec<Asked>> {
    let hooks = hooks(&settings.notify.hooks)?;
    let asked = hooks.iter().map(async |hook| Asked { who: hook.who().await, answered: hook.probe().await });
    Ok(join_all(asked).await)
}
