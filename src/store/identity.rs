//! Who a data directory is: the identity record.
//!
//! A data directory *is* the member. The record is durable before any socket opens and before anything it says is
//! spoken of.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{StoreError, files};

/// A cluster's id: the first 16 bytes of the SHA-256 of its founding set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// The Raft id of an incarnation: its low 53 bits, so that a JSON number holds it; never 0.
pub fn raft_id(incarnation: Uuid) -> u64 {
    let low = incarnation.as_u128() as u64 & ((1 << 53) - 1);
    low.max(1)
}

/// The founders of a cluster: slot -> incarnation.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FoundingSet(pub BTreeMap<String, Uuid>);

impl FoundingSet {
    /// The id of the cluster that this set founds. Nobody has to propose one.
    pub fn cluster_id(&self) -> ClusterId {
        let mut hash = Sha256::new();
        hash.update(b"larder founding set 1");
        for (slot, incarnation) in &self.0 {
            hash.update((slot.len() as u64).to_be_bytes());
            hash.update(slot.as_bytes());
            hash.update(incarnation.as_bytes());
        }
        let digest = hash.finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        ClusterId(id)
    }
}

/// What a data directory has committed itself to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Binding {
    /// New: belongs to nothing.
    Formatted,
    /// Ready to found a cluster with exactly this set. Binds nobody.
    Promised(FoundingSet),
    /// A member of the cluster, as a founder, or (no set) by joining.
    Bound {
        /// The cluster.
        cluster: ClusterId,
        /// Its founders; `None` for one that joined.
        founders: Option<FoundingSet>,
    },
    /// Retired from the cluster.
    Left {
        /// The cluster left.
        cluster: ClusterId,
    },
}

/// The identity record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Made when the directory was formatted.
    pub incarnation: Uuid,
    /// Where this member is dialled.
    pub slot: String,
    /// +1 at every start.
    pub boot_counter: u64,
    /// What it is bound to.
    pub binding: Binding,
}

impl Identity {
    /// The Raft id.
    pub fn raft_id(&self) -> u64 {
        raft_id(self.incarnation)
    }
}

const MAGIC: &[u8; 8] = b"LARDERID";
const FORMAT: u32 = 1;
const FILE: &str = "identity";
/// What a data directory holds besides the identity: without one these belong to nobody.
const REST: [&str; 4] = ["vote", "mark", "log", "snapshots"];
/// More founders than any release has.
const MAX_FOUNDERS: u32 = 16;

/// The identity record of a data directory, on disk.
#[derive(Debug)]
pub struct IdentityFile {
    dir: PathBuf,
    identity: Identity,
}

impl IdentityFile {
    /// Reads the identity of `dir`, or formats it as `fresh` if it is empty; counts this start. Durable when it returns.
    ///
    /// # Errors
    /// If the directory is another slot's, damaged, of a newer format, or has a log without an identity.
    pub fn open_or_format(dir: &Path, slot: &str, fresh: Uuid) -> Result<Self, StoreError> {
        files::create_dir(dir).map_err(StoreError::io(dir.display().to_string()))?;
        let path = dir.join(FILE);
        let identity = match fs::read(&path) {
            Ok(bytes) => {
                let mut identity = decode(&path, &bytes)?;
                if identity.slot != slot {
                    return Err(StoreError::Foreign {
                        path: dir.to_path_buf(),
                        theirs: format!("slot {}", identity.slot),
                        ours: format!("slot {slot}"),
                    });
                }
                identity.boot_counter += 1;
                identity
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(left) = REST.iter().find(|name| dir.join(name).exists()) {
                    let why = format!("there is a {left} but no identity");
                    return Err(StoreError::damaged(dir.display().to_string(), why));
                }
                Identity {
                    incarnation: fresh,
                    slot: slot.into(),
                    boot_counter: 1,
                    binding: Binding::Formatted,
                }
            }
            Err(e) => return Err(StoreError::io(path.display().to_string())(e)),
        };
        let file = Self { dir: dir.to_path_buf(), identity };
        file.write()?;
        Ok(file)
    }

    /// What it says.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Binds the directory; durable when it returns.
    ///
    /// # Errors
    /// If the disk says no; then nothing has changed.
    pub fn save(&mut self, binding: Binding) -> Result<(), StoreError> {
        let before = std::mem::replace(&mut self.identity.binding, binding);
        self.write().inspect_err(|_| self.identity.binding = before)
    }

    /// Empties the directory and formats it anew. The log must be closed. A crash in between leaves a directory that is refused as damaged, or an
    /// empty one: never an old log under a new identity.
    ///
    /// # Errors
    /// If the disk says no.
    pub fn reformat(mut self, fresh: Uuid) -> Result<Self, StoreError> {
        let io = |path: &Path| StoreError::io(path.display().to_string());
        for name in REST {
            let path = self.dir.join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(&path)(e)),
                Ok(()) | Err(_) => {}
            }
        }
        files::sync_dir(&self.dir).map_err(io(&self.dir))?;
        self.identity.incarnation = fresh;
        self.identity.boot_counter = 0;
        self.identity.binding = Binding::Formatted;
        self.write()?;
        Ok(self)
    }

    fn write(&self) -> Result<(), StoreError> {
        let path = self.dir.join(FILE);
        files::replace(&path, &encode(&self.identity)).map_err(StoreError::io(path.display().to_string()))
    }
}

fn encode(identity: &Identity) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(identity.incarnation.as_bytes());
    put_text(&mut out, &identity.slot);
    out.extend_from_slice(&identity.boot_counter.to_be_bytes());
    match &identity.binding {
        Binding::Formatted => out.push(0),
        Binding::Promised(set) => {
            out.push(1);
            put_set(&mut out, set);
        }
        Binding::Bound { cluster, founders } => {
            out.push(2);
            out.extend_from_slice(&cluster.0);
            out.push(founders.is_some().into());
            if let Some(set) = founders {
                put_set(&mut out, set);
            }
        }
        Binding::Left { cluster } => {
            out.push(3);
            out.extend_from_slice(&cluster.0);
        }
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_set(out: &mut Vec<u8>, set: &FoundingSet) {
    out.extend_from_slice(&(set.0.len() as u32).to_be_bytes());
    for (slot, incarnation) in &set.0 {
        put_text(out, slot);
        out.extend_from_slice(incarnation.as_bytes());
    }
}

/// What is left to decode. Every step may find that there is not enough.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()?;
        String::from_utf8(self.take(length as usize)?.to_vec()).ok()
    }

    fn set(&mut self) -> Option<FoundingSet> {
        let count = self.number().filter(|count| *count <= MAX_FOUNDERS)?;
        let mut set = FoundingSet::default();
        for _ in 0..count {
            set.0.insert(self.text()?, Uuid::from_bytes(self.array()?));
        }
        Some(set)
    }

    fn binding(&mut self) -> Option<Binding> {
        match self.array::<1>()? {
            [0] => Some(Binding::Formatted),
            [1] => Some(Binding::Promised(self.set()?)),
            [2] => {
                let cluster = ClusterId(self.array()?);
                let founders = match self.array::<1>()? {
                    [0] => None,
                    [1] => Some(self.set()?),
                    _ => return None,
                };
                Some(Binding::Bound { cluster, founders })
            }
            [3] => Some(Binding::Left { cluster: ClusterId(self.array()?) }),
            _ => None,
        }
    }

    fn identity(&mut self) -> Option<Identity> {
        let incarnation = Uuid::from_bytes(self.array()?);
        let slot = self.text()?;
        let boot_counter = self.array().map(u64::from_be_bytes)?;
        let binding = self.binding()?;
        self.0.is_empty().then_some(Identity { incarnation, slot, boot_counter, binding })
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Identity, StoreError> {
    let what = path.display().to_string();
    let damaged = |why: &str| StoreError::damaged(what.clone(), why);
    let content = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it is not an identity record"))?;
    let (format, _) = content.split_first_chunk().ok_or_else(|| damaged("it is cut off"))?;
    let format = u32::from_be_bytes(*format);
    if format > FORMAT {
        return Err(StoreError::NewerFormat { what, found: format, known: FORMAT });
    }
    let (body, crc) = bytes.split_last_chunk().ok_or_else(|| damaged("it is cut off"))?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*crc) {
        return Err(damaged("its checksum does not fit"));
    }
    let fields = body.get(MAGIC.len() + 4..).unwrap_or_default();
    Reader(fields).identity().ok_or_else(|| damaged("its fields do not fit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> Identity {
        let set = FoundingSet(BTreeMap::from([
            ("0".to_string(), Uuid::from_u128(10)),
            ("1".to_string(), Uuid::from_u128(11)),
            ("2".to_string(), Uuid::from_u128(12)),
        ]));
        Identity {
            incarnation: Uuid::from_u128(11),
            slot: "1".into(),
            boot_counter: 3,
            binding: Binding::Bound { cluster: set.cluster_id(), founders: Some(set) },
        }
    }

    #[test]
    fn every_binding_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = IdentityFile::open_or_format(dir.path(), "1", Uuid::from_u128(11)).unwrap();
        assert_eq!((file.identity().boot_counter, &file.identity().binding), (1, &Binding::Formatted));
        let Binding::Bound { cluster, founders: Some(set) } = bound().binding else { unreachable!() };
        let bindings = [
            Binding::Promised(set),
            bound().binding,
            Binding::Bound { cluster, founders: None },
            Binding::Left { cluster },
        ];
        for (boots, binding) in bindings.into_iter().enumerate() {
            file.save(binding.clone()).unwrap();
            file = IdentityFile::open_or_format(dir.path(), "1", Uuid::from_u128(99)).unwrap();
            assert_eq!(file.identity().binding, binding);
            assert_eq!(file.identity().incarnation, Uuid::from_u128(11), "made once");
            assert_eq!(file.identity().boot_counter, boots as u64 + 2);
        }
    }

    #[test]
    fn the_format_of_version_1_stays() {
        let hex: String = encode(&bound()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("identity_v1.hex").trim());
        assert_eq!(decode(Path::new("golden"), &encode(&bound())).unwrap(), bound());
    }

    #[test]
    fn damage_anywhere_is_refused_and_never_a_panic() {
        let whole = encode(&bound());
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert!(decode(Path::new("x"), &flipped).is_err(), "flipped at {at}");
            assert!(decode(Path::new("x"), &whole[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn other_slots_and_nobodys_logs_are_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        drop(IdentityFile::open_or_format(dir.path(), "1", Uuid::from_u128(1)).unwrap());
        let refused = |slot: &str| {
            IdentityFile::open_or_format(dir.path(), slot, Uuid::from_u128(2)).unwrap_err().to_string()
        };
        assert!(refused("2").contains("belongs to slot 1, not to slot 2"), "{}", refused("2"));
        fs::write(dir.path().join("vote"), b"x").unwrap();
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(refused("1").contains("no identity"), "{}", refused("1"));
    }

    #[test]
    fn a_newer_format_is_refused_as_such() {
        let dir = tempfile::tempdir().unwrap();
        drop(IdentityFile::open_or_format(dir.path(), "1", Uuid::from_u128(1)).unwrap());
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes[11] = 9;
        fs::write(&path, bytes).unwrap();
        let error = IdentityFile::open_or_format(dir.path(), "1", Uuid::from_u128(2)).unwrap_err();
        assert!(matches!(error, StoreError::NewerFormat { found: 9, .. }), "{error}");
    }

    #[test]
    fn reformatting_makes_a_new_member_of_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = IdentityFile::open_or_format(dir.path(), "1", Uuid::from_u128(1)).unwrap();
        fs::write(dir.path().join("vote"), b"x").unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        drop(file.reformat(Uuid::from_u128(2)).unwrap());
        assert!(!dir.path().join("vote").exists() && !dir.path().join("log").exists());
        let again = IdentityFile::open_or_format(dir.path(), "1", Uuid::from_u128(3)).unwrap();
        assert_eq!(again.identity().incarnation, Uuid::from_u128(2));
        assert_eq!(again.identity().boot_counter, 1);
    }
}
