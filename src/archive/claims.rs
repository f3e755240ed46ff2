//! Which cluster streams with which slot of which server, among the archivers of one process. The file cannot say it where two
//! addresses are of one server; that its slot is busy can. Clones of a server have its identifier and may have its slots' names, and
//! each may be archived: two archivers of one slot are told from them by that only one of them gets it.

use crate::error::{Error, Kind, Result};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// By system identifier, slot and cluster.
type Key = (u64, String, String);

/// What the archivers of a process stream, or are about to. Clones are one.
#[derive(Clone, Default, Debug)]
pub struct Claims(Arc<Mutex<BTreeSet<Key>>>);

/// One archiver's part in it.
#[derive(Clone, Debug)]
pub struct Claim {
    claims: Claims,
    slot: String,
}

/// It streams, until this is dropped.
#[derive(Debug)]
pub(super) struct Claimed {
    claims: Claims,
    key: Key,
}

impl Claims {
    /// For an archiver that streams with this slot.
    pub fn for_slot(&self, slot: impl Into<String>) -> Claim {
        Claim { claims: self.clone(), slot: slot.into() }
    }

    fn all(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// `cluster` is about to stream from the system.
    pub(super) fn take(&self, system_identifier: u64, cluster: &str) -> Claimed {
        let key = (system_identifier, self.slot.clone(), cluster.to_owned());
        self.claims.all().insert(key.clone());
        Claimed { claims: self.claims.clone(), key }
    }
}

impl Claimed {
    /// The slot is busy.
    ///
    /// # Errors
    /// Of kind `Refused`, if another cluster of this process has it: then waiting as a hot spare would archive nothing, and later
    /// the other's WAL.
    pub(super) fn busy(&self) -> Result<()> {
        let (system, slot, cluster) = &self.key;
        let all = self.claims.all();
        let Some((.., other)) = all.iter().find(|(its, name, other)| its == system && name == slot && other != cluster)
        else {
            return Ok(());
        };
        let what = format!("the server is the one that cluster {other} archives already, with the same slot, {slot}");
        Err(Error::new(Kind::Refused, what)
            .hint("Take one of the two out of the configuration, or give it its own server (pg) or slot."))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.claims.all().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_busy_is_anothers_only_while_that_one_streams_with_it() {
        let claims = Claims::default();
        let shop = claims.for_slot("seawall").take(7, "shop");
        // A clone with a slot of the same name may be archived, and waits where its slot is another process's
        let clone = claims.for_slot("seawall").take(7, "clone");
        drop(shop);
        clone.busy().unwrap();
        // What is busy with another of this process is not waited for
        let shop = claims.for_slot("seawall").take(7, "shop");
        let refused = clone.busy().unwrap_err();
        assert!(refused.kind() == Kind::Refused && refused.to_string().contains("shop"), "{refused}");
        // Another slot, and another system, are nobody else's
        claims.for_slot("mail").take(7, "mail").busy().unwrap();
        claims.for_slot("seawall").take(8, "mail").busy().unwrap();
        drop((shop, clone));
        assert!(claims.all().is_empty());
    }
}
