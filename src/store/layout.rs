//! The names in a data directory, and the `format` file: whether there is a log, whose, and in which format.
//!
//! The format file has two states. `creating`: vote, mark and log are about to be made, and hold nothing that was
//! ever promised, so a start makes them anew. `ready`: they are there, and one that is missing is a loss. Without the
//! two states a crash in the middle of the first start and the loss of a log would look the same.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    error::StoreError,
    files::{self, Decoder, Malformed},
};

/// The newest format of log, vote and mark that this release reads, and the one it writes.
const LOG_FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"LRDRFRMT";

pub(crate) fn identity(dir: &Path) -> PathBuf {
    dir.join("identity")
}
pub(crate) fn lock(dir: &Path) -> PathBuf {
    dir.join("lock")
}
pub(crate) fn format(dir: &Path) -> PathBuf {
    dir.join("format")
}
pub(crate) fn vote(dir: &Path) -> PathBuf {
    dir.join("vote")
}
pub(crate) fn mark(dir: &Path) -> PathBuf {
    dir.join("mark")
}
pub(crate) fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}
pub(crate) fn snapshots(dir: &Path) -> PathBuf {
    dir.join("snapshots")
}
/// Where a state is prepared that the directory is to adopt: a directory of its own, with `snapshots` in it.
pub(crate) fn recovered(dir: &Path) -> PathBuf {
    dir.join("recovered")
}
pub(crate) fn reserve(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

/// How far the log's creation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Vote, mark and log hold nothing yet.
    Creating,
    /// They exist.
    Ready,
}

/// The `format` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) stage: Stage,
    pub(crate) incarnation: Uuid,
}

impl Format {
    pub(crate) fn write(self, dir: &Path) -> Result<(), StoreError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&LOG_FORMAT.to_be_bytes());
        bytes.push(match self.stage {
            Stage::Creating => 0,
            Stage::Ready => 1,
        });
        bytes.extend_from_slice(self.incarnation.as_bytes());
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        files::replace(&format(dir), &bytes)
    }

    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = format(dir);
        let Some(bytes) = files::read_small(&path, 4096)? else { return Ok(None) };
        let damaged = || StoreError::damaged(&path, "its content is not a format record");
        let parse = || -> Result<(u32, u8, Uuid), Malformed> {
            let (body, _) = bytes.split_last_chunk::<4>().ok_or(Malformed)?;
            let mut decoder = Decoder::new(&bytes);
            if decoder.array()? != MAGIC {
                return Err(Malformed);
            }
            let version = decoder.u32()?;
            if version > LOG_FORMAT {
                // What follows is for that release to know.
                return Ok((version, 0, Uuid::nil()));
            }
            let stage = decoder.u8()?;
            let incarnation = Uuid::from_bytes(decoder.array()?);
            if decoder.u32()? != crc32c::crc32c(body) {
                return Err(Malformed);
            }
            decoder.end()?;
            Ok((version, stage, incarnation))
        };
        let (version, stage, incarnation) = parse().map_err(|Malformed| damaged())?;
        if version > LOG_FORMAT {
            return Err(StoreError::NewerFormat { path, found: version, known: LOG_FORMAT });
        }
        let stage = match stage {
            0 => Stage::Creating,
            1 => Stage::Ready,
            _ => return Err(damaged()),
        };
        Ok(Some(Self { stage, incarnation }))
    }
}

/// The first thing found of a log or of snapshots, which a directory without an identity must not have.
pub(crate) fn leftover(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    for path in [vote(dir), mark(dir), log(dir), recovered(dir)] {
        if path.exists() {
            return Ok(Some(path));
        }
    }
    let snapshots = snapshots(dir);
    match fs::read_dir(&snapshots) {
        Ok(mut entries) => Ok(entries.next().is_some().then_some(snapshots)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::Io { doing: "list", path: snapshots, source: e }),
    }
}

/// Removes vote, mark, log and snapshots. For a new incarnation only.
pub(crate) fn erase(dir: &Path) -> Result<(), StoreError> {
    for path in [log(dir), snapshots(dir), recovered(dir), mark(dir), vote(dir)] {
        files::remove(&path)?;
    }
    files::sync_dir(dir)
}
