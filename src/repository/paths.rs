//! Many paths in one piece of memory: a cluster of half a million relations has more than a million files, and each path in an
//! allocation of its own would take three times as much. Pure.

use super::file_path::FilePathRef;

/// Paths in the order in which they came: their bytes, back to back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Paths {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Paths {
    /// Adds one behind the others.
    pub(crate) fn push(&mut self, path: FilePathRef<'_>) {
        make_room(&mut self.bytes, path.as_bytes().len());
        make_room(&mut self.ends, 1);
        self.bytes.extend_from_slice(path.as_bytes());
        self.ends.push(self.bytes.len());
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The one in this place, from 0.
    pub(crate) fn get(&self, place: usize) -> Option<FilePathRef<'_>> {
        let end = *self.ends.get(place)?;
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(FilePathRef::of_checked(&self.bytes[start..end]))
    }
}

/// Makes room for `more` in a list that may become long. A long one gets so much at once that the allocator asks the system
/// for it (glibc does from 32 MiB on, whatever it has learned): it then grows without being copied, and is given back when it
/// ends. In steps that double, what it leaves behind in the heap is as large as itself. Room that is not used takes no memory.
pub(crate) fn make_room<T>(list: &mut Vec<T>, more: usize) {
    const SHORT_BYTES: usize = 1 << 20;
    const STEP_BYTES: usize = 48 << 20;
    let item_bytes = size_of::<T>().max(1);
    if list.capacity() - list.len() < more && list.len().saturating_add(more) > SHORT_BYTES / item_bytes {
        list.reserve_exact(more.max(STEP_BYTES / item_bytes));
    }
}

/// The places of [`Paths`] in the order of the paths: to find one by its path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PathOrder(Vec<usize>);

impl PathOrder {
    /// Orders `paths`, to which nothing is added afterwards.
    ///
    /// # Errors
    /// The place of one that is there twice.
    pub(crate) fn of(paths: &Paths) -> Result<PathOrder, usize> {
        let mut places: Vec<usize> = (0..paths.len()).collect();
        places.sort_unstable_by_key(|&place| paths.get(place));
        match places.windows(2).find(|pair| paths.get(pair[0]) == paths.get(pair[1])) {
            Some(twice) => Err(twice[0]),
            None => Ok(PathOrder(places)),
        }
    }

    /// The place of `path` in `paths`, of which this is the order.
    pub(crate) fn find(&self, paths: &Paths, path: FilePathRef<'_>) -> Option<usize> {
        let found = self.0.binary_search_by_key(&Some(path), |&place| paths.get(place));
        found.ok().map(|at| self.0[at])
    }

    /// The places, by their paths.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::FilePath;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn paths(names: &[String]) -> Paths {
        let mut paths = Paths::default();
        names.iter().for_each(|name| paths.push(FilePath::parse(name.as_bytes()).unwrap().view()));
        paths
    }

    proptest! {
        #[test]
        fn each_path_is_found_in_its_place_and_no_other_is(
            names in prop::collection::hash_set("[a-c]{1,3}", 0..30),
            others in prop::collection::vec("[a-c]{1,4}", 0..10),
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let paths = paths(&names);
            let order = PathOrder::of(&paths).unwrap();
            let known: HashMap<&String, usize> = names.iter().enumerate().map(|(place, name)| (name, place)).collect();
            prop_assert!((0..).map_while(|place| paths.get(place)).map(|path| path.to_string()).eq(names.iter().cloned()));
            for name in names.iter().chain(&others) {
                let path = FilePath::parse(name.as_bytes()).unwrap();
                prop_assert_eq!(order.find(&paths, path.view()), known.get(name).copied());
            }
            let ordered: Vec<_> = order.places().map(|place| paths.get(place)).collect();
            prop_assert!(ordered.is_sorted());
        }

        #[test]
        fn a_path_that_is_there_twice_is_named(mut names in prop::collection::vec("[a-c]{1,3}", 1..20), twice: usize, at: usize) {
            let twice = names[twice % names.len()].clone();
            names.insert(at % (names.len() + 1), twice);
            let paths = paths(&names);
            let place = PathOrder::of(&paths).unwrap_err();
            let found = paths.get(place).unwrap();
            prop_assert!((0..paths.len()).filter(|place| paths.get(*place) == Some(found)).count() > 1);
        }
    }
}
