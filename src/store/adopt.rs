//! A data directory goes over to a state that was made of its own: a new member of a new cluster.
//!
//! # Flow
//! 1. The state is written as the snapshot of the new incarnation, in `recovered/`, and synced ([`begin`]).
//! 2. It is read once more ([`prepared`]). Up to here the directory is the old member's, whole and untouched.
//! 3. The identity is replaced by the new one, marked as adopting. From here on nobody can act under the old one.
//! 4. Log, vote, mark and snapshots of the old one go, the new snapshot takes their place, and a log is made that is empty and
//!    goes on behind it ([`finish`]).
//! 5. The identity loses its mark.
//!
//! # Invariants
//! - After a crash at any point the directory is whole: the old member's before step 3, the new one's after the next start.
//! - Each step of [`finish`] may be done again, whatever of it was done before.
//!
//! # Not here
//! What the state is and why it is made (`cluster`, `raft`), and the identity record itself ([`super::identity`]).

use std::{fs, path::Path, sync::mpsc};

use uuid::Uuid;

use super::{
    Binding, ClusterId, Identity, Log, LogOptions, Position, SnapshotFile, Snapshots, VoteRecord,
    error::StoreError,
    files,
    layout::{self, Format, Stage},
};

/// The place for the state that the directory is to adopt as the incarnation `fresh`. What was left of an earlier try is removed.
pub(super) fn begin(dir: &Path, fresh: Uuid, group: u32) -> Result<Snapshots, StoreError> {
    discard(dir)?;
    Snapshots::open(&layout::recovered(dir), fresh, group)
}

/// Removes what was prepared and never adopted.
pub(super) fn discard(dir: &Path) -> Result<(), StoreError> {
    files::remove(&layout::recovered(dir))
}

/// Makes sure that what was prepared can be adopted: there, readable to its end, and of this incarnation and cluster.
pub(super) fn prepared(dir: &Path, fresh: Uuid, cluster: ClusterId) -> Result<(), StoreError> {
    let (file, _) = snapshot_in(&layout::recovered(dir), fresh, cluster)?;
    file.raw_blocks().try_for_each(|block| block.map(drop))
}

/// The newest snapshot below `dir`, and the position it was taken at.
fn snapshot_in(
    dir: &Path,
    incarnation: Uuid,
    cluster: ClusterId,
) -> Result<(SnapshotFile, Position), StoreError> {
    let Some(file) = Snapshots::find(dir, incarnation)? else {
        let why = "the directory is to begin with a recovered state".into();
        return Err(StoreError::Missing { path: layout::snapshots(dir), why });
    };
    if file.meta().cluster != cluster {
        return Err(StoreError::damaged(file.path(), format!("it is not of the cluster {cluster}")));
    }
    let Some(last) = file.meta().last else {
        return Err(StoreError::damaged(file.path(), "it is of a state before the first entry"));
    };
    Ok((file, last))
}

/// Makes the directory the new member's. Its identity is on disk, marked as adopting.
pub(super) fn finish(dir: &Path, identity: &Identity) -> Result<(), StoreError> {
    let Binding::Bound { cluster, .. } = identity.binding else {
        return Err(StoreError::damaged(
            &layout::identity(dir),
            "it adopts a state and is bound to no cluster",
        ));
    };
    erase_log(dir)?;
    move_snapshot(dir)?;
    make_log(dir, identity, cluster)
}

fn erase_log(dir: &Path) -> Result<(), StoreError> {
    for path in [layout::log(dir), layout::mark(dir), layout::vote(dir)] {
        files::remove(&path)?;
    }
    files::sync_dir(dir)
}

/// If there is nothing to move, it was moved before.
fn move_snapshot(dir: &Path) -> Result<(), StoreError> {
    let (side, to) = (layout::recovered(dir), layout::snapshots(dir));
    let from = layout::snapshots(&side);
    if !from.exists() {
        return Ok(());
    }
    files::remove(&to)?;
    fs::rename(&from, &to).map_err(StoreError::io("rename to", &to))?;
    files::sync_dir(&side)?;
    files::sync_dir(dir)
}

/// A log that is empty and goes on behind the snapshot. Its vote is of the snapshot's term: without one the member would
/// begin with term 1, and a term never falls from one entry to the next.
fn make_log(dir: &Path, identity: &Identity, cluster: ClusterId) -> Result<(), StoreError> {
    let incarnation = identity.incarnation;
    let (file, last) = snapshot_in(dir, incarnation, cluster)?;
    let vote = VoteRecord { term: last.term, node: identity.raft_id(), committed: false };
    Format { stage: Stage::Creating, incarnation }.write(dir)?;
    let (log, _) = Log::open(LogOptions { group: file.meta().group, ..LogOptions::new(dir, incarnation) })?;
    let (purged, voted) = (mpsc::channel(), mpsc::channel());
    log.purge(last, Box::new(move |result| drop(purged.0.send(result))));
    log.save_vote(vote, Box::new(move |result| drop(voted.0.send(result))));
    let write = || StoreError::io("write the log of", dir);
    for done in [purged.1, voted.1] {
        done.recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("its writer has stopped")))
            .map_err(write())?;
    }
    log.close().map_err(write())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::store::{IdentityFile, Record, SnapshotMeta, files, log::tests::copy_dir};

    const OLD: Uuid = Uuid::from_u128(1);
    const NEW: Uuid = Uuid::from_u128(2);
    const OLD_CLUSTER: ClusterId = ClusterId([1; 16]);
    const NEW_CLUSTER: ClusterId = ClusterId([2; 16]);
    const LAST: Position = Position { term: 7, index: 40 };
    const OLD_VOTE: VoteRecord = VoteRecord { term: 6, node: 1, committed: true };

    fn write_snapshot(
        snapshots: &Snapshots,
        cluster: ClusterId,
        incarnation: Uuid,
        last: Position,
        section: &[u8],
    ) {
        let meta = SnapshotMeta {
            cluster,
            incarnation,
            group: 0,
            last: Some(last),
            membership_at: Some(last),
            membership: Bytes::from_static(b"members"),
        };
        let mut writer = snapshots.begin(meta).unwrap();
        writer.write_section(section).unwrap();
        writer.finish().unwrap();
    }

    /// A member with a log, a vote and a snapshot, and beside it what it is to adopt.
    fn member() -> (TempDir, IdentityFile) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let (mut file, _) = IdentityFile::open_or_format(dir, "1", OLD).unwrap();
        file.save(Binding::Bound { cluster: OLD_CLUSTER, founders: None }).unwrap();
        let (log, _) = Log::open(LogOptions::new(dir, OLD)).unwrap();
        let record = |index| Record { index, term: 6, kind: 0, payload: Bytes::from_static(b"old") };
        log.append((0..30).map(record).collect(), Box::new(|result| result.unwrap()));
        log.save_vote(OLD_VOTE, Box::new(|result| result.unwrap()));
        log.close().unwrap();
        write_snapshot(
            &Snapshots::open(dir, OLD, 0).unwrap(),
            OLD_CLUSTER,
            OLD,
            Position { term: 6, index: 12 },
            b"old",
        );
        let side = file.begin_adoption(NEW, 0).unwrap();
        write_snapshot(&side, NEW_CLUSTER, NEW, LAST, b"new");
        (temp, file)
    }

    /// A start finds the old member, with all that it had.
    fn assert_old(dir: &Path) {
        let (_file, identity) = IdentityFile::open_or_format(dir, "1", Uuid::from_u128(9)).unwrap();
        assert_eq!(
            (identity.incarnation, identity.binding),
            (OLD, Binding::Bound { cluster: OLD_CLUSTER, founders: None })
        );
        let (log, recovered) = Log::open(LogOptions::new(dir, OLD)).unwrap();
        assert_eq!((recovered.vote, recovered.last.map(|last| last.index)), (Some(OLD_VOTE), Some(29)));
        log.close().unwrap();
        let newest = Snapshots::open(dir, OLD, 0).unwrap().newest().unwrap().unwrap();
        assert_eq!(newest.sections().map(Result::unwrap).collect::<Vec<_>>(), [&b"old"[..]]);
        assert!(!layout::recovered(dir).exists(), "what was prepared and not adopted is removed");
    }

    /// A start finds the new member, and nothing of the old one.
    fn assert_new(dir: &Path, boots: u64) {
        let (_file, identity) = IdentityFile::open_or_format(dir, "1", Uuid::from_u128(9)).unwrap();
        assert_eq!(
            identity,
            Identity {
                incarnation: NEW,
                slot: "1".into(),
                boot_counter: boots,
                binding: Binding::Bound { cluster: NEW_CLUSTER, founders: None },
            }
        );
        let (log, recovered) = Log::open(LogOptions::new(dir, NEW)).unwrap();
        let vote = VoteRecord { term: LAST.term, node: 2, committed: false };
        assert_eq!((recovered.vote, recovered.purged, recovered.last), (Some(vote), Some(LAST), Some(LAST)));
        assert_eq!(log.read(0, u64::MAX, usize::MAX).unwrap(), []);
        log.close().unwrap();
        let newest = Snapshots::open(dir, NEW, 0).unwrap().newest().unwrap().unwrap();
        assert_eq!((newest.meta().cluster, newest.meta().last), (NEW_CLUSTER, Some(LAST)));
        assert_eq!(newest.sections().map(Result::unwrap).collect::<Vec<_>>(), [&b"new"[..]]);
        assert!(!layout::recovered(dir).exists());
    }

    #[test]
    fn the_directory_is_the_new_members_afterwards() {
        let (temp, mut file) = member();
        let identity = file.adopt(NEW, NEW_CLUSTER).unwrap();
        assert_eq!((identity.incarnation, identity.boot_counter), (NEW, 1));
        drop(file);
        assert_new(temp.path(), 2);
        assert_new(temp.path(), 3);
    }

    type Step = fn(&Path, &Identity) -> Result<(), StoreError>;

    /// What happens after the identity was replaced, in small steps.
    const STEPS: &[(&str, Step)] = &[
        ("the log removed", |dir, _| files::remove(&layout::log(dir))),
        ("the mark removed", |dir, _| files::remove(&layout::mark(dir))),
        ("the vote removed", |dir, _| files::remove(&layout::vote(dir))),
        ("the old snapshots removed", |dir, _| files::remove(&layout::snapshots(dir))),
        ("the snapshot moved", |dir, _| move_snapshot(dir)),
        ("the format written", |dir, identity| {
            Format { stage: Stage::Creating, incarnation: identity.incarnation }.write(dir)
        }),
        ("a log made, not purged", |dir, identity| {
            drop(Log::open(LogOptions::new(dir, identity.incarnation))?);
            Ok(())
        }),
        ("a log purged, without a vote", |dir, identity| {
            let (log, _) = Log::open(LogOptions::new(dir, identity.incarnation))?;
            log.purge(LAST, Box::new(|result| result.unwrap()));
            log.close().map_err(StoreError::io("write", dir))
        }),
        ("everything but the mark in the identity", |dir, identity| make_log(dir, identity, NEW_CLUSTER)),
    ];

    #[test]
    fn a_crash_at_each_step_leaves_the_old_member_or_the_new_one() {
        // Before the identity is replaced: whatever is in the side directory, the old member is untouched.
        let damages: [fn(PathBuf); 5] = [
            |_| {},
            |snapshot| fs::write(snapshot, b"").unwrap(),
            |snapshot| fs::remove_file(snapshot).unwrap(),
            |snapshot| fs::remove_dir_all(snapshot.parent().unwrap()).unwrap(),
            |snapshot| fs::rename(&snapshot, snapshot.with_extension("snap.0.tmp")).unwrap(),
        ];
        for damage in damages {
            let (temp, file) = member();
            drop(file);
            damage(Snapshots::find(&layout::recovered(temp.path()), NEW).unwrap().unwrap().path().to_owned());
            assert_old(temp.path());
        }
        // After it.
        for steps in 0..=STEPS.len() {
            let (temp, mut file) = member();
            let identity = file.write_adopting(NEW, NEW_CLUSTER).unwrap();
            for (name, step) in &STEPS[..steps] {
                step(temp.path(), &identity).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            drop(file);
            // And a second crash on the way, as far on: what a start does, it may do again.
            let copy = tempfile::tempdir().unwrap();
            copy_dir(temp.path(), copy.path());
            assert_new(temp.path(), 2);
            finish(copy.path(), &identity).unwrap();
            assert_new(copy.path(), 2);
        }
    }

    #[test]
    fn a_damaged_or_foreign_state_is_not_adopted_and_the_old_member_stays() {
        let cut = |path: &Path| fs::write(path, &fs::read(path).unwrap()[..100]).unwrap();
        let flip = |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            // In the block, past the header: only reading all of it tells.
            let at = bytes.len() - 28 - 2;
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        let gone = |path: &Path| fs::remove_file(path).unwrap();
        for damage in [&cut as &dyn Fn(&Path), &flip, &gone] {
            let (temp, mut file) = member();
            damage(Snapshots::find(&layout::recovered(temp.path()), NEW).unwrap().unwrap().path());
            let error = file.adopt(NEW, NEW_CLUSTER).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. } | StoreError::Missing { .. }), "{error}");
            drop(file);
            assert_old(temp.path());
        }
        let (temp, mut file) = member();
        let error = file.adopt(Uuid::from_u128(3), NEW_CLUSTER).unwrap_err();
        assert!(matches!(error, StoreError::OtherIncarnation { .. }), "{error}");
        let error = file.adopt(NEW, ClusterId([3; 16])).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        drop(file);
        assert_old(temp.path());
    }

    #[test]
    fn an_adopting_directory_whose_snapshot_is_lost_is_refused() {
        let (temp, mut file) = member();
        file.write_adopting(NEW, NEW_CLUSTER).unwrap();
        drop(file);
        fs::remove_dir_all(layout::recovered(temp.path())).unwrap();
        fs::remove_dir_all(layout::snapshots(temp.path())).unwrap();
        for _ in 0..2 {
            let error = IdentityFile::open_or_format(temp.path(), "1", Uuid::from_u128(9)).unwrap_err();
            assert!(matches!(error, StoreError::Missing { .. }), "{error}");
        }
    }

    #[test]
    fn what_was_prepared_is_no_member_without_an_identity() {
        let (temp, file) = member();
        drop(file);
        for path in
            [layout::identity(temp.path()), layout::format(temp.path()), layout::snapshots(temp.path())]
        {
            files::remove(&path).unwrap();
        }
        erase_log(temp.path()).unwrap();
        let error = IdentityFile::open_or_format(temp.path(), "1", Uuid::from_u128(9)).unwrap_err();
        assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    }
}
