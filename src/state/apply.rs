//! What each operation does to the state.
//!
//! A write that is done is a change, also when it writes what was there: it takes a revision, and the key's version
//! moves. What is rejected, and deleting a key that does not exist, changes nothing and takes none.

use super::{BootRecord, Command, Condition, Machine, Operation, Outcome, Versioned, hash::EntryHash};
use crate::error::Rejection;

/// The longest decimal text of a signed 64-bit number.
const MAX_NUMBER_BYTES: usize = "-9223372036854775808".len();

impl Machine {
    pub(super) fn apply_command(&mut self, command: Command, hash: &mut EntryHash) -> Outcome {
        assert!(
            command.keyspace == 0 && command.session.is_none(),
            "a command with a keyspace or a session is above feature level {}: it must be refused before it is proposed",
            self.feature_level,
        );
        match command.operation {
            Operation::Open => {
                self.open = true;
                hash.opened();
                Outcome::Opened
            }
            Operation::RecordBoot { slot, boot } => {
                Outcome::BootRecorded { accepted: self.record_boot(slot, boot, hash) }
            }
            _ if !self.open => Outcome::Rejected(Rejection::NotOpen),
            operation => self.operate(operation, hash).unwrap_or_else(Outcome::Rejected),
        }
    }

    fn operate(&mut self, operation: Operation, hash: &mut EntryHash) -> Result<Outcome, Rejection> {
        match operation {
            Operation::Set { key, value, condition, ttl_ms, return_previous } => {
                self.refuse_ttl(ttl_ms);
                self.check_condition(&key, condition)?;
                let previous = self.put(&key, &value, hash);
                Ok(Outcome::Set { version: self.revision, previous: previous.filter(|_| return_previous) })
            }
            Operation::Delete { key, if_version, return_previous } => {
                if let Some(version) = if_version {
                    self.check_condition(&key, Condition::IfVersion(version))?;
                }
                let previous = self.keyspace.remove(&key);
                let existed = previous.is_some();
                if existed {
                    self.revision += 1;
                    hash.removed(&key, self.revision);
                }
                Ok(Outcome::Deleted { existed, previous: previous.filter(|_| return_previous) })
            }
            Operation::Increment { key, delta, initial, ttl_ms } => {
                self.refuse_ttl(ttl_ms);
                let before = match self.keyspace.get(&key) {
                    Some(entry) => parse_number(&entry.value).ok_or(Rejection::NotANumber)?,
                    None => initial,
                };
                let value = before.checked_add(delta).ok_or(Rejection::OutOfRange)?;
                self.put(&key, value.to_string().as_bytes(), hash);
                Ok(Outcome::Incremented { value, version: self.revision })
            }
            Operation::Batch(operations) => {
                let outcomes = operations
                    .into_iter()
                    .map(|operation| self.operate(operation, hash).unwrap_or_else(Outcome::Rejected));
                Ok(Outcome::Batch(outcomes.collect()))
            }
            // Only from inside a batch, where decoding refuses them; opening what is open changes nothing.
            Operation::Open => Ok(Outcome::Opened),
            Operation::RecordBoot { .. } => Ok(Outcome::BootRecorded { accepted: false }),
        }
    }

    /// Takes a start as the record of its slot, if it is of the member there and later than the one recorded. The very
    /// record again is taken too and changes nothing, so a leader that does not know what became of its proposal repeats it.
    fn record_boot(&mut self, slot: String, boot: BootRecord, hash: &mut EntryHash) -> bool {
        let member = self.membership.nodes.get(&boot.raft_id);
        if !member.is_some_and(|node| node.slot == slot && node.incarnation == boot.incarnation) {
            return false;
        }
        let recorded = self.boots.get(&slot);
        if recorded == Some(&boot) {
            return true;
        }
        if recorded.is_some_and(|last| last.raft_id == boot.raft_id && last.boot_counter >= boot.boot_counter)
        {
            return false;
        }
        hash.booted(&slot, &boot);
        self.boots.insert(slot, boot);
        true
    }

    /// Writes a key at the next revision.
    fn put(&mut self, key: &[u8], value: &[u8], hash: &mut EntryHash) -> Option<Versioned> {
        self.revision += 1;
        hash.set(key, value, self.revision);
        self.keyspace.put(key, value, self.revision)
    }

    fn check_condition(&self, key: &[u8], condition: Condition) -> Result<(), Rejection> {
        if condition == Condition::None {
            return Ok(());
        }
        let current = self.keyspace.get(key).map(|entry| entry.version);
        let holds = match condition {
            Condition::None => true,
            Condition::IfAbsent => current.is_none(),
            Condition::IfPresent => current.is_some(),
            Condition::IfVersion(version) => current == Some(version),
        };
        if holds { Ok(()) } else { Err(Rejection::ConditionFailed { current }) }
    }

    fn refuse_ttl(&self, ttl_ms: Option<u64>) {
        assert!(
            ttl_ms.is_none(),
            "a time to live is above feature level {}: it must be refused before it is proposed",
            self.feature_level,
        );
    }
}

/// A signed 64-bit number in decimal text, in the one form that Increment writes: an optional `-`, then digits without
/// leading zeros; no `+`, no `-0`, no spaces.
fn parse_number(text: &[u8]) -> Option<i64> {
    if text.len() > MAX_NUMBER_BYTES {
        return None;
    }
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [] => false,
        [b'0', rest @ ..] => rest.is_empty() && digits.len() == text.len(),
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
