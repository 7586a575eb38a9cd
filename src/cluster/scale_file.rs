//! How many nodes are wanted, and who says so: the scale file, or the own StatefulSet.
//!
//! The scale file is what changes when a cluster grows or shrinks, outside the configuration that rolls pods. In Kubernetes it is mounted from a ConfigMap of its own. `seeds` is read by a node whose data directory is new; `replicas`
//! by whoever must tell a leave from a restart and has no Kubernetes API to ask. It is read anew each time.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::slot::parse_seeds;
use crate::error::{Error, Result};

/// Far more than two keys need.
const MAX_BYTES: u64 = 64 * 1024;

/// The content of a scale file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleFile {
    path: PathBuf,
    keys: Keys,
}

/// Other keys are a later release's: in an upgrade, older nodes read the new file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Keys {
    seeds: Option<String>,
    replicas: Option<u32>,
}

impl ScaleFile {
    /// Reads the file. Blocks; it is small.
    ///
    /// # Errors
    /// `Invalid`, with a sentence, if it cannot be read, is larger than 64 KiB, is not TOML, or a key has a value of the wrong kind.
    pub fn read(path: &Path) -> Result<Self> {
        let invalid = |what: String| Error::Invalid(format!("the scale file {} {what}", path.display()));
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
            .map_err(|e| invalid(format!("cannot be read: {e}")))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(invalid(format!("is larger than {MAX_BYTES} bytes")));
        }
        let keys = toml::from_str(&text)
            .map_err(|e| invalid(format!("is not understood: {}", e.to_string().trim_end())))?;
        Ok(Self { path: path.to_owned(), keys })
    }

    /// The slots of all seeds.
    ///
    /// # Errors
    /// `Invalid` if they are not there, or are not 1 or 3 slots.
    pub fn seeds(&self) -> Result<Vec<String>> {
        let list = self.keys.seeds.as_ref().ok_or_else(|| self.lacks("seeds = \"0,1,2\""))?;
        parse_seeds(list)
            .map_err(|e| Error::Invalid(format!("seeds in the scale file {}: {e}", self.path.display())))
    }

    /// How many nodes are wanted.
    ///
    /// # Errors
    /// `Invalid` if it is not there.
    pub fn replicas(&self) -> Result<u32> {
        self.keys.replicas.ok_or_else(|| self.lacks("replicas = 3"))
    }

    fn lacks(&self, example: &str) -> Error {
        Error::Invalid(format!("the scale file {} lacks a line such as: {example}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<ScaleFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scale.toml");
        fs::write(&path, text).unwrap();
        ScaleFile::read(&path)
    }

    fn sentence<T: std::fmt::Debug>(result: Result<T>) -> String {
        match result {
            Err(Error::Invalid(sentence)) => sentence,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn both_keys_are_read_and_those_of_later_releases_are_left_alone() {
        let file = read("seeds = \"0,1,2\"\nreplicas = 5\nzones = 3\n").unwrap();
        assert_eq!((file.seeds().unwrap().join(","), file.replicas().unwrap()), ("0,1,2".into(), 5));
    }

    #[test]
    fn what_is_missing_is_said_when_it_is_needed() {
        let file = read("replicas = 0").unwrap();
        assert_eq!(file.replicas(), Ok(0));
        assert!(sentence(file.seeds()).ends_with("scale.toml lacks a line such as: seeds = \"0,1,2\""));
        let file = read("seeds = \"0\"").unwrap();
        assert!(sentence(file.replicas()).ends_with("scale.toml lacks a line such as: replicas = 3"));
    }

    #[test]
    fn a_file_that_is_not_right_is_refused_with_its_name() {
        for (text, want) in [
            ("seeds = ", "is not understood"),
            ("seeds = 0", "is not understood"),
            ("replicas = -1", "is not understood"),
            ("replicas = \"3\"", "is not understood"),
            (&"#".repeat(70_000), "is larger than 65536 bytes"),
        ] {
            let error = sentence(read(text));
            assert!(error.contains("scale.toml") && error.contains(want), "{error}");
        }
        assert!(
            sentence(read("seeds = \"0,1\"").unwrap().seeds()).contains("there are 2 seeds; name 1 or 3")
        );
        let nowhere = sentence(ScaleFile::read(Path::new("/nowhere/scale.toml")));
        assert!(
            nowhere.starts_with("the scale file /nowhere/scale.toml cannot be read: No such file"),
            "{nowhere}"
        );
    }
}
