//! A frozen view of all keys, for reads that take longer than a lock may be held.

use std::ops::Bound;

use super::{Versioned, keyspace::Keyspace};
use crate::time::UnixMillis;

/// All keys as of one revision. Costs nothing to make or to clone, and holds on to the values of then as long as it
/// lives: drop it when done.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub(super) keyspace: Keyspace,
    pub(super) revision: u64,
    pub(super) clock: UnixMillis,
}

impl View {
    /// The revision it was taken at.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The replicated clock then.
    pub fn clock(&self) -> UnixMillis {
        self.clock
    }

    /// How many keys there are.
    pub fn keys(&self) -> u64 {
        self.keyspace.keys()
    }

    /// One key.
    pub fn get(&self, key: &[u8]) -> Option<&Versioned> {
        self.keyspace.get(key)
    }

    /// The keys that begin with `prefix` and come after `start_after`, in key order. Empty means all, and from the first.
    pub fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        start_after: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a Versioned)> + use<'a> {
        let start = if start_after < prefix { Bound::Included(prefix) } else { Bound::Excluded(start_after) };
        self.keyspace.iter_from(start).take_while(move |(key, _)| key.starts_with(prefix))
    }
}
