//! What a command came to, on its way back to the node that the client asked.

use bytes::Bytes;

use super::{
    DecodeError, VERSION,
    wire::{Reader, Writer},
};
use crate::{
    error::Rejection,
    state::{Applied, MAX_BATCH_OPERATIONS, Outcome, Versioned},
    time::UnixMillis,
};

const SET: u8 = 1;
const DELETED: u8 = 2;
const INCREMENTED: u8 = 3;
const BATCH: u8 = 4;
const OPENED: u8 = 5;
const REJECTED: u8 = 6;
const BOOT_RECORDED: u8 = 7;

const CONDITION_FAILED: u8 = 1;
const NOT_A_NUMBER: u8 = 2;
const OUT_OF_RANGE: u8 = 3;
const NOT_OPEN: u8 = 4;

const HAS_PREVIOUS: u8 = 1;
const EXISTED: u8 = 2;
const EXISTS: u8 = 1;
const ACCEPTED: u8 = 1;
const HAS_DEADLINE: u8 = 1;

/// The least bytes of an outcome: its tag.
const LEAST_OUTCOME_BYTES: u64 = 1;

/// Encodes what a command came to.
pub fn encode_applied(applied: &Applied) -> Bytes {
    let mut out = Writer::with_capacity(32 + payload_bytes(&applied.outcome));
    out.u8(VERSION);
    out.varint(applied.revision);
    out.signed(applied.clock.0);
    put_outcome(&mut out, &applied.outcome);
    out.finish()
}

/// Decodes what a command came to. Values share the buffer.
///
/// # Errors
/// If the bytes are not exactly one such record of a known version.
pub fn decode_applied(bytes: Bytes) -> Result<Applied, DecodeError> {
    let mut reader = Reader::new("outcome", bytes);
    reader.version(VERSION)?;
    let revision = reader.varint()?;
    let clock = UnixMillis(reader.signed()?);
    let outcome = match reader.u8()? {
        BATCH => {
            let count = reader.count(LEAST_OUTCOME_BYTES)?;
            // An outcome is larger here than on the wire, so a count alone may not claim the memory.
            let mut outcomes = Vec::with_capacity(count.min(MAX_BATCH_OPERATIONS));
            for _ in 0..count {
                let tag = reader.u8()?;
                outcomes.push(get_plain_outcome(&mut reader, tag)?);
            }
            Outcome::Batch(outcomes)
        }
        tag => get_plain_outcome(&mut reader, tag)?,
    };
    reader.finish()?;
    Ok(Applied { revision, clock, outcome })
}

/// Bytes of values, to allocate once.
fn payload_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Set { previous: Some(previous), .. } | Outcome::Deleted { previous: Some(previous), .. } => {
            32 + previous.value.len()
        }
        Outcome::Batch(outcomes) => outcomes.iter().map(|one| 24 + payload_bytes(one)).sum(),
        Outcome::Set { .. }
        | Outcome::Deleted { .. }
        | Outcome::Incremented { .. }
        | Outcome::Opened
        | Outcome::BootRecorded { .. }
        | Outcome::Rejected(_) => 0,
    }
}

fn put_outcome(out: &mut Writer, outcome: &Outcome) {
    match outcome {
        Outcome::Set { version, previous } => {
            out.u8(SET);
            out.u8(if previous.is_some() { HAS_PREVIOUS } else { 0 });
            out.varint(*version);
            put_previous(out, previous.as_ref());
        }
        Outcome::Deleted { existed, previous } => {
            out.u8(DELETED);
            out.u8(if previous.is_some() { HAS_PREVIOUS } else { 0 } | if *existed { EXISTED } else { 0 });
            put_previous(out, previous.as_ref());
        }
        Outcome::Incremented { value, version } => {
            out.u8(INCREMENTED);
            out.signed(*value);
            out.varint(*version);
        }
        Outcome::Batch(outcomes) => {
            out.u8(BATCH);
            out.varint(outcomes.len() as u64);
            for outcome in outcomes {
                put_outcome(out, outcome);
            }
        }
        Outcome::Opened => out.u8(OPENED),
        Outcome::BootRecorded { accepted } => {
            out.u8(BOOT_RECORDED);
            out.u8(if *accepted { ACCEPTED } else { 0 });
        }
        Outcome::Rejected(rejection) => {
            out.u8(REJECTED);
            put_rejection(out, rejection);
        }
    }
}

/// An outcome that may stand in a batch's.
fn get_plain_outcome(reader: &mut Reader, tag: u8) -> Result<Outcome, DecodeError> {
    match tag {
        SET => {
            let flags = reader.flags(HAS_PREVIOUS)?;
            Ok(Outcome::Set { version: reader.varint()?, previous: get_previous(reader, flags)? })
        }
        DELETED => {
            let flags = reader.flags(HAS_PREVIOUS | EXISTED)?;
            Ok(Outcome::Deleted { existed: flags & EXISTED != 0, previous: get_previous(reader, flags)? })
        }
        INCREMENTED => Ok(Outcome::Incremented { value: reader.signed()?, version: reader.varint()? }),
        OPENED => Ok(Outcome::Opened),
        BOOT_RECORDED => Ok(Outcome::BootRecorded { accepted: reader.flags(ACCEPTED)? & ACCEPTED != 0 }),
        REJECTED => get_rejection(reader).map(Outcome::Rejected),
        BATCH => Err(DecodeError::NestedBatch),
        tag => Err(reader.unknown("result", tag.into())),
    }
}

fn put_rejection(out: &mut Writer, rejection: &Rejection) {
    match rejection {
        Rejection::ConditionFailed { current } => {
            out.u8(CONDITION_FAILED);
            out.u8(if current.is_some() { EXISTS } else { 0 });
            if let Some(version) = current {
                out.varint(*version);
            }
        }
        Rejection::NotANumber => out.u8(NOT_A_NUMBER),
        Rejection::OutOfRange => out.u8(OUT_OF_RANGE),
        Rejection::NotOpen => out.u8(NOT_OPEN),
    }
}

fn get_rejection(reader: &mut Reader) -> Result<Rejection, DecodeError> {
    match reader.u8()? {
        CONDITION_FAILED => {
            let exists = reader.flags(EXISTS)? & EXISTS != 0;
            let current = if exists { Some(reader.varint()?) } else { None };
            Ok(Rejection::ConditionFailed { current })
        }
        NOT_A_NUMBER => Ok(Rejection::NotANumber),
        OUT_OF_RANGE => Ok(Rejection::OutOfRange),
        NOT_OPEN => Ok(Rejection::NotOpen),
        tag => Err(reader.unknown("rejection", tag.into())),
    }
}

fn put_previous(out: &mut Writer, previous: Option<&Versioned>) {
    if let Some(Versioned { value, version, deadline }) = previous {
        out.u8(if deadline.is_some() { HAS_DEADLINE } else { 0 });
        out.varint(*version);
        if let Some(deadline) = deadline {
            out.signed(deadline.0);
        }
        out.bytes(value);
    }
}

fn get_previous(reader: &mut Reader, outcome_flags: u8) -> Result<Option<Versioned>, DecodeError> {
    if outcome_flags & HAS_PREVIOUS == 0 {
        return Ok(None);
    }
    let flags = reader.flags(HAS_DEADLINE)?;
    let version = reader.varint()?;
    let deadline = if flags & HAS_DEADLINE != 0 { Some(UnixMillis(reader.signed()?)) } else { None };
    Ok(Some(Versioned { version, deadline, value: reader.bytes()? }))
}
