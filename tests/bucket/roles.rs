//! The three roles of `docs/bucket.md`, enforced as they stand there: the program does with each what it is for, of a real server,
//! and nothing is refused; what the role is kept from is; and no right on the page is there for nothing.

use crate::page::{ROLES, policy};
use crate::s3::{Asked, Fault, Op, Policy, S3Server, Settings};
use crate::s3_store::{credentials, options};
use crate::scene::Scene;
use crate::support::metrics::Endpoint;
use crate::support::postgres::{programs, scratch_directory};
use crate::support::program::{Seawall, path_for_server};
use crate::support::waiting::{PATIENCE, wait_for};
use bytes::Bytes;
use jiff::SignedDuration;
use seawall::error::Kind;
use seawall::repository::{BackupBegin, BackupDocument, KeepMark, is_permanent};
use seawall::scratch::{Server, ServerOptions};
use seawall::store::{Conditional, LockMode, Metadata, NoObserver, ObjectLock, S3Options, Store, StoreErrorKind, open};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const PREFIX: &str = "backups";
const TEN_DAYS: Duration = Duration::from_secs(10 * 86_400);

/// A server with a bucket as the page makes it, and what is typed in the name of a role.
struct Stage {
    scene: Scene,
    file: String,
}

impl Stage {
    async fn new() -> Stage {
        let scene = Scene::new(15, &[]).await;
        scene.bucket.configure(Settings::good());
        for role in ROLES {
            scene.bucket.let_in(role, policy(role, S3Server::BUCKET, PREFIX));
        }
        let file = scene.places.path().join("seawall.toml");
        let text = "[s3]\nobject_lock_mode = \"governance\"\nobject_lock_days = \"12\"\n\n\
                    [retention]\nfull = \"1\"\nminimum_window = \"1d\"\n";
        std::fs::write(&file, text).unwrap();
        Stage { file: file.to_str().unwrap().to_owned(), scene }
    }

    fn seawall(&self, role: &str, arguments: &[&str]) -> Seawall {
        let seawall = self.scene.seawall(&[arguments, &["--config", &self.file]].concat());
        self.scene.bucket.env_of(role).into_iter().fold(seawall, |seawall, (name, value)| seawall.env(name, value))
    }

    /// Ten days pass: everything that is stored is so much older, in the store's eyes and its own.
    fn age(&self) {
        let by = SignedDuration::try_from(TEN_DAYS).unwrap();
        self.scene.bucket.age(TEN_DAYS, &|name, bytes| {
            let aged = if name.ends_with("/begin.json") {
                let mut begin: BackupBegin = serde_json::from_slice(&bytes).unwrap();
                begin.started_at -= by;
                serde_json::to_vec(&begin)
            } else if name.ends_with("/backup.json") {
                let mut backup: BackupDocument = serde_json::from_slice(&bytes).unwrap();
                backup.started_at -= by;
                backup.ended_at -= by;
                serde_json::to_vec(&backup)
            } else if is_mark(name) {
                let mut mark: KeepMark = serde_json::from_slice(&bytes).unwrap();
                mark.until = mark.until.map(|until| until - by);
                serde_json::to_vec(&mark)
            } else {
                return None;
            };
            Some(aged.unwrap().into())
        });
    }

    /// The ids of the base backups.
    async fn backups(&self) -> Vec<String> {
        let listed = self.seawall("restore", &["list", "--json"]).run_ok().await.stdout;
        let report: Value = serde_json::from_str(&listed).unwrap();
        report["backups"].as_array().unwrap().iter().map(|it| it["backup"].as_str().unwrap().to_owned()).collect()
    }

    /// What is held, and what of a backup is not.
    fn held(&self, backup: &str) -> (usize, Vec<String>) {
        let names: Vec<String> = self.scene.bucket.snapshot().into_keys().collect();
        let (held, free): (Vec<String>, Vec<String>) =
            names.into_iter().partition(|name| self.scene.bucket.lock_of(name).is_held);
        let folder = format!("{PREFIX}/main/base/{backup}/");
        (held.len(), free.into_iter().filter(|name| name.starts_with(&folder)).collect())
    }

    /// The store in the name of a role.
    async fn store(&self, role: &str) -> Arc<dyn Store> {
        self.store_with(role, |_| {}).await
    }

    async fn store_with(&self, role: &str, set: impl FnOnce(&mut S3Options)) -> Arc<dyn Store> {
        let mut options = options(&self.scene.bucket);
        set(&mut options.s3);
        options.s3.credentials = Some(credentials(role, S3Server::SECRET_KEY));
        open(&format!("s3://{}/{PREFIX}", S3Server::BUCKET), &options, Arc::new(NoObserver)).await.unwrap()
    }

    fn some(&self, folder: &str) -> String {
        let names = self.scene.bucket.snapshot().into_keys();
        let mut names = names.filter_map(|name| name.strip_prefix(&format!("{PREFIX}/")).map(str::to_owned));
        names.find(|name| name.starts_with(folder)).unwrap_or_else(|| panic!("nothing below {folder}"))
    }
}

#[tokio::test]
async fn each_role_can_do_what_it_is_for_and_nothing_that_it_is_not_for() {
    let stage = Stage::new().await;
    // Given an archiver with its own role, and five base backups, ten days between them, with WAL behind each
    let mut running = stage.seawall("archive", &["run", "--listen", "127.0.0.1:0"]).start();
    let _metrics = Endpoint::of(&mut running).await;
    stage.scene.server.sql("CREATE TABLE rounds (round int)").await.unwrap();
    for round in 1..=5 {
        if round > 1 {
            stage.age();
        }
        stage.scene.server.sql(&format!("INSERT INTO rounds VALUES ({round})")).await.unwrap();
        stage.seawall("archive", &["backup", "--fast"]).run_ok().await;
        stage.scene.server.sql("SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
        stage.scene.settle().await;
        match round {
            1 => marks_come_before_their_holds_and_go_before_them(&stage).await,
            2 => {
                // One that ends before the next backup
                let [_, second] = &stage.backups().await[..] else { panic!("two backups") };
                let in_two_days = jiff::Timestamp::now().as_second() + 2 * 86_400;
                let until = jiff::Timestamp::from_second(in_two_days).unwrap().to_string();
                let keep = ["keep", second, "--reason", "for a test", "--until", &until];
                stage.seawall("prune", &keep).run_ok().await;
            }
            _ => {}
        }
    }
    let ids = stage.backups().await;
    // When it is pruned by its role, then what is locked stays, and so does what a mark keeps
    let plan = stage.seawall("prune", &["prune", "--dry-run", "--json"]).run_ok().await.stdout;
    assert!(plan.contains("locked until"), "{plan}");
    stage.seawall("prune", &["prune"]).run_ok().await;
    assert_eq!(stage.backups().await, [&ids[0], &ids[2], &ids[3], &ids[4]].map(String::clone));
    // And what went went without a hold: its versions can be destroyed, those of the marked one cannot
    let bucket = &stage.scene.bucket;
    let document = |id: &str| format!("{PREFIX}/main/base/{id}/backup.json");
    assert!(bucket.older_versions(&document(&ids[1])) > 0 && bucket.destroy(&document(&ids[1])));
    assert!(!bucket.destroy(&document(&ids[0])), "that one is held");
    assert!(!bucket.destroy(&document(&ids[4])), "that one is locked");
    // And who restores can do so, with what the server asks for
    stage.seawall("restore", &["verify", "--deep"]).run_ok().await;
    stage.seawall("restore", &["history", "--drops"]).run_ok().await;
    stage.seawall("restore", &["status"]).run_ok().await;
    stage.seawall("restore", &["audit"]).run_ok().await;
    assert_eq!(restored(&stage).await, "1 2 3 4 5");
    // And the archiver tries it out by itself
    let scratch = scratch_directory();
    let drill = ["drill", "--scratch", scratch.path().to_str().unwrap()];
    stage.seawall("archive", &drill).env("SEAWALL_PG_BIN", programs(stage.scene.version).bin).run_ok().await;
    // And nothing was refused to anybody, but the note in the audit trail to who may only read
    for role in ROLES {
        let refused = bucket.refused(role);
        let is_note = |asked: &Asked| role == "restore" && asked.resource.contains("/audit/");
        assert!(refused.iter().all(is_note), "{role}: {refused:?}");
    }
    no_right_is_there_for_nothing(&stage);
    forbidden(&stage).await;
    // And the settings, which nobody needs to see, are no fault
    let said = stage.seawall("archive", &["check"]).run_ok().await.stdout;
    assert!(said.contains("may not look") && !said.contains("FAILED"), "{said}");
    assert!(said.contains("asked for by s3.object_lock_mode, and not seen"), "{said}");
}

/// And no note of what somebody is about to do.
fn is_mark(name: &str) -> bool {
    name.contains("/keep/") && !name.contains(".going-") && !name.contains(".releasing-")
}

/// The pruner marks the first backup.
async fn marks_come_before_their_holds_and_go_before_them(stage: &Stage) {
    let bucket = &stage.scene.bucket;
    let id = &stage.backups().await[0];
    let keep = || stage.seawall("prune", &["keep", id, "--reason", "before the upgrade"]);
    let remove = || stage.seawall("prune", &["keep", id, "--remove"]);
    let marks = || bucket.snapshot().keys().filter(|name| is_mark(name)).count();
    let document = format!("{PREFIX}/main/base/{id}/begin.json");
    // Given a hold that fails halfway, then there is a mark, and it says how far it came
    bucket.fault(Op::LegalHold.at(&document), Fault::ACCESS_DENIED);
    let failed = keep().run_err(5).await.stderr;
    assert!(failed.contains("were held; it is marked"), "{failed}");
    assert!(failed.contains("s3:PutObjectLegalHold"), "{failed}");
    assert_eq!(marks(), 1);
    let audit: Vec<String> = bucket.snapshot().into_keys().filter(|name| name.contains("-keep-failed")).collect();
    assert_eq!(audit.len(), 1, "it is in the audit trail");
    // Given another backup that cannot be read, then this one is marked and held nevertheless, and it says what is not
    let unreadable = format!("{PREFIX}/main/base/20200101T000000Z/backup.json");
    bucket.put(&unreadable, "no document");
    let failed = keep().run_err(Kind::Damaged.exit_code().into()).await.stderr;
    assert!(failed.contains("is marked") && failed.contains("but not its WAL"), "{failed}");
    assert_eq!((marks(), stage.held(id).1), (2, Vec::<String>::new()));
    bucket.remove(&unreadable);
    // And the same again goes on, until all of it is held, with WAL and what every restore reads
    let done = keep().run_ok().await.stdout;
    assert!(done.contains("legal holds keep"), "{done}");
    let is_wal = |name: &String| name.contains("/wal/") && bucket.lock_of(name).is_held;
    let assert_held = || {
        assert_eq!(stage.held(id).1, Vec::<String>::new());
        assert!(bucket.lock_of(&format!("{PREFIX}/main/cluster.json")).is_held);
        assert!(bucket.snapshot().keys().any(is_wal), "no WAL is held");
        assert!(bucket.snapshot().keys().all(|name| !name.contains("/open/") || !bucket.lock_of(name).is_held));
    };
    assert_held();
    // Given a release that fails halfway, then the mark is gone, and the same again goes on
    bucket.fault(Op::LegalHold.at(&document), Fault::ACCESS_DENIED);
    let failed = remove().run_err(5).await.stderr;
    assert!(failed.contains("it has no mark"), "{failed}");
    assert!(stage.held(id).0 > 0);
    let done = remove().run_ok().await.stdout;
    assert!(done.contains("had no mark") && done.contains("were asked to be free of holds"), "{done}");
    assert_eq!(stage.held(id).0, 0);
    assert_eq!(bucket.faults_left(), 0);
    // Given one that releases while somebody marks it anew, then what that mark keeps is held in the end
    keep().run_ok().await;
    let halfway = bucket.hold(Op::LegalHold.at(&document));
    let mut removing = remove().start();
    wait_for("the release to be under way", PATIENCE, async || (halfway.count() > 0).then_some(())).await;
    let mark = bucket.get(&format!("{PREFIX}/main/keep/{id}.00001.json")).unwrap();
    bucket.put(&format!("{PREFIX}/main/keep/{id}.{:05}.json", marks() + 1), mark);
    halfway.release();
    assert!(removing.wait(PATIENCE).await.success(), "{}", removing.stderr());
    assert_held();
    // And in the end it is kept
    keep().run_ok().await;
}

/// The rows of what the role restores, by a server that fetches WAL with it.
async fn restored(stage: &Stage) -> String {
    let into = stage.scene.places.path().join("restored");
    let owner = stage.scene.server.user().name();
    let restore = ["restore", "--into", into.to_str().unwrap(), "--owner", owner, "--to-end"];
    stage.seawall("restore", &restore).program(&path_for_server(stage.scene.places.path())).run_ok().await;
    let environment = stage.scene.bucket.env_of("restore").into_iter();
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).collect();
    let options = ServerOptions { environment, ..ServerOptions::default() };
    let programs = programs(stage.scene.version);
    let server = tokio::time::timeout(PATIENCE * 3, Server::open(&programs, &into, options)).await;
    let server = server.expect("recovery ends").unwrap();
    let found = server.sql("SELECT string_agg(round::text, ' ' ORDER BY round) FROM rounds").await.unwrap();
    found[0][0].clone().unwrap()
}

/// Without any one action, or any one resource, of a statement, something that was asked for would have been refused.
fn no_right_is_there_for_nothing(stage: &Stage) {
    for role in ROLES {
        let whole = policy(role, S3Server::BUCKET, PREFIX);
        let asked: Vec<Asked> = stage.scene.bucket.asked(role).into_iter().filter(|it| whole.allows(it)).collect();
        // What is denied is told by what each of them is kept from.
        for (place, statement) in whole.statements.iter().enumerate().filter(|(_, statement)| statement.allows) {
            let without = |actions: Vec<String>, resources: Vec<String>| {
                let mut less: Policy = whole.clone();
                (less.statements[place].actions, less.statements[place].resources) = (actions, resources);
                asked.iter().any(|asked| !less.allows(asked))
            };
            let (actions, resources) = (&statement.actions, &statement.resources);
            for action in actions {
                let others = actions.iter().filter(|other| *other != action).cloned().collect();
                assert!(without(others, resources.clone()), "{role} does not need {action} on {resources:?}");
            }
            for resource in resources {
                let others = resources.iter().filter(|other| *other != resource).cloned().collect();
                assert!(without(actions.clone(), others), "{role} does not need {actions:?} on {resource}");
            }
        }
    }
}

/// What each of them is kept from.
async fn forbidden(stage: &Stage) {
    let (block, part, tail) = (stage.some("main/wal/"), stage.some("main/base/"), stage.some("main/open/"));
    let put = async |role: &str, name: &str| {
        let stored = stage.store(role).await.create(name, Bytes::from_static(b"x").into(), Metadata::new()).await;
        stored.err().map(|error| error.kind)
    };
    let delete =
        async |role: &str, name: &str| stage.store(role).await.delete(name).await.err().map(|error| error.kind);
    let denied = Some(StoreErrorKind::Denied);
    for name in [&block, &part, &"main/cluster.json".to_owned()] {
        assert_eq!(delete("archive", name).await, denied, "the archiver deletes {name}");
        assert_eq!(delete("restore", name).await, denied, "who restores deletes {name}");
        assert_eq!(put("restore", name).await, denied, "who restores stores {name}");
        assert_eq!(put("prune", name).await, denied, "who prunes stores {name}");
    }
    assert_eq!(delete("restore", &tail).await, denied, "who restores deletes {tail}");
    assert_eq!(put("prune", "main/base/20200101T000000Z/backup.json").await, denied, "who prunes invents a backup");
    for name in ["main/keep/20200101T000000Z.00001.json", "main/prunes/20200101T000000Z.json"] {
        assert_eq!(put("archive", name).await, denied, "the archiver stores {name}");
    }
    assert_eq!(put("prune", "main/index/00000001/gap-0-1.json").await, denied, "who prunes invents a hole");
    // Nor does any key store without asking whether something is there: so none overwrites
    for (role, name) in [("archive", "main/wal/00000001/x"), ("prune", "main/prunes/x")] {
        let x = || Bytes::from_static(b"x").into();
        let store = stage.store_with(role, |s3| s3.conditional_writes = Conditional::Head).await;
        let stored = store.create(name, x(), Metadata::new()).await;
        assert_eq!(stored.err().map(|error| error.kind), denied, "{role} overwrites {name}");
        // Nor lock for longer, or harder, than is configured; the days on the page are one more than thirty
        for (mode, days, verdict) in
            [(LockMode::Governance, 32, denied), (LockMode::Compliance, 1, denied), (LockMode::Governance, 31, None)]
        {
            let lock = ObjectLock { mode: Some(mode), days, is_permanent };
            let store = stage.store_with(role, |s3| s3.lock = lock).await;
            let stored = store.create(name, x(), Metadata::new()).await;
            assert_eq!(stored.err().map(|error| error.kind), verdict, "{role} locks {name} for {days} days");
        }
    }
    let lock = ObjectLock { mode: Some(LockMode::Governance), days: 1, is_permanent: |_| true };
    let store = stage.store_with("archive", |s3| s3.lock = lock).await;
    let stored = store.create("main/open/x", Bytes::from_static(b"x").into(), Metadata::new()).await;
    assert_eq!(stored.err().map(|error| error.kind), denied, "the archiver locks what passes");
    let hold = stage.store("archive").await.set_legal_hold(&block, false).await;
    assert_eq!(hold.err().map(|error| error.kind), denied, "the archiver takes a hold off");
    // And no key goes round a lock, or destroys a version
    for role in ROLES {
        let policy = policy(role, S3Server::BUCKET, PREFIX);
        for action in ["s3:BypassGovernanceRetention", "s3:DeleteObjectVersion", "s3:PutBucketVersioning"] {
            let resource = format!("arn:aws:s3:::{}/{PREFIX}/{block}", S3Server::BUCKET);
            assert!(!policy.allows(&Asked { action, resource, ..Asked::default() }), "{role}: {action}");
        }
    }
}
