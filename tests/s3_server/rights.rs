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
    {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::seawall-test/new/*",
     "Condition": {"Null": {"s3:if-none-match": "false"}}},
    {"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::seawall-test/one/?/secret"}
  ]
}"#;

fn asked(action: &'static str, key: &str) -> Asked {
    Asked { action, resource: format!("arn:aws:s3:::{BUCKET}/{key}"), prefix: None, only_new: false }
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
        only_new: false,
    };
    assert!(policy.allows(&list("one/x")) && !policy.allows(&list("")) && !policy.allows(&list("two/")));
}

#[test]
#[should_panic(expected = "is not understood")]
fn a_condition_that_is_not_understood_is_not_passed_over() {
    Policy::parse(&POLICY.replace("StringLike", "StringEqualsIgnoreCase"));
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
