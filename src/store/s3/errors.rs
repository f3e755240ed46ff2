//! What an S3 server's refusals mean to the caller. Codes are those of "Error responses" in the Amazon S3 API
//! reference, and of MinIO where named.

use super::super::{StoreError, StoreErrorKind};
use super::credentials::{Renewing, Silent};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::time::Duration;
use tokio::time::timeout;

/// What was done to what.
pub(super) struct Subject<'a> {
    pub(super) action: &'static str,
    pub(super) bucket: &'a str,
    /// The object or prefix, as S3 knows it.
    pub(super) key: Option<String>,
    /// As whom.
    pub(super) credentials: &'a Renewing,
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key.as_deref().unwrap_or_default())
    }
}

impl Subject<'_> {
    /// The error of a request. If the server refused the credentials, the next request asks for new ones.
    pub(super) fn failed(&self, failure: Failure) -> StoreError {
        let kind = failure.kind();
        if kind == StoreErrorKind::Credentials && failure.is_answer() {
            self.credentials.refused();
        }
        StoreError::new(kind, self.action, self.to_string()).because(failure)
    }

    /// The error of a reply that makes no sense.
    pub(super) fn unusable(&self, why: &'static str) -> StoreError {
        StoreError::new(StoreErrorKind::Transient, self.action, self.to_string())
            .because(format!("the server sent {why}"))
    }
}

/// Why a request did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no.
    Answer {
        status: u16,
        /// S3's word for it; empty if the body was no S3 error, as with `HEAD` or from a server of another kind.
        code: String,
        message: String,
        /// Where the bucket is, if the server says so.
        region: Option<String>,
    },
    /// The server said nothing, or nothing that could be read.
    Silence { kind: StoreErrorKind, source: Box<dyn StdError + Send + Sync> },
}

impl Failure {
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, Failure::Answer { .. })
    }

    /// The name is taken.
    pub(super) fn is_precondition(&self) -> bool {
        matches!(self, Failure::Answer { status, code, .. } if *status == 412 || code == "PreconditionFailed")
    }

    /// The upload was completed, aborted or cleared away.
    pub(super) fn is_no_such_upload(&self) -> bool {
        matches!(self, Failure::Answer { code, .. } if code == "NoSuchUpload")
    }

    pub(super) fn kind(&self) -> StoreErrorKind {
        match self {
            Failure::Answer { status, code, message, .. } => kind_of(*status, code, message),
            Failure::Silence { kind, .. } => *kind,
        }
    }
}

fn kind_of(status: u16, code: &str, message: &str) -> StoreErrorKind {
    match code {
        // Only this proves that an object is not there: any web server may answer 404.
        "NoSuchKey" => StoreErrorKind::NotFound,
        "NoSuchBucket" => StoreErrorKind::NoBucket,
        "InvalidRange" => StoreErrorKind::Range,
        "PermanentRedirect" | "IllegalLocationConstraintException" => StoreErrorKind::WrongRegion,
        "AuthorizationHeaderMalformed" if message.contains("region") => StoreErrorKind::WrongRegion,
        "ExpiredToken"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "InvalidSecurity"
        | "AuthorizationHeaderMalformed"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException" => StoreErrorKind::Credentials,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "NotSignedUp" => StoreErrorKind::Denied,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "TooManyRequests"
        | "Throttling"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded" => StoreErrorKind::Throttled,
        "BadDigest" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch" => StoreErrorKind::Corrupt,
        "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" => StoreErrorKind::Full,
        "ConditionalRequestConflict"
        | "OperationAborted"
        | "TemporaryRedirect"
        | "IncompleteBody"
        | "RequestTimeout"
        | "InternalError"
        | "ServiceUnavailable" => StoreErrorKind::Transient,
        "NotImplemented" | "MethodNotAllowed" => StoreErrorKind::Unsupported,
        // The clock of this machine is wrong; asking again does not set it.
        "RequestTimeTooSkewed" => StoreErrorKind::Permanent,
        _ => match status {
            301 => StoreErrorKind::WrongRegion,
            401 => StoreErrorKind::Credentials,
            403 => StoreErrorKind::Denied,
            408 | 409 => StoreErrorKind::Transient,
            416 => StoreErrorKind::Range,
            429 => StoreErrorKind::Throttled,
            501 => StoreErrorKind::Unsupported,
            507 => StoreErrorKind::Full,
            500.. => StoreErrorKind::Transient,
            // With status 200, `CompleteMultipartUpload` can still fail; every reason for that has a code above.
            _ => StoreErrorKind::Permanent,
        },
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Answer { status, code, message, region } => {
                match code.as_str() {
                    "" => write!(f, "the server answered {status} without an S3 error code")?,
                    code => write!(f, "the server answered {status} {code}")?,
                }
                if !message.is_empty() {
                    write!(f, ": {}", message.trim_end_matches('.'))?;
                }
                match region {
                    Some(region) => write!(f, " (the bucket is in {region})"),
                    None => Ok(()),
                }
            }
            Failure::Silence { kind: StoreErrorKind::Credentials, .. } => f.write_str("no credentials"),
            Failure::Silence { .. } => f.write_str("no answer"),
        }
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Failure::Answer { .. } => None,
            Failure::Silence { source, .. } => Some(source.as_ref()),
        }
    }
}

/// Waits for the reply to one request, but not for ever.
pub(super) async fn within<T, E>(
    limit: Duration,
    request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T, Failure>
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    match timeout(limit, request).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(failure_of(error)),
        Err(_) => Err(Failure::Silence {
            kind: StoreErrorKind::Transient,
            source: format!("no reply within {} seconds", limit.as_secs()).into(),
        }),
    }
}

fn failure_of<E>(error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let headers = answer.raw().headers();
            Failure::Answer {
                status: answer.raw().status().as_u16(),
                region: headers.get("x-amz-bucket-region").map(str::to_string),
                code: answer.err().code().unwrap_or_default().to_string(),
                message: answer.err().message().unwrap_or_default().to_string(),
            }
        }
        other => Failure::Silence { kind: kind_of_silence(&other), source: cause_of(other) },
    }
}

fn kind_of_silence<E>(error: &SdkError<E, HttpResponse>) -> StoreErrorKind
where
    E: StdError + 'static,
{
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<CredentialsError>() {
            // A server on the way to the credentials (STS, the instance's metadata) did not answer in time.
            Some(CredentialsError::ProviderTimedOut(_)) => return StoreErrorKind::Transient,
            Some(error) if error.source().is_some_and(|why| why.is::<Silent>()) => return StoreErrorKind::Transient,
            Some(_) => return StoreErrorKind::Credentials,
            None => cause = error.source(),
        }
    }
    match error {
        SdkError::ConstructionFailure(_) => StoreErrorKind::Permanent,
        SdkError::DispatchFailure(failure) if failure.is_user() => StoreErrorKind::Permanent,
        _ => StoreErrorKind::Transient,
    }
}

/// The error that says something: the SDK's own layers only say "dispatch failure".
fn cause_of<E>(error: SdkError<E, HttpResponse>) -> Box<dyn StdError + Send + Sync>
where
    E: StdError + Send + Sync + 'static,
{
    let fallback = error.to_string();
    error.into_source().unwrap_or_else(|_| fallback.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_sorted_by_what_the_caller_does_about_it() {
        use StoreErrorKind as Kind;
        let table = [
            (404, "NoSuchKey", "", Kind::NotFound),
            (404, "NoSuchBucket", "", Kind::NoBucket),
            (301, "PermanentRedirect", "", Kind::WrongRegion),
            (301, "", "", Kind::WrongRegion),
            (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'", Kind::WrongRegion),
            (400, "AuthorizationHeaderMalformed", "a non-empty Access Key must be provided", Kind::Credentials),
            (400, "ExpiredToken", "", Kind::Credentials),
            (403, "InvalidAccessKeyId", "", Kind::Credentials),
            (403, "SignatureDoesNotMatch", "", Kind::Credentials),
            (403, "AccessDenied", "", Kind::Denied),
            (403, "", "", Kind::Denied),
            (409, "ConditionalRequestConflict", "", Kind::Transient),
            (416, "InvalidRange", "", Kind::Range),
            (429, "", "", Kind::Throttled),
            (503, "SlowDown", "", Kind::Throttled),
            (503, "", "", Kind::Transient),
            (500, "InternalError", "", Kind::Transient),
            (200, "InternalError", "", Kind::Transient),
            (400, "RequestTimeout", "", Kind::Transient),
            (400, "BadDigest", "", Kind::Corrupt),
            (501, "NotImplemented", "", Kind::Unsupported),
            (507, "XMinioStorageFull", "", Kind::Full),
            (400, "InvalidArgument", "", Kind::Permanent),
        ];
        for (status, code, message, kind) in table {
            assert_eq!(kind_of(status, code, message), kind, "{status} {code} {message}");
        }
    }

    #[test]
    fn a_404_of_some_web_server_does_not_prove_that_an_object_is_absent() {
        assert_eq!(kind_of(404, "", ""), StoreErrorKind::Permanent);
        assert_eq!(kind_of(404, "NotFound", ""), StoreErrorKind::Permanent);
    }

    #[test]
    fn an_answer_reads_as_one_line_with_the_region_if_that_is_the_matter() {
        let failure = Failure::Answer {
            status: 301,
            code: "PermanentRedirect".into(),
            message: "Use another endpoint.".into(),
            region: Some("eu-central-1".into()),
        };
        let text = "the server answered 301 PermanentRedirect: Use another endpoint (the bucket is in eu-central-1)";
        assert_eq!(failure.to_string(), text);
    }
}
