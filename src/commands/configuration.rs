//! `seawall config`: what the configuration says, what it lacks, and an example of everything.

use super::{distinct, memory, print};
use crate::cli::ConfigCommand;
use crate::config::{Key, Origin, Settings, Written, example, has_password, keys};
use crate::error::{Error, Kind, Result};
use crate::metrics::Job;
use crate::notify::check_address;
use crate::runtime::Clock;
use crate::secret::{Secret, Source};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Does what was asked.
///
/// # Errors
/// Of kind `Config`, if `check` finds something that cannot work.
pub(super) async fn configuration(what: &ConfigCommand, all: &[Settings]) -> Result<()> {
    match (what, all) {
        (ConfigCommand::Example, _) => print::stdout(&example()),
        (ConfigCommand::Show(args), [only]) if args.json.json => print::stdout(&print::json(&shown(only))?),
        (ConfigCommand::Show(args), _) if args.json.json => {
            let all = all.iter().map(|settings| (settings.cluster.as_str(), shown(settings)));
            print::stdout(&print::json(&all.collect::<BTreeMap<_, _>>())?)
        }
        (ConfigCommand::Show(_), [only]) => print::stdout(&lines(only)),
        (ConfigCommand::Show(_), _) => {
            let section = |settings: &Settings| format!("[cluster.{}]\n{}", settings.cluster, lines(settings));
            print::stdout(&all.iter().map(section).collect::<Vec<_>>().join("\n"))
        }
        (ConfigCommand::Check, _) => check(all).await,
    }
}

fn lines(settings: &Settings) -> String {
    let line = |(name, setting): (&&str, &Shown)| format!("{name} = {}  # {}\n", setting.value, setting.from);
    shown(settings).iter().map(line).collect()
}

/// A setting that holds.
#[derive(Serialize)]
struct Shown {
    value: String,
    from: String,
}

fn shown(settings: &Settings) -> BTreeMap<&'static str, Shown> {
    let shown = keys().filter_map(|key| {
        let given = settings.given.get(key.name)?;
        let value = match key.name {
            "pg" if has_password(&given.text) => "(with a password, so it is not shown)".to_owned(),
            _ if key.written == Written::Secret => shown_secret(key, &given.text),
            _ => format!("{:?}", given.text),
        };
        let from = match given.origin {
            Origin::Default => "default".to_owned(),
            Origin::File => settings.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default(),
            Origin::Variable(ref name) => name.clone(),
            Origin::Flag(name) => name.to_owned(),
        };
        Some((key.name, Shown { value, from }))
    });
    shown.collect()
}

/// Where it is.
fn shown_secret(key: &Key, source: &str) -> String {
    match serde_json::from_str(source) {
        Ok(Source::Given(text)) if key.may_be_seen() => format!("{text:?}"),
        Ok(Source::Given(_)) | Err(_) => "(a secret, so it is not shown)".to_owned(),
        Ok(source) => format!("(a secret, in {source})"),
    }
}

/// What was read is right by itself, or this would not have begun.
async fn check(all: &[Settings]) -> Result<()> {
    distinct::check(all, &|name| std::env::var(name).ok())?;
    let mut seen = Vec::new();
    let (mut text, now) = (String::new(), Clock::system().now());
    for settings in all {
        let (of_it, place) = match all.len() {
            1 => (String::new(), String::new()),
            _ => (format!("{}: ", settings.cluster), format!("cluster {}", settings.cluster)),
        };
        let checked = settings.repo().and_then(|_| impossible(settings));
        checked.map_err(|error| if place.is_empty() { error } else { error.context(&place) })?;
        let readable = readable(settings, &mut seen).await;
        readable.map_err(|error| if place.is_empty() { error } else { error.context(&place) })?;
        for note in notes(settings) {
            let _ = writeln!(text, "{of_it}note: {note}");
        }
        for (job, expression) in &settings.schedule.jobs {
            let next = settings.schedule.next(&settings.cluster, *job, now);
            let next = next.map(|next| print::time(next, &settings.schedule.time_zone)).unwrap_or_default();
            let _ = writeln!(text, "{of_it}{job}: {expression}, next at {next}");
        }
    }
    let (at_most, there) = (memory::bytes_max(all.len()), memory::bytes_there());
    if let Some(there) = there.filter(|there| all.len() > 1 && *there < at_most) {
        let _ = writeln!(
            text,
            "note: `run` may take about {} MiB of memory for {} clusters while stores do not answer, and there are {} MiB here",
            at_most >> 20,
            all.len(),
            there >> 20
        );
    }
    text.push_str(&match all.len() {
        1 => "the configuration can be used; `seawall check` tries server, role, slot and repository\n".to_owned(),
        several => format!(
            "the configuration of {several} clusters can be used; `seawall check` tries server, role, slot and repository of each\n"
        ),
    });
    print::stdout(&text)
}

/// Reads every secret, but for those that were `seen`: one that many clusters have is read once.
async fn readable(settings: &Settings, seen: &mut Vec<Source>) -> Result<()> {
    let unseen = |secret: &&Secret| !seen.contains(secret.source());
    let unread: Vec<Secret> = settings.secrets().filter(unseen).cloned().collect();
    for secret in &unread {
        secret.text().await?;
    }
    for (form, address) in &settings.notify.hooks {
        if unread.iter().any(|secret| secret.setting() == address.setting()) {
            check_address(*form, &address.text().await?).map_err(|error| error.context(address.setting()))?;
        }
    }
    seen.extend(unread.iter().map(|secret| secret.source().clone()));
    Ok(())
}

/// What would fail at three in the morning.
fn impossible(settings: &Settings) -> Result<()> {
    let (encryption, jobs) = (&settings.encryption, &settings.schedule.jobs);
    if encryption.recipients.count() > 0 && encryption.identity_file.is_none() && jobs.contains_key(&Job::Drill) {
        return Err(Error::new(Kind::Config, "schedule.drill cannot open what encryption.recipients closes")
            .hint("Name the private key as identity_file under [encryption], or drill on another machine."));
    }
    if let Some(scratch) = settings.drill.scratch.as_ref().filter(|scratch| !scratch.is_dir()) {
        return Err(Error::new(Kind::Config, format!("drill.scratch is no directory: {}", scratch.display()))
            .hint("Make it, with room for the whole cluster."));
    }
    Ok(())
}

/// What works, and may still not be what somebody wants.
fn notes(settings: &Settings) -> Vec<&'static str> {
    let has = |job| settings.schedule.jobs.contains_key(&job);
    let prunes = settings.retention.chooses_backups();
    let all = [
        (
            !has(Job::Full) && !has(Job::Incremental),
            "`run` takes no base backup by itself: set schedule.full, or have something call `seawall backup`",
        ),
        (
            has(Job::Incremental) && !has(Job::Full),
            "schedule.incremental without schedule.full: one chain grows for ever, and nothing of it can be pruned",
        ),
        (
            prunes && !has(Job::Prune),
            "[retention] without schedule.prune: nothing goes until `seawall prune` is called",
        ),
        (
            has(Job::Prune) && !prunes,
            "schedule.prune without [retention]: only garbage is deleted, and the repository grows",
        ),
        (!has(Job::Drill), "no schedule.drill: a restore that was never tried is a hope"),
        (settings.encryption.recipients.count() == 0, "what is stored is not encrypted by Seawall: see [encryption]"),
    ];
    all.into_iter().filter_map(|(holds, note)| holds.then_some(note)).collect()
}
