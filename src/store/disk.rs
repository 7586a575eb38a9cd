//! Room on the disk: refuse writes before the disk is full, and keep a little back for when it is.
//!
//! sled's first "no space left" is final until the next start, so it must never meet one. [`SpaceWatch`] looks at the
//! filesystem's free space a few times a second; below the watermark `ok` is false, and writes are refused with a typed
//! error above (reads, votes and applying go on). It turns true by itself when there is room again, a little above the
//! watermark, so that it does not flutter.
//!
//! The reserve is a small file with real blocks. When less than its size is free (others share the filesystem), it is
//! given back, so that what must still be written (an identity, a purge, sled's own housekeeping) finds room; it is
//! made again when there is plenty.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustix::fs::FallocateFlags;

use super::layout;

/// When to refuse writes, and how much to keep back. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpacePolicy {
    /// Below so much free space writes are refused.
    pub watermark: u64,
    /// The size of the reserve file; 0 for none.
    pub reserve: u64,
}

impl SpacePolicy {
    /// The default for the filesystem of `dir`: a watermark of a twentieth of it, at least 16 MiB and at most 256 MiB,
    /// and a reserve of 10 MiB. Both hold a segment of the log (8 MiB): a write may begin one, and so does a start, which also writes a
    /// few small files.
    ///
    /// # Errors
    /// The filesystem's.
    pub fn for_dir(dir: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(dir)?;
        let watermark = (stat.f_blocks.saturating_mul(stat.f_frsize) / 20).clamp(16 << 20, 256 << 20);
        Ok(Self { watermark, reserve: 10 << 20 })
    }
}

/// The free bytes of the filesystem of `dir`, as far as an ordinary user may have them.
///
/// # Errors
/// The filesystem's.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Where [`SpaceWatch`] learns the free bytes from; tests bend it.
pub type SpaceProbe = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// Watches the free space of a data directory.
pub struct SpaceWatch {
    dir: PathBuf,
    policy: SpacePolicy,
    probe: SpaceProbe,
    ok: AtomicBool,
}

impl SpaceWatch {
    /// A watch that has looked once.
    pub fn new(dir: &Path, policy: SpacePolicy, probe: Option<SpaceProbe>) -> Self {
        let probe = probe.unwrap_or_else(|| Arc::new(free_bytes));
        let watch = Self { dir: dir.to_owned(), policy, probe, ok: AtomicBool::new(true) };
        watch.check();
        watch
    }

    /// Whether there is room for writes, as of the last look.
    pub fn ok(&self) -> bool {
        self.ok.load(Relaxed)
    }

    /// Whether a file of `bytes`, which makes others superfluous once it is whole, may be written now: half the watermark stays
    /// free beside it. It may also where writes are refused already, because it is what lets the log be purged.
    pub fn fits(&self, bytes: u64) -> bool {
        // A filesystem that does not answer is no reason never to write it.
        (self.probe)(&self.dir).map_or(true, |free| free >= bytes.saturating_add(self.policy.watermark / 2))
    }

    /// Looks, and gives back or makes the reserve. Called a few times a second.
    pub fn check(&self) {
        // A filesystem that does not answer says nothing about space; the next sync says what is wrong with it.
        let Ok(free) = (self.probe)(&self.dir) else { return };
        let SpacePolicy { watermark, reserve } = self.policy;
        let was_ok = self.ok();
        let resume_at = watermark.saturating_add(watermark / 8);
        let is_ok = free >= if was_ok { watermark } else { resume_at };
        if is_ok != was_ok {
            self.ok.store(is_ok, Relaxed);
            if is_ok {
                tracing::info!(free, watermark, "there is room on the disk again; writes are taken");
            } else {
                tracing::error!(free, watermark, dir = %self.dir.display(),
                    "too little room on the disk; writes are refused until there is more");
            }
        }
        let path = layout::reserve(&self.dir);
        if free < reserve {
            // Not there: it was given back before.
            let _ = fs::remove_file(&path);
        } else if reserve > 0
            && free >= resume_at.saturating_add(reserve)
            && !path.exists()
            && let Err(error) = make_reserve(&path, reserve)
        {
            tracing::warn!(%error, "cannot make the reserve file");
            let _ = fs::remove_file(&path);
        }
    }
}

/// Gives the reserve back if less than its size is free. For a start: it writes the identity and opens the log before anybody watches the
/// space, on a disk that may have become full meanwhile.
pub(super) fn make_room(dir: &Path) {
    let path = layout::reserve(dir);
    if let (Ok(free), Ok(reserve)) = (free_bytes(dir), fs::metadata(&path))
        && free < reserve.len()
    {
        tracing::warn!(free, reserve = reserve.len(), "the disk is nearly full; giving back the reserve");
        let _ = fs::remove_file(&path);
    }
}

/// A file with real blocks.
fn make_reserve(path: &Path, size: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeros = vec![0; 64 * 1024];
            let mut left = size;
            while left > 0 {
                let now = left.min(zeros.len() as u64);
                file.write_all(&zeros[..now as usize])?;
                left -= now;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn writes_stop_below_the_watermark_and_resume_by_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(10_000));
        let probe: SpaceProbe = {
            let free = free.clone();
            Arc::new(move |_| Ok(free.load(Relaxed)))
        };
        let watch = SpaceWatch::new(dir.path(), SpacePolicy { watermark: 800, reserve: 100 }, Some(probe));
        let reserve = layout::reserve(dir.path());
        let look = |bytes| {
            free.store(bytes, Relaxed);
            watch.check();
            (watch.ok(), reserve.exists())
        };
        assert_eq!(look(10_000), (true, true));
        assert_eq!(look(800), (true, true));
        assert_eq!(look(799), (false, true));
        assert_eq!(look(99), (false, false), "the reserve is given back");
        assert_eq!(look(850), (false, false), "no flutter");
        assert_eq!(look(900), (true, false));
        assert_eq!(look(1_000), (true, true), "and made again");
        assert_eq!(fs::metadata(&reserve).unwrap().len(), 100);
    }

    #[test]
    fn what_makes_room_may_be_written_below_the_watermark_but_never_to_the_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(700));
        let probe: SpaceProbe = {
            let free = free.clone();
            Arc::new(move |_| Ok(free.load(Relaxed)))
        };
        let watch = SpaceWatch::new(dir.path(), SpacePolicy { watermark: 800, reserve: 0 }, Some(probe));
        assert!(!watch.ok(), "writes are refused");
        assert_eq!([299, 300, 301].map(|bytes| watch.fits(bytes)), [true, true, false]);
        assert!(!watch.fits(u64::MAX));
        // A small volume: a snapshot that fits is taken.
        free.store(60 << 20, Relaxed);
        assert!(watch.fits(20 << 20));
    }

    #[test]
    fn the_default_suits_the_filesystem() {
        let dir = tempfile::tempdir().unwrap();
        let policy = SpacePolicy::for_dir(dir.path()).unwrap();
        assert!((16 << 20..=256 << 20).contains(&policy.watermark));
        assert!(free_bytes(dir.path()).unwrap() > 0);
    }
}
