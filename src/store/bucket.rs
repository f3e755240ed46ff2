//! What a store says of its own settings, as far as they can hurt or guard what is stored. Types only.

/// An answer about one setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told<T> {
    /// This is it.
    Is(T),
    /// These credentials may not look.
    NotAllowed,
    /// The store does not know the question.
    NotKnown,
}

impl<T> Told<T> {
    /// The answer, if there is one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Told::Is(answer) => Some(answer),
            Told::NotAllowed | Told::NotKnown => None,
        }
    }

    /// The answer to something else that follows from this one.
    pub fn map<U>(self, follows: impl FnOnce(T) -> U) -> Told<U> {
        match self {
            Told::Is(answer) => Told::Is(follows(answer)),
            Told::NotAllowed => Told::NotAllowed,
            Told::NotKnown => Told::NotKnown,
        }
    }
}

/// A bucket's settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketSettings {
    /// What is overwritten or deleted stays as an older version.
    pub versioned: Told<bool>,
    /// Versions can be locked; `None`: they cannot.
    pub lock: Told<Option<BucketLock>>,
    /// How what comes without saying so is encrypted, in the store's word; `None`: not at all.
    pub encryption: Told<Option<String>>,
    /// What would let anybody in is refused and ignored, by lists and by policies.
    pub blocks_public: Told<bool>,
    /// The bucket's policy lets anybody in.
    pub is_public: Told<bool>,
    /// The rules in force that touch a prefix.
    pub lifecycle: Told<Vec<LifecycleRule>>,
}

/// A bucket whose versions can be locked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketLock {
    /// What it does by itself with every object, tails included: `GOVERNANCE, 30 days`.
    pub default: Option<String>,
}

/// What a lifecycle rule does to what is below a prefix. Rules for objects with tags are none: ours have none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LifecycleRule {
    /// Its name.
    pub id: String,
    /// It deletes the objects that are there: `after 30 days`.
    pub expires: Option<String>,
    /// It moves them to where they cannot be read at once: the storage class, and when.
    pub archives: Option<String>,
    /// It clears away uploads that were never completed, everywhere below the prefix.
    pub aborts_uploads: bool,
    /// It deletes older versions, everywhere below the prefix, so many days after they became that.
    pub expires_versions: Option<i32>,
}
