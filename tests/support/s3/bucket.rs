//! A bucket's own settings, and the locks on what is in it.

use super::storage::Object;
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a bucket is set to. At first nothing is.
#[derive(Clone, Default)]
pub struct Settings {
    /// What is deleted or replaced stays as an older version.
    pub versioned: bool,
    /// Versions can be locked.
    pub lock: bool,
    /// It says that it locks everything by itself for so many days. Only said: nothing is locked so.
    pub lock_days: Option<i32>,
    /// `AES256` or `aws:kms`.
    pub encryption: Option<&'static str>,
    /// All four kinds of public access are blocked.
    pub blocks_public: bool,
    /// The policy lets everybody in.
    pub is_public: bool,
    /// As in S3's API.
    pub rules: Vec<LifecycleRule>,
    /// The server knows none of the questions, as many do not.
    pub is_mute: bool,
}

impl Settings {
    /// A bucket for backups: versions, locks, encryption, nobody else let in, and rules that tidy.
    pub fn good() -> Settings {
        let rule = LifecycleRule {
            id: Some("tidy".to_owned()),
            status: ExpirationStatus::from_static(ExpirationStatus::ENABLED),
            filter: Some(LifecycleRuleFilter { prefix: Some(String::new()), ..Default::default() }),
            abort_incomplete_multipart_upload: Some(AbortIncompleteMultipartUpload { days_after_initiation: Some(3) }),
            noncurrent_version_expiration: Some(NoncurrentVersionExpiration {
                noncurrent_days: Some(30),
                newer_noncurrent_versions: None,
            }),
            expiration: None,
            noncurrent_version_transitions: None,
            prefix: None,
            transitions: None,
        };
        Settings {
            versioned: true,
            lock: true,
            encryption: Some("aws:kms"),
            blocks_public: true,
            rules: vec![rule],
            ..Settings::default()
        }
    }

    /// The same rules, and one that deletes what is there.
    pub fn with_expiration(mut self, prefix: &str, days: i32) -> Settings {
        self.rules.push(LifecycleRule {
            id: Some("expire".to_owned()),
            filter: Some(LifecycleRuleFilter { prefix: Some(prefix.to_owned()), ..Default::default() }),
            expiration: Some(LifecycleExpiration { days: Some(days), ..Default::default() }),
            abort_incomplete_multipart_upload: None,
            noncurrent_version_expiration: None,
            ..Settings::good().rules.remove(0)
        });
        self
    }

    fn asked(&self) -> S3Result<&Settings> {
        if self.is_mute { Err(s3_error!(NotImplemented, "this server has no such thing")) } else { Ok(self) }
    }

    pub(super) fn versioning(&self) -> S3Result<GetBucketVersioningOutput> {
        let on = BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED);
        let status = self.asked()?.versioned.then_some(on);
        Ok(GetBucketVersioningOutput { mfa_delete: None, status })
    }

    pub(super) fn object_lock(&self) -> S3Result<GetObjectLockConfigurationOutput> {
        if !self.asked()?.lock {
            return Err(s3_error!(ObjectLockConfigurationNotFoundError, "the bucket has no object lock"));
        }
        let object_lock_enabled = Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED));
        let mode = Some(ObjectLockRetentionMode::from_static(ObjectLockRetentionMode::GOVERNANCE));
        let default = self.lock_days.map(|days| DefaultRetention { days: Some(days), mode, years: None });
        let rule = default.map(|default| ObjectLockRule { default_retention: Some(default) });
        let object_lock_configuration = Some(ObjectLockConfiguration { object_lock_enabled, rule });
        Ok(GetObjectLockConfigurationOutput { object_lock_configuration })
    }

    pub(super) fn encryption(&self) -> S3Result<GetBucketEncryptionOutput> {
        let Some(algorithm) = self.asked()?.encryption else {
            return Err(s3_error!(ServerSideEncryptionConfigurationNotFoundError, "there is no default"));
        };
        let sse_algorithm = ServerSideEncryption::from_static(algorithm);
        let default = ServerSideEncryptionByDefault { kms_master_key_id: None, sse_algorithm };
        let rule = ServerSideEncryptionRule {
            apply_server_side_encryption_by_default: Some(default),
            bucket_key_enabled: None,
        };
        let configuration = ServerSideEncryptionConfiguration { rules: vec![rule] };
        Ok(GetBucketEncryptionOutput { server_side_encryption_configuration: Some(configuration) })
    }

    pub(super) fn public_access(&self) -> S3Result<GetPublicAccessBlockOutput> {
        if !self.asked()?.blocks_public {
            return Err(not_set("NoSuchPublicAccessBlockConfiguration"));
        }
        let all = PublicAccessBlockConfiguration {
            block_public_acls: Some(true),
            block_public_policy: Some(true),
            ignore_public_acls: Some(true),
            restrict_public_buckets: Some(true),
        };
        Ok(GetPublicAccessBlockOutput { public_access_block_configuration: Some(all) })
    }

    pub(super) fn policy_status(&self) -> S3Result<GetBucketPolicyStatusOutput> {
        if !self.asked()?.is_public {
            return Err(s3_error!(NoSuchBucketPolicy, "the bucket has no policy"));
        }
        Ok(GetBucketPolicyStatusOutput { policy_status: Some(PolicyStatus { is_public: Some(true) }) })
    }

    pub(super) fn lifecycle(&self) -> S3Result<GetBucketLifecycleConfigurationOutput> {
        if self.asked()?.rules.is_empty() {
            return Err(s3_error!(NoSuchLifecycleConfiguration, "the bucket has no rules"));
        }
        Ok(GetBucketLifecycleConfigurationOutput { rules: Some(self.rules.clone()), ..Default::default() })
    }
}

fn not_set(code: &'static str) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), "the bucket has no such setting");
    error.set_status_code(hyper::StatusCode::NOT_FOUND);
    error
}

/// What keeps a version from being deleted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lock {
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub mode: Option<String>,
    /// Until then.
    pub until: Option<SystemTime>,
    /// Until this is taken off.
    pub is_held: bool,
}

impl Lock {
    /// As a write asks for it.
    pub(super) fn asked(
        mode: Option<ObjectLockMode>,
        until: Option<Timestamp>,
        hold: Option<&ObjectLockLegalHoldStatus>,
    ) -> S3Result<Lock> {
        if mode.is_some() != until.is_some() {
            return Err(s3_error!(InvalidArgument, "a mode and a date go together"));
        }
        let until = until.map(|until| system_time(&until));
        if until.is_some_and(|until| until <= SystemTime::now()) {
            return Err(s3_error!(InvalidArgument, "the retain until date must be in the future"));
        }
        let is_held = hold.is_some_and(|hold| hold.as_str() == ObjectLockLegalHoldStatus::ON);
        Ok(Lock { mode: mode.map(|mode| mode.as_str().to_owned()), until, is_held })
    }

    /// A bucket without locks takes none, and one with locks none without a checksum.
    pub(super) fn check(&self, settings: &Settings, has_checksum: bool) -> S3Result<()> {
        match *self == Lock::default() {
            true => Ok(()),
            false if !settings.lock => Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration")),
            false if !has_checksum => Err(s3_error!(
                InvalidRequest,
                "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"
            )),
            false => Ok(()),
        }
    }

    fn holds(&self) -> bool {
        self.is_held || self.until.is_some_and(|until| until > SystemTime::now())
    }
}

fn system_time(at: &Timestamp) -> SystemTime {
    let mut text = Vec::new();
    at.format(TimestampFormat::EpochSeconds, &mut text).expect("a date has seconds");
    let seconds: f64 = String::from_utf8(text).unwrap().parse().expect("seconds");
    SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)
}

/// A version goes for good, unless it is locked.
pub(super) fn delete_version(object: &Arc<Object>) -> S3Result<()> {
    if object.lock.holds() {
        return Err(s3_error!(AccessDenied, "Access Denied because object protected by object lock."));
    }
    Ok(())
}
