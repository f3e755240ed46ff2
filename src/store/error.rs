//! What can go wrong in a store, by what the caller does about it.

use crate::error::{Error, Kind};
use std::error::Error as StdError;

/// What a caller does about a store's error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum StoreErrorKind {
    /// No such object: an answer, not a fault.
    NotFound,
    /// The range lies behind the object's end.
    Range,
    /// The bucket or root directory is not there.
    NoBucket,
    /// The bucket is in another region.
    WrongRegion,
    /// These credentials may not do this.
    Denied,
    /// There are no credentials, or they have expired.
    Credentials,
    /// The store is full: no room on the disk, quota used up.
    Full,
    /// The store asks us to slow down.
    Throttled,
    /// Time-out, connection lost, 5xx, 409: nobody knows, try again.
    Transient,
    /// What arrived is not what was sent.
    Corrupt,
    /// This store cannot do that.
    Unsupported,
    /// Anything else: trying again will not help.
    Permanent,
}

impl StoreErrorKind {
    /// Those of which the same call may succeed later.
    pub const TRANSIENT: [StoreErrorKind; 3] =
        [StoreErrorKind::Throttled, StoreErrorKind::Transient, StoreErrorKind::Corrupt];

    /// True if the same call may succeed later without anybody doing anything.
    pub fn is_transient(self) -> bool {
        StoreErrorKind::TRANSIENT.contains(&self)
    }
}

/// The action that stores.
const STORE: &str = "store";

/// An operation on a store failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {target}")]
pub struct StoreError {
    /// What the caller does about it.
    pub kind: StoreErrorKind,
    /// The verb: `store`, `read`, `list`, `delete`.
    pub action: &'static str,
    /// The object, prefix or bucket, as the store describes it.
    pub target: String,
    /// Why, in the store's words.
    #[source]
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl StoreError {
    /// An error without a cause underneath.
    pub fn new(kind: StoreErrorKind, action: &'static str, target: impl Into<String>) -> StoreError {
        StoreError { kind, action, target: target.into(), source: None }
    }

    /// Adds why.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> StoreError {
        self.source = Some(source.into());
        self
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        let hint = match error.kind {
            StoreErrorKind::NoBucket => "Does the bucket or directory exist, and is its name in --repo right?",
            StoreErrorKind::WrongRegion => "The bucket is in another region: set AWS_REGION to it.",
            StoreErrorKind::Denied => {
                "Which rights do these credentials have? docs/bucket.md lists the least that are needed."
            }
            StoreErrorKind::Credentials => {
                "No valid credentials: are those in [s3], else AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, right, and has a \
                 session token expired?"
            }
            StoreErrorKind::Full => "The store is full: free some room.",
            StoreErrorKind::Throttled => {
                "The store asks to slow down: is something else using the same prefix heavily?"
            }
            StoreErrorKind::Transient => "Is the store up, and can this machine reach its endpoint?",
            StoreErrorKind::Corrupt if error.action == STORE => {
                "The bytes were altered on the way, and the store refused them: is there a proxy or a faulty network card \
                 between here and the store?"
            }
            StoreErrorKind::Corrupt => "The bytes were altered on the way or in the store.",
            StoreErrorKind::NotFound => "Was it deleted by somebody or by a lifecycle rule?",
            StoreErrorKind::Range | StoreErrorKind::Unsupported | StoreErrorKind::Permanent => "",
        };
        let kind = match error.kind {
            // What was refused is not stored: nothing is damaged, and the way to the store may be mended.
            StoreErrorKind::Corrupt if error.action != STORE => Kind::Damaged,
            _ => Kind::Store,
        };
        let outer = Error::new(kind, format!("cannot {} {}", error.action, error.target));
        // Whoever could not give credentials knows better.
        let given = error.source.as_deref().filter(|_| error.kind == StoreErrorKind::Credentials);
        let hint = given.and_then(hint_underneath).unwrap_or(hint).to_owned();
        let outer = match error.source {
            Some(source) => outer.because(source),
            None => outer,
        };
        if hint.is_empty() { outer } else { outer.hint(hint) }
    }
}

/// What an error of ours says that an expert would do, below errors of others.
fn hint_underneath<'a>(error: &'a (dyn StdError + Send + Sync + 'static)) -> Option<&'a str> {
    let mut cause: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(hint) = error.downcast_ref::<Error>().and_then(Error::hint_text) {
            return Some(hint);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::provider::error::CredentialsError;

    #[test]
    fn what_was_altered_on_its_way_into_the_store_is_the_ways_fault_and_what_comes_out_altered_is_damaged() {
        let error = |action| Error::from(StoreError::new(StoreErrorKind::Corrupt, action, "s3://b/x"));
        assert_eq!(error("store").kind(), Kind::Store);
        assert!(error("store").hint_text().unwrap_or_default().contains("proxy"));
        assert_eq!(error("read").kind(), Kind::Damaged);
    }

    #[test]
    fn who_could_not_give_credentials_says_what_to_do() {
        let hint = |error: StoreError| Error::from(error).hint_text().unwrap_or_default().to_owned();
        let bare = StoreError::new(StoreErrorKind::Credentials, "read", "s3://b/x");
        assert!(hint(bare).contains("[s3]"));
        let why = Error::new(Kind::Config, "s3.access_key_id_file: there is no /x").hint("Is the secret mounted?");
        let told = StoreError::new(StoreErrorKind::Credentials, "read", "s3://b/x")
            .because(CredentialsError::provider_error(why));
        assert_eq!(hint(told), "Is the secret mounted?");
    }
}
