//! One archiver of the two: the archiver itself, and beside it what `seawall run` does by itself, with a server and a machine that are
//! the simulation's.

use super::base_backup::{Bases, RELATION};
use super::store::WeekStore;
use crate::counts::Counts;
use crate::ledger::CLUSTER;
use crate::server::Server;
use async_trait::async_trait;
use bytes::Bytes;
use seawall::archive::{ArchiveOptions, Archiver, Observer, Session, Source, SourceError};
use seawall::codec::Form;
use seawall::commands::backups::Backups;
use seawall::commands::jobs;
use seawall::commands::outside::Outside;
use seawall::commands::results::{self, Results};
use seawall::commands::taking::Taker;
use seawall::commands::turns::Turns;
use seawall::config::Settings;
use seawall::drill::Drill;
use seawall::error::{Error, Kind, Result};
use seawall::metrics::Metrics;
use seawall::notify::{self, Event, Notifier};
use seawall::postgres::{Client, ConnInfo, Mode};
use seawall::repository::{DrillDocument, FORMAT_VERSION, Repository};
use seawall::restore::{FetchCommand, RestoreOptions, execute};
use seawall::runtime::{Clock, RetryPolicy, Shutdown, Tasks};
use seawall::scratch::{Directory, Unprivileged};
use seawall::store::{RetryingStore, Store};
use seawall::wal::{Lsn, TimelineId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::duplex;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::sleep;

/// What every archiver of this cluster is given.
#[derive(Clone, Debug)]
pub struct Town {
    pub server: Server,
    pub bases: Arc<Bases>,
    pub store: WeekStore,
    pub settings: Arc<Settings>,
    pub clock: Clock,
    pub counts: Arc<Counts>,
    /// The next drill does not end.
    pub hangs: Arc<AtomicBool>,
    /// Who is told what is wrong.
    pub told: mpsc::Sender<Event>,
}

impl Town {
    /// A process, from its start to its end.
    pub async fn archiver(self) -> Result<()> {
        let store: Arc<dyn Store> = Arc::new(RetryingStore::new(Arc::new(self.store.clone()), RetryPolicy::STORE));
        let source = Arc::new(Unhurried(self.server.clone()));
        // A week has six hundred thousand seconds.
        let (flush_interval, status_interval) = (Duration::from_secs(30), Duration::from_secs(20));
        let options = ArchiveOptions { flush_interval, status_interval, ..ArchiveOptions::default() };
        let archiver = Archiver::new(source, store.clone(), CLUSTER, options, self.clock.clone());
        let state = archiver.state();
        let (_reloads, settings) = watch::channel(self.settings.clone());
        let taker = Arc::new(Taker {
            settings,
            form: Form::default(),
            store,
            metrics: Metrics::new(CLUSTER)?,
            notifier: Notifier::to(CLUSTER, notify::Form::PagerDuty, self.told.clone(), self.clock.clone()),
            clock: self.clock.clone(),
            outside: Arc::new(self),
            turns: Turns::new(Turns::MOST),
            one_at_a_time: Mutex::default(),
            results: Results::default(),
        });
        let shutdown = Shutdown::default();
        // As in `seawall run`: they end with it.
        let mut services: Tasks<()> = Tasks::default();
        services.start(Box::pin(Backups { taker: taker.clone(), state: state.clone() }.run()));
        services.start(results::follow(taker.clone(), state.clone()));
        services.start(Box::pin(jobs::run(taker, state)));
        archiver.run(&shutdown).await
    }
}

#[async_trait]
impl Outside for Town {
    async fn connect(&self, _: &Settings) -> Result<Client> {
        if !self.server.is_up() {
            return Err(Error::new(Kind::Postgres, "the database system is shutting down"));
        }
        let (ours, theirs) = duplex(256 << 10);
        tokio::spawn(self.bases.clone().serve(theirs));
        let info = ConnInfo::parse("host=127.0.0.1 user=tester sslmode=disable passfile=/dev/null", &|_| None)?;
        Ok(Client::over(ours, &info, Mode::Physical).await?)
    }

    async fn check_drill(&self, version: u32) -> Result<()> {
        assert_eq!(version, 17);
        Ok(())
    }

    /// Files and blocks are restored for real, and compared; only the server is not there.
    async fn drill(&self, _: &Settings, repository: &Repository, drill: Drill, clock: &Clock) -> Result<DrillDocument> {
        if self.hangs.swap(false, Ordering::Relaxed) {
            self.counts.add("drill: does not end");
            std::future::pending::<()>().await;
        }
        let (plan, started_at) = (drill.planned().clone(), clock.now());
        let mut place = Directory::create(&std::env::temp_dir(), "seawall-week")?;
        let command = FetchCommand {
            executable: "seawall".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            missing_secrets: Vec::new(),
            reads: Vec::new(),
        };
        // PostgreSQL takes nothing of root's.
        let owner = nix::unistd::Uid::effective().is_root().then(|| Unprivileged::find().unwrap().name().to_owned());
        let options = RestoreOptions { owner, ..RestoreOptions::new(place.path().join("data"), command) };
        let (progress, _) = watch::channel(Default::default());
        let executed = execute(repository, &plan, &options, progress).await;
        let mut failures = Vec::new();
        match &executed {
            Ok(report) => {
                let found = std::fs::read(report.data.join(RELATION)).unwrap();
                let expected = self.bases.relation_at(plan.backup.start_lsn);
                assert!(expected == Some(found), "base backup {} came back otherwise", plan.backup.id);
            }
            Err(error) => failures.push(error.to_string()),
        }
        place.remove().await?;
        self.counts.add(if plan.document.reference.is_some() {
            "drill: of a chain"
        } else {
            "drill: of a full backup"
        });
        sleep(Duration::from_secs(600)).await;
        Ok(DrillDocument {
            format: FORMAT_VERSION,
            system_identifier: plan.system_identifier,
            postgres_version: plan.postgres_version,
            started_at,
            ended_at: clock.now(),
            passed: failures.is_empty(),
            failures,
            target: plan.target.to_string(),
            backup: plan.backup.id.clone(),
            timeline: plan.timeline,
            durable_lsn: plan.end_lsn,
            durable_at: None,
            recovered_lsn: None,
            recovered_at: None,
            plan_seconds: 0.0,
            restored_bytes: 0,
            restore_seconds: 0.0,
            replayed_bytes: 0,
            replay_seconds: 0.0,
            recovery_seconds: None,
            rto: None,
            rpo: None,
            checks: Vec::new(),
            sealed: None,
        })
    }
}

/// A server that is looked at by the minute.
#[derive(Debug)]
struct Unhurried(Server);

#[async_trait]
impl Source for Unhurried {
    async fn connect(&self) -> Result<Box<dyn Session>, SourceError> {
        self.0.connect().await
    }

    async fn observe(&self) -> Result<Box<dyn Observer>, SourceError> {
        sleep(Duration::from_secs(3600)).await;
        Err(SourceError::lost("there is no second connection"))
    }

    async fn wait_for_slot(&self) -> Result<(), SourceError> {
        loop {
            sleep(Duration::from_secs(300)).await;
            if !self.0.is_slot_held() {
                return Ok(());
            }
        }
    }

    async fn peek(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        self.0.peek(timeline, lsn).await
    }
}
