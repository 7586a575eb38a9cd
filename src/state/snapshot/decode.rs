//! Reading a snapshot, one section at a time, into a state of its own.

use bytes::Bytes;

use super::{
    BOOTS, DEFAULT_KEYSPACE, END, ENTRIES, GROUP, HAS_DEADLINE, HAS_LAST_APPLIED, HAS_MEMBERSHIP_ENTRY,
    HEADER, IS_OPEN, KEYSPACES, LIMITS, MAGIC, POSITION, RETIRED, SESSIONS, STATE, SnapshotError, VERSION,
    WATCH,
    section::{Section, chain},
};
use crate::{
    state::{
        DecodeError, FEATURE_LEVEL, LogPosition, MAX_KEY_BYTES, MAX_VALUE_BYTES, Machine,
        codec::{decode_membership, get_boot, wire::Reader},
    },
    time::UnixMillis,
};

/// Takes a snapshot in, section by section. Nothing of it is used before [`SnapshotDecoder::finish`] found it whole.
#[derive(Debug, Default)]
pub struct SnapshotDecoder {
    machine: Machine,
    /// The kind of the last section known here; 0 before the first.
    last: u16,
    /// Sections taken in, also those skipped.
    sections: u64,
    chain: u32,
    /// Keys and bytes that the keyspace section announced.
    announced: (u64, u64),
    last_key: Bytes,
    /// The first error: what follows it is not looked at.
    failed: Option<SnapshotError>,
}

impl SnapshotDecoder {
    /// Ready for the first section.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next section.
    ///
    /// # Errors
    /// If it is damaged, out of place, of a required kind that is unknown, or contradicts what came before. The decoder then
    /// answers every later call with the same error.
    pub fn push(&mut self, section: Bytes) -> Result<(), SnapshotError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.take(&section);
        self.failed = result.clone().err();
        result
    }

    /// The state, if all of it came.
    ///
    /// # Errors
    /// If a section was refused, the end marker did not come, or the state breaks one of its invariants.
    pub fn finish(self) -> Result<Machine, SnapshotError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.last != END {
            return Err(SnapshotError::Unfinished { sections: self.sections });
        }
        match self.machine.violation() {
            Some(violation) => Err(SnapshotError::Inconsistent(violation)),
            None => Ok(self.machine),
        }
    }

    fn take(&mut self, bytes: &Bytes) -> Result<(), SnapshotError> {
        let place = self.sections;
        let Section { kind, version, required, crc, payload } = Section::parse(bytes, place)?;
        if self.last == END || (self.last == 0 && kind != HEADER) {
            return Err(SnapshotError::Order { kind, after: self.last });
        }
        let known = version == VERSION && matches!(kind, HEADER..=ENTRIES | END);
        if known {
            self.check_order(kind)?;
            let mut reader = Reader::new(name(kind), payload);
            self.take_known(kind, &mut reader)?;
            reader.finish().map_err(|error| self.unreadable(error))?;
            self.last = kind;
        } else if required {
            return Err(SnapshotError::Unknown { section: place, kind, version });
        }
        self.sections += 1;
        self.chain = chain(self.chain, crc);
        Ok(())
    }

    /// Each kind follows the one before; only entries repeat, and may be missing.
    fn check_order(&self, kind: u16) -> Result<(), SnapshotError> {
        let follows = match kind {
            END => self.last == WATCH || self.last == ENTRIES,
            ENTRIES => self.last == WATCH || self.last == ENTRIES,
            kind => kind == self.last + 1,
        };
        if follows { Ok(()) } else { Err(SnapshotError::Order { kind, after: self.last }) }
    }

    fn take_known(&mut self, kind: u16, reader: &mut Reader) -> Result<(), SnapshotError> {
        match kind {
            HEADER => self.take_header(reader),
            END => self.take_end(reader),
            kind => self.take_state(kind, reader).map_err(|error| self.unreadable(error)),
        }
    }

    fn take_header(&mut self, reader: &mut Reader) -> Result<(), SnapshotError> {
        let read = |reader: &mut Reader| -> Result<_, DecodeError> {
            Ok((reader.array()?, reader.varint()?, reader.varint()?))
        };
        let (magic, group, level) = read(reader).map_err(|error| self.unreadable(error))?;
        if magic != MAGIC {
            return Err(SnapshotError::Inconsistent("it does not begin as a snapshot does"));
        }
        if group != GROUP {
            return Err(SnapshotError::Group { found: group });
        }
        self.machine.feature_level = u32::try_from(level)
            .ok()
            .filter(|level| *level <= FEATURE_LEVEL)
            .ok_or(SnapshotError::FeatureLevel { found: level, known: FEATURE_LEVEL })?;
        Ok(())
    }

    fn take_state(&mut self, kind: u16, reader: &mut Reader) -> Result<(), DecodeError> {
        let machine = &mut self.machine;
        match kind {
            POSITION => {
                let flags = reader.flags(HAS_LAST_APPLIED | HAS_MEMBERSHIP_ENTRY)?;
                machine.last_applied = take_position(reader, flags & HAS_LAST_APPLIED != 0)?;
                machine.membership_at = take_position(reader, flags & HAS_MEMBERSHIP_ENTRY != 0)?;
                machine.membership = decode_membership(reader.bytes()?)?;
            }
            STATE => {
                machine.clock = UnixMillis(reader.signed()?);
                machine.revision = reader.varint()?;
                machine.open = reader.flags(IS_OPEN)? & IS_OPEN != 0;
                machine.state_hash = reader.u64_le()?;
            }
            LIMITS => {
                none_yet(reader, "it has a memory cap")?;
                none_yet(reader, "it has an eviction policy")?;
            }
            KEYSPACES => self.announced = take_keyspaces(reader)?,
            RETIRED => {
                for _ in 0..reader.count(1)? {
                    let id = reader.varint()?;
                    if machine.retired.last().is_some_and(|last| *last >= id) {
                        return Err(reader.inconsistent("its ids do not ascend"));
                    }
                    machine.retired.insert(id);
                }
            }
            BOOTS => take_boots(machine, reader)?,
            SESSIONS => none_yet(reader, "it has sessions")?,
            WATCH => {
                if reader.varint()? != machine.revision {
                    return Err(reader.inconsistent("its floor is not the revision"));
                }
                none_yet(reader, "it has events")?;
            }
            ENTRIES => self.take_entries(reader)?,
            kind => return Err(reader.unknown("kind", kind.into())),
        }
        Ok(())
    }

    fn take_entries(&mut self, reader: &mut Reader) -> Result<(), DecodeError> {
        none_yet(reader, "it is of a keyspace other than the default one")?;
        if reader.left() == 0 {
            return Err(reader.inconsistent("it is empty"));
        }
        while reader.left() > 0 {
            let key = reader.bytes()?;
            let version = reader.varint()?;
            if reader.flags(HAS_DEADLINE)? & HAS_DEADLINE != 0 {
                return Err(
                    reader.inconsistent("a key has a deadline, which this feature level does not allow")
                );
            }
            let value = reader.bytes()?;
            if key.is_empty() || key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
                return Err(reader.inconsistent("a key or a value is past its limit"));
            }
            if key <= self.last_key {
                return Err(reader.inconsistent("its keys do not ascend"));
            }
            self.machine.keyspace.put(&key, &value, version);
            self.last_key = key;
        }
        Ok(())
    }

    fn take_end(&mut self, reader: &mut Reader) -> Result<(), SnapshotError> {
        let totals = |reader: &mut Reader| -> Result<_, DecodeError> {
            Ok((reader.varint()?, (reader.varint()?, reader.varint()?), reader.u32_le()?))
        };
        let (sections, counted, chain) = totals(reader).map_err(|error| self.unreadable(error))?;
        if sections != self.sections || chain != self.chain {
            return Err(SnapshotError::Inconsistent("sections are missing, repeated or out of order"));
        }
        let actual = (self.machine.keys(), self.machine.bytes());
        if counted != actual || self.announced != actual {
            return Err(SnapshotError::Inconsistent("its keys or bytes are not as many as it says"));
        }
        Ok(())
    }

    fn unreadable(&self, error: DecodeError) -> SnapshotError {
        SnapshotError::Payload { section: self.sections, error }
    }
}

/// What errors call a section.
fn name(kind: u16) -> &'static str {
    match kind {
        HEADER => "header section",
        POSITION => "position section",
        STATE => "state section",
        LIMITS => "limits section",
        KEYSPACES => "keyspaces section",
        RETIRED => "retired ids section",
        BOOTS => "boot records section",
        SESSIONS => "sessions section",
        WATCH => "watch events section",
        ENTRIES => "entries section",
        _ => "end section",
    }
}

/// A number that is 0 until a later feature level.
fn none_yet(reader: &mut Reader, otherwise: &'static str) -> Result<(), DecodeError> {
    if reader.varint()? == 0 { Ok(()) } else { Err(reader.inconsistent(otherwise)) }
}

fn take_position(reader: &mut Reader, present: bool) -> Result<Option<LogPosition>, DecodeError> {
    if !present {
        return Ok(None);
    }
    Ok(Some(LogPosition { term: reader.varint()?, index: reader.varint()? }))
}

fn take_keyspaces(reader: &mut Reader) -> Result<(u64, u64), DecodeError> {
    if reader.varint()? != 1 || reader.varint()? != 0 || reader.text()? != DEFAULT_KEYSPACE {
        return Err(reader.inconsistent("it has keyspaces other than the default one"));
    }
    none_yet(reader, "a keyspace has a cap")?;
    none_yet(reader, "a keyspace has an eviction policy")?;
    let announced = (reader.varint()?, reader.varint()?);
    none_yet(reader, "a keyspace has evictions")?;
    none_yet(reader, "a keyspace has expirations")?;
    Ok(announced)
}

fn take_boots(machine: &mut Machine, reader: &mut Reader) -> Result<(), DecodeError> {
    for _ in 0..reader.count(1)? {
        let (slot, boot) = get_boot(reader)?;
        if machine.boots.last_key_value().is_some_and(|(last, _)| *last >= slot) {
            return Err(reader.inconsistent("its slots do not ascend"));
        }
        machine.boots.insert(slot, boot);
    }
    Ok(())
}
