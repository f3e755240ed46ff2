//! What `seawall check` says of a bucket.

use crate::s3::{Fault, Op, S3Server, Settings};
use crate::support::program::Seawall;
use serde_json::Value;

/// No server is there to be checked.
const SERVER_AWAY: i32 = 4;

/// What it says of these, and whether it is content.
async fn checked(bucket: &S3Server) -> Vec<(String, String, String)> {
    let mut seawall = Seawall::new(["check", "--json"]).env("SEAWALL_PG", "host=127.0.0.1 port=1 user=nobody");
    seawall = seawall.env("SEAWALL_REPO", format!("s3://{}/backups", S3Server::BUCKET));
    for (name, value) in bucket.env() {
        seawall = seawall.env(name, value);
    }
    let said: Vec<Value> = serde_json::from_str(&seawall.run_err(SERVER_AWAY).await.stdout).unwrap();
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let ours = ["versioning", "object lock", "store encryption", "public access", "lifecycle", "bucket"];
    let findings = said.iter().filter(|finding| ours.contains(&finding["what"].as_str().unwrap()));
    findings.map(|finding| (text(finding, "what"), text(finding, "verdict"), text(finding, "found"))).collect()
}

#[tokio::test]
async fn check_reads_the_buckets_settings_and_says_what_is_wrong_with_them() {
    let bucket = S3Server::start();
    let verdicts = async |settings: Settings| {
        bucket.configure(settings);
        let found = checked(&bucket).await;
        found.into_iter().map(|(what, verdict, _)| format!("{what}: {verdict}")).collect::<Vec<_>>()
    };
    // A bucket that was made and left as it is
    let bare = [
        "versioning: warning",
        "object lock: ok",
        "store encryption: warning",
        "public access: warning",
        "lifecycle: warning",
    ];
    assert_eq!(verdicts(Settings::default()).await, bare);
    // One as the page makes it, but that nothing in it is locked
    let good = ["versioning: ok", "object lock: warning", "store encryption: ok", "public access: ok", "lifecycle: ok"];
    assert_eq!(verdicts(Settings::good()).await, good);
    // One with a rule that eats us, and one that lets everybody in
    let eaten = verdicts(Settings::good().with_expiration("backups/main/wal/", 30)).await;
    assert_eq!(eaten.last().unwrap(), "lifecycle: failed");
    let elsewhere = verdicts(Settings::good().with_expiration("logs/", 30)).await;
    assert_eq!(elsewhere, good, "that rule is about other objects");
    let public = verdicts(Settings { is_public: true, ..Settings::good() }).await;
    assert!(public.contains(&"public access: failed".to_owned()), "{public:?}");
    // One that locks by itself, tails too
    bucket.configure(Settings { lock_days: Some(30), ..Settings::good() });
    let found = checked(&bucket).await;
    let (_, verdict, found) = found.iter().find(|(what, ..)| what == "object lock").unwrap();
    assert!(verdict == "warning" && found.contains("GOVERNANCE, 30 days"), "{verdict}: {found}");
    // A server that knows no such question, and credentials that may not ask
    for denied in [false, true] {
        bucket.configure(Settings { is_mute: true, ..Settings::default() });
        if denied {
            bucket.always(Op::Settings, Fault::ACCESS_DENIED);
        }
        for (what, verdict, found) in checked(&bucket).await {
            assert_eq!(verdict, "ok", "{what}: {found}");
            let why = if denied { "may not look" } else { "does not answer" };
            assert!(found.contains(why), "{what}: {found}");
        }
    }
}
