//! `docs/costs.md`: its requests are those that the archiver makes, and its prices follow from them.
//!
//! Where the page is wrong, this prints the tables as they should be. Counts may differ by a few in a hundred before it
//! is: what costs the same need not be written again.

use crate::store::{Counts, Latency};
use crate::world::{HOUR, MIB, MILLISECOND, SECOND, World, on_a_paused_clock};
use seawall::archive::ArchiveOptions;
use std::time::Duration;

const GB: u64 = 1 << 30;
const DAY_SECONDS: f64 = 24.0 * 3600.0;
const MONTH_DAYS: f64 = 30.0;
/// What LZ4 leaves of WAL, and for how many days it is kept, in the prices.
const STORED_SHARE: f64 = 0.5;

/// What a server does, for how long, and how far away the store is.
struct Load {
    name: &'static str,
    /// Bytes of WAL in one write, and how far apart writes are.
    writes: Option<(u64, Duration)>,
    /// At once, at the beginning.
    waiting_bytes: u64,
    time: Duration,
    put: Duration,
    flush_interval: Duration,
    is_synchronous: bool,
}

impl Default for Load {
    fn default() -> Load {
        let (put, flush_interval) = (30 * MILLISECOND, ArchiveOptions::default().flush_interval);
        Load { name: "", writes: None, waiting_bytes: 0, time: HOUR, put, flush_interval, is_synchronous: false }
    }
}

/// Bytes a second that make so many GB a day.
fn a_day(gigabytes: u64) -> u64 {
    gigabytes * GB / (24 * 3600)
}

fn loads() -> Vec<Load> {
    let commits = |bytes, a_second: u32| Some((bytes, SECOND / a_second));
    let minute = 60 * SECOND;
    let default = Load::default;
    vec![
        Load { name: "idle", ..default() },
        Load { name: "1 GB that has waited", waiting_bytes: GB, time: minute, ..default() },
        Load { name: "16 MB/s", writes: commits(160_000, 100), time: minute, ..default() },
        Load {
            name: "100 GB a day, 50 commits/s",
            writes: commits(a_day(100) / 50, 50),
            time: 2 * minute,
            ..default()
        },
        Load { name: "1 GB a day, 1 commit/s", writes: commits(a_day(1), 1), ..default() },
        Load {
            name: "1 GB a day, 1 commit/s, flush interval 5 s",
            writes: commits(a_day(1), 1),
            flush_interval: 5 * SECOND,
            ..default()
        },
        Load { name: "1 commit/s of 200 bytes", writes: commits(200, 1), ..default() },
        Load {
            name: "synchronous, 100 commits/s of 2 kB, PUT 30 ms",
            writes: commits(2_000, 100),
            time: 2 * minute,
            is_synchronous: true,
            ..default()
        },
        Load {
            name: "synchronous, 200 commits/s of 2 kB, PUT 30 ms",
            writes: commits(2_000, 200),
            time: 2 * minute,
            is_synchronous: true,
            ..default()
        },
        Load {
            name: "synchronous, 200 commits/s of 2 kB, PUT 5 ms",
            writes: commits(2_000, 200),
            time: 2 * minute,
            put: 5 * MILLISECOND,
            is_synchronous: true,
            ..default()
        },
    ]
}

struct Measured {
    name: &'static str,
    hours: f64,
    gigabytes: f64,
    counts: Counts,
}

fn measure(load: &Load) -> Measured {
    on_a_paused_clock(async {
        let options = ArchiveOptions { flush_interval: load.flush_interval, ..ArchiveOptions::default() };
        let mut world = World::begin(options, 16 * MIB, Latency::Fixed(load.put)).await;
        world.server.set_synchronous(load.is_synchronous);
        // The beginning is over, and the archiver knows whether commits wait.
        world.trickle(1_000, SECOND, 10 * SECOND).await;
        tokio::time::sleep(15 * 60 * SECOND).await;
        let (before, begin) = (world.store.counts(), world.written());
        world.server.write(load.waiting_bytes);
        match load.writes {
            Some((bytes, interval)) => world.trickle(bytes, interval, load.time).await,
            None => tokio::time::sleep(load.time).await,
        }
        let counts = world.store.counts() - before;
        assert_eq!(world.store.violations(), Vec::<String>::new());
        let gigabytes = (world.written() - begin) as f64 / GB as f64;
        Measured { name: load.name, hours: load.time.as_secs_f64() / 3600.0, gigabytes, counts }
    })
}

impl Measured {
    /// PUTs an hour, and for each GB of WAL; what else was asked an hour; how often a byte was stored.
    fn row(&self) -> [String; 5] {
        let puts = self.counts.puts() as f64;
        let per_gigabyte = |value: f64, digits: usize| match self.gigabytes > 0.0 {
            true => format!("{:.digits$}", value / self.gigabytes),
            false => "-".to_owned(),
        };
        [
            self.name.to_owned(),
            format!("{:.0}", puts / self.hours),
            per_gigabyte(puts, 0),
            format!("{:.0}", self.counts.others() as f64 / self.hours),
            per_gigabyte(self.counts.plain_bytes as f64 / GB as f64, 1),
        ]
    }
}

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/costs.md")).unwrap()
}

/// The rows of the table below a heading, without its head.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.skip(1).map(|row| row.split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

fn number(text: &str) -> f64 {
    text.trim_start_matches('$').replace(',', "").parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// Equal, or nearly: three in a hundred, and what rounding makes of it.
fn agrees(written: &str, measured: &str) -> bool {
    if written == "-" || measured == "-" {
        return written == measured;
    }
    let (written, measured) = (number(written), number(measured));
    (written - measured).abs() <= (0.03 * measured).max(if measured < 20.0 { 0.1 } else { 1.0 })
}

fn print(rows: &[impl AsRef<[String]>]) -> String {
    rows.iter().map(|row| format!("| {} |\n", row.as_ref().join(" | "))).collect()
}

#[test]
fn the_page_says_what_the_archiver_asks_of_the_store() {
    let measured: Vec<[String; 5]> = loads().iter().map(|load| measure(load).row()).collect();
    println!("{}", print(&measured));
    let written = table(&page(), "Requests");
    let names = |rows: &mut dyn Iterator<Item = String>| rows.collect::<Vec<_>>();
    assert_eq!(
        names(&mut written.iter().map(|row| row[0].clone())),
        names(&mut measured.iter().map(|row| row[0].clone())),
        "the loads in docs/costs.md"
    );
    for (written, measured) in written.iter().zip(&measured) {
        let agree = written.iter().zip(measured).skip(1).all(|(written, measured)| agrees(written, measured));
        assert!(agree, "docs/costs.md has\n{written:?}\nbut it is\n{measured:?}");
    }
}

/// What a store asks for, in dollars.
struct Prices {
    put: f64,
    upload: f64,
    storage: f64,
}

#[test]
fn the_prices_on_the_page_follow_from_its_requests() {
    let page = page();
    // Given the prices of one thing each, as the page has them
    let prices = table(&page, "Prices of one thing");
    let price = |name: &str, store: usize| {
        let row = prices.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("no price of {name}"));
        number(&row[store])
    };
    let of = |store| Prices {
        put: price("1,000 PUT or LIST", store) / 1_000.0,
        upload: price("1 GB uploaded", store),
        storage: price("1 GB stored for a month", store),
    };
    let stores = [of(1), of(2)];
    // and the requests
    let requests = table(&page, "Requests");
    let request = |name: &str| requests.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("no load {name}"));
    // When the month is added up
    let gigabytes_a_day = [
        ("1 GB a day, 1 commit/s", 1.0, [0, 0]),
        ("1 GB a day, 1 commit/s, flush interval 5 s", 1.0, [0, 0]),
        ("100 GB a day, 50 commits/s", 100.0, [0, 0]),
        ("synchronous, 200 commits/s of 2 kB", 2_000.0 * 200.0 * DAY_SECONDS / GB as f64, [30, 5]),
    ];
    let mut expected = Vec::new();
    for (load, gigabytes, put_millis) in gigabytes_a_day {
        for (index, store) in ["S3 Standard", "S3 Express One Zone"].into_iter().enumerate() {
            let name = match put_millis[index] {
                0 => load.to_owned(),
                millis => format!("{load}, PUT {millis} ms"),
            };
            let (row, prices) = (request(&name), &stores[index]);
            let wal = gigabytes * MONTH_DAYS;
            let puts = number(&row[1]) * 24.0 * MONTH_DAYS * prices.put;
            let upload = wal * number(&row[4]) * STORED_SHARE * prices.upload;
            let storage = wal * STORED_SHARE * prices.storage;
            let money = |dollars: f64| format!("${dollars:.2}");
            let cells = [money(puts), money(upload), money(storage), money(puts + upload + storage)];
            expected.push([vec![load.to_owned(), store.to_owned()], cells.to_vec()].concat());
        }
    }
    println!("{}", print(&expected));
    // Then it is what the page says
    assert_eq!(table(&page, "A month"), expected, "the prices in docs/costs.md should be\n{}", print(&expected));
}
