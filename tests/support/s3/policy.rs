//! Who may do what: access keys with IAM policies, of which the subset is enforced that the documentation uses. What is not
//! understood is refused when the policy is set: a policy that is enforced in part would prove nothing.
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html> has the actions.

use super::S3Server;
use super::storage::Storage;
use async_trait::async_trait;
use percent_encoding::percent_decode_str;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::path::S3Path;
use s3s::{S3Result, s3_error};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What somebody wants to do.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Asked {
    /// Such as `s3:PutObject`.
    pub action: &'static str,
    /// `arn:aws:s3:::bucket` or `arn:aws:s3:::bucket/key`.
    pub resource: String,
    /// Of a listing: what it is of.
    pub prefix: Option<String>,
    /// Only if nothing has that name: `If-None-Match`.
    pub only_new: bool,
    /// Of a write: whether an object appears by it, as none does by a part of a multipart upload.
    pub creates: Option<bool>,
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub lock_mode: Option<String>,
    /// The days for which it is to be locked, the last one counted whole.
    pub lock_days: Option<i64>,
}

/// An IAM policy.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Its statements.
    pub statements: Vec<Statement>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Statement {
    /// It allows, or it denies.
    pub allows: bool,
    /// With `*` and `?`.
    pub actions: Vec<String>,
    /// With `*` and `?`.
    pub resources: Vec<String>,
    /// Of requests that meet all of them.
    pub conditions: Vec<Condition>,
}

/// What a request must be like. A request that says nothing of it does not meet it, but for `OnlyNew`.
#[derive(Clone, Debug)]
pub enum Condition {
    /// A listing of what one of these matches.
    Prefix(Vec<String>),
    /// It has `If-None-Match`, or has it not.
    OnlyNew(bool),
    /// An object appears by it, or not.
    Creates(bool),
    /// Locks in this mode.
    LockMode(String),
    /// Locks for more than so many days.
    LocksLonger(i64),
}

impl Condition {
    fn of(operator: &str, key: &str, value: &Value) -> Condition {
        let text = || value.as_str().unwrap_or_else(|| panic!("no text: {value}"));
        let yes = || text().parse::<bool>().unwrap_or_else(|_| panic!("not true and not false: {value}"));
        match (operator, key) {
            ("StringLike", "s3:prefix") => Condition::Prefix(words(value)),
            // "It is null" is false where the header is there.
            ("Null", "s3:if-none-match") => Condition::OnlyNew(!yes()),
            ("Bool", "s3:ObjectCreationOperation") => Condition::Creates(yes()),
            ("StringEquals", "s3:object-lock-mode") => Condition::LockMode(text().to_owned()),
            ("NumericGreaterThan", "s3:object-lock-remaining-retention-days") => {
                Condition::LocksLonger(text().parse().unwrap_or_else(|_| panic!("no number: {value}")))
            }
            other => panic!("{other:?} is not understood here"),
        }
    }

    fn is_met(&self, asked: &Asked) -> bool {
        match self {
            Condition::Prefix(prefixes) => {
                asked.prefix.as_ref().is_some_and(|prefix| prefixes.iter().any(|pattern| is_like(pattern, prefix)))
            }
            Condition::OnlyNew(only_new) => asked.only_new == *only_new,
            Condition::Creates(creates) => asked.creates == Some(*creates),
            Condition::LockMode(mode) => asked.lock_mode.as_ref() == Some(mode),
            Condition::LocksLonger(days) => asked.lock_days.is_some_and(|asked| asked > *days),
        }
    }
}

impl Policy {
    /// Reads a policy document. Panics on whatever it does not know.
    pub fn parse(text: &str) -> Policy {
        let document: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
        only(&document, &["Version", "Statement"]);
        assert_eq!(document["Version"], "2012-10-17");
        let statements = document["Statement"].as_array().expect("statements").iter().map(statement).collect();
        Policy { statements }
    }

    /// Whether it lets somebody do that: what is denied is not allowed, and what nobody allows neither.
    pub fn allows(&self, asked: &Asked) -> bool {
        let meant = |allows: bool| self.statements.iter().any(|it| it.allows == allows && it.means(asked));
        meant(true) && !meant(false)
    }
}

impl Statement {
    fn means(&self, asked: &Asked) -> bool {
        let any = |patterns: &[String], text: &str| patterns.iter().any(|pattern| is_like(pattern, text));
        any(&self.actions, asked.action)
            && any(&self.resources, &asked.resource)
            && self.conditions.iter().all(|condition| condition.is_met(asked))
    }
}

fn statement(value: &Value) -> Statement {
    only(value, &["Sid", "Effect", "Action", "Resource", "Condition"]);
    let operators = value.get("Condition").map(|all| members(all).collect::<Vec<_>>()).unwrap_or_default();
    let conditions = operators
        .into_iter()
        .flat_map(|(operator, keys)| members(keys).map(move |(key, value)| Condition::of(operator, key, value)))
        .collect();
    let allows = match value["Effect"].as_str() {
        Some("Allow") => true,
        Some("Deny") => false,
        other => panic!("no effect: {other:?}"),
    };
    Statement { allows, actions: words(&value["Action"]), resources: words(&value["Resource"]), conditions }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).iter()
}

fn only(value: &Value, known: &[&str]) {
    let members = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    let unknown = members.keys().find(|name| !known.contains(&name.as_str()));
    assert!(unknown.is_none(), "{unknown:?} is not understood here, only {known:?}");
}

/// A text, or a list of them.
fn words(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned();
    value.as_array().map_or_else(|| vec![text(value)], |all| all.iter().map(text).collect())
}

/// `*` stands for any characters, slashes included, `?` for one.
fn is_like(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| is_like(&pattern[1..], &text[at..]))
        }
        Some(one) => {
            let mut rest = text.chars();
            rest.next().is_some_and(|found| one == '?' || one == found)
                && is_like(&pattern[one.len_utf8()..], rest.as_str())
        }
    }
}

struct User {
    policy: Policy,
    asked: Vec<Asked>,
    refused: Vec<Asked>,
}

/// Everybody but the owner, who may do everything.
#[derive(Default)]
pub(super) struct Users(Mutex<BTreeMap<String, User>>);

impl Users {
    pub(super) fn set(&self, name: &str, policy: Policy) {
        self.0.lock().unwrap().insert(name.to_owned(), User { policy, asked: Vec::new(), refused: Vec::new() });
    }

    /// What somebody asked for, and what of it was refused; each once.
    pub(super) fn told(&self, name: &str) -> (Vec<Asked>, Vec<Asked>) {
        let users = self.0.lock().unwrap();
        let user = users.get(name).unwrap_or_else(|| panic!("there is no user {name}"));
        let once = |asked: &[Asked]| {
            let mut asked = asked.to_vec();
            asked.sort();
            asked.dedup();
            asked
        };
        (once(&user.asked), once(&user.refused))
    }
}

#[derive(Clone)]
pub(super) struct Guard {
    pub(super) users: Arc<Users>,
    pub(super) storage: Arc<Storage>,
}

#[async_trait]
impl S3Auth for Guard {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let is_known = access_key == S3Server::ACCESS_KEY || self.users.0.lock().unwrap().contains_key(access_key);
        match is_known {
            true => Ok(SecretKey::from(S3Server::SECRET_KEY)),
            false => Err(s3_error!(NotSignedUp, "Your account is not signed up")),
        }
    }
}

#[async_trait]
impl S3Access for Guard {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = context.credentials() else {
            return Err(s3_error!(AccessDenied, "Anonymous requests are not let in"));
        };
        if credentials.access_key == S3Server::ACCESS_KEY {
            return Ok(());
        }
        let asked = asked(context);
        let mut users = self.users.0.lock().unwrap();
        let user = users.get_mut(&credentials.access_key).expect("its key was found");
        user.asked.extend(asked.iter().cloned());
        let refused = asked.into_iter().find(|asked| !user.policy.allows(asked));
        let refused = refused.or_else(|| self.hidden(context, &user.policy));
        match refused {
            None => Ok(()),
            Some(refused) => {
                let message = format!("{} may not {} on {}", credentials.access_key, refused.action, refused.resource);
                user.refused.push(refused);
                Err(s3_error!(AccessDenied, "{message}"))
            }
        }
    }
}

impl Guard {
    /// Whoever may not list is not told that an object is absent either.
    fn hidden(&self, context: &S3AccessContext<'_>, policy: &Policy) -> Option<Asked> {
        let S3Path::Object { bucket, key } = context.s3_path() else { return None };
        let reads = ["GetObject", "HeadObject"].contains(&context.s3_op().name());
        let resource = format!("arn:aws:s3:::{bucket}");
        let list = Asked { action: "s3:ListBucket", resource, ..Asked::default() };
        (reads && self.storage.find(bucket, key).is_none() && !policy.allows(&list)).then_some(list)
    }
}

/// The rights that a request needs.
fn asked(context: &S3AccessContext<'_>) -> Vec<Asked> {
    let (resource, prefix) = match context.s3_path() {
        S3Path::Root => ("*".to_owned(), None),
        S3Path::Object { bucket, key } => (format!("arn:aws:s3:::{bucket}/{key}"), None),
        S3Path::Bucket { bucket } => {
            let query = context.uri().query().unwrap_or_default();
            let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
            (format!("arn:aws:s3:::{bucket}"), Some(percent_decode_str(prefix).decode_utf8_lossy().into_owned()))
        }
    };
    let has = |header: &str| context.headers().contains_key(header);
    let is_of_a_version = context.uri().query().unwrap_or_default().contains("versionId=");
    let mut actions = vec![match context.s3_op().name() {
        "PutObject" | "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" => "s3:PutObject",
        "GetObject" | "HeadObject" => "s3:GetObject",
        "DeleteObject" if is_of_a_version => "s3:DeleteObjectVersion",
        "DeleteObject" => "s3:DeleteObject",
        "ListObjectsV2" | "HeadBucket" => "s3:ListBucket",
        "AbortMultipartUpload" => "s3:AbortMultipartUpload",
        "ListParts" => "s3:ListMultipartUploadParts",
        "ListMultipartUploads" => "s3:ListBucketMultipartUploads",
        "PutObjectLegalHold" => "s3:PutObjectLegalHold",
        "GetBucketVersioning" => "s3:GetBucketVersioning",
        "GetObjectLockConfiguration" => "s3:GetBucketObjectLockConfiguration",
        "GetBucketEncryption" => "s3:GetEncryptionConfiguration",
        "GetPublicAccessBlock" => "s3:GetBucketPublicAccessBlock",
        "GetBucketPolicyStatus" => "s3:GetBucketPolicyStatus",
        "GetBucketLifecycleConfiguration" => "s3:GetLifecycleConfiguration",
        _ => "s3:Unknown",
    }];
    if has("x-amz-object-lock-mode") || has("x-amz-object-lock-retain-until-date") {
        actions.push("s3:PutObjectRetention");
    }
    if has("x-amz-object-lock-legal-hold") {
        actions.push("s3:PutObjectLegalHold");
    }
    let creates = match context.s3_op().name() {
        "PutObject" | "CompleteMultipartUpload" => Some(true),
        "CreateMultipartUpload" | "UploadPart" => Some(false),
        _ => None,
    };
    let text = |header: &str| context.headers().get(header).map(|value| value.to_str().unwrap().to_owned());
    let lock_days = text("x-amz-object-lock-retain-until-date").map(|until| {
        let until: jiff::Timestamp = until.parse().unwrap_or_else(|error| panic!("{error}: {until}"));
        (until.as_second() - jiff::Timestamp::now().as_second() + 86_399).div_euclid(86_400)
    });
    let about = Asked {
        resource,
        prefix,
        only_new: has("if-none-match"),
        creates,
        lock_mode: text("x-amz-object-lock-mode"),
        lock_days,
        ..Asked::default()
    };
    actions.into_iter().map(|action| Asked { action, ..about.clone() }).collect()
}
