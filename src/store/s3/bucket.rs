//! A bucket's own settings, by S3's request for each; and what keeps an object there whoever wants to delete it.

use super::super::bucket::{BucketLock, BucketSettings, LifecycleRule, Told};
use super::super::{StoreError, StoreErrorKind};
use super::errors::{self, Failure, Subject};
use super::{REQUEST_TIMEOUT, S3Store};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{
    BucketVersioningStatus, ExpirationStatus, LifecycleRule as Rule, ObjectLockConfiguration, ObjectLockEnabled,
    ObjectLockLegalHold, ObjectLockLegalHoldStatus, PublicAccessBlockConfiguration, TransitionStorageClass,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error as StdError;
use std::future::Future;

impl S3Store {
    fn whole<'a>(&'a self) -> Subject<'a> {
        let (bucket, credentials) = (&self.shared.bucket, &self.shared.credentials);
        Subject { action: "look at the settings of", bucket, key: None, credentials }
    }

    /// The bucket's settings, and of its lifecycle what touches objects below `prefix`.
    pub(super) async fn read_settings(&self, prefix: &str) -> Result<BucketSettings, StoreError> {
        let (client, bucket, prefix) = (self.client(), &self.shared.bucket, self.key(prefix));
        let versioned = self.ask(Box::pin(client.get_bucket_versioning().bucket(bucket).send()), "").await?;
        let versioned =
            versioned.map(|output| output.and_then(|it| it.status) == Some(BucketVersioningStatus::Enabled));
        let request = client.get_object_lock_configuration().bucket(bucket).send();
        let lock = self.ask(Box::pin(request), "ObjectLockConfigurationNotFoundError").await?;
        let lock = lock.map(|output| lock_of(output.and_then(|it| it.object_lock_configuration)));
        let request = client.get_bucket_encryption().bucket(bucket).send();
        let encryption = self.ask(Box::pin(request), "ServerSideEncryptionConfigurationNotFoundError").await?;
        let encryption = encryption.map(|output| {
            let rules = output.and_then(|it| it.server_side_encryption_configuration).map(|it| it.rules);
            let default =
                rules.unwrap_or_default().into_iter().find_map(|it| it.apply_server_side_encryption_by_default);
            default.map(|it| it.sse_algorithm.as_str().to_owned())
        });
        let request = client.get_public_access_block().bucket(bucket).send();
        let blocks = self.ask(Box::pin(request), "NoSuchPublicAccessBlockConfiguration").await?;
        let blocks_public = blocks
            .map(|output| output.and_then(|it| it.public_access_block_configuration).is_some_and(|it| blocks_all(&it)));
        let request = client.get_bucket_policy_status().bucket(bucket).send();
        let policy = self.ask(Box::pin(request), "NoSuchBucketPolicy").await?;
        let is_public =
            policy.map(|output| output.and_then(|it| it.policy_status).and_then(|it| it.is_public).unwrap_or(false));
        let request = client.get_bucket_lifecycle_configuration().bucket(bucket).send();
        let rules = self.ask(Box::pin(request), "NoSuchLifecycleConfiguration").await?;
        let lifecycle = rules.map(|output| {
            let rules = output.and_then(|it| it.rules).unwrap_or_default();
            rules.iter().filter_map(|rule| rule_of(rule, &prefix)).collect()
        });
        Ok(BucketSettings { versioned, lock, encryption, blocks_public, is_public, lifecycle })
    }

    /// One answer. `unset` is S3's word for "there is no such setting".
    async fn ask<T, E>(
        &self,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        unset: &str,
    ) -> Result<Told<Option<T>>, StoreError>
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let failure = match errors::within(REQUEST_TIMEOUT, request).await {
            Ok(output) => return Ok(Told::Is(Some(output))),
            Err(failure) => failure,
        };
        if matches!(&failure, Failure::Answer { code, .. } if code == unset && !unset.is_empty()) {
            return Ok(Told::Is(None));
        }
        match failure.kind() {
            StoreErrorKind::Denied => Ok(Told::NotAllowed),
            // A server of another kind may say in any words that it has no such thing.
            StoreErrorKind::Unsupported | StoreErrorKind::Permanent | StoreErrorKind::NotFound => Ok(Told::NotKnown),
            _ => Err(self.whole().failed(failure)),
        }
    }

    /// Puts a legal hold on the newest version of an object, or takes it off.
    pub(super) async fn put_hold(&self, key: &str, on: bool) -> Result<(), StoreError> {
        let status = if on { ObjectLockLegalHoldStatus::On } else { ObjectLockLegalHoldStatus::Off };
        let hold = ObjectLockLegalHold::builder().status(status).build();
        let request =
            self.client().put_object_legal_hold().bucket(&self.shared.bucket).key(self.key(key)).legal_hold(hold);
        let action = if on { "hold" } else { "release" };
        match errors::within(REQUEST_TIMEOUT, request.send()).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.object(action, key).failed(failure)),
        }
    }
}

fn lock_of(configuration: Option<ObjectLockConfiguration>) -> Option<BucketLock> {
    let enabled = configuration.filter(|it| it.object_lock_enabled == Some(ObjectLockEnabled::Enabled))?;
    let default = enabled.rule.and_then(|rule| rule.default_retention).map(|default| {
        let mode = default.mode.map_or_else(String::new, |mode| mode.as_str().to_owned());
        match (default.days, default.years) {
            (_, Some(years)) => format!("{mode}, {years} years"),
            (days, None) => format!("{mode}, {} days", days.unwrap_or(0)),
        }
    });
    Some(BucketLock { default })
}

fn blocks_all(it: &PublicAccessBlockConfiguration) -> bool {
    let all = [it.block_public_acls, it.ignore_public_acls, it.block_public_policy, it.restrict_public_buckets];
    all.into_iter().all(|one| one == Some(true))
}

/// What a rule does below a prefix; `None` if that is nothing.
fn rule_of(rule: &Rule, ours: &str) -> Option<LifecycleRule> {
    let filter = rule.filter.as_ref();
    let both = filter.and_then(|filter| filter.and.as_ref());
    let has_tag = filter.is_some_and(|filter| filter.tag.is_some())
        || both.and_then(|both| both.tags.as_ref()).is_some_and(|tags| !tags.is_empty());
    // The place of the prefix before there were filters.
    #[allow(deprecated)]
    let old = rule.prefix.as_deref();
    let prefix = filter.and_then(|it| it.prefix.as_deref()).or(both.and_then(|it| it.prefix.as_deref())).or(old);
    let prefix = prefix.unwrap_or_default();
    let touches = prefix.starts_with(ours) || ours.starts_with(prefix);
    if rule.status != ExpirationStatus::Enabled || has_tag || !touches {
        return None;
    }
    let when = |days: Option<i32>| days.map_or_else(|| "at a date".to_owned(), |days| format!("after {days} days"));
    let expires = rule.expiration.as_ref().filter(|it| it.days.is_some() || it.date.is_some()).map(|it| when(it.days));
    let archives = rule.transitions.iter().flatten().find_map(|it| {
        let class = it.storage_class.as_ref()?;
        let is_frozen = matches!(class, TransitionStorageClass::Glacier | TransitionStorageClass::DeepArchive);
        is_frozen.then(|| format!("{} {}", class.as_str(), when(it.days)))
    });
    let is_whole = ours.starts_with(prefix);
    Some(LifecycleRule {
        id: rule.id.clone().unwrap_or_default(),
        expires,
        archives,
        aborts_uploads: is_whole && rule.abort_incomplete_multipart_upload.is_some(),
        expires_versions: rule
            .noncurrent_version_expiration
            .as_ref()
            .filter(|_| is_whole)
            .map(|it| it.noncurrent_days.unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::types::{
        AbortIncompleteMultipartUpload, LifecycleExpiration, LifecycleRuleAndOperator, LifecycleRuleFilter,
        NoncurrentVersionExpiration, Tag, Transition,
    };

    fn rule(prefix: &str) -> aws_sdk_s3::types::builders::LifecycleRuleBuilder {
        let filter = LifecycleRuleFilter::builder().prefix(prefix).build();
        Rule::builder().id("r").status(ExpirationStatus::Enabled).filter(filter)
    }

    fn judged(rule: aws_sdk_s3::types::builders::LifecycleRuleBuilder) -> Option<LifecycleRule> {
        rule_of(&rule.build().unwrap(), "repo/main/")
    }

    #[test]
    fn a_rule_that_touches_anything_of_ours_is_seen_and_any_other_is_not() {
        let expires = || LifecycleExpiration::builder().days(30).build();
        for prefix in ["", "re", "repo/main/", "repo/main/wal/"] {
            let found = judged(rule(prefix).expiration(expires())).unwrap_or_else(|| panic!("{prefix:?} touches us"));
            assert_eq!(found.expires.as_deref(), Some("after 30 days"), "{prefix:?}");
        }
        for prefix in ["logs/", "repo/other/", "repo/main2/"] {
            assert_eq!(judged(rule(prefix).expiration(expires())), None, "{prefix:?}");
        }
        assert_eq!(judged(rule("").expiration(expires()).status(ExpirationStatus::Disabled)), None);
        let tag = Tag::builder().key("temporary").value("yes").build().unwrap();
        let tagged = LifecycleRuleFilter::builder().tag(tag.clone()).build();
        assert_eq!(judged(rule("").filter(tagged).expiration(expires())), None, "our objects have no tags");
        let both = LifecycleRuleAndOperator::builder().prefix("repo/").tags(tag).build();
        let both = LifecycleRuleFilter::builder().and(both).build();
        assert_eq!(judged(rule("").filter(both).expiration(expires())), None, "our objects have no tags");
    }

    #[test]
    fn what_a_rule_does_is_told_apart() {
        let frozen = |class| Transition::builder().days(90).storage_class(class).build();
        let found = judged(rule("").transitions(frozen(TransitionStorageClass::DeepArchive))).unwrap();
        assert_eq!(found.archives.as_deref(), Some("DEEP_ARCHIVE after 90 days"));
        let found = judged(rule("").transitions(frozen(TransitionStorageClass::GlacierIr))).unwrap();
        assert_eq!(found.archives, None, "that one can be read at once");
        let markers = LifecycleExpiration::builder().expired_object_delete_marker(true).build();
        assert_eq!(judged(rule("").expiration(markers)).unwrap().expires, None, "markers are no objects");
        let tidy = |prefix: &str| {
            let abort = AbortIncompleteMultipartUpload::builder().days_after_initiation(3).build();
            let old = NoncurrentVersionExpiration::builder().noncurrent_days(30).build();
            let rule = rule(prefix).abort_incomplete_multipart_upload(abort).noncurrent_version_expiration(old);
            let found = judged(rule).unwrap();
            (found.aborts_uploads, found.expires_versions)
        };
        assert_eq!(tidy("repo/"), (true, Some(30)));
        assert_eq!(tidy("repo/main/open/"), (false, None), "of a part only");
    }
}
