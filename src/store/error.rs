//! Why a data directory cannot be used. Every message says what to do.

use std::{io, path::PathBuf};

/// What is wrong with what is on disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system said no.
    #[error("{what}: {source}; check the disk, its space and the permissions of the data directory")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something is not what was written.
    #[error(
        "{what} is damaged ({why}); restore this disk, or empty the data directory so that the node comes back as a new member"
    )]
    Damaged {
        /// Which file or record.
        what: String,
        /// What does not fit.
        why: String,
    },
    /// Entries that were synced are gone.
    #[error(
        "the log is synced up to entry {synced} but only reads back up to {found}: entries that this node acknowledged are lost; \
         empty the data directory so that the node comes back as a new member, it must not vote with what is left"
    )]
    Lost {
        /// What the mark says.
        synced: u64,
        /// The last whole entry, `none` if there is none.
        found: String,
    },
    /// Another node's.
    #[error("{path} belongs to {theirs}, not to {ours}; give this node its own --data-dir")]
    Foreign {
        /// The directory or file.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who asks.
        ours: String,
    },
    /// Written by a later release.
    #[error(
        "{what} has format {found}, this release reads up to {known}; run the release that wrote it, or a later one"
    )]
    NewerFormat {
        /// Which file.
        what: String,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process; stop that one first, or choose another --data-dir")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl StoreError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(super) fn damaged(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged { what: what.into(), why: why.into() }
    }
}
