//! Tells people that something is wrong, and that it is right again, where nobody runs an alert manager: one message each, to web hooks
//! of their own (trouble.rs says of what, form.rs how it is written, webhook.rs how it is sent). Never waited for by what it speaks of.
//! Uses the base alone.

mod form;
mod trouble;
mod webhook;

pub use form::Form;
pub use trouble::{Event, Trouble};
pub use webhook::{Failure, Hook, check_address};

use crate::error::Result;
use crate::runtime::{Backoff, Clock, RetryPolicy, Tasks};
use crate::secret::{Secret, Source};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
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
    receivers: Vec<Receiver>,
    /// Messages that are neither delivered nor given up.
    waiting: watch::Sender<usize>,
    clock: Clock,
}

/// Somebody who is told.
#[derive(Clone, Debug)]
struct Receiver {
    form: Form,
    queue: mpsc::Sender<Event>,
    sent: Arc<Sent>,
}

/// What became of the messages to one receiver, since the start of the process.
#[derive(Default, Debug)]
struct Sent {
    delivered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl Notifier {
    /// For the cluster of this name; `tasks` deliver to the hooks, each at its own pace.
    pub fn new(cluster: &str, hooks: Vec<Hook>, clock: Clock, tasks: &mut Tasks<()>) -> Notifier {
        let (mut receivers, waiting) = (Vec::new(), watch::Sender::new(0));
        for hook in hooks {
            let (queue, events) = mpsc::channel(QUEUE);
            let receiver = Receiver { form: hook.form(), queue, sent: Arc::default() };
            tasks.start(deliver(hook, events, waiting.clone(), receiver.sent.clone()));
            receivers.push(receiver);
        }
        Notifier { cluster: cluster.to_owned(), board: Arc::default(), receivers, waiting, clock }
    }

    /// Tells who reads the other end of `queue`, as a receiver of this form would be told. It counts as delivered to nobody.
    pub fn to(cluster: &str, form: Form, queue: mpsc::Sender<Event>, clock: Clock) -> Notifier {
        let (receivers, waiting) = (vec![Receiver { form, queue, sent: Arc::default() }], watch::Sender::new(0));
        Notifier { cluster: cluster.to_owned(), board: Arc::default(), receivers, waiting, clock }
    }

    /// Something is wrong. Told once, until it is right again.
    pub fn raise(&self, trouble: Trouble, summary: impl Into<String>) {
        self.tell(|board, now| board.raise(trouble, summary.into(), now));
    }

    /// It is right again. Told if it was told that it is wrong; for the first time also to who may have been told so by a process
    /// before this one, and can take that back.
    pub fn clear(&self, trouble: Trouble) {
        self.tell(|board, now| board.clear(trouble, now));
    }

    /// Another archiver sees to it from now on, as of what was told here it is over. Told if it was told that it is wrong; and told again
    /// if it comes back here.
    pub fn hand_over(&self, trouble: Trouble) {
        self.tell(|board, now| board.hand_over(trouble, now));
    }

    /// Another archiver sees to it from now on: what was told of it is for that one to take back, and told again if it comes back here.
    pub fn forget(&self, trouble: Trouble) {
        if let Ok(mut board) = self.board.lock() {
            board.forget(trouble);
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Board, Timestamp) -> Option<Event>) {
        let event = self.board.lock().ok().and_then(|mut board| change(&mut board, self.clock.now()));
        let Some(mut event) = event else { return };
        event.cluster.clone_from(&self.cluster);
        for Receiver { form, queue, sent } in &self.receivers {
            if event.is_of_before && !form.has_incidents() {
                continue;
            }
            self.waiting.send_modify(|waiting| *waiting += 1);
            if queue.try_send(event.clone()).is_err() {
                self.waiting.send_modify(|waiting| *waiting -= 1);
                sent.dropped.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    to = form.name(),
                    event = event.trouble.name(),
                    "a notification is dropped: too many wait to be delivered"
                );
            }
        }
    }

    /// Of each receiver, by the name of its form, what became of how many messages since the start of the process: `delivered`,
    /// `failed`, `dropped`.
    pub fn sent(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.receivers.iter().flat_map(|Receiver { form, sent, .. }| {
            let Sent { delivered, failed, dropped } = sent.as_ref();
            let all = [("delivered", delivered), ("failed", failed), ("dropped", dropped)];
            all.map(|(result, count)| (form.name(), result, count.load(Ordering::Relaxed)))
        })
    }

    /// Waits until everything is delivered or given up, but not for longer than `patience`: for whoever is about to end.
    pub async fn flush(&self, patience: Duration) {
        let mut waiting = self.waiting.subscribe();
        let _ = tokio::time::timeout(patience, waiting.wait_for(|waiting| *waiting == 0)).await;
    }
}

/// Delivers one after the other, for ever; may be dropped at any time.
async fn deliver(hook: Hook, mut events: mpsc::Receiver<Event>, waiting: watch::Sender<usize>, sent: Arc<Sent>) {
    // Better known now than when there is something to tell.
    if let Err(failure) = hook.look().await {
        tracing::error!(to = hook.form().name(), why = %failure, "nobody can be notified there");
    }
    while let Some(event) = events.recv().await {
        let (mut backoff, began) = (Backoff::new(PAUSES), Instant::now());
        loop {
            let Err(failure) = hook.send(&event).await else {
                sent.delivered.fetch_add(1, Ordering::Relaxed);
                break;
            };
            let is_over = PAUSES.budget.is_some_and(|budget| began.elapsed() > budget);
            if is_over || !failure.is_transient {
                sent.failed.fetch_add(1, Ordering::Relaxed);
                let to = hook.who().await;
                tracing::error!(
                    to,
                    why = %failure,
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

/// Hooks by the form that each wants, from their addresses or keys. Those that must be read are read when there is something to tell.
///
/// # Errors
/// If an address that is given cannot be used, or the machine has no certificates to trust.
pub fn hooks(wanted: &BTreeMap<Form, Secret>) -> Result<Vec<Hook>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let tls = webhook::trust()?;
    let hook = |(form, address): (&Form, &Secret)| {
        if let Source::Given(text) = address.source() {
            check_address(*form, text)?;
        }
        Ok(Hook::new(*form, address.clone(), tls.clone()))
    };
    wanted.iter().map(hook).collect()
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
        let address = Secret::new("notify.webhook", Source::Given(address));
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
        // And what found no place is counted, for who watches
        let sent: BTreeMap<_, _> = notifier.sent().map(|(_, result, count)| (result, count)).collect();
        assert!(sent["dropped"] >= 3 * QUEUE as u64 - 1 && sent["delivered"] == 0, "{sent:?}");
    }

    #[test]
    fn of_what_an_earlier_process_may_have_told_only_who_can_take_it_back_hears() {
        let told = |form| {
            let (queue, mut events) = mpsc::channel(QUEUE);
            let notifier = Notifier::to("main", form, queue, Clock::system());
            notifier.clear(Trouble::Stopped);
            notifier.clear(Trouble::Stopped);
            notifier.raise(Trouble::Stopped, "ended");
            notifier.clear(Trouble::Stopped);
            std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.is_resolved).collect::<Vec<_>>()
        };
        assert_eq!(told(Form::PagerDuty), [true, false, true], "its incident may be open");
        assert_eq!(told(Form::Slack), [false, true], "nobody reads there that nothing was wrong");
        assert_eq!(told(Form::Json), [false, true]);
    }
}
