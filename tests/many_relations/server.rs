//! A walsender with a million files, which are made as they are sent: it has none of them in memory.
#![allow(unreachable_pub)]

use crate::base_backup::{hex, manifest_entry, member};
use crate::walsender::say;
use seawall::wal::Lsn;
use sha2::{Digest, Sha256};
use std::io::{BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};

pub const SYSTEM: u64 = 7_300_000_000_000_000_001;
pub const MIB: u64 = 1 << 20;
pub const PAGE: usize = 8192;
/// Where the full backup begins.
pub const START: Lsn = Lsn(2 * MIB + 40);
/// Where the incremental one begins: one record lies between.
const NEXT_START: Lsn = Lsn(2 * MIB + 40 + 32);
/// Where that one ends. The full one ends where it begins.
const END: Lsn = Lsn(2 * MIB + 0x100);

/// One file in so many has a page, and of the changed ones an incremental backup sends that page alone.
const WITH_PAGE: u64 = 16;

/// The names in three databases, as PostgreSQL gives them, in the order in which a directory lists them: none.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    pub files: u64,
}

impl Cluster {
    /// The file that comes in this place: its path, its contents.
    pub fn file(self, place: u64) -> (String, Vec<u8>) {
        // A prime that divides no number of files that is used here.
        let number = place * 7_919 % self.files;
        // A relation has three forks at most, most have one.
        let (relation, fork) = (16_384 + number / 2, if number.is_multiple_of(2) { "" } else { "_fsm" });
        let database = 16_384 + place * 3 / self.files;
        let path = format!("base/{database}/{relation}{fork}");
        let content = match number {
            page if page % WITH_PAGE == 0 => {
                let mut content = vec![0; PAGE];
                content[100..108].copy_from_slice(&number.to_le_bytes());
                content
            }
            small if small % 4 == 1 => path.clone().into_bytes(),
            _ => Vec::new(),
        };
        (path, content)
    }

    fn special(self) -> [(&'static str, Vec<u8>); 3] {
        let control = [&SYSTEM.to_ne_bytes()[..], &[7; PAGE - 8]].concat();
        [("PG_VERSION", b"17\n".to_vec()), ("postgresql.conf", Vec::new()), ("global/pg_control", control)]
    }

    /// Every member of the archive, an incremental one's or a full one's.
    fn members(self, incremental: bool) -> impl Iterator<Item = (String, Vec<u8>)> {
        let start = start(incremental);
        let mut label = format!("START WAL LOCATION: {start} (file 000000010000000000000002)\nSTART TIMELINE: 1\n");
        if incremental {
            label += &format!("INCREMENTAL FROM LSN: {START}\nINCREMENTAL FROM TLI: 1\n");
        }
        let special = self.special().into_iter().map(|(path, content)| (path.to_owned(), content));
        let relations = (0..self.files).map(move |place| {
            let (path, content) = self.file(place);
            match incremental && content.len() == PAGE {
                true => changed(&path),
                false => (path, content),
            }
        });
        std::iter::once(("backup_label".to_owned(), label.into_bytes())).chain(relations).chain(special)
    }
}

fn start(incremental: bool) -> Lsn {
    if incremental { NEXT_START } else { START }
}

/// Where a backup is consistent.
pub fn end(incremental: bool) -> Lsn {
    if incremental { END } else { NEXT_START }
}

/// The segment that both backups begin in: a page's header, one record that says nothing, and then nothing that makes sense
/// (`xlog_internal.h`, `xlogrecord.h`). Recovery's planner says so, and goes to the end all the same.
pub fn segment() -> Vec<u8> {
    let header = [
        &[0x16, 0xD1, 2, 0][..],
        &1u32.to_le_bytes(),
        &(2 * MIB).to_le_bytes(),
        &[0; 8],
        &SYSTEM.to_le_bytes(),
        &(MIB as u32).to_le_bytes(),
        &8192u32.to_le_bytes(),
    ];
    let body = [255, 6, 0, 0, 0, 0, 0, 0];
    let record = [&32u32.to_le_bytes()[..], &[0; 4], &0x28u64.to_le_bytes(), &[0x20, 0, 0, 0]].concat();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&body), &record).to_le_bytes();
    let mut segment = [&header.concat()[..], &record, &checksum, &body].concat();
    assert_eq!(segment.len() as u64, NEXT_START.0 - 2 * MIB);
    segment.resize(MIB as usize, 7);
    segment
}

/// Of a file with one page, which has not changed: a header that lists nothing (`basebackup_incremental.c`).
fn changed(path: &str) -> (String, Vec<u8>) {
    let (directory, name) = path.rsplit_once('/').unwrap();
    let header = [0xd3ae_1f0du32, 0, 1].map(u32::to_le_bytes).concat();
    (format!("{directory}/INCREMENTAL.{name}"), header)
}

/// Listens, and serves as many connections as come, one after the other, for as long as the process lives.
pub fn serve(cluster: Cluster) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            // One that goes away has what it wanted, or its own test fails.
            let _ = answer(cluster, &socket.unwrap());
        }
    });
    port
}

fn answer(cluster: Cluster, mut socket: &TcpStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut startup)?;
    socket.write_all(&say::welcome("17.10"))?;
    loop {
        let question = read_message(socket)?.1;
        let question = String::from_utf8_lossy(&question).trim_end_matches('\0').to_owned();
        let says = match question.as_str() {
            "IDENTIFY_SYSTEM" => say::identity(SYSTEM, 1, NEXT_START),
            "UPLOAD_MANIFEST" => {
                socket.write_all(&say::copy_in())?;
                while read_message(socket)?.0 != b'c' {}
                [say::complete("UPLOAD_MANIFEST"), say::ready()].concat()
            }
            backup if backup.starts_with("BASE_BACKUP") => {
                send_backup(cluster, backup.contains("INCREMENTAL"), &mut BufWriter::with_capacity(256 << 10, socket))?;
                continue;
            }
            show => {
                let name = show.strip_prefix("SHOW ").unwrap_or(show).trim_matches('"');
                [say::result(&[name], &[Some(setting(name))]), say::ready()].concat()
            }
        };
        socket.write_all(&says)?;
    }
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

fn read_message(mut socket: &TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    socket.read_exact(&mut header)?;
    let mut body = vec![0; u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize - 4];
    socket.read_exact(&mut body)?;
    Ok((header[0], body))
}

fn send_backup(cluster: Cluster, incremental: bool, out: &mut impl Write) -> std::io::Result<()> {
    let position = |lsn: Lsn| say::result(&["recptr", "tli"], &[Some(&lsn.to_string()), Some("1")]);
    out.write_all(&position(start(incremental)))?;
    out.write_all(&say::result(&["spcoid", "spclocation", "size"], &[None, None, Some("100")]))?;
    out.write_all(&say::copy_out())?;
    out.write_all(&say::copy_data(b"nbase.tar\0\0"))?;
    for (path, content) in cluster.members(incremental) {
        let member = [&b"d"[..], &member(&path, &content)].concat();
        out.write_all(&say::copy_data(&member))?;
    }
    out.write_all(&say::copy_data(&[&b"d"[..], &[0; 1024]].concat()))?;
    out.write_all(&say::copy_data(b"m"))?;
    let mut sha256 = Sha256::new();
    let mut say = |text: &str| {
        sha256.update(text);
        out.write_all(&say::copy_data(&[b"d", text.as_bytes()].concat()))
    };
    say(&format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {SYSTEM},\n\"Files\": ["))?;
    for (number, (path, content)) in cluster.members(incremental).enumerate() {
        say(&format!("{}\n{}", if number == 0 { "" } else { "," }, manifest_entry(&path, &content)))?;
    }
    say(&format!(
        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
        start(incremental),
        end(incremental)
    ))?;
    let last = format!("\"Manifest-Checksum\": \"{}\"}}\n", hex(&sha256.finalize()));
    out.write_all(&say::copy_data(&[b"d", last.as_bytes()].concat()))?;
    let last = [say::copy_done(), position(end(incremental)), say::complete("BASE_BACKUP"), say::ready()].concat();
    out.write_all(&last)?;
    out.flush()
}
