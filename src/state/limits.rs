//! The limits on what may be asked, checked before anything is proposed: apply meets nothing larger.
//!
//! A message names the limit and the actual size, and says what to do. What this release has the fields for but not
//! the behaviour (time to live, sessions, other keyspaces) is [`Error::Unimplemented`], with nothing applied.

use super::{
    Command, Condition, MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_KEY_BYTES, MAX_VALUE_BYTES, Operation,
    Query,
};
use crate::error::{Error, Result};

/// The most operations of a batch that may ask for what was there: their values together stay within the bytes of one
/// batch, so that an answer is never larger than a request may be.
pub const MAX_BATCH_PREVIOUS: usize = MAX_BATCH_BYTES / MAX_VALUE_BYTES;
/// The most keys of one query.
pub const MAX_QUERY_KEYS: usize = MAX_BATCH_OPERATIONS;

/// Checks a key's length.
///
/// # Errors
/// [`Error::Invalid`] if it is empty or longer than [`MAX_KEY_BYTES`].
pub fn validate_key(key: &[u8]) -> Result<()> {
    match key.len() {
        0 => Err(Error::Invalid(format!("the key is empty; a key has 1 to {MAX_KEY_BYTES} bytes"))),
        1..=MAX_KEY_BYTES => Ok(()),
        actual => Err(Error::Invalid(format!(
            "the key has {actual} bytes and the limit is {MAX_KEY_BYTES}; use a shorter one, such as a hash of it"
        ))),
    }
}

/// Checks a value's length.
///
/// # Errors
/// [`Error::Invalid`] if it is longer than [`MAX_VALUE_BYTES`].
pub fn validate_value(value: &[u8]) -> Result<()> {
    if value.len() <= MAX_VALUE_BYTES {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the value has {} bytes and the limit is {MAX_VALUE_BYTES}; split it over several keys",
        value.len()
    )))
}

impl Command {
    /// Checks the command against the limits and against what this release can do. Each command passes here, on the node
    /// that proposes it, before it enters the log. Who may propose it is another matter: [`Operation::is_leaders_own`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for what can never work, [`Error::Unimplemented`] for what a later release can do.
    pub fn validate(&self) -> Result<()> {
        validate_keyspace(self.keyspace)?;
        if self.session.is_some() {
            return Err(Error::Unimplemented(
                "sessions are not in this release; send the write without one".into(),
            ));
        }
        match &self.operation {
            Operation::Batch(operations) => validate_batch(operations),
            operation => validate_operation(operation),
        }
    }
}

impl Query {
    /// Checks the query against the limits.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no key, too many keys or a key of the wrong length, [`Error::Unimplemented`] for a keyspace
    /// other than the default one.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Get { keyspace, keys } => {
                validate_keyspace(*keyspace)?;
                if keys.is_empty() || keys.len() > MAX_QUERY_KEYS {
                    return Err(Error::Invalid(format!(
                        "the read has {} keys and may have 1 to {MAX_QUERY_KEYS}; split it",
                        keys.len()
                    )));
                }
                keys.iter().try_for_each(|key| validate_key(key))
            }
            Self::Scan { keyspace } => validate_keyspace(*keyspace),
        }
    }
}

fn validate_keyspace(keyspace: u32) -> Result<()> {
    if keyspace == 0 {
        return Ok(());
    }
    Err(Error::Unimplemented(format!(
        "keyspace {keyspace} does not exist: this release has the default keyspace only; leave the field empty"
    )))
}

fn validate_batch(operations: &[Operation]) -> Result<()> {
    if operations.is_empty() || operations.len() > MAX_BATCH_OPERATIONS {
        return Err(Error::Invalid(format!(
            "the batch has {} operations and may have 1 to {MAX_BATCH_OPERATIONS}; split it",
            operations.len()
        )));
    }
    let mut bytes = 0;
    let mut previous = 0;
    for operation in operations {
        if matches!(operation, Operation::Batch(_)) || operation.is_leaders_own() {
            return Err(Error::Invalid(
                "a batch holds Set, Delete and Increment only; send anything else on its own".into(),
            ));
        }
        validate_operation(operation)?;
        bytes += payload_bytes(operation);
        previous += usize::from(returns_previous(operation));
    }
    if bytes > MAX_BATCH_BYTES {
        return Err(Error::Invalid(format!(
            "the keys and values of the batch have {bytes} bytes and the limit is {MAX_BATCH_BYTES}; split it"
        )));
    }
    if previous > MAX_BATCH_PREVIOUS {
        return Err(Error::Invalid(format!(
            "{previous} operations of the batch ask for the previous value and at most {MAX_BATCH_PREVIOUS} may; split it"
        )));
    }
    Ok(())
}

fn validate_operation(operation: &Operation) -> Result<()> {
    match operation {
        Operation::Set { key, value, condition, ttl_ms, .. } => {
            validate_key(key)?;
            validate_value(value)?;
            validate_ttl(*ttl_ms)?;
            match condition {
                Condition::IfVersion(version) => validate_version(*version),
                Condition::None | Condition::IfAbsent | Condition::IfPresent => Ok(()),
            }
        }
        Operation::Delete { key, if_version, .. } => {
            validate_key(key)?;
            if_version.map_or(Ok(()), validate_version)
        }
        Operation::Increment { key, ttl_ms, .. } => {
            validate_key(key)?;
            validate_ttl(*ttl_ms)
        }
        Operation::Open | Operation::RecordBoot { .. } => Ok(()),
        Operation::Batch(operations) => validate_batch(operations),
    }
}

fn validate_version(version: u64) -> Result<()> {
    if version > 0 {
        return Ok(());
    }
    Err(Error::Invalid(
        "no key has version 0: versions start at 1; use if_absent for a key that must not exist".into(),
    ))
}

fn validate_ttl(ttl_ms: Option<u64>) -> Result<()> {
    match ttl_ms {
        None => Ok(()),
        Some(_) => Err(Error::Unimplemented(
            "a time to live is not in this release; send the write without one and delete the key yourself"
                .into(),
        )),
    }
}

fn payload_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Set { key, value, .. } => key.len() + value.len(),
        Operation::Delete { key, .. } | Operation::Increment { key, .. } => key.len(),
        Operation::Batch(_) | Operation::Open | Operation::RecordBoot { .. } => 0,
    }
}

fn returns_previous(operation: &Operation) -> bool {
    match operation {
        Operation::Set { return_previous, .. } | Operation::Delete { return_previous, .. } => {
            *return_previous
        }
        Operation::Increment { .. }
        | Operation::Batch(_)
        | Operation::Open
        | Operation::RecordBoot { .. } => false,
    }
}
