//! The other side of base backups: a walsender in memory, which speaks the protocol of PostgreSQL 17 over a pipe. What it sends is small
//! and different each time; the WAL positions are the model server's.

use super::sent::{hex, manifest_entry, member};
use super::walsender::say;
use crate::counts::Counts;
use crate::server::{SYSTEM_IDENTIFIER, Server};
use seawall::wal::Lsn;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

const PAGE: usize = 8192;
const PAGES: u32 = 6;

/// The one relation of this cluster.
pub const RELATION: &str = "base/5/16384";

/// How long a base backup takes that nothing happens to.
const TAKES: Duration = Duration::from_secs(4 * 60);

/// What happens to the next base backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The connection is lost half way.
    Cut,
    /// The archiver that takes it dies half way.
    Dies,
    /// Nothing more comes, and the connection stays.
    StandsStill,
}

/// What all connections share.
#[derive(Debug)]
pub struct Bases {
    server: Server,
    counts: Arc<Counts>,
    inner: Mutex<Inner>,
    /// Somebody is to die now.
    pub deadly: Notify,
}

#[derive(Debug)]
struct Inner {
    fates: VecDeque<Fate>,
    /// Every base backup is cut until then.
    cut_until: Instant,
    /// How often each page was changed.
    pages: [u64; PAGES as usize],
    /// What the relation was in the backup that begins at a position.
    taken: BTreeMap<Lsn, [u64; PAGES as usize]>,
}

impl Bases {
    pub fn new(server: Server, counts: Arc<Counts>) -> Bases {
        let inner = Inner {
            fates: VecDeque::new(),
            cut_until: Instant::now(),
            pages: [0; PAGES as usize],
            taken: BTreeMap::new(),
        };
        Bases { server, counts, inner: Mutex::new(inner), deadly: Notify::new() }
    }

    pub fn expect(&self, fate: Fate) {
        self.inner.lock().unwrap().fates.push_back(fate);
    }

    pub fn cut_all_for(&self, time: Duration) {
        self.inner.lock().unwrap().cut_until = Instant::now() + time;
    }

    /// Changes a page of the relation.
    pub fn change(&self, page: u32) {
        self.inner.lock().unwrap().pages[page as usize] += 1;
    }

    /// What a restore of the backup that begins at `start` must make of the relation.
    pub fn relation_at(&self, start: Lsn) -> Option<Vec<u8>> {
        let inner = self.inner.lock().unwrap();
        inner
            .taken
            .get(&start)
            .map(|pages| pages.iter().zip(0..).flat_map(|(count, page)| content(page, *count)).collect())
    }

    /// Answers one connection until it ends.
    pub async fn serve(self: Arc<Bases>, mut socket: DuplexStream) {
        // Whoever goes away is done, or says why himself.
        let _ = self.answer(&mut socket).await;
    }

    async fn answer(&self, socket: &mut DuplexStream) -> io::Result<()> {
        let length = socket.read_u32().await?;
        let mut startup = vec![0; length as usize - 4];
        socket.read_exact(&mut startup).await?;
        socket.write_all(&say::welcome("17.10")).await?;
        let mut manifest = Vec::new();
        loop {
            let question = read_message(socket).await?.1;
            let question = String::from_utf8_lossy(&question).trim_end_matches('\0').to_owned();
            let says = match question.as_str() {
                "IDENTIFY_SYSTEM" => say::identity(SYSTEM_IDENTIFIER, 1, self.server.flush()),
                "UPLOAD_MANIFEST" => {
                    socket.write_all(&say::copy_in()).await?;
                    manifest.clear();
                    loop {
                        let (tag, body) = read_message(socket).await?;
                        if tag == b'c' {
                            break;
                        }
                        manifest.extend(body);
                    }
                    [say::complete("UPLOAD_MANIFEST"), say::ready()].concat()
                }
                backup if backup.starts_with("BASE_BACKUP") => {
                    let reference = backup.contains("INCREMENTAL").then(|| start_of(&manifest));
                    self.send(reference, socket).await?;
                    continue;
                }
                show => {
                    let name = show.strip_prefix("SHOW ").unwrap_or(show).trim_matches('"');
                    [say::result(&[name], &[Some(setting(name))]), say::ready()].concat()
                }
            };
            socket.write_all(&says).await?;
        }
    }

    /// Writes to the end of a record, not at the beginning of a page: there a backup may begin.
    fn border(&self) -> Lsn {
        loop {
            self.server.write(100);
            self.server.complete_record();
            let flush = self.server.flush();
            if flush.0 as usize % PAGE > 64 {
                return flush;
            }
        }
    }

    async fn send(&self, reference: Option<Lsn>, socket: &mut DuplexStream) -> io::Result<()> {
        let start = self.border();
        let (pages, fate) = {
            let mut inner = self.inner.lock().unwrap();
            let pages = inner.pages;
            inner.taken.insert(start, pages);
            let is_cut = inner.cut_until > Instant::now();
            (pages, if is_cut { Some(Fate::Cut) } else { inner.fates.pop_front() })
        };
        let before = reference.and_then(|reference| self.inner.lock().unwrap().taken.get(&reference).copied());
        let members = members(start, reference, pages, before);
        let position = |lsn: Lsn| say::result(&["recptr", "tli"], &[Some(&lsn.to_string()), Some("1")]);
        socket.write_all(&position(start)).await?;
        socket.write_all(&say::result(&["spcoid", "spclocation", "size"], &[None, None, Some("100")])).await?;
        socket.write_all(&[say::copy_out(), say::copy_data(b"nbase.tar\0\0")].concat()).await?;
        for (number, (path, content)) in members.iter().enumerate() {
            if number == members.len() / 2 {
                sleep(TAKES / 2).await;
                match fate {
                    Some(Fate::Cut) => {
                        self.counts.add("base backup: cut");
                        return Err(io::ErrorKind::ConnectionReset.into());
                    }
                    Some(Fate::Dies) => {
                        self.deadly.notify_one();
                        return std::future::pending().await;
                    }
                    Some(Fate::StandsStill) => {
                        self.counts.add("base backup: stands still");
                        return std::future::pending().await;
                    }
                    None => {}
                }
            }
            let member = [&b"d"[..], &member(path, content)].concat();
            socket.write_all(&say::copy_data(&member)).await?;
        }
        sleep(TAKES / 2).await;
        let end = self.border();
        socket.write_all(&say::copy_data(&[&b"d"[..], &[0; 1024]].concat())).await?;
        let manifest = manifest(&members, start, end);
        let last = [
            say::copy_data(b"m"),
            say::copy_data(&[b"d", manifest.as_bytes()].concat()),
            say::copy_done(),
            position(end),
            say::complete("BASE_BACKUP"),
            say::ready(),
        ];
        self.counts.add(if reference.is_some() { "base backup: sent, incremental" } else { "base backup: sent, full" });
        // The end of a backup completes a segment, as `pg_backup_stop` does.
        self.server.switch_segment();
        socket.write_all(&last.concat()).await
    }
}

async fn read_message(socket: &mut DuplexStream) -> io::Result<(u8, Vec<u8>)> {
    let tag = socket.read_u8().await?;
    let mut body = vec![0; socket.read_u32().await? as usize - 4];
    socket.read_exact(&mut body).await?;
    Ok((tag, body))
}

fn setting(name: &str) -> &'static str {
    match name {
        "wal_segment_size" => "1MB",
        "segment_size" => "1GB",
        "block_size" | "wal_block_size" => "8192",
        "data_checksums" => "off",
        "summarize_wal" | "full_page_writes" => "on",
        "data_directory_mode" => "0700",
        _ => "100",
    }
}

/// Where the backup begins whose manifest this is.
fn start_of(manifest: &[u8]) -> Lsn {
    let text = String::from_utf8_lossy(manifest);
    let start = text.split("\"Start-LSN\": \"").nth(1).and_then(|rest| rest.split('"').next());
    start.and_then(|lsn| lsn.parse().ok()).expect("a manifest names its start")
}

fn content(page: u32, count: u64) -> Vec<u8> {
    let mut content = vec![0; PAGE];
    content[100..104].copy_from_slice(&page.to_le_bytes());
    content[104..112].copy_from_slice(&count.to_le_bytes());
    content
}

type Pages = [u64; PAGES as usize];

/// What the archive holds: of a relation that the reference has as well, the pages that have changed (`basebackup_incremental.c`).
fn members(start: Lsn, reference: Option<Lsn>, pages: Pages, before: Option<Pages>) -> Vec<(String, Vec<u8>)> {
    let mut label = format!("START WAL LOCATION: {start} (file 000000010000000000000003)\nSTART TIMELINE: 1\n");
    let relation = match (reference, before) {
        (Some(reference), Some(before)) => {
            label += &format!("INCREMENTAL FROM LSN: {reference}\nINCREMENTAL FROM TLI: 1\n");
            let changed: Vec<u32> = (0..PAGES).filter(|page| pages[*page as usize] != before[*page as usize]).collect();
            let words = [0xd3ae_1f0du32, changed.len() as u32, PAGES].into_iter().chain(changed.iter().copied());
            let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
            if !changed.is_empty() {
                bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
            }
            bytes.extend(changed.iter().flat_map(|page| content(*page, pages[*page as usize])));
            (RELATION.replace("16384", "INCREMENTAL.16384"), bytes)
        }
        _ => (RELATION.to_owned(), pages.iter().zip(0..).flat_map(|(count, page)| content(page, *count)).collect()),
    };
    let control = [&SYSTEM_IDENTIFIER.to_ne_bytes()[..], &[7; PAGE - 8]].concat();
    vec![
        ("backup_label".to_owned(), label.into_bytes()),
        ("PG_VERSION".to_owned(), b"17\n".to_vec()),
        relation,
        ("postgresql.conf".to_owned(), Vec::new()),
        ("global/pg_control".to_owned(), control),
    ]
}

fn manifest(members: &[(String, Vec<u8>)], start: Lsn, end: Lsn) -> String {
    let files: Vec<String> = members.iter().map(|(path, content)| manifest_entry(path, content)).collect();
    let text = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {SYSTEM_IDENTIFIER},\n\"Files\": [\n{}\n],\n\
         \"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\n],\n",
        files.join(",\n")
    );
    format!("{text}\"Manifest-Checksum\": \"{}\"}}\n", hex(&Sha256::digest(text.as_bytes())))
}
