//! A disk whose power can be cut: an ext4 image on a loop mount.
//!
//! The cut is `EXT4_IOC_SHUTDOWN` without flushing the journal: what was synced is on the image, all else is lost with
//! the mount. Nothing reaches the disk between the cut and the next mount, whatever the node still tries.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The size of an image unless said otherwise; sparse, so it takes what is written.
const SIZE: &str = "512M";

/// `EXT4_IOC_SHUTDOWN` with flag 2, `NOLOGFLUSH`. In Python, as Rust could only do it by unsafe code.
const CUT: &str = "
import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))
";

/// What this machine lacks for a power cut; `None` if it has everything. Tries it out.
pub fn missing() -> Option<String> {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let tried = Disk::create(home.path(), "try").and_then(|disk| disk.cut());
    tried.err().map(|why| format!("it needs root, loop mounts of ext4, mkfs.ext4 and python3: {why}"))
}

/// A mounted image. Dropping it unmounts it.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    /// Where it is mounted.
    pub mount: PathBuf,
}

impl Disk {
    /// Makes an image in `home` and mounts it.
    pub fn create(home: &Path, name: &str) -> Result<Self, String> {
        Self::sized(home, name, SIZE)
    }

    /// The same with another size, as `truncate` takes it.
    pub fn sized(home: &Path, name: &str, size: &str) -> Result<Self, String> {
        let (image, mount) = (home.join(format!("{name}.img")), home.join(format!("{name}.mnt")));
        std::fs::create_dir_all(&mount).map_err(|e| e.to_string())?;
        run("truncate", &["-s", size, path(&image)])?;
        run("mkfs.ext4", &["-q", path(&image)])?;
        let disk = Self { image, mount };
        disk.mount()?;
        Ok(disk)
    }

    /// Mounts the image, replaying its journal.
    pub fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", path(&self.image), path(&self.mount)])
    }

    /// The power is gone.
    pub fn cut(&self) -> Result<(), String> {
        run("python3", &["-c", CUT, path(&self.mount)])
    }

    /// The power is back: what uses the mount must be dead. Unmounts what is left, and mounts anew.
    pub fn restore(&self) -> Result<(), String> {
        run("umount", &[path(&self.mount)])?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazy: also while a process that is about to die holds it.
        let _ = run("umount", &["-l", path(&self.mount)]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("paths of this test are UTF-8")
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program} {}: {}",
        args.last().unwrap_or(&""),
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
