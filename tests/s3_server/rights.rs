//! Access keys with policies: what is allowed, what is refused, and what is not understood.

use crate::s3::{Asked, Policy, S3Server};
use crate::{BUCKET, client_of, verdict};
use aws_sdk_s3::primitives::ByteStream;

const POLICY: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::seawall-test",
     "Condition": {"StringLike": {"s3:prefix": ["one/*"]}}},
    {"Effect": "Allow", "Action": ["s3:Get*", "s3:PutObject"], "Resource": "arn:aws:s3:::seawall-test/one/*"},
    {"Effect": "Allow", "Action": ["s3:PutObject", "s3:PutObjectRetention"], "Resource": "arn:aws:s3:::seawall-test/new/*"},
    {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::seawall-test/new/*",
     "Condition": {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}}},
    {"Effect": "Deny", "Action": "s3:PutObjectRetention", "Resource": "arn:aws:s3:::seawall-test/new/*",
     "Condition": {"NumericGreaterThan": {"s3:object-lock-remaining-retention-days": "31"}}},
    {"Effect": "Deny", "Action": "s3:PutObjectRetention", "Resource": "arn:aws:s3:::seawall-test/new/*",
     "Condition": {"StringEquals": {"s3:object-lock-mode": "COMPLIANCE"}}},
    {"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::seawall-test/one/?/secret"}
  ]
}"#;

fn asked(action: &'static str, key: &str) -> Asked {
    Asked { action, resource: format!("arn:aws:s3:::{BUCKET}/{key}"), ..Asked::default() }
}

#[test]
fn a_policy_allows_what_a_statement_allows_and_none_denies() {
    let policy = Policy::parse(POLICY);
    for (action, key, is_allowed) in [
        ("s3:GetObject", "one/a", true),
        ("s3:GetObject", "one/a/b", true),
        ("s3:GetObject", "two/a", false),
        ("s3:PutObject", "one/a", true),
        ("s3:PutObjectRetention", "one/a", false),
        ("s3:DeleteObject", "one/a", false),
        ("s3:GetObject", "one/a/secret", false),
        ("s3:GetObject", "one/aa/secret", true),
    ] {
        assert_eq!(policy.allows(&asked(action, key)), is_allowed, "{action} {key}");
    }
    let list = |prefix: &str| Asked {
        action: "s3:ListBucket",
        resource: format!("arn:aws:s3:::{BUCKET}"),
        prefix: Some(prefix.to_owned()),
        ..Asked::default()
    };
    assert!(policy.allows(&list("one/x")) && !policy.allows(&list("")) && !policy.allows(&list("two/")));
}

#[test]
#[should_panic(expected = "is not understood")]
fn a_condition_that_is_not_understood_is_not_passed_over() {
    Policy::parse(&POLICY.replace("StringLike", "StringEqualsIgnoreCase"));
}

#[test]
fn a_policy_says_how_long_and_how_strictly_may_be_locked_and_how_objects_come_to_be() {
    let policy = Policy::parse(POLICY);
    let lock = |mode: &str, days| {
        let (lock_mode, lock_days) = (Some(mode.to_owned()), Some(days));
        policy.allows(&Asked { lock_mode, lock_days, ..asked("s3:PutObjectRetention", "new/a") })
    };
    assert!(lock("GOVERNANCE", 31) && !lock("GOVERNANCE", 32) && !lock("COMPLIANCE", 1));
    let put = |creates, only_new| {
        policy.allows(&Asked { creates: Some(creates), only_new, ..asked("s3:PutObject", "new/a") })
    };
    assert!(put(true, true) && !put(true, false), "nothing is overwritten");
    assert!(put(false, false), "the parts of an upload have no such header");
}

#[tokio::test]
async fn a_key_does_what_its_policy_allows_and_is_refused_the_rest() {
    let server = S3Server::start();
    server.let_in("somebody", Policy::parse(POLICY));
    server.put("one/a", "a");
    server.put("two/a", "a");
    let client = client_of(&server, "somebody");
    let get = async |key: &str| client.get_object().bucket(BUCKET).key(key).send().await.map(|_| ());
    get("one/a").await.unwrap();
    assert_eq!(verdict(&get("two/a").await), "AccessDenied");
    // Whoever may not list everything is not told that something is absent.
    assert_eq!(verdict(&get("one/b").await), "AccessDenied");
    let put = client.put_object().bucket(BUCKET).key("one/b").body(ByteStream::from_static(b"b"));
    put.send().await.unwrap();
    let delete = client.delete_object().bucket(BUCKET).key("one/a").send().await;
    assert_eq!(verdict(&delete), "AccessDenied");
    let listed = client.list_objects_v2().bucket(BUCKET).prefix("one/").send().await.unwrap();
    assert_eq!(listed.contents.unwrap_or_default().len(), 2);
    let listed = client.list_objects_v2().bucket(BUCKET).send().await;
    assert_eq!(verdict(&listed), "AccessDenied");
    let refused: Vec<&str> = server.refused("somebody").iter().map(|asked| asked.action).collect();
    assert!(refused.contains(&"s3:DeleteObject") && refused.contains(&"s3:ListBucket"), "{refused:?}");
    assert!(server.get("one/a").is_some());
    // Who may only create does not overwrite, nor try to
    let put = || client.put_object().bucket(BUCKET).key("new/a").body(ByteStream::from_static(b"a"));
    assert_eq!(verdict(&put().send().await), "AccessDenied");
    assert_eq!(verdict(&put().if_none_match("*").send().await), "Ok");
    assert_eq!(verdict(&put().if_none_match("*").send().await), "PreconditionFailed");
}
