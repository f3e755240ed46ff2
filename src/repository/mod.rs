//! Names, documents, what is there.
