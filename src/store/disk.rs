//! How full the disk is.

use std::{fs, path::Path};

/// Bytes of all files below a directory; what cannot be read counts as nothing.
pub(super) fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
            Ok(meta) => {
                use std::os::unix::fs::MetadataExt;
                // What the file takes, not how long it is: sled's has holes.
                meta.blocks() * 512
            }
            Err(_) => 0,
        })
        .sum()
}

/// Bytes free for us on the file system of a directory; `None` if the system does not say.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
