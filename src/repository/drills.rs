//! Drills: what became of each is a document of its own. Uses `codec` and `store`.
//!
//! Result, times and figures are for everybody who may list the bucket: the metrics of `run`, and `status`, have no private key. What
//! failed is told in words that may have names of tables and rows in them, and so is what an operator calls his checks: where a
//! repository is encrypted, so are those.

use super::documents::decimal;
use super::layout::{BackupId, Key};
use super::{Repository, Writer};
use crate::codec::{Buffers, Recipients, encryption};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use crate::store::list_all;
use crate::wal::{Lsn, TimelineId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The checks that every drill makes. Operators call theirs otherwise.
pub const OWN_CHECKS: [&str; 3] = ["recovery", "amcheck", "checksums"];

/// What a drill found: a restore for real, onto a throwaway server, and checks on that. Lengths are in seconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillDocument {
    /// [`super::FORMAT_VERSION`].
    pub format: u32,
    /// Whose cluster was restored.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// `server_version_num` of the server that the backup was taken from.
    pub postgres_version: u32,
    /// When it began, by our clock.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Nothing failed.
    pub passed: bool,
    /// Everything that failed, in words.
    pub failures: Vec<String>,
    /// Where the restore was to end, in words.
    pub target: String,
    /// The base backup that it began with.
    pub backup: BackupId,
    /// The timeline that it ended on.
    pub timeline: TimelineId,
    /// How far WAL was stored without a gap when it began.
    pub durable_lsn: Lsn,
    /// Everything that was committed up to then was stored, as far as it can be told.
    pub durable_at: Option<Timestamp>,
    /// How far the server replayed; `None` if it did not come up.
    pub recovered_lsn: Option<Lsn>,
    /// The end of the last transaction that it replayed, by the source's clock; `None` if there was none.
    pub recovered_at: Option<Timestamp>,
    /// Looking at what is stored and planning.
    pub plan_seconds: f64,
    /// Bytes that were written by the restore, without WAL.
    pub restored_bytes: u64,
    /// What that took.
    pub restore_seconds: f64,
    /// Bytes of WAL that the server replayed.
    pub replayed_bytes: u64,
    /// What it took from its start to the end of recovery.
    pub replay_seconds: f64,
    /// From the decision to a server that takes writes: the three phases together. `None` if it did not come so far.
    pub recovery_seconds: Option<f64>,
    /// That, against what was to be reached; `None`: no target was set.
    pub rto: Option<Objective>,
    /// The age of what was stored when the drill began, against what was to be reached.
    pub rpo: Option<Objective>,
    /// The checks, in the order in which they were made.
    pub checks: Vec<DrillCheck>,
    /// Base64 of an age file with the JSON of `failures` and `checks`, whose words are left out above; `None`: they are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

impl DrillDocument {
    /// The same, with all that may tell of what is in the databases encrypted for `recipients`. CPU work.
    fn sealed_for(mut self, recipients: &Recipients) -> Result<DrillDocument> {
        let words = serde_json::json!({ "failures": self.failures, "checks": self.checks });
        let words = Bytes::from(words.to_string());
        let sealed = encryption::encrypt(recipients, b"", None, [words], &Buffers::new(0));
        let sealed = sealed
            .map_err(|error| Error::new(Kind::Internal, "cannot encrypt what a drill found").because(error))?
            .concat();
        self.sealed = Some(STANDARD.encode(sealed));
        self.failures.clear();
        for (index, check) in self.checks.iter_mut().enumerate() {
            check.message.clear();
            if !check.is_own() {
                check.name = format!("check {}", index + 1);
            }
        }
        Ok(self)
    }
}

/// A target, and what was measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Objective {
    /// At most this.
    pub target_seconds: f64,
    /// What was measured; `None` if that was not possible.
    pub seconds: Option<f64>,
    /// It was measured, and is within the target.
    pub met: bool,
}

impl Objective {
    /// Compares what was measured with a target.
    pub fn new(target_seconds: f64, seconds: Option<f64>) -> Objective {
        Objective { target_seconds, seconds, met: seconds.is_some_and(|seconds| seconds <= target_seconds) }
    }
}

/// A check on the recovered cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillCheck {
    /// Its name: `recovery`, `amcheck`, `checksums`, or one of the operator's.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What was looked at, why it was skipped, or what was wrong first.
    pub message: String,
    /// What it took.
    pub seconds: f64,
}

impl DrillCheck {
    /// True for one that every drill makes: its name tells nothing.
    pub fn is_own(&self) -> bool {
        OWN_CHECKS.contains(&self.name.as_str())
    }
}

/// What became of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing is wrong.
    Passed,
    /// Something is.
    Failed,
    /// It could not be made here.
    Skipped,
}

impl Writer {
    /// Stores what a drill found; says under which key.
    ///
    /// # Errors
    /// What the store says.
    pub async fn store_drill(&self, document: &DrillDocument) -> Result<Key> {
        let (recipients, mut document) = (self.drills_are_for(), document.clone());
        if !recipients.is_empty() {
            document = runtime::blocking(move || document.sealed_for(&recipients)).await??;
        }
        self.store_dated(document.ended_at, Key::Drill, &document).await
    }

    /// Who may read the words of a drill; if nobody is named, everybody. Where drills are made nothing else is written, and only the
    /// private key may be configured.
    pub fn drills_are_for(&self) -> Recipients {
        let form = self.layout().form();
        if form.recipients.is_empty() { form.identities.recipients() } else { form.recipients.clone() }
    }
}

impl Repository {
    /// What the last drill found; `None` if there was none. One listing, of drills alone, and a document.
    ///
    /// # Errors
    /// If the store fails or the document is unreadable.
    pub async fn last_drill(&self) -> Result<Option<DrillDocument>> {
        Ok(self.last_drills(1).await?.pop())
    }

    /// What so many drills found, the last one first.
    ///
    /// # Errors
    /// As [`Repository::last_drill`].
    pub async fn last_drills(&self, most: usize) -> Result<Vec<DrillDocument>> {
        let objects = list_all(self.store.as_ref(), &self.layout.drills_prefix()).await?;
        let keys = objects.iter().filter_map(|object| self.layout.parse(&object.key).ok());
        let times = keys.filter_map(|key| if let Key::Drill(time) = key { Some(time) } else { None });
        let mut times: Vec<Timestamp> = times.collect();
        times.sort_unstable_by_key(|time| std::cmp::Reverse(*time));
        let mut drills = Vec::new();
        for time in times.into_iter().take(most) {
            drills.extend(self.read_document(&Key::Drill(time)).await?);
        }
        Ok(drills)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Layout;
    use super::*;
    use crate::codec::{Compression, Form};
    use crate::store::{MemoryStore, Store};
    use crate::wal::SegmentSize;
    use std::sync::Arc;

    fn document(ended_at: &str, failures: &[&str]) -> DrillDocument {
        let ended_at: Timestamp = ended_at.parse().unwrap();
        DrillDocument {
            format: super::super::FORMAT_VERSION,
            system_identifier: 7,
            postgres_version: 150_018,
            started_at: ended_at,
            ended_at,
            passed: failures.is_empty(),
            failures: failures.iter().map(|failure| (*failure).to_owned()).collect(),
            target: "the end of the archive".to_owned(),
            backup: BackupId::at(ended_at, 0),
            timeline: TimelineId(1),
            durable_lsn: Lsn(0x16_B374_D848),
            durable_at: None,
            recovered_lsn: Some(Lsn(0x16_B374_D848)),
            recovered_at: Some(ended_at),
            plan_seconds: 0.5,
            restored_bytes: 1 << 30,
            restore_seconds: 10.25,
            replayed_bytes: 1 << 20,
            replay_seconds: 1.5,
            recovery_seconds: Some(12.25),
            rto: Some(Objective::new(10.0, Some(12.25))),
            rpo: Some(Objective::new(10.0, None)),
            checks: Vec::new(),
            sealed: None,
        }
    }

    #[tokio::test]
    async fn of_an_encrypted_repository_words_are_encrypted_and_figures_are_not() {
        // Given a drill that named a table, a row and the operator's check
        let check = |name: &str, outcome: Outcome, message: &str| DrillCheck {
            name: name.to_owned(),
            outcome,
            message: message.to_owned(),
            seconds: 0.75,
        };
        let found = DrillDocument {
            checks: vec![
                check("recovery", Outcome::Passed, "all of it"),
                check("salaries add up", Outcome::Failed, "Key (name)=(O'Neil) is wrong"),
                check("amcheck", Outcome::Failed, "database shop, index public.customers_pkey: broken"),
            ],
            ..document(
                "2026-11-20T14:03:00Z",
                &["salaries add up: Key (name)=(O'Neil) is wrong", "amcheck: customers_pkey"],
            )
        };
        let (secret, public) = encryption::generate_identity();
        let identities = crate::codec::Identities::parse(age::secrecy::ExposeSecret::expose_secret(&secret).as_bytes());
        let identities = identities.unwrap();
        // When it is stored by whoever has the public key, or the private one alone
        let writer =
            |recipients: Recipients, identities| Form { compression: Compression::Lz4, recipients, identities };
        let public = Recipients::parse([public.as_str()]).unwrap();
        for form in [writer(public, Default::default()), writer(Recipients::default(), identities.clone())] {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let layout = Layout::new("main", SegmentSize::DEFAULT, form);
            let key = Writer::new(store.clone(), layout.clone(), 7).store_drill(&found).await.unwrap();
            // Then the words are nowhere in it,
            let stored = store.get(&layout.name(&key), None).await.unwrap().collect().await.unwrap();
            let text = String::from_utf8(stored.to_vec()).unwrap();
            for word in ["salaries", "O'Neil", "customers", "shop"] {
                assert!(!text.contains(word), "{word} is in {text}");
            }
            // whoever has no key still reads what became of it, and how long it took,
            let read = Repository { store, layout }.last_drill().await.unwrap().unwrap();
            let outcomes: Vec<_> = read.checks.iter().map(|it| (it.name.as_str(), it.outcome, it.seconds)).collect();
            let expected = ["recovery", "check 2", "amcheck"].into_iter().zip(&found.checks);
            assert_eq!(outcomes, expected.map(|(name, it)| (name, it.outcome, 0.75)).collect::<Vec<_>>());
            assert_eq!(
                (read.passed, read.recovery_seconds, read.rto, read.rpo),
                (false, Some(12.25), found.rto, found.rpo)
            );
            // and whoever has it, all of it.
            let sealed = STANDARD.decode(read.sealed.unwrap()).unwrap();
            let opened = encryption::open_whole(&identities, sealed.into()).unwrap();
            let words: serde_json::Value = serde_json::from_slice(&opened).unwrap();
            assert_eq!(words, serde_json::json!({ "failures": found.failures, "checks": found.checks }));
        }
    }

    #[test]
    fn a_document_from_before_words_were_encrypted_is_read() {
        let document = document("2026-11-20T14:03:00Z", &["orders: gave f, and not true"]);
        let text = serde_json::to_string(&document).unwrap();
        assert!(!text.contains("sealed"), "{text}");
        assert_eq!(serde_json::from_str::<DrillDocument>(&text).unwrap(), document);
    }

    #[tokio::test]
    async fn the_newest_is_found_and_two_of_one_second_have_two_names() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let layout = Layout::new("main", SegmentSize::DEFAULT, Compression::Lz4);
        let repository = Repository { store: store.clone(), layout: layout.clone() };
        let writer = Writer::new(store, layout.clone(), 7);
        assert_eq!(repository.last_drill().await.unwrap(), None);
        // Given two drills that end in one second, and one of the day before that is stored last
        let first = document("2026-11-20T14:03:00.25Z", &[]);
        let second = document("2026-11-20T14:03:00.75Z", &["orders: gave f, and not true"]);
        let earlier = document("2026-11-19T14:03:00Z", &[]);
        let mut names = Vec::new();
        for document in [&first, &second, &earlier, &second] {
            names.push(layout.name(&writer.store_drill(document).await.unwrap()));
        }
        // Then each has a name, the same one again, and the last to end is the last
        let name = |time: &str| format!("main/drills/{time}.json");
        let expected = ["20261120T140300Z", "20261120T140301Z", "20261119T140300Z", "20261120T140301Z"].map(name);
        assert_eq!(names, expected);
        assert_eq!(repository.last_drill().await.unwrap(), Some(second.clone()));
        assert_eq!(repository.last_drills(9).await.unwrap(), [second, first, earlier]);
    }

    #[test]
    fn a_target_is_met_only_by_what_was_measured() {
        assert!(Objective::new(10.0, Some(10.0)).met);
        assert!(!Objective::new(10.0, Some(10.5)).met && !Objective::new(10.0, None).met);
    }
}
