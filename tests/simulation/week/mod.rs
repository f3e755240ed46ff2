//! A week of `seawall run`, twice for one cluster, in seconds: the production archiver, schedule, lease, base backups, retention,
//! verification, planner and restore. Only the clock, the server, the store and the server of drills are the simulation's.
//!
//! Things fail as they do in a week, and after every job and every deletion all that was promised must be restorable. A run follows from
//! its seed: `SEAWALL_WEEK_SEEDS=1,2,3` runs those, and prints the log.

mod archiver;
mod base_backup;
mod gap;
mod idle;
mod judge;
#[path = "../../support/base_backup.rs"]
mod sent;
mod store;
#[path = "../../support/walsender.rs"]
mod walsender;

use crate::counts::Counts;
use crate::ledger::{CLUSTER, Ledger};
use crate::server::Server;
use crate::simulate;
use crate::wal::{SEGMENT_BYTES, Wal};
use archiver::Town;
use base_backup::{Bases, Fate};
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use judge::Judge;
use seawall::cli;
use seawall::config::Settings;
use seawall::error::{Kind, Result};
use seawall::metrics::Job;
use seawall::notify::{Event, Trouble};
use seawall::repository::{Action, ActionResult, AuditEntry, BackupId, Key, Repository};
use seawall::runtime::Clock;
use seawall::store::{MemoryStore, Store, list_all};
use seawall::wal::SegmentSize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use store::WeekStore;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAYS: u64 = 7;

/// Whatever was archived in so long can be restored.
const WINDOW: SignedDuration = SignedDuration::from_hours(60);

const CONFIGURATION: &str = r#"
[schedule]
time_zone = "UTC"
full = "0 2 * * WED,SUN"
incremental = "0 2,10,18 * * *"
prune = "30 4 * * *"
verify = "0 6 * * *"
drill = "0 8 * * *"
time_limit = "90m"
[retention]
age = "60h"
minimum_window = "36h"
"#;

/// What happens each day, at which hour and minute.
const DAILY: [(Action, i8, i8); 3] = [(Action::Prune, 4, 30), (Action::DeepVerify, 6, 0), (Action::Drill, 8, 0)];

/// At which hours of each day a base backup is due; on some days the first of them is a full one.
const BACKUPS: [i8; 3] = [2, 10, 18];
const FULL_ON: [Weekday; 2] = [Weekday::Wednesday, Weekday::Sunday];

/// So long after a base backup, whatever goes wrong, what is stored was looked at.
const FOLLOWED_WITHIN: SignedDuration = SignedDuration::from_hours(4);

/// What has to happen at least once in a run without a variable.
const MUST: [&str; 39] = [
    "archiver: killed",
    "archiver: killed in a base backup",
    "audit: deep_verify bad",
    "audit: deep_verify good",
    "audit: drill good",
    "audit: given up, until its next time",
    "audit: full good",
    "audit: incremental good",
    "audit: prune failed",
    "audit: prune good",
    "audit: verify good",
    "backup: after a gap",
    "backup: gone on with by another process",
    "base backup: cut",
    "base backup: sent, full",
    "base backup: sent, incremental",
    "base backup: stands still",
    "drill: does not end",
    "drill: of a chain",
    "judged: after a deletion of prune",
    "judged: restores planned",
    "prune: a deletion refused",
    "server: slot lost",
    "store: failed",
    "store: outage",
    "store: reply lost",
    "told: gap, right again",
    "told: gap, wrong",
    "told: job_drill, right again",
    "told: job_drill, wrong",
    "told: job_incremental, right again",
    "told: job_incremental, wrong",
    "told: job_prune, right again",
    "told: job_prune, wrong",
    "told: job_verify, right again",
    "told: job_verify, wrong",
    "told: schedule, right again",
    "told: schedule, wrong",
    "verified: after a gap",
];

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mishap {
    Outage(u32),
    CutBackup,
    CutBackupsForAnHour,
    DieInBackup,
    BackupStandsStill,
    Kill,
    LoseSlot,
    LosePart,
    RefuseDeletion,
    DrillHangs,
}

struct Process {
    number: usize,
    task: JoinHandle<Result<()>>,
}

struct Week {
    town: Town,
    judge: Arc<Judge>,
    ledger: Arc<Ledger>,
    counts: Arc<Counts>,
    memory: MemoryStore,
    random: fastrand::Rng,
    processes: Vec<Process>,
    /// Those that are dead, and when they are started again.
    dead: Vec<(usize, Instant)>,
    /// A part that somebody took away, with what was in it.
    lost: Option<(String, seawall::store::Body)>,
    /// Base backups whose archivers died.
    orphaned: Vec<BackupId>,
    /// Base backups that answered a gap, and those that another process has gone on with.
    after_gaps: Vec<BackupId>,
    gone_on_with: Vec<BackupId>,
    /// Entries of the audit trail that were looked at.
    seen: usize,
    /// What people are told.
    told: mpsc::Receiver<Event>,
}

impl Week {
    fn new(seed: u64, counts: Arc<Counts>) -> Week {
        // A Monday.
        let clock = Clock::simulated("2026-11-16T00:00:00Z".parse().unwrap());
        let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
        let ledger = Arc::new(Ledger::new(Arc::new(Wal::new(seed, size))));
        let memory = MemoryStore::with_clock(clock.clone());
        let server = Server::new(ledger.clone(), counts.clone(), clock.clone(), seed);
        server.set_version(17, true);
        server.set_synchronous(false);
        server.set_clients(2);
        let judge = Judge::new(memory.clone(), server.clone(), ledger.clone(), clock.clone(), counts.clone(), WINDOW);
        let judge = Arc::new(judge);
        let (teller, told) = mpsc::channel(64);
        let town = Town {
            bases: Arc::new(Bases::new(server.clone(), counts.clone())),
            server,
            store: WeekStore::new(memory.clone(), judge.clone(), counts.clone(), seed),
            settings: Arc::new(settings(CONFIGURATION)),
            clock,
            counts: counts.clone(),
            hangs: Arc::new(AtomicBool::new(false)),
            told: teller,
        };
        let random = fastrand::Rng::with_seed(seed);
        let (processes, dead) = (Vec::new(), Vec::new());
        let (orphaned, after_gaps, gone_on_with) = Default::default();
        let lost = None;
        Week {
            town,
            judge,
            ledger,
            counts,
            memory,
            random,
            processes,
            dead,
            lost,
            orphaned,
            after_gaps,
            gone_on_with,
            seen: 0,
            told,
        }
    }

    fn start(&mut self, number: usize) {
        self.processes.push(Process { number, task: tokio::spawn(self.town.clone().archiver()) });
    }

    /// `kill -9`, and somebody starts it again in a while.
    async fn kill(&mut self, index: usize) {
        let Process { number, task } = self.processes.remove(index);
        task.abort();
        if let Err(error) = task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
        self.dead.push((number, Instant::now() + Duration::from_secs(self.random.u64(10..1800))));
    }

    /// When what goes wrong.
    fn mishaps(&mut self) -> Vec<(Duration, Mishap)> {
        let hours = |day: u64, hour: u64, minute: u64| Duration::from_secs(((day * 24 + hour) * 60 + minute) * 60);
        let mut mishaps = Vec::new();
        for _ in 0..4 {
            let at = Duration::from_secs(self.random.u64(6 * 3600..DAYS * 24 * 3600));
            mishaps.push((at, Mishap::Outage(self.random.u32(5..90))));
        }
        for _ in 0..3 {
            mishaps.push((Duration::from_secs(self.random.u64(3600..DAYS * 24 * 3600)), Mishap::Kill));
        }
        // In the middle of jobs.
        let mut day = || self.random.u64(0..DAYS);
        mishaps.push((hours(day(), 4, 29), Mishap::Outage(20)));
        mishaps.push((hours(day(), 2, 3), Mishap::Outage(5)));
        mishaps.push((hours(day(), 9, 0), Mishap::CutBackup));
        mishaps.push((hours(day(), 17, 0), Mishap::CutBackup));
        mishaps.push((hours(day(), 1, 50), Mishap::CutBackupsForAnHour));
        mishaps.push((hours(day(), 15, 0), Mishap::BackupStandsStill));
        for _ in 0..3 {
            mishaps.push((hours(day(), 9, 30), Mishap::DieInBackup));
        }
        mishaps.push((hours(1 + day() % 5, 13, 0), Mishap::LoseSlot));
        mishaps.push((hours(1 + day() % 6, 5, 30), Mishap::LosePart));
        mishaps.push((hours(3 + day() % 2, 4, 0), Mishap::RefuseDeletion));
        mishaps.push((hours(day(), 7, 30), Mishap::DrillHangs));
        mishaps.sort_by_key(|(at, _)| *at);
        mishaps
    }

    async fn happen(&mut self, mishap: Mishap) {
        match mishap {
            Mishap::Outage(minutes) => self.town.store.fail_for(minutes * MINUTE),
            Mishap::CutBackup => self.town.bases.expect(Fate::Cut),
            Mishap::CutBackupsForAnHour => self.town.bases.cut_all_for(HOUR),
            Mishap::DieInBackup => self.town.bases.expect(Fate::Dies),
            Mishap::BackupStandsStill => self.town.bases.expect(Fate::StandsStill),
            Mishap::Kill => {
                if !self.processes.is_empty() {
                    let index = self.random.usize(0..self.processes.len());
                    self.kill(index).await;
                    self.counts.add("archiver: killed");
                }
            }
            Mishap::LoseSlot => {
                while !self.processes.is_empty() {
                    self.kill(0).await;
                }
                self.town.server.write(3 * SEGMENT_BYTES);
                self.town.server.lose_slot();
            }
            Mishap::LosePart => self.lose_part().await,
            Mishap::RefuseDeletion => self.town.store.refuse_one(),
            Mishap::DrillHangs => self.town.hangs.store(true, Ordering::Relaxed),
        }
    }

    /// A part of the newest base backup is gone, as somebody notices who reads everything.
    async fn lose_part(&mut self) {
        let objects = list_all(&self.memory, &self.judge.layout.base_prefix()).await.unwrap();
        let is_part = |name: &str| matches!(self.judge.layout.parse(name), Ok(Key::BackupPart(..)));
        let Some(part) = objects.into_iter().rfind(|object| is_part(&object.key)) else { return };
        let bytes = self.memory.get(&part.key, None).await.unwrap().collect().await.unwrap();
        self.memory.delete(&part.key).await.unwrap();
        self.lost = Some((part.key, bytes.into()));
    }

    /// What the audit trail says since the last look.
    async fn look_at_audit(&mut self) {
        let entries = self.audit().await;
        for entry in &entries[self.seen.min(entries.len())..] {
            if let Some(id) = &entry.backup
                && let Some(backup) = self.repository().finished_backup(id).await.unwrap()
                && matches!(entry.action, Action::Full | Action::Incremental)
            {
                if backup.label.contains("gap") {
                    self.counts.add("backup: after a gap");
                    self.after_gaps.push(id.clone());
                }
                if self.orphaned.contains(id) {
                    self.counts.add("backup: gone on with by another process");
                    self.gone_on_with.push(id.clone());
                }
            }
            self.judge.step(&format!("after {} ({})", entry.action, entry.result.name())).await;
            let is_bad_verification = entry.action == Action::DeepVerify && entry.result == ActionResult::Bad;
            if is_bad_verification && let Some((name, body)) = self.lost.take() {
                // Somebody found it in another place.
                self.memory.create(&name, body, Default::default()).await.unwrap();
            }
        }
        self.seen = entries.len();
    }

    /// What people are told since the last look.
    async fn look_at_what_is_told(&mut self) {
        let entries = self.audit().await;
        while let Ok(event) = self.told.try_recv() {
            let state = if event.is_resolved { "right again" } else { "wrong" };
            self.counts.add(String::leak(format!("told: {}, {state}", event.trouble.name())));
            if event.is_resolved && event.trouble == Trouble::Job(Job::Verify) {
                // What reading everything has found, nothing less takes back, not even in another process.
                let read = entries.iter().filter(|entry| {
                    let is_read = entry.action == Action::DeepVerify && entry.result != ActionResult::Failed;
                    is_read && entry.started_at <= event.at
                });
                let last = read.max_by_key(|entry| entry.started_at);
                assert!(last.is_none_or(|last| last.result == ActionResult::Good), "{event:?}, but {last:?}");
            }
        }
    }

    fn repository(&self) -> Repository {
        Repository { store: Arc::new(self.memory.clone()), layout: self.judge.layout.clone() }
    }

    async fn audit(&self) -> Vec<AuditEntry> {
        self.repository().audit(Timestamp::UNIX_EPOCH, self.town.clock.now(), usize::MAX).await.unwrap_or_default()
    }

    /// Ten minutes pass, with all that happens in them.
    async fn live(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let bases = self.town.bases.clone();
            let has_to_die = tokio::select! {
                () = bases.deadly.notified() => true,
                () = sleep((until - Instant::now()).min(MINUTE)) => false,
            };
            if has_to_die {
                // Only the one that streams takes base backups.
                self.counts.add("archiver: killed in a base backup");
                self.orphaned.extend(self.repository().backup_ids().await.unwrap().into_iter().max());
                while !self.processes.is_empty() {
                    self.kill(0).await;
                }
            }
            while let Some(index) = self.processes.iter().position(|process| process.task.is_finished()) {
                let Process { number, task } = self.processes.remove(index);
                match task.await {
                    Ok(Ok(())) => panic!("an archiver ended without being told to"),
                    // As systemd does. A store that does not answer at the start is a reason.
                    Ok(Err(error)) if error.kind() == Kind::Store => {
                        self.counts.add("archiver: gave up at its start");
                        self.dead.push((number, Instant::now() + Duration::from_secs(5)));
                    }
                    Ok(Err(error)) => panic!("an archiver gave up: {error}: {error:?}"),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
            for number in
                self.dead.extract_if(.., |(_, at)| *at <= Instant::now()).map(|dead| dead.0).collect::<Vec<_>>()
            {
                self.start(number);
                // Two processes have never begun in one microsecond.
                sleep(Duration::from_millis(3)).await;
            }
        }
    }

    async fn run(&mut self) {
        let begun = Instant::now();
        let mut mishaps = self.mishaps().into_iter().peekable();
        self.dead = vec![(1, begun), (2, begun + Duration::from_secs(40))];
        let mut turn = 0u64;
        while begun.elapsed() < Duration::from_secs(DAYS * 24 * 3600) {
            while let Some((_, mishap)) = mishaps.next_if(|(at, _)| *at <= begun.elapsed()) {
                tracing::info!(?mishap, at = %self.town.clock.now(), "mishap");
                self.happen(mishap).await;
            }
            self.town.server.write(self.random.u64(0..20_000));
            self.town.server.complete_record();
            self.town.bases.change(self.random.u32(0..6));
            if turn.is_multiple_of(6) {
                self.town.server.checkpoint();
            }
            if turn.is_multiple_of(18) {
                self.judge.note_moment();
            }
            self.live(10 * MINUTE).await;
            self.look_at_audit().await;
            self.look_at_what_is_told().await;
            turn += 1;
        }
        for index in (0..self.processes.len()).rev() {
            self.kill(index).await;
        }
    }

    /// Counts what was done, and compares it with what was to be.
    async fn check(&self) {
        let entries = self.audit().await;
        for entry in &entries {
            let what = format!("audit: {} {}", entry.action.name(), entry.result.name());
            self.counts.add(String::leak(what));
            // What takes too long once does so again: with the counts below, nothing is begun again before its time.
            if entry.about.contains("did not end within") {
                self.counts.add("audit: given up, until its next time");
                assert_eq!(entry.result, ActionResult::Bad, "{}", told(&entries));
            }
        }
        for (action, hour, minute) in DAILY {
            for day in 0..DAYS as i64 {
                let due: Timestamp = format!("2026-11-16T{hour:02}:{minute:02}:00Z").parse().unwrap();
                let due = due.checked_add((24 * day).hours()).unwrap();
                let next = due.checked_add(24.hours()).unwrap();
                let done = entries.iter().filter(|entry| {
                    let counts = entry.action == action && entry.result != ActionResult::Failed;
                    counts && due <= entry.started_at && entry.started_at < next
                });
                assert_eq!(done.count(), 1, "{action} of {due} was not done once: {}", told(&entries));
            }
        }
        self.check_backups(&entries);
        assert!(self.judge.is_anything_restorable());
        let violations = self.ledger.violations();
        assert!(
            violations.is_empty(),
            "{} violations, first: {:#?}",
            violations.len(),
            &violations[..violations.len().min(3)]
        );
    }
}

impl Week {
    /// Each was taken when it was due, and is of the right kind; there are no others but the first and those after gaps; and what is
    /// stored was looked at behind each.
    fn check_backups(&self, entries: &[AuditEntry]) {
        let is_backup = |entry: &&AuditEntry| matches!(entry.action, Action::Full | Action::Incremental);
        let taken: Vec<&AuditEntry> =
            entries.iter().filter(is_backup).filter(|entry| entry.result == ActionResult::Good).collect();
        let first_day: Timestamp = "2026-11-16T00:00:00Z".parse().unwrap();
        let mut due = Vec::new();
        for day in 0..DAYS as i64 {
            for hour in BACKUPS {
                due.push(first_day.checked_add((24 * day + i64::from(hour)).hours()).unwrap());
            }
        }
        let is_listed =
            |list: &[BackupId], entry: &AuditEntry| entry.backup.as_ref().is_some_and(|id| list.contains(id));
        for (index, begin) in due.iter().enumerate() {
            let end = due.get(index + 1).copied().unwrap_or(self.town.clock.now());
            let local = begin.to_zoned(TimeZone::UTC);
            let is_full = local.hour() == BACKUPS[0] && FULL_ON.contains(&local.weekday());
            let is_right = |entry: &AuditEntry| match entry.action {
                Action::Full => is_full || is_listed(&self.gone_on_with, entry),
                _ => !is_full,
            };
            let of_time: Vec<&&AuditEntry> =
                taken.iter().filter(|entry| *begin <= entry.started_at && entry.started_at < end).collect();
            assert!(
                of_time.iter().any(|entry| is_right(entry)),
                "no {} backup at {begin}: {}",
                if is_full { "full" } else { "incremental" },
                told(entries)
            );
        }
        // A cluster without any gets one at once.
        let most = 1 + due.len() + self.after_gaps.len();
        assert!(taken.len() <= most, "{} base backups, and {most} were due: {}", taken.len(), told(entries));
        for backup in &taken {
            let until = backup.ended_at.checked_add(FOLLOWED_WITHIN).unwrap();
            let is_followed = entries.iter().any(|entry| {
                let has_looked = matches!(entry.action, Action::Verify | Action::DeepVerify);
                let is_behind =
                    backup.ended_at.as_second() <= entry.started_at.as_second() && entry.started_at <= until;
                has_looked && entry.result != ActionResult::Failed && is_behind
            });
            let is_over = until <= self.town.clock.now();
            assert!(is_followed || !is_over, "nothing was verified after {:?}: {}", backup.backup, told(entries));
            if is_listed(&self.after_gaps, backup) && is_followed {
                self.counts.add("verified: after a gap");
            }
        }
    }
}

fn told(entries: &[AuditEntry]) -> String {
    let line = |entry: &AuditEntry| {
        format!("\n{} {} {}: {}", entry.started_at, entry.action.name(), entry.result.name(), entry.about)
    };
    entries.iter().map(line).collect()
}

fn settings(configuration: &str) -> Settings {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("seawall.toml");
    let places = "pg = \"host=/nonexistent user=seawall\"\nrepo = \"file:///nonexistent\"\n";
    std::fs::write(&file, format!("cluster = \"{CLUSTER}\"\n{places}{configuration}")).unwrap();
    let cli = cli::parse(["seawall", "run", "--config", file.to_str().unwrap()].map(Into::into)).unwrap();
    Settings::load(&cli, &|_| None).unwrap()
}

/// The seeds of a run without a variable. In the second an archiver dies between what reading everything finds and a look that reads nothing.
const SEEDS: [u64; 2] = [1, 5];

#[test]
fn a_week_of_two_archivers_keeps_every_promise() {
    let variable = std::env::var("SEAWALL_WEEK_SEEDS").ok();
    let number = |seed: &str| seed.trim().parse().expect("SEAWALL_WEEK_SEEDS is a list of numbers");
    let seeds: Vec<u64> = variable.as_ref().map_or(SEEDS.to_vec(), |list| list.split(',').map(number).collect());
    if variable.is_some() {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).without_time().with_ansi(false);
        let _ = subscriber.try_init();
    }
    let counts = Arc::new(Counts::default());
    for seed in &seeds {
        let begun = std::time::Instant::now();
        println!("seed {seed}; again with: SEAWALL_WEEK_SEEDS={seed}");
        simulate(*seed, async {
            let mut week = Week::new(*seed, counts.clone());
            week.run().await;
            week.check().await;
        });
        println!("seed {seed} took {:.1} s", begun.elapsed().as_secs_f64());
    }
    for (what, count) in counts.all() {
        println!("{count:>8}  {what}");
    }
    if variable.is_some() {
        return;
    }
    let silent: Vec<_> = MUST.into_iter().filter(|what| counts.get(what) == 0).collect();
    assert!(silent.is_empty(), "these never happened, so nothing was tested against them: {silent:?}");
}
