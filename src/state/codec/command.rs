//! Commands, and the log entry that carries many of them.

use bytes::Bytes;

use super::{
    DecodeError, VERSION,
    membership::{get_boot, put_boot},
    wire::{MAX_VARINT_BYTES, Reader, Writer},
};
use crate::{
    state::{Command, Condition, MAX_BATCH_OPERATIONS, Operation, SessionId, Stamp},
    time::UnixMillis,
};

const SET: u8 = 1;
const DELETE: u8 = 2;
const INCREMENT: u8 = 3;
const BATCH: u8 = 4;
const OPEN: u8 = 5;
const RECORD_BOOT: u8 = 6;

const IF_ABSENT: u8 = 1;
const IF_PRESENT: u8 = 2;
const IF_VERSION: u8 = 3;

/// On a command.
const HAS_SESSION: u8 = 1;
/// On Set and Increment.
const HAS_TTL: u8 = 1;
/// On Delete.
const HAS_VERSION: u8 = 1;
/// On Set and Delete.
const RETURN_PREVIOUS: u8 = 2;

/// The least bytes of an operation: a tag, nothing else.
const LEAST_OPERATION_BYTES: u64 = 1;
/// The least bytes of an encoded command with its length: length, version, flags, keyspace, tag.
const LEAST_COMMAND_BYTES: u64 = 5;

/// Encodes a command, once, where it enters Larder. Does not check it: see [`Command::validate`].
pub fn encode_command(command: &Command) -> Bytes {
    let mut out = Writer::with_capacity(64 + payload_bytes(&command.operation));
    out.u8(VERSION);
    out.u8(if command.session.is_some() { HAS_SESSION } else { 0 });
    out.varint(command.keyspace.into());
    if let Some(session) = &command.session {
        out.varint(session.session);
        out.varint(session.sequence);
        out.varint(session.first_unacknowledged);
    }
    put_operation(&mut out, &command.operation);
    out.finish()
}

/// Decodes a command. Its keys and values share the buffer.
///
/// # Errors
/// If the bytes are not exactly one command of a known version. The command is not checked against the limits: a node
/// that proposes what another one sent calls [`Command::validate`] too.
pub fn decode_command(bytes: Bytes) -> Result<Command, DecodeError> {
    let mut reader = Reader::new("command", bytes);
    reader.version(VERSION)?;
    let flags = reader.flags(HAS_SESSION)?;
    let keyspace = reader.varint_u32()?;
    let session = if flags & HAS_SESSION != 0 {
        Some(SessionId {
            session: reader.varint()?,
            sequence: reader.varint()?,
            first_unacknowledged: reader.varint()?,
        })
    } else {
        None
    };
    let operation = get_operation(&mut reader)?;
    reader.finish()?;
    Ok(Command { keyspace, session, operation })
}

/// The payload of one log entry: a stamp, and commands as [`encode_command`] made them, copied and not encoded again.
pub fn encode_entry(stamp: &Stamp, commands: &[Bytes]) -> Bytes {
    let payload: usize = commands.iter().map(|command| command.len() + 4).sum();
    let mut out = Writer::with_capacity(1 + 3 * MAX_VARINT_BYTES + 8 * stamp.touched.len() + payload);
    out.u8(VERSION);
    out.signed(stamp.now.0);
    out.varint(stamp.touched.len() as u64);
    for touched in &stamp.touched {
        out.u64_le(*touched);
    }
    out.varint(commands.len() as u64);
    for command in commands {
        out.bytes(command);
    }
    out.finish()
}

/// The stamp and the commands of a log entry. Keys and values share the buffer.
///
/// # Errors
/// If the bytes are not exactly one entry of a known version, or one of its commands is not.
pub fn decode_entry(bytes: Bytes) -> Result<(Stamp, Vec<Command>), DecodeError> {
    let mut reader = Reader::new("log entry", bytes);
    reader.version(VERSION)?;
    let now = UnixMillis(reader.signed()?);
    let count = reader.count(8)?;
    let touched = (0..count).map(|_| reader.u64_le()).collect::<Result<_, _>>()?;
    let count = reader.count(LEAST_COMMAND_BYTES)?;
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        commands.push(decode_command(reader.bytes()?)?);
    }
    reader.finish()?;
    Ok((Stamp { now, touched }, commands))
}

/// How many commands a log entry has, without decoding them; 0 for one that cannot be read. For metrics.
pub fn count_commands(entry: &Bytes) -> u64 {
    let mut reader = Reader::new("log entry", entry.clone());
    let mut count = || -> Result<usize, DecodeError> {
        reader.version(VERSION)?;
        reader.signed()?;
        for _ in 0..reader.count(8)? {
            reader.u64_le()?;
        }
        reader.count(LEAST_COMMAND_BYTES)
    };
    count().map_or(0, |count| count as u64)
}

/// Bytes of keys and values, to allocate once.
fn payload_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Set { key, value, .. } => key.len() + value.len(),
        Operation::Delete { key, .. } | Operation::Increment { key, .. } => key.len(),
        Operation::Batch(operations) => operations.iter().map(|one| 48 + payload_bytes(one)).sum(),
        Operation::Open => 0,
        Operation::RecordBoot { slot, .. } => slot.len(),
    }
}

fn put_operation(out: &mut Writer, operation: &Operation) {
    match operation {
        Operation::Set { key, value, condition, ttl_ms, return_previous } => {
            out.u8(SET);
            put_condition(out, condition);
            out.u8(flag(ttl_ms.is_some(), HAS_TTL) | flag(*return_previous, RETURN_PREVIOUS));
            put_optional(out, *ttl_ms);
            out.bytes(key);
            out.bytes(value);
        }
        Operation::Delete { key, if_version, return_previous } => {
            out.u8(DELETE);
            out.u8(flag(if_version.is_some(), HAS_VERSION) | flag(*return_previous, RETURN_PREVIOUS));
            put_optional(out, *if_version);
            out.bytes(key);
        }
        Operation::Increment { key, delta, initial, ttl_ms } => {
            out.u8(INCREMENT);
            out.u8(flag(ttl_ms.is_some(), HAS_TTL));
            out.signed(*delta);
            out.signed(*initial);
            put_optional(out, *ttl_ms);
            out.bytes(key);
        }
        Operation::Batch(operations) => {
            out.u8(BATCH);
            out.varint(operations.len() as u64);
            for operation in operations {
                put_operation(out, operation);
            }
        }
        Operation::Open => out.u8(OPEN),
        Operation::RecordBoot { slot, boot } => {
            out.u8(RECORD_BOOT);
            put_boot(out, slot, boot);
        }
    }
}

fn get_operation(reader: &mut Reader) -> Result<Operation, DecodeError> {
    match reader.u8()? {
        BATCH => {
            let count = reader.count(LEAST_OPERATION_BYTES)?;
            // An operation is larger here than on the wire, so a count alone may not claim the memory.
            let mut operations = Vec::with_capacity(count.min(MAX_BATCH_OPERATIONS));
            for _ in 0..count {
                let tag = reader.u8()?;
                operations.push(get_plain_operation(reader, tag)?);
            }
            Ok(Operation::Batch(operations))
        }
        OPEN => Ok(Operation::Open),
        RECORD_BOOT => {
            let (slot, boot) = get_boot(reader)?;
            Ok(Operation::RecordBoot { slot, boot })
        }
        tag => get_plain_operation(reader, tag),
    }
}

/// An operation that may stand in a batch.
fn get_plain_operation(reader: &mut Reader, tag: u8) -> Result<Operation, DecodeError> {
    match tag {
        SET => {
            let condition = get_condition(reader)?;
            let flags = reader.flags(HAS_TTL | RETURN_PREVIOUS)?;
            Ok(Operation::Set {
                condition,
                return_previous: flags & RETURN_PREVIOUS != 0,
                ttl_ms: get_optional(reader, flags & HAS_TTL != 0)?,
                key: reader.bytes()?,
                value: reader.bytes()?,
            })
        }
        DELETE => {
            let flags = reader.flags(HAS_VERSION | RETURN_PREVIOUS)?;
            Ok(Operation::Delete {
                return_previous: flags & RETURN_PREVIOUS != 0,
                if_version: get_optional(reader, flags & HAS_VERSION != 0)?,
                key: reader.bytes()?,
            })
        }
        INCREMENT => {
            let flags = reader.flags(HAS_TTL)?;
            Ok(Operation::Increment {
                delta: reader.signed()?,
                initial: reader.signed()?,
                ttl_ms: get_optional(reader, flags & HAS_TTL != 0)?,
                key: reader.bytes()?,
            })
        }
        BATCH | OPEN | RECORD_BOOT => Err(DecodeError::NestedBatch),
        tag => Err(reader.unknown("operation", tag.into())),
    }
}

fn put_condition(out: &mut Writer, condition: &Condition) {
    match condition {
        Condition::None => out.u8(0),
        Condition::IfAbsent => out.u8(IF_ABSENT),
        Condition::IfPresent => out.u8(IF_PRESENT),
        Condition::IfVersion(version) => {
            out.u8(IF_VERSION);
            out.varint(*version);
        }
    }
}

fn get_condition(reader: &mut Reader) -> Result<Condition, DecodeError> {
    match reader.u8()? {
        0 => Ok(Condition::None),
        IF_ABSENT => Ok(Condition::IfAbsent),
        IF_PRESENT => Ok(Condition::IfPresent),
        IF_VERSION => Ok(Condition::IfVersion(reader.varint()?)),
        tag => Err(reader.unknown("condition", tag.into())),
    }
}

fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

fn put_optional(out: &mut Writer, value: Option<u64>) {
    if let Some(value) = value {
        out.varint(value);
    }
}

fn get_optional(reader: &mut Reader, present: bool) -> Result<Option<u64>, DecodeError> {
    if present { reader.varint().map(Some) } else { Ok(None) }
}
