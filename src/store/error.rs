//! What can be wrong with a data directory, each with a sentence that says what to do.
//!
//! None of these is retried: a directory that cannot be trusted, or a disk that fails, stops the node.

use std::{
    io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// Why the store does not open, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}; check the disk, its space and the permissions", .path.display())]
    Io {
        /// What was tried, as in "cannot ...".
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else has the directory open.
    #[error(
        "another process uses the data directory {}: stop it, or give this node a directory of its own",
        .dir.display()
    )]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// It was told by its cluster that it is an older start, or a copy, of a member's directory.
    #[error(
        "the data directory {} is an older state or a copy of a member's of cluster {cluster}, which told it so: a directory is a member and \
         must not be copied or rolled back; give this node an empty directory, and it joins as a new member",
        .dir.display()
    )]
    Superseded {
        /// The data directory.
        dir: PathBuf,
        /// The cluster.
        cluster: super::ClusterId,
    },
    /// Written by a later release.
    #[error(
        "{} has format {found}, and this release reads up to {known}: start the release that wrote it, or a later one",
        .path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format it says.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The content is not what was written.
    #[error(
        "{} is damaged: {why}; do not start this node on this directory again: give it an empty one, so that it becomes \
         a new member, and keep the old one until the cluster is whole",
        .path.display()
    )]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Entries that were synced are not there.
    #[error(
        "the log in {} lost entries {first_missing} to {last_synced}, which were on disk before ({found}): its disk \
         lost or damaged data; do not start this node on this directory again: give it an empty one, so that it \
         becomes a new member, and keep the old one until the cluster is whole",
        .path.display()
    )]
    BelowMark {
        /// The log's directory.
        path: PathBuf,
        /// The first entry that is not there, or not whole.
        first_missing: u64,
        /// Up to where entries were synced.
        last_synced: u64,
        /// What is in place of the missing entry.
        found: String,
    },
    /// A file that must be there is not.
    #[error(
        "{} is missing, but {}: what this member promised and stored is not all there; restore the whole directory, or \
         give the node an empty one, so that it becomes a new member",
        .path.display(), .why
    )]
    Missing {
        /// What is missing.
        path: PathBuf,
        /// Why it must be there.
        why: String,
    },
    /// The directory belongs to another slot.
    #[error(
        "the data directory {} belongs to slot {recorded}, and this node was started as slot {asked}: start it with \
         --slot {recorded}, or give slot {asked} its own directory",
        .dir.display()
    )]
    OtherSlot {
        /// The data directory.
        dir: PathBuf,
        /// Whose it is.
        recorded: String,
        /// Who asked.
        asked: String,
    },
    /// A file belongs to another incarnation: it was copied here.
    #[error(
        "{} belongs to incarnation {found}, and this directory is incarnation {expected}: files of two members are \
         mixed; restore the whole directory, or give the node an empty one, so that it becomes a new member",
        .path.display()
    )]
    OtherIncarnation {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: Uuid,
        /// Whose directory this is.
        expected: Uuid,
    },
    /// What was asked to be stored does not fit.
    #[error("{0}")]
    TooLarge(String),
}

impl StoreError {
    /// An [`StoreError::Io`], for `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    /// A [`StoreError::Damaged`].
    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }
}

impl From<StoreError> for crate::error::Error {
    fn from(error: StoreError) -> Self {
        Self::Storage(error.to_string())
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. } => source.kind(),
            StoreError::TooLarge(_) => io::ErrorKind::InvalidInput,
            StoreError::InUse { .. } => io::ErrorKind::ResourceBusy,
            StoreError::NewerFormat { .. } => io::ErrorKind::Unsupported,
            StoreError::Missing { .. } => io::ErrorKind::NotFound,
            StoreError::Damaged { .. }
            | StoreError::BelowMark { .. }
            | StoreError::Superseded { .. }
            | StoreError::OtherSlot { .. }
            | StoreError::OtherIncarnation { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}
