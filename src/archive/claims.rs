//! Which cluster archives which server into which repository, among the archivers of one process: no two the same one. The file
//! cannot say it where two addresses are of one server; the server can.

use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What the archivers of a process archive. Clones are one.
#[derive(Clone, Default, Debug)]
pub struct Claims(Arc<Mutex<BTreeMap<(String, u64), String>>>);

/// One archiver's part in it.
#[derive(Clone, Debug)]
pub struct Claim {
    claims: Claims,
    repository: String,
}

impl Claims {
    /// For an archiver into `repository`, a name by which the same place is the same.
    pub fn for_repository(&self, repository: impl Into<String>) -> Claim {
        Claim { claims: self.clone(), repository: repository.into() }
    }
}

impl Claim {
    /// `cluster` is about to archive the system; it has done so before, or nobody has.
    ///
    /// # Errors
    /// Of kind `Refused`, if another one does.
    pub(super) fn take(&self, system_identifier: u64, cluster: &str) -> Result<()> {
        let mut claims = self.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = claims.entry((self.repository.clone(), system_identifier)).or_insert_with(|| cluster.to_owned());
        if holder == cluster {
            return Ok(());
        }
        let what = format!("the server is the one that cluster {holder} archives into the same repository already");
        Err(Error::new(Kind::Refused, what)
            .hint("Take one of the two out of the configuration, or give it a repository of its own."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_system_has_one_cluster_in_a_repository() {
        let claims = Claims::default();
        let here = claims.for_repository("s3://b/");
        here.take(7, "shop").unwrap();
        // Whoever has it may come again, also for another system
        here.take(7, "shop").unwrap();
        here.take(8, "shop").unwrap();
        // Nobody else may have it, but in another repository
        let refused = claims.for_repository("s3://b/").take(7, "mail").unwrap_err();
        assert!(refused.kind() == Kind::Refused && refused.to_string().contains("shop"), "{refused}");
        claims.for_repository("s3://c/").take(7, "mail").unwrap();
    }
}
