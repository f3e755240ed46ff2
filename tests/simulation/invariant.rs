//! What must be true whatever happens, each by the name that a failure prints.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Invariant {
    /// The byte before an acknowledged position is stored (clause 1 of the promise).
    AcknowledgedIsStored,
    /// So is every byte before it, without a gap but for what is recorded as lost (clause 1).
    AcknowledgedIsGapFree,
    /// What is told to one server about one timeline never falls (clause 1).
    AcknowledgementNeverFalls,
    /// A name never gets second bytes, and never shows a part (clause 3).
    NameKeepsItsBytes,
    /// Every stored byte is the server's (rule 1).
    StoredIsTheServers,
    /// Of a server that went its own way nothing is stored beside what it contradicts, and nothing acknowledged (rule 9).
    DivergenceIsFoundFirst,
    /// A timeline's history is stored before its first byte (rule 10).
    HistoryComesFirst,
    /// A timeline is acknowledged only when the one that it left is complete up to there (rule 10).
    ParentIsFinished,
    /// Only a tail is ever deleted, and only inside one object that is there (rules 3 and 7).
    OnlyGarbageIsDeleted,
    /// Lost WAL is recorded before anything behind it is acknowledged (clause 5).
    HoleIsNotSilent,
    /// Nothing is recorded as lost that the server still has.
    HoleIsReal,
    /// From every finished backup a restore reaches everything that was acknowledged on its path, and reads the bytes of
    /// the history that was acknowledged (clause 2).
    AcknowledgedRestores,
    /// Any other target is planned completely, or refused with the first position that is missing (clause 4).
    RefusalNamesWhatIsMissing,
    /// Of two archivers at most one moves the slot (rule 8).
    OneMovesTheSlot,
    /// A stop with a healthy store leaves nothing received that is not stored and acknowledged.
    StopLeavesNothing,
    /// Whatever ended is begun again: with everything healthy the archiver catches up, and never hammers on the server.
    GoesOn,
}

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}
