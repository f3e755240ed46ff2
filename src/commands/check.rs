//! `seawall check`: one line for each thing that must be right, with what to do where it is not.

mod bucket;

use super::{distinct, parts, print, receivers};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, Mode, SlotHealth, SlotState, WalStatus};
use crate::repository::{Cluster, Key, Repository};
use crate::runtime::Clock;
use crate::store::{ConditionalWrites, Store, StoreError, probe};
use crate::wal::SegmentSize;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// So many clusters are looked at at once.
const AT_ONCE: usize = 8;

/// Walsenders that Seawall takes: the stream, a look on, a base backup.
const WALSENDERS: u32 = 3;

/// What becomes of a slot that keeps nothing.
const SLOT_LOST: &str = "`seawall run` makes it anew; if WAL was lost, it takes a new base backup.";

/// A store's clock may be so far from ours, in seconds: signatures expire at five minutes.
const CLOCK_DRIFT_MAX: i64 = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    todo: Option<String>,
    #[serde(skip)]
    kind: Option<Kind>,
}

/// What was found of one cluster, in the order in which it was looked at.
#[derive(Default, Serialize)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, what: &'static str, found: impl Into<String>) {
        self.0.push(Finding { what, verdict: Verdict::Ok, found: found.into(), todo: None, kind: None });
    }

    fn warning(&mut self, what: &'static str, found: impl Into<String>, todo: &str) {
        let todo = Some(todo.to_owned());
        self.0.push(Finding { what, verdict: Verdict::Warning, found: found.into(), todo, kind: None });
    }

    fn failed(&mut self, what: &'static str, error: &Error) {
        let (found, todo) = (error.to_string(), error.hint_text().map(str::to_owned));
        self.0.push(Finding { what, verdict: Verdict::Failed, found, todo, kind: Some(error.kind()) });
    }

    /// For people: a line for each, and what to do.
    fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.0 {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Failed => "FAILED",
            };
            text.push_str(&format!("{verdict:<8} {:<20} {}\n", finding.what, finding.found));
            if let Some(todo) = &finding.todo {
                text.push_str(&format!("{:<29} {todo}\n", ""));
            }
        }
        text
    }

    /// # Errors
    /// Of the kind of the first failure.
    fn judge(&self) -> Result<()> {
        let failed: Vec<&Finding> = self.0.iter().filter(|finding| finding.verdict == Verdict::Failed).collect();
        match failed.first().and_then(|finding| finding.kind) {
            None => Ok(()),
            Some(kind) => Err(Error::new(kind, format!("{} of {} checks failed", failed.len(), self.0.len()))),
        }
    }
}

/// Checks everything of each cluster, prints it, and fails if something would keep Seawall from working.
///
/// # Errors
/// Of the kind of the first failure.
pub(super) async fn check(as_json: bool, all: Vec<Settings>) -> Result<()> {
    if let [only] = &all[..] {
        let findings = look(only).await;
        print::stdout(&if as_json { print::json(&findings)? } else { findings.text() })?;
        return findings.judge();
    }
    distinct::check(&all, &|name| std::env::var(name).ok())?;
    let looks = all.iter().map(async |settings| (settings.cluster.as_str(), look(settings).await));
    let looks: Vec<(&str, Findings)> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    if as_json {
        let looks: BTreeMap<&str, &Findings> = looks.iter().map(|(cluster, findings)| (*cluster, findings)).collect();
        print::stdout(&print::json(&looks)?)?;
    } else {
        let text = |(cluster, findings): &(&str, Findings)| format!("[{cluster}]\n{}", findings.text());
        print::stdout(&looks.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    }
    let bad: Vec<(&str, Error)> =
        looks.into_iter().filter_map(|(cluster, findings)| Some((cluster, findings.judge().err()?))).collect();
    let names = bad.iter().map(|(cluster, _)| *cluster).collect::<Vec<_>>().join(", ");
    match bad.first() {
        None => Ok(()),
        Some((_, error)) => Err(Error::new(error.kind(), format!("{} of {} clusters: {names}", bad.len(), all.len()))
            .context("checks failed")),
    }
}

/// Checks everything of one cluster. What is wrong is what it finds.
async fn look(settings: &Settings) -> Findings {
    let mut findings = Findings::default();
    let system = match parts::connect(settings).await {
        Ok(client) => check_server(client, settings, &mut findings).await,
        Err(error) => {
            findings.failed("server", &error);
            None
        }
    };
    match parts::store(settings).await {
        Ok(store) => check_store(settings, store, system, &mut findings).await,
        Err(error) => findings.failed("repository", &error),
    }
    check_receivers(settings, &mut findings).await;
    findings
}

/// Whether somebody is there to be told what is wrong. Archiving goes on if not.
async fn check_receivers(settings: &Settings, findings: &mut Findings) {
    match receivers::ask(settings).await {
        Ok(asked) => {
            for asked in asked {
                match asked.answered {
                    Ok(()) => findings.ok("notifications", format!("{} answers", asked.who)),
                    Err(error) => findings.warning(
                        "notifications",
                        format!("{}: {error}", asked.who),
                        "Nobody is told there what is wrong: mend it, or take it out of [notify].",
                    ),
                }
            }
        }
        Err(error) => findings.failed("notifications", &error),
    }
}

async fn check_server(mut client: Client, settings: &Settings, findings: &mut Findings) -> Option<u64> {
    let version = client.server_version();
    let system = match client.identify_system().await {
        Ok(system) => system,
        Err(error) => {
            findings.failed("server", &error.into());
            return None;
        }
    };
    findings.ok("server", format!("PostgreSQL {}.{} at {}", version / 10_000, version % 10_000, client.host()));
    findings.ok("role", "may replicate");
    match client.show("wal_level").await {
        Ok(level) if level == "minimal" => {
            let error = Error::new(Kind::Postgres, "wal_level is minimal")
                .hint("Set wal_level = replica in postgresql.conf and restart the server.");
            findings.failed("wal_level", &error);
        }
        Ok(level) => findings.ok("wal_level", level),
        Err(error) => findings.failed("wal_level", &error.into()),
    }
    match client.show("max_wal_senders").await.map(|text| text.parse::<u32>().unwrap_or(0)) {
        Ok(most) if most < WALSENDERS => {
            findings.warning(
                "walsenders",
                format!("max_wal_senders is {most}"),
                "Set max_wal_senders to 10: Seawall takes three.",
            );
        }
        Ok(most) => {
            findings.ok("walsenders", format!("max_wal_senders is {most}, of which Seawall takes {WALSENDERS}"))
        }
        Err(error) => findings.failed("walsenders", &error.into()),
    }
    match client.show("full_page_writes").await {
        Ok(setting) if setting == "off" => findings.warning(
            "full_page_writes",
            "off",
            "Base backups taken from a standby are not safe; set full_page_writes = on.",
        ),
        Ok(setting) => findings.ok("full_page_writes", setting),
        Err(error) => findings.failed("full_page_writes", &error.into()),
    }
    check_slot(&mut client, settings, findings).await;
    Some(system.system_identifier)
}

async fn check_slot(client: &mut Client, settings: &Settings, findings: &mut Findings) {
    let slot = settings.slot.as_str();
    let health = slot_health(settings).await;
    match client.read_slot(slot).await {
        Ok(SlotState::NotPhysical) => {
            let error =
                Error::new(Kind::Config, format!("{slot} is a logical slot")).hint("Choose another name with --slot.");
            findings.failed("slot", &error);
        }
        Ok(state) => match (health, state) {
            (Ok(Some(health)), _) => check_health(slot, &health, findings),
            (Ok(None), _) | (_, SlotState::Absent) => {
                findings.ok("slot", format!("{slot} will be made by `seawall run`"));
            }
            (Err(_), SlotState::Present { restart_lsn: Some(lsn), .. }) => {
                findings.ok("slot", format!("{slot} keeps WAL from {lsn}"));
            }
            (Err(_), SlotState::Present { restart_lsn: None, .. }) => {
                findings.warning("slot", format!("{slot} keeps nothing, or has lost what it kept"), SLOT_LOST);
            }
            (Err(_), _) => findings.ok("slot", format!("{slot}: this server does not tell a replication role")),
        },
        Err(error) => findings.failed("slot", &error.into()),
    }
    match client.show("max_slot_wal_keep_size").await {
        Ok(setting) if setting == "-1" => findings.warning(
            "slot limit",
            "max_slot_wal_keep_size is -1: while Seawall is away, WAL may fill the server's disk",
            "Set it to what the disk can spare, for instance 50GB.",
        ),
        Ok(setting) => findings.ok("slot limit", format!("max_slot_wal_keep_size is {setting}")),
        Err(error) => findings.failed("slot limit", &error.into()),
    }
}

/// What SQL tells of the slot, if the role is let in for that.
async fn slot_health(settings: &Settings) -> Result<Option<SlotHealth>> {
    let mut sql = Client::connect_for_sql(&parts::connection(settings)?, Mode::Sql).await?;
    Ok(sql.slot_health(&settings.slot).await?)
}

fn check_health(slot: &str, health: &SlotHealth, findings: &mut Findings) {
    let kept = health.restart_lsn.map_or_else(|| "nothing".to_owned(), |lsn| format!("WAL from {lsn}"));
    let left = health.safe_wal_bytes.map(|bytes| format!(", {bytes} bytes from its limit")).unwrap_or_default();
    if health.is_lost() || health.restart_lsn.is_none() {
        let why = health.invalidation.as_deref().unwrap_or("it has no position");
        findings.warning("slot", format!("{slot} keeps nothing: {why}"), SLOT_LOST);
    } else if health.status == Some(WalStatus::Unreserved) {
        findings.warning(
            "slot",
            format!("{slot} wants {kept}, more than max_slot_wal_keep_size: the next checkpoint may remove it"),
            "Start `seawall run`, or see why it does not keep up; raise max_slot_wal_keep_size if the disk can spare it.",
        );
    } else {
        let status = health.status.map_or("unknown", WalStatus::name);
        findings.ok("slot", format!("{slot} keeps {kept} ({status}{left})"));
    }
}

async fn check_store(settings: &Settings, store: Arc<dyn Store>, system: Option<u64>, findings: &mut Findings) {
    let clock = Clock::system();
    match Repository::read_cluster(store.as_ref(), &settings.cluster).await {
        Ok(None) => findings.ok("repository", format!("{}: no cluster {:?} yet", store.describe(), settings.cluster)),
        Ok(Some(cluster)) => {
            match system {
                Some(system) if system != cluster.system_identifier => {
                    let found = cluster.system_identifier;
                    let message = format!(
                        "the folder {:?} belongs to the cluster {found}, the server is {system}",
                        settings.cluster
                    );
                    let error = Error::new(Kind::Diverged, message).hint("Give this server another --cluster NAME.");
                    findings.failed("repository", &error);
                }
                _ => findings.ok("repository", format!("{}, cluster {:?}", store.describe(), settings.cluster)),
            }
            check_branches(settings, &store, &cluster, findings).await;
            check_gaps(settings, store.clone(), cluster, findings).await;
        }
        Err(error) => {
            findings.failed("repository", &error);
            return;
        }
    }
    let layout = parts::layout(settings, SegmentSize::DEFAULT);
    bucket::check(settings, store.as_ref(), &layout.root(), findings).await;
    let now = clock.now();
    let stamp = format!("{:x}c{}", now.as_microsecond(), std::process::id());
    let name = |what: &str| layout.name(&Key::Probe(format!("{stamp}{what}")));
    match probe(store.as_ref(), &name("p")).await {
        Ok(ConditionalWrites::Honoured) => findings.ok("conditional writes", "If-None-Match is honoured"),
        Ok(ConditionalWrites::Ignored) => {
            let error = Error::new(Kind::Store, "the store ignores If-None-Match").hint(
                "Use another store (docs/stores.md), or set conditional_writes = \"head\" with a single archiver.",
            );
            findings.failed("conditional writes", &error);
        }
        Err(error) => {
            findings.failed("conditional writes", &error.into());
            return;
        }
    }
    check_object(store.as_ref(), &name("o"), now, findings).await;
}

/// Holes that were recorded, and whether a base backup answers them.
async fn check_gaps(settings: &Settings, store: Arc<dyn Store>, cluster: Cluster, findings: &mut Findings) {
    let Some(size) = SegmentSize::new(cluster.segment_bytes) else { return };
    let layout = parts::layout(settings, size);
    let loss = match (Repository { store, layout }).read_loss(None).await {
        Ok(loss) => loss,
        Err(error) => return findings.failed("lost WAL", &error),
    };
    match (loss.gaps.len(), loss.unanswered) {
        (0, _) => findings.ok("lost WAL", "none"),
        (gaps, None) => findings.ok("lost WAL", format!("{gaps} gaps, with a base backup behind the last")),
        (gaps, Some(last)) => findings.warning(
            "lost WAL",
            format!("{gaps} gaps, the last from {} to {}, and no sound base backup behind it", last.start, last.end),
            "Nothing behind it can be restored: run `seawall backup` if `seawall run` does not do it by itself.",
        ),
    }
}

/// WAL of servers that were cut off at a failover is nothing wrong, and good to know of.
async fn check_branches(settings: &Settings, store: &Arc<dyn Store>, cluster: &Cluster, findings: &mut Findings) {
    let size = SegmentSize::new(cluster.segment_bytes).unwrap_or(SegmentSize::DEFAULT);
    let layout = parts::layout(settings, size);
    let repository = Repository { store: store.clone(), layout };
    let branches = async {
        let mut branches = Vec::new();
        for timeline in repository.read_timelines().await? {
            branches.extend(repository.read_dead_branches(timeline).await?);
        }
        Ok::<_, Error>(branches)
    };
    match branches.await {
        Ok(branches) => {
            for branch in branches {
                let (start, end, timeline) = (branch.start, branch.end, branch.timeline);
                let found = format!(
                    "timeline {timeline} was left at {start}; {start} to {end} is of a server that was cut off"
                );
                findings.ok("dead branch", found);
            }
        }
        Err(error) => findings.failed("repository", &error),
    }
}

/// Write, look, list, read, delete: one small object under `open/`, the only place where Seawall deletes.
async fn check_object(store: &dyn Store, name: &str, now: jiff::Timestamp, findings: &mut Findings) {
    let report = |findings: &mut Findings, what, result: Result<String, StoreError>| match result {
        Ok(found) => findings.ok(what, found),
        Err(error) => findings.failed(what, &error.into()),
    };
    let body = bytes::Bytes::from_static(b"seawall check\n");
    let written = store.create(name, body.clone().into(), Default::default()).await;
    report(findings, "write", written.map(|_| "under open/".to_owned()));
    match store.head(name).await {
        Ok(head) => {
            let drift = head.info.modified.as_second() - now.as_second();
            if drift.abs() > CLOCK_DRIFT_MAX {
                let found = format!("the store's clock is {drift} s from this machine's");
                findings.warning("clock", found, "Is NTP running here? Requests are refused at a few minutes.");
            } else {
                findings.ok("clock", "agrees with the store's");
            }
        }
        Err(error) => findings.failed("clock", &error.into()),
    }
    let read = match store.get(name, None).await {
        Ok(stream) => stream.collect().await.map(|bytes| bytes == body),
        Err(error) => Err(error),
    };
    match read {
        Ok(true) => findings.ok("read", "what was written"),
        Ok(false) => findings.failed("read", &Error::new(Kind::Damaged, "what was read is not what was written")),
        Err(error) => findings.failed("read", &error.into()),
    }
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let listed = store.list_level(&format!("{folder}/")).await;
    report(findings, "list", listed.map(|level| format!("{} objects under open/", level.objects.len())));
    match store.delete(name).await {
        Ok(()) => findings.ok("delete", "under open/"),
        Err(error) => {
            let found = Error::from(error).to_string();
            findings.warning("delete", found, "Seawall works without, but leaves replaced tails under open/.");
        }
    }
}
