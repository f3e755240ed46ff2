//! What `seawall check` says of a bucket's own settings: what they do to what is stored, and what they do not keep anybody from.

use super::Findings;
use crate::config::Settings;
use crate::error::{Error, Kind};
use crate::store::{BucketLock, BucketSettings, LifecycleRule, Store, Told};

/// Where to read on.
const PAGE: &str = "docs/bucket.md says how.";

/// Who deletes on a Friday is found on a Monday, if not later.
const VERSION_DAYS_MIN: i64 = 7;

/// Looks at the settings of the bucket, and at the rules that touch objects below `prefix`. Other stores have none.
pub(super) async fn check(settings: &Settings, store: &dyn Store, prefix: &str, findings: &mut Findings) {
    match store.settings(prefix).await {
        Ok(Some(bucket)) => judge(&bucket, &Wanted::of(settings, store), findings),
        Ok(None) => {}
        Err(error) => findings.failed("bucket", &error.into()),
    }
}

/// What the configuration asks of the bucket.
struct Wanted {
    /// For how many days what is stored for good is to be locked, if at all.
    lock_days: Option<i64>,
    /// Seawall encrypts, or asks the store to.
    is_encrypted: bool,
}

impl Wanted {
    fn of(settings: &Settings, store: &dyn Store) -> Wanted {
        let is_encrypted = !settings.encryption.recipients.is_empty() || settings.store.s3.sse.is_some();
        Wanted { lock_days: store.lock_period().map(|period| period.as_hours() / 24), is_encrypted }
    }
}

fn judge(bucket: &BucketSettings, wanted: &Wanted, findings: &mut Findings) {
    let versioned = bucket.versioned.known().copied();
    if let Some(versioned) = told("versioning", &bucket.versioned, findings) {
        match versioned {
            true => findings.ok("versioning", "on: what is deleted or overwritten can be got back"),
            false => findings.warning(
                "versioning",
                "off: what is deleted or overwritten, by a thief of a key or by mistake, is gone",
                &format!("Turn versioning on, and object lock if the store has it. {PAGE}"),
            ),
        }
    }
    match &bucket.lock {
        Told::Is(lock) => judge_lock(lock.as_ref(), wanted, findings),
        unseen if wanted.lock_days.is_some() => {
            let why = match unseen {
                Told::NotAllowed => "these credentials may not look",
                _ => "the store does not answer that",
            };
            findings.warning(
                "object lock",
                format!("asked for by s3.object_lock_mode, and not seen: {why}"),
                "Without object lock, or without the right to s3:PutObjectRetention, tails alone are stored, no block and no backup. Run \
                 this once as whoever made the bucket, or allow s3:GetBucketObjectLockConfiguration.",
            );
        }
        unseen => {
            told("object lock", unseen, findings);
        }
    }
    if let Some(default) = told("store encryption", &bucket.encryption, findings) {
        match default {
            Some(algorithm) => findings.ok("store encryption", format!("by default with {algorithm}")),
            None if wanted.is_encrypted => {
                findings.ok("store encryption", "none by default; Seawall asks for it, or encrypts")
            }
            None => findings.warning(
                "store encryption",
                "none by default, and Seawall encrypts nothing either",
                "Set the bucket's default encryption, or [encryption] recipients: the store's disks hold every row.",
            ),
        }
    }
    judge_public(bucket, findings);
    if let Some(rules) = told("lifecycle", &bucket.lifecycle, findings) {
        judge_lifecycle(rules, versioned == Some(true), wanted, findings);
    }
}

/// The answer, if there is one; otherwise says why there is none, which is no fault.
fn told<'a, T>(what: &'static str, answer: &'a Told<T>, findings: &mut Findings) -> Option<&'a T> {
    match answer {
        Told::Is(answer) => return Some(answer),
        Told::NotAllowed => findings.ok(what, "not known: these credentials may not look, and need not"),
        Told::NotKnown => findings.ok(what, "not known: the store does not answer that"),
    }
    None
}

fn judge_lock(lock: Option<&BucketLock>, wanted: &Wanted, findings: &mut Findings) {
    match (lock, wanted.lock_days.is_some()) {
        (None, true) => {
            let error = Error::new(Kind::Config, "s3.object_lock_mode is set, and the bucket has no object lock: it refuses what is stored")
                .hint("Turn object lock on for the bucket, or take object_lock_mode out.");
            findings.failed("object lock", &error);
        }
        (None, false) => {
            findings.ok("object lock", "off: whoever may delete versions can destroy the backups for good (docs/bucket.md)");
        }
        (Some(BucketLock { default: Some(default) }), _) => findings.warning(
            "object lock",
            format!("on, and by default for everything ({default}): every replaced tail under open/ is kept and paid for as long"),
            "Take the default out of the bucket, and set object_lock_mode under [s3]: it locks what is stored for good alone.",
        ),
        (Some(_), true) => findings.ok("object lock", "on, and asked for with what is stored for good"),
        (Some(_), false) => findings.warning(
            "object lock",
            "the bucket has it, and nothing is locked",
            "Set object_lock_mode and object_lock_days under [s3].",
        ),
    }
}

fn judge_public(bucket: &BucketSettings, findings: &mut Findings) {
    if bucket.is_public.known() == Some(&true) {
        let error = Error::new(Kind::Store, "the bucket's policy lets anybody in")
            .hint("Take what names everybody out of the policy, and block public access.");
        findings.failed("public access", &error);
        return;
    }
    if let Some(blocks) = told("public access", &bucket.blocks_public, findings) {
        match blocks {
            true => findings.ok("public access", "blocked"),
            false => findings.warning(
                "public access",
                "not blocked: one wrong line in a policy shows every row to everybody",
                &format!("Block all four kinds of public access. {PAGE}"),
            ),
        }
    }
}

fn judge_lifecycle(rules: &[LifecycleRule], is_versioned: bool, wanted: &Wanted, findings: &mut Findings) {
    let before = findings.0.len();
    for rule in rules {
        if let Some(when) = &rule.expires {
            let error = Error::new(Kind::Store, format!("the rule {:?} deletes what is stored, {when}", rule.id))
                .hint("Take it away, or let it pass over this prefix: `seawall prune` knows what is needed, the rule does not.");
            findings.failed("lifecycle", &error);
        }
        if let Some(what) = &rule.archives {
            let found = format!("the rule {:?} moves what is stored to {what}", rule.id);
            let error = Error::new(Kind::Store, found)
                .hint("It must be thawed for hours before it can be read: take the rule away, or choose GLACIER_IR or STANDARD_IA.");
            findings.failed("lifecycle", &error);
        }
    }
    if !rules.iter().any(|rule| rule.aborts_uploads) {
        findings.warning(
            "lifecycle",
            "no rule aborts incomplete multipart uploads: what a killed client leaves is paid for and seen by nobody",
            "Add one, after three days.",
        );
    }
    // Of several rules S3 follows the shortest.
    let least = wanted.lock_days.unwrap_or(0).max(VERSION_DAYS_MIN);
    match rules.iter().filter_map(|rule| rule.expires_versions).min() {
        None if is_versioned => findings.warning(
            "lifecycle",
            "no rule expires older versions: what is deleted is paid for, for ever",
            &format!("Add one, with the days for which you want to get things back. {PAGE}"),
        ),
        Some(days) if is_versioned && i64::from(days) < least => findings.warning(
            "lifecycle",
            format!(
                "older versions are gone after {days} days: so soon must somebody notice that something was deleted"
            ),
            &format!(
                "Give that rule {least} days at least: what a mistake or a thief deletes comes back from them alone."
            ),
        ),
        _ => {}
    }
    if findings.0.len() == before {
        findings.ok("lifecycle", "nothing that is stored expires or freezes");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// As docs/bucket.md makes it.
    fn good() -> BucketSettings {
        BucketSettings {
            versioned: Told::Is(true),
            lock: Told::Is(Some(BucketLock { default: None })),
            encryption: Told::Is(Some("aws:kms".to_owned())),
            blocks_public: Told::Is(true),
            is_public: Told::Is(false),
            lifecycle: Told::Is(vec![LifecycleRule {
                id: "tidy".to_owned(),
                aborts_uploads: true,
                expires_versions: Some(30),
                ..LifecycleRule::default()
            }]),
        }
    }

    /// What is not well.
    fn complaints(bucket: &BucketSettings, lock: bool) -> Vec<(Verdict, &'static str)> {
        let mut findings = Findings::default();
        judge(bucket, &Wanted { lock_days: lock.then_some(30), is_encrypted: false }, &mut findings);
        let bad = findings.0.iter().filter(|finding| finding.verdict != Verdict::Ok);
        bad.map(|finding| (finding.verdict, finding.what)).collect()
    }

    #[test]
    fn each_setting_that_hurts_is_named_and_one_that_cannot_be_seen_is_no_fault() {
        use Verdict::{Failed, Warning};
        assert_eq!(complaints(&good(), true), []);
        let rule = |expires: Option<&str>, archives: Option<&str>| {
            let (expires, archives) = (expires.map(str::to_owned), archives.map(str::to_owned));
            let tidy = LifecycleRule { aborts_uploads: true, expires_versions: Some(30), ..LifecycleRule::default() };
            BucketSettings { lifecycle: Told::Is(vec![LifecycleRule { expires, archives, ..tidy }]), ..good() }
        };
        let by_default = BucketLock { default: Some("COMPLIANCE, 30 days".to_owned()) };
        let table = [
            (BucketSettings { versioned: Told::Is(false), ..good() }, (Warning, "versioning")),
            (BucketSettings { lock: Told::Is(None), ..good() }, (Failed, "object lock")),
            (BucketSettings { lock: Told::Is(Some(by_default)), ..good() }, (Warning, "object lock")),
            (BucketSettings { encryption: Told::Is(None), ..good() }, (Warning, "store encryption")),
            (BucketSettings { blocks_public: Told::Is(false), ..good() }, (Warning, "public access")),
            (BucketSettings { is_public: Told::Is(true), ..good() }, (Failed, "public access")),
            (rule(Some("after 30 days"), None), (Failed, "lifecycle")),
            (rule(None, Some("GLACIER after 30 days")), (Failed, "lifecycle")),
        ];
        for (bucket, complaint) in table {
            assert_eq!(complaints(&bucket, true), [complaint], "{bucket:?}");
        }
        for (days, lock, complaint) in [(29, true, true), (30, true, false), (6, false, true), (7, false, false)] {
            let tidy = LifecycleRule { aborts_uploads: true, expires_versions: Some(days), ..LifecycleRule::default() };
            let bucket = BucketSettings { lifecycle: Told::Is(vec![tidy]), ..good() };
            let found = complaints(&bucket, lock).contains(&(Warning, "lifecycle"));
            assert_eq!(found, complaint, "{days} days, locked for 30: {lock}");
        }
        let bare = BucketSettings { lifecycle: Told::Is(Vec::new()), ..good() };
        assert_eq!(complaints(&bare, true), [(Warning, "lifecycle"); 2], "uploads and versions pile up");
        let bare = BucketSettings { versioned: Told::Is(false), ..bare };
        assert_eq!(complaints(&bare, true), [(Warning, "versioning"), (Warning, "lifecycle")], "there are no versions");
        assert_eq!(complaints(&good(), false), [(Warning, "object lock")], "it is there, and not used");
        for nothing in [Told::NotAllowed, Told::NotKnown] {
            let blind = BucketSettings {
                versioned: nothing.clone(),
                lock: nothing.clone().map(|_| None),
                encryption: nothing.clone().map(|_| None),
                blocks_public: nothing.clone(),
                is_public: nothing.clone(),
                lifecycle: nothing.map(|_| Vec::new()),
            };
            assert_eq!(complaints(&blind, false), []);
            assert_eq!(complaints(&blind, true), [(Warning, "object lock")], "what is needed must be seen");
        }
    }
}
