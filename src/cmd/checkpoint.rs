//! How far a `load` came: `FILE.larder-progress` beside the file.
//!
//! It counts only if the file is the same (length, time of change, beginning) and the cluster too; otherwise the load
//! begins at the start, which is safe as well: setting a key to the same value again changes nothing but its version.
//! Replaced as a whole by a rename, so that it is never half written.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How much of a file's beginning tells it from others.
const BEGINNING_BYTES: u64 = 64 * 1024;

/// The longest checkpoint that is read.
const MAX_BYTES: u64 = 16 * 1024;

/// The version of the record.
const VERSION: u32 = 1;

/// Which file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileIdentity {
    length: u64,
    modified_ns: u64,
    beginning_sha256: String,
}

/// How far it is loaded, without a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Lines done.
    pub(super) lines: u64,
    /// Where the next one begins, in bytes.
    pub(super) offset: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    cluster_id: String,
    file: FileIdentity,
    position: Position,
}

/// A file's checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    cluster_id: String,
    file: FileIdentity,
}

impl FileIdentity {
    /// Reads the beginning of a file, from wherever it stands: best before anything else is read.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut beginning = Vec::new();
        file.take(BEGINNING_BYTES).read_to_end(&mut beginning)?;
        let digest = Sha256::digest(&beginning);
        Ok(Self {
            length: metadata.len(),
            modified_ns: u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX),
            beginning_sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// The file's length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

impl Checkpoint {
    pub(super) fn new(of: &Path, file: FileIdentity, cluster_id: String) -> Self {
        let mut path = of.as_os_str().to_owned();
        path.push(".larder-progress");
        Self { path: path.into(), cluster_id, file }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where to go on, and if there is a checkpoint that does not count, why.
    pub(super) fn read(&self) -> Result<Option<Position>, String> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("it cannot be read ({error})")),
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut text)
            .map_err(|error| format!("it cannot be read ({error})"))?;
        let record: Record =
            serde_json::from_slice(&text).map_err(|error| format!("it is damaged ({error})"))?;
        if record.version != VERSION {
            return Err(format!("it has version {}, this release writes {VERSION}", record.version));
        }
        if record.cluster_id != self.cluster_id {
            return Err(format!("it is of the cluster {}", record.cluster_id));
        }
        if record.file != self.file || record.position.offset > self.file.length {
            return Err("the file was changed since".into());
        }
        Ok(Some(record.position))
    }

    pub(super) fn write(&self, position: Position) -> io::Result<()> {
        let record = Record {
            version: VERSION,
            cluster_id: self.cluster_id.clone(),
            file: self.file.clone(),
            position,
        };
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        fs::write(&new, serde_json::to_vec(&record)?)?;
        fs::rename(&new, &self.path)
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
