//! Which cluster streams with which slot of which server, among the archivers of one process. The file cannot say it where two
//! addresses are of one server; the server can, when it names the process that has a slot which is busy. Clones of a server have its
//! identifier and may have its slots' names, and each may be archived: their processes are not the same.

use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// By system identifier, slot and cluster.
type Key = (u64, String, String);

/// What the archivers of a process stream, or are about to. Clones are one.
#[derive(Clone, Default, Debug)]
pub struct Claims(Arc<Mutex<Known>>);

#[derive(Default, Debug)]
struct Known {
    /// With the server's process for each.
    streams: BTreeMap<Key, Option<u32>>,
    /// Clusters that were found to be others' servers under another name, and whose.
    twins: BTreeMap<Key, String>,
}

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

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole after each step: a panic elsewhere changes nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// `cluster` is about to stream from the system, by this process of its server.
    ///
    /// # Errors
    /// As [`Claimed::busy`], if that was found before: whatever became of the other's connection, the slot is the other's.
    pub(super) fn take(&self, system_identifier: u64, cluster: &str, backend: Option<u32>) -> Result<Claimed> {
        let key = (system_identifier, self.slot.clone(), cluster.to_owned());
        let mut known = self.claims.known();
        if let Some(other) = known.twins.get(&key) {
            return Err(refused(&key, other));
        }
        known.streams.insert(key.clone(), backend);
        Ok(Claimed { claims: self.claims.clone(), key })
    }
}

impl Claimed {
    /// The slot is busy: `holder` is the server's process that has it, if it says so.
    ///
    /// # Errors
    /// Of kind `Refused`, if that is the process of another cluster's stream: then waiting as a hot spare would archive nothing, and
    /// later the other's WAL.
    pub(super) fn busy(&self, holder: Option<u32>) -> Result<()> {
        let (system, slot, cluster) = &self.key;
        let mut known = self.claims.known();
        let is_other = |((its, name, other), backend): &(&Key, &Option<u32>)| {
            its == system && name == slot && other != cluster && **backend == holder
        };
        let other =
            known.streams.iter().filter(|_| holder.is_some()).find(is_other).map(|((.., other), _)| other.clone());
        let Some(other) = other else { return Ok(()) };
        let error = refused(&self.key, &other);
        known.twins.insert(self.key.clone(), other);
        Err(error)
    }
}

fn refused((_, slot, _): &Key, other: &str) -> Error {
    let what = format!("the server is the one that cluster {other} archives already, with the same slot, {slot}");
    Error::new(Kind::Refused, what).hint(
        "Take one of the two out of the configuration, or give it its own server (pg) or slot, and start the process again.",
    )
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.claims.known().streams.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_anothers_if_the_server_names_that_ones_process() {
        let claims = Claims::default();
        let shop = claims.for_slot("seawall").take(7, "shop", Some(100)).unwrap();
        // A clone with a slot of the same name waits where its slot is an older connection's of its own, or another machine's
        let clone = claims.for_slot("seawall").take(7, "clone", Some(200)).unwrap();
        clone.busy(Some(300)).unwrap();
        clone.busy(None).unwrap();
        shop.busy(Some(50)).unwrap();
        // What shop has is not waited for, nor taken when shop's connection breaks
        let twin = claims.for_slot("seawall").take(7, "twin", Some(101)).unwrap();
        let first = twin.busy(Some(100)).unwrap_err();
        drop((twin, shop));
        let later = claims.for_slot("seawall").take(7, "twin", Some(102)).unwrap_err();
        for error in [first, later] {
            assert!(error.kind() == Kind::Refused && error.to_string().contains("shop"), "{error}");
        }
        // Another slot, and another system, are nobody else's
        claims.for_slot("mail").take(7, "mail", Some(1)).unwrap().busy(Some(200)).unwrap();
        claims.for_slot("seawall").take(8, "mail", Some(1)).unwrap().busy(Some(200)).unwrap();
        drop(clone);
        assert!(claims.known().streams.is_empty());
    }
}
