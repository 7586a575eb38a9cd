//! The mark: what must be there, kept outside of sled because sled may lose its newest records without a word.

use std::{io, path::PathBuf};

use super::Position;
use crate::store::{StoreError, files::TwoSlots};

/// What the mark says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Entries up to here were synced.
    pub(super) synced: Option<Position>,
    /// Entries up to here are purged; they may still be in sled.
    pub(super) purged: Option<Position>,
    /// An entry known to be committed, never ahead of `synced`.
    pub(super) committed: Option<Position>,
}

/// Three positions, each a presence byte, term and index.
const LENGTH: usize = 3 * 17;

impl Mark {
    fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        for (at, position) in [self.synced, self.purged, self.committed].into_iter().enumerate() {
            if let Some(position) = position {
                let slot = &mut bytes[at * 17..][..17];
                slot[0] = 1;
                slot[1..9].copy_from_slice(&position.term.to_be_bytes());
                slot[9..].copy_from_slice(&position.index.to_be_bytes());
            }
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LENGTH {
            return None;
        }
        let position = |at: usize| -> Option<Option<Position>> {
            let slot = &bytes[at * 17..][..17];
            let term = u64::from_be_bytes(slot[1..9].try_into().ok()?);
            let index = u64::from_be_bytes(slot[9..].try_into().ok()?);
            match slot[0] {
                0 => Some(None),
                1 => Some(Some(Position { term, index })),
                _ => None,
            }
        };
        Some(Self { synced: position(0)?, purged: position(1)?, committed: position(2)? })
    }
}

#[derive(Debug)]
pub(super) struct MarkFile(TwoSlots);

impl MarkFile {
    pub(super) fn open(path: PathBuf) -> Result<(Self, Mark), StoreError> {
        let what = path.display().to_string();
        let (slots, record) = TwoSlots::open(path, *b"mark")?;
        let mark = match record {
            None => Mark::default(),
            Some(record) => {
                Mark::decode(&record).ok_or_else(|| StoreError::damaged(what, "it is not a mark"))?
            }
        };
        Ok((Self(slots), mark))
    }

    pub(super) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        self.0.write(&mark.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_nonsense_does_not() {
        let mark = Mark {
            synced: Some(Position { term: 2, index: 9 }),
            purged: None,
            committed: Some(Position { term: 1, index: 3 }),
        };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(Mark::decode(&[2; LENGTH]), None);
        assert_eq!(Mark::decode(&[0; LENGTH - 1]), None);
    }
}
