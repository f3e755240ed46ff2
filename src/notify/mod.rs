//! Tells people that something is wrong, and that it is right again, where nobody runs an alert manager: one message each, to web hooks
//! of their own (trouble.rs says of what, form.rs how it is written, webhook.rs how it is sent). Never waited for by what it speaks of.
//! Uses the base alone.

mod form;
mod trouble;
mod webhook;

pub use form::Form;
pub use trouble::{Event, Trouble};
pub use webhook::Hook;

use crate::error::Result;
use crate::runtime::{Backoff, Clock, RetryPolicy, Tasks};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use trouble::Board;

/// Messages that wait for one hook. More than that nobody reads.
const QUEUE: usize = 64;

/// Between two attempts to deliver one.
const PAUSES: RetryPolicy = RetryPolicy {
    first_pause: Duration::from_secs(1),
    longest_pause: Duration::from_secs(60),
    budget: Some(Duration::from_secs(10 * 60)),
};

/// Takes what is to be told. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Notifier {
    cluster: String,
    board: Arc<Mutex<Board>>,
    queues: Vec<mpsc::Sender<Event>>,
    /// Messages that are neither delivered nor given up.
    waiting: watch::Sender<usize>,
    clock: Clock,
}

impl Notifier {
    /// For the cluster of this name; `tasks` deliver to the hooks, each at its own pace.
    pub fn new(cluster: &str, hooks: Vec<Hook>, clock: Clock, tasks: &mut Tasks<()>) -> Notifier {
        let (mut queues, waiting) = (Vec::new(), watch::Sender::new(0));
        for hook in hooks {
            let (queue, events) = mpsc::channel(QUEUE);
            queues.push(queue);
            tasks.start(deliver(hook, events, waiting.clone()));
        }
        Notifier { cluster: cluster.to_owned(), board: Arc::default(), queues, waiting, clock }
    }

    /// Something is wrong. Told once, until it is right again.
    pub fn raise(&self, trouble: Trouble, summary: impl Into<String>) {
        self.tell(|board, now| board.raise(trouble, summary.into(), now));
    }

    /// It is right again. Told if it was told that it is wrong.
    pub fn clear(&self, trouble: Trouble) {
        self.tell(|board, now| board.clear(trouble, now));
    }

    fn tell(&self, change: impl FnOnce(&mut Board, Timestamp) -> Option<Event>) {
        let event = self.board.lock().ok().and_then(|mut board| change(&mut board, self.clock.now()));
        let Some(mut event) = event else { return };
        event.cluster.clone_from(&self.cluster);
        for queue in &self.queues {
            self.waiting.send_modify(|waiting| *waiting += 1);
            if queue.try_send(event.clone()).is_err() {
                self.waiting.send_modify(|waiting| *waiting -= 1);
                tracing::warn!(
                    event = event.trouble.name(),
                    "a notification is dropped: too many wait to be delivered"
                );
            }
        }
    }

    /// Waits until everything is delivered or given up, but not for longer than `patience`: for whoever is about to end.
    pub async fn flush(&self, patience: Duration) {
        let mut waiting = self.waiting.subscribe();
        let _ = tokio::time::timeout(patience, waiting.wait_for(|waiting| *waiting == 0)).await;
    }
}

/// Delivers one after the other, for ever; may be dropped at any time.
async fn deliver(hook: Hook, mut events: mpsc::Receiver<Event>, waiting: watch::Sender<usize>) {
    while let Some(event) = events.recv().await {
        let (mut backoff, began) = (Backoff::new(PAUSES), Instant::now());
        loop {
            let Err(failure) = hook.send(&event).await else { break };
            let is_over = PAUSES.budget.is_some_and(|budget| began.elapsed() > budget);
            if is_over || !failure.is_transient {
                // Of the address only the host: the rest is a secret with most of them.
                tracing::error!(
                    to = hook.host(),
                    why = failure.why,
                    event = event.trouble.name(),
                    "a notification was not delivered"
                );
                break;
            }
            tokio::time::sleep(backoff.next_pause()).await;
        }
        waiting.send_modify(|waiting| *waiting -= 1);
    }
}

/// Hooks by the form that each wants, from their addresses or keys.
///
/// # Errors
/// If an address cannot be used, or the machine has no certificates to trust.
pub fn hooks(wanted: &BTreeMap<Form, String>) -> Result<Vec<Hook>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let tls = webhook::trust()?;
    wanted.iter().map(|(form, address)| Hook::new(*form, address, tls.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Job;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_hook_that_hangs_is_waited_for_by_nobody() {
        // Given a hook that takes connections and never answers
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", deaf.local_addr().unwrap());
        let mut tasks = Tasks::default();
        let hooks = hooks(&BTreeMap::from([(Form::Json, address)])).unwrap();
        let notifier = Notifier::new("main", hooks, Clock::system(), &mut tasks);
        // When more goes wrong than waits for it, then nobody who tells it waits
        let telling = async {
            for _ in 0..2 * QUEUE {
                notifier.raise(Trouble::Job(Job::Drill), "no");
                notifier.clear(Trouble::Job(Job::Drill));
            }
        };
        timeout(Duration::from_secs(5), telling).await.expect("nobody waits for a hook");
        // And whoever ends waits for his last words no longer than he wants
        let flushed = timeout(Duration::from_secs(60), notifier.flush(Duration::from_millis(50))).await;
        flushed.expect("last words have their time");
        assert!(*notifier.waiting.borrow() > 0, "what waits for the hook is still there");
    }
}
