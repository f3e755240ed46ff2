//! A server of which nothing is but its WAL, invented as it is asked for: as many as one likes, of one process.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods
)]

use crate::walsender::say;
use seawall::wal::Lsn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Where the WAL of each begins: a segment's start, whatever their size.
pub const START: u64 = 16 << 20;

/// What is sent in one message at most (`MAX_SEND_SIZE` in `walsender.c`).
const MESSAGE_BYTES: u64 = 128 << 10;

const PAGE_BYTES: u64 = 8192;

/// What the WAL is like, which is in segments of so many mebibytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wal {
    /// Words that say where they are, and whose; half of them can be made smaller.
    Words,
    /// As small transactions and images of pages: LZ4 makes a third of it.
    Usual,
}

impl Wal {
    pub fn segment_mebibytes(self) -> u64 {
        match self {
            Wal::Words => 1,
            Wal::Usual => 16,
        }
    }
}

/// A server, of which nothing is but its WAL.
pub struct Server {
    port: u16,
    pub it: Arc<It>,
}

pub struct It {
    system: u64,
    wal: Wal,
    /// So far its WAL goes.
    pub end: AtomicU64,
    more: Notify,
    /// What it was told to be stored.
    flushed: AtomicU64,
    /// It lets nobody in.
    pub is_closed: AtomicBool,
    /// It has another history now.
    is_other: AtomicBool,
    /// The process that has its slot; 0 if nobody has.
    holder: AtomicU32,
    cut: Notify,
}

impl Server {
    pub async fn start(system: u64, wal: Wal) -> Server {
        let it = Arc::new(It {
            system,
            wal,
            end: AtomicU64::new(START),
            more: Notify::new(),
            flushed: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            is_other: AtomicBool::new(false),
            holder: AtomicU32::new(0),
            cut: Notify::new(),
        });
        Server::at_another_address(it).await
    }

    /// The same one.
    pub async fn at_another_address(it: Arc<It>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = it.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let it = served.clone();
                // Whatever a client does with its connection is its own matter.
                tokio::spawn(async move { it.converse(socket).await });
            }
        });
        Server { port, it }
    }

    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=tester sslmode=disable passfile=/dev/null", self.port)
    }

    /// Writes so many bytes more.
    pub fn write(&self, bytes: u64) {
        self.it.end.fetch_add(bytes, Ordering::SeqCst);
        self.it.more.notify_waiters();
    }

    /// Its whole WAL is another one from now on.
    pub fn become_other(&self) {
        self.it.is_other.store(true, Ordering::SeqCst);
        self.it.cut.notify_waiters();
    }

    /// So many bytes of its WAL: whole words.
    pub fn wal(&self, start: u64, bytes: u64) -> Vec<u8> {
        self.it.wal(start, bytes)
    }

    pub fn is_stored(&self) -> bool {
        self.it.flushed.load(Ordering::SeqCst) >= self.it.end.load(Ordering::SeqCst)
    }
}

impl It {
    async fn converse(&self, mut socket: TcpStream) -> std::io::Result<()> {
        let length = socket.read_u32().await? as usize;
        let mut startup = vec![0; length - 4];
        socket.read_exact(&mut startup).await?;
        let startup = String::from_utf8_lossy(&startup).into_owned();
        if !startup.contains("replication\0true\0") || self.is_closed.load(Ordering::SeqCst) {
            return socket.write_all(&say::error("FATAL", "28000", "no pg_hba.conf entry")).await;
        }
        // Each connection has a process of its own.
        let process = u32::from(socket.peer_addr()?.port());
        socket.write_all(&say::welcome_by("15.18", process)).await?;
        loop {
            let query = match message(&mut socket).await? {
                (b'Q', body) => String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(&body)).into_owned(),
                (b'X', _) => return Ok(()),
                _ => continue,
            };
            let end = Lsn(self.end.load(Ordering::SeqCst));
            let one = |column: &str, value: &str| [say::result(&[column], &[Some(value)]), say::ready()].concat();
            if let Some(from) = query.strip_prefix("START_REPLICATION ") {
                let from = from.split(' ').find_map(|word| word.parse::<Lsn>().ok()).expect("a position");
                if let Err(holder) = self.holder.compare_exchange(0, process, Ordering::SeqCst, Ordering::SeqCst) {
                    let busy = format!("replication slot \"seawall\" is active for PID {holder}");
                    let busy = say::error("ERROR", "55006", &busy);
                    socket.write_all(&[busy, say::ready()].concat()).await?;
                    continue;
                }
                let streamed = match socket.write_all(&say::copy_both()).await {
                    Ok(()) => self.stream(socket, from.0).await,
                    failed => failed,
                };
                self.holder.store(0, Ordering::SeqCst);
                return streamed;
            }
            let answer = match query.as_str() {
                "IDENTIFY_SYSTEM" => say::identity(self.system, 1, end),
                "SHOW \"wal_segment_size\"" => one("wal_segment_size", &format!("{}MB", self.wal.segment_mebibytes())),
                query if query.starts_with("READ_REPLICATION_SLOT") => {
                    let row = [Some("physical"), Some("0/1000000"), Some("1")];
                    [say::result(&["slot_type", "restart_lsn", "restart_tli"], &row), say::ready()].concat()
                }
                query if query.starts_with("SHOW") => one("setting", "on"),
                _ => [say::error("ERROR", "42501", "permission denied"), say::ready()].concat(),
            };
            socket.write_all(&answer).await?;
        }
    }

    async fn stream(&self, socket: TcpStream, mut sent: u64) -> std::io::Result<()> {
        let (mut from, mut to) = socket.into_split();
        let listening = async {
            loop {
                let (tag, body) = message(&mut from).await?;
                if tag != b'd' {
                    return std::io::Result::Ok(());
                }
                if body.first() == Some(&b'r') {
                    self.flushed.fetch_max(u64::from_be_bytes(body[9..17].try_into().unwrap()), Ordering::SeqCst);
                }
            }
        };
        let sending = async {
            loop {
                let more = self.more.notified();
                let end = self.end.load(Ordering::SeqCst);
                while sent < end {
                    let bytes = (end - sent).min(MESSAGE_BYTES);
                    to.write_all(&say::wal(Lsn(sent), Lsn(end), 0, &self.wal(sent, bytes))).await?;
                    sent += bytes;
                }
                to.write_all(&say::keepalive(Lsn(end), 0, false)).await?;
                let _ = tokio::time::timeout(Duration::from_millis(500), more).await;
            }
        };
        tokio::select! {
            ended = listening => ended,
            ended = sending => ended,
            () = self.cut.notified() => Ok(()),
        }
    }

    /// Whole words of WAL, which say whose they are.
    fn wal(&self, start: u64, bytes: u64) -> Vec<u8> {
        let seed = self.system ^ (u64::from(self.is_other.load(Ordering::SeqCst)) << 60);
        let texture = match self.wal {
            Wal::Words => {
                let word = |number: u64| match number & 8 {
                    0 => (number ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29),
                    _ => seed,
                };
                return (start / 8..(start + bytes) / 8).flat_map(|number| word(number).to_be_bytes()).collect();
            }
            Wal::Usual => &USUAL,
        };
        // It comes again only behind what LZ4 looks back to.
        let mut wal = Vec::with_capacity(bytes as usize);
        while (wal.len() as u64) < bytes {
            let place = ((start + wal.len() as u64) % texture.len() as u64) as usize;
            let missing = bytes as usize - wal.len();
            wal.extend_from_slice(&texture[place..texture.len().min(place + missing)]);
        }
        for page in (start.next_multiple_of(PAGE_BYTES)..start + bytes).step_by(PAGE_BYTES as usize) {
            wal[(page - start) as usize..][..8].copy_from_slice(&(page ^ seed).to_be_bytes());
        }
        wal
    }
}

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(7);
    (0..1 << 20).map(|_| random.u8(..)).collect()
});

/// By turns a page of short records, of which eight bytes in 36 are new, and a page of which the first third is.
static USUAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let is_new = |position: usize| match position / PAGE_BYTES as usize % 2 {
        0 => position % 36 < 8,
        _ => position % (PAGE_BYTES as usize) < PAGE_BYTES as usize / 3,
    };
    NOISE
        .iter()
        .enumerate()
        .map(|(position, byte)| if is_new(position) { *byte } else { (position % 36) as u8 })
        .collect()
});

async fn message(socket: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let tag = socket.read_u8().await?;
    let length = socket.read_u32().await? as usize;
    let mut body = vec![0; length - 4];
    socket.read_exact(&mut body).await?;
    Ok((tag, body))
}
