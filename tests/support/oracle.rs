//! Clients that commit without pause and remember what they were told: what a disaster may not take, and what it may.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

/// The table that the clients fill.
const TABLE: &str = "told";

/// A statement that takes longer is given up: its server is gone without a word.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A commit that a client was told of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Commit {
    /// The row that it made.
    pub id: i64,
    /// When the client heard of it.
    pub told: Instant,
}

/// Clients that insert rows until they are dropped, each row a transaction, through whatever happens to the server.
pub struct Oracle {
    told: Arc<Mutex<Vec<Commit>>>,
    asked: Arc<AtomicI64>,
    clients: Vec<JoinHandle<()>>,
}

impl Oracle {
    /// The statement that makes the table.
    pub fn table() -> String {
        format!("CREATE TABLE {TABLE} (id bigint PRIMARY KEY, filling text)")
    }

    /// Starts `clients` on the server of `conninfo`, each pausing so long after a commit.
    pub fn start(conninfo: &str, clients: usize, pause: Duration) -> Oracle {
        let (told, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicI64::new(0)));
        let client = || tokio::spawn(commit(conninfo.to_owned(), Arc::clone(&told), Arc::clone(&asked), pause));
        let clients = (0..clients).map(|_| client()).collect();
        Oracle { told, asked, clients }
    }

    /// What the clients were told up to now.
    pub fn told(&self) -> Vec<Commit> {
        self.told.lock().unwrap().clone()
    }

    /// How many commits that are.
    pub fn count(&self) -> usize {
        self.told.lock().unwrap().len()
    }

    /// Rows that clients have asked for so far, with or without an answer: no other can be there.
    pub fn asked(&self) -> i64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        for client in &self.clients {
            client.abort();
        }
    }
}

async fn commit(conninfo: String, told: Arc<Mutex<Vec<Commit>>>, asked: Arc<AtomicI64>, pause: Duration) {
    loop {
        // A server that is down, starts or recovers: again, soon.
        let Ok((client, connection)) = tokio_postgres::connect(&conninfo, NoTls).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let connection = tokio::spawn(connection);
        loop {
            let id = asked.fetch_add(1, Ordering::SeqCst) + 1;
            let insert = format!("INSERT INTO {TABLE} VALUES ({id}, repeat('{id} ', 20))");
            // Without an answer nobody knows whether it was committed; the next one gets a number of its own.
            let Ok(Ok(_)) = timeout(ANSWER_WITHIN, client.simple_query(&insert)).await else { break };
            told.lock().unwrap().push(Commit { id, told: Instant::now() });
            sleep(pause).await;
        }
        connection.abort();
    }
}

/// The commits of `told` that are missing from `found`, oldest first.
pub fn missing(told: &[Commit], found: &BTreeSet<i64>) -> Vec<Commit> {
    let mut missing: Vec<Commit> = told.iter().filter(|commit| !found.contains(&commit.id)).copied().collect();
    missing.sort_by_key(|commit| commit.told);
    missing
}

/// The rows that a server has.
pub async fn found(server: &seawall::scratch::Server) -> BTreeSet<i64> {
    let rows = server.sql(&format!("SELECT id FROM {TABLE}")).await.unwrap();
    rows.into_iter().map(|row| row[0].as_deref().unwrap().parse().unwrap()).collect()
}
