//! `init-dir`: a data directory that belongs to the node's user, where something else makes it for root.
//!
//! For kubelet's hostPath volumes, which know no fsGroup. It runs as root with the capability CHOWN and no other, so it takes the directory
//! before it changes the mode, and never needs to read it. What is in it is left alone: the node made it.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, fstat},
    io::Errno,
};
use serde_json::json;

use super::{Failure, Printer};

/// The mode of a data directory: its owner's alone.
const MODE: u32 = 0o700;

/// Make a data directory that belongs to the node's user; for an init container.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The directory is made if it is not there, given to the owner, and closed to everybody else (mode 0700). What is in it is
left alone. A symbolic link is refused. To be run as root; of the capabilities, CHOWN is enough.

Examples:
  larder init-dir /var/lib/larder --owner 65532
  larder init-dir /var/lib/larder --owner 65532:65532")]
pub struct InitDirArgs {
    /// The directory.
    pub dir: PathBuf,
    /// The number of the user, and of the group if it is another.
    #[arg(long, env = "LARDER_INIT_DIR_OWNER", value_name = "UID[:GID]")]
    pub owner: Owner,
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl FromStr for Owner {
    type Err = String;

    /// Reads `UID` or `UID:GID`; the group of a user alone has the same number.
    fn from_str(text: &str) -> Result<Self, String> {
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        // The highest number means "leave it as it is" to the kernel.
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
        match (number(uid), number(gid)) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => Err("write numbers, as in 65532 or 65532:65532".into()),
        }
    }
}

/// `init-dir`.
///
/// # Errors
/// If it cannot be made, is no directory, or cannot be given away.
pub(super) fn run(printer: Printer, args: &InitDirArgs) -> Result<(), Failure> {
    let InitDirArgs { dir, owner } = args;
    let changed = prepare(dir, *owner).map_err(|(what, error)| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "; run it as root, with the capability CHOWN",
            _ => "",
        };
        Failure::Io { what: format!("{} {what}{hint}", dir.display()), error }
    })?;
    if printer.is_json() {
        let Owner { uid, gid } = owner;
        return printer.json(&json!({ "dir": dir, "uid": uid, "gid": gid, "changed": changed }));
    }
    let what = if changed { "belongs to" } else { "belongs already to" };
    printer.note(&format!("{} {what} {}:{}", dir.display(), owner.uid, owner.gid));
    Ok(())
}

/// Makes the directory as it should be, and says whether it was not.
fn prepare(dir: &Path, owner: Owner) -> Result<bool, (&'static str, io::Error)> {
    let made = make(dir).map_err(|error| ("cannot be made", error))?;
    let fd = open(dir).map_err(|error| ("cannot be used", error))?;
    let stat = fstat(&fd).map_err(|error| ("cannot be looked at", error.into()))?;
    let owned = stat.st_uid == owner.uid && stat.st_gid == owner.gid;
    let closed = stat.st_mode & 0o7777 == MODE;
    if owned && closed {
        return Ok(made);
    }
    if !closed {
        // Without the capability FOWNER only the owner changes a mode, so it is ours for a moment.
        let me = rustix::process::geteuid();
        if stat.st_uid != me.as_raw() {
            give(&fd, me, Gid::from_raw(stat.st_gid)).map_err(|error| ("cannot be taken", error))?;
        }
        close(&fd).map_err(|error| ("cannot be closed to others", error))?;
    }
    give(&fd, Uid::from_raw(owner.uid), Gid::from_raw(owner.gid))
        .map_err(|error| ("cannot be given to its owner", error))?;
    Ok(true)
}

/// Makes the directory and those above it, and says whether it was not there.
fn make(dir: &Path) -> io::Result<bool> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(MODE).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}

/// The directory itself, without the right to read it, and without following a link.
fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOTDIR | Errno::LOOP => io::Error::new(
            io::ErrorKind::NotADirectory,
            "it is no directory, or a symbolic link; name a directory",
        ),
        error => error.into(),
    })
}

fn give(fd: &OwnedFd, uid: Uid, gid: Gid) -> io::Result<()> {
    Ok(chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Through /proc, because a descriptor that may not read may not change a mode either.
fn close(fd: &OwnedFd) -> io::Result<()> {
    fs::set_permissions(format!("/proc/self/fd/{}", fd.as_raw_fd()), Permissions::from_mode(MODE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn me() -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// Its owner, group and mode.
    fn facts(path: &Path) -> (u32, u32, u32) {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    }

    #[test]
    fn owners_are_numbers() {
        assert_eq!("65532".parse(), Ok(Owner { uid: 65532, gid: 65532 }));
        assert_eq!("1000:0".parse(), Ok(Owner { uid: 1000, gid: 0 }));
        for wrong in ["", "larder", "1:", ":1", "-1", "1:2:3", "4294967295"] {
            assert!(wrong.parse::<Owner>().unwrap_err().contains("65532:65532"), "{wrong:?}");
        }
    }

    #[test]
    fn a_directory_is_made_closed_and_given_away() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        assert!(prepare(&dir, me()).unwrap());
        assert_eq!(facts(&dir), (me().uid, me().gid, MODE));
        assert!(!prepare(&dir, me()).unwrap(), "it is as it should be");
        fs::set_permissions(&dir, Permissions::from_mode(0o2755)).unwrap();
        assert!(prepare(&dir, me()).unwrap());
        assert_eq!(facts(&dir), (me().uid, me().gid, MODE));
        // To another user: root can, everybody else is told.
        let other = Owner { uid: 65532, gid: 65533 };
        match prepare(&dir, other) {
            Ok(changed) => {
                assert!(changed && me().uid == 0);
                assert_eq!(facts(&dir), (65532, 65533, MODE));
                fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
                assert!(prepare(&dir, other).unwrap());
                assert_eq!(facts(&dir), (65532, 65533, MODE));
            }
            Err((_, error)) => {
                assert!(me().uid != 0 && error.kind() == io::ErrorKind::PermissionDenied, "{error}");
            }
        }
    }

    #[test]
    fn links_and_files_are_refused_and_stay_as_they_are() {
        let root = tempfile::tempdir().unwrap();
        let (target, link, file) =
            (root.path().join("target"), root.path().join("link"), root.path().join("file"));
        fs::create_dir(&target).unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o755)).unwrap();
        symlink(&target, &link).unwrap();
        fs::write(&file, "").unwrap();
        for wrong in [&link, &file] {
            let (_, error) = prepare(wrong, me()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{error}");
        }
        assert_eq!(facts(&target).2, 0o755);
    }
}
