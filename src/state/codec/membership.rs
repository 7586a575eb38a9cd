//! The membership, in its log entry and in the snapshot, and the boot records, in their commands and in the snapshot.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    DecodeError, VERSION,
    wire::{Reader, Writer},
};
use crate::state::{BootRecord, MemberNode, Membership};

/// The least bytes of a node: id, two empty texts, the incarnation.
const LEAST_NODE_BYTES: u64 = 3 + 16;

/// Encodes a membership: the payload of its log entry, and a part of the snapshot. Ids are written in ascending order,
/// each once.
pub fn encode_membership(membership: &Membership) -> Bytes {
    let Membership { configs, nodes } = membership.clone().normalized();
    let mut out = Writer::with_capacity(64 + 96 * nodes.len());
    out.u8(VERSION);
    out.varint(configs.len() as u64);
    for config in &configs {
        out.varint(config.len() as u64);
        for id in config {
            out.varint(*id);
        }
    }
    out.varint(nodes.len() as u64);
    for (id, MemberNode { slot, peer_address, incarnation }) in &nodes {
        out.varint(*id);
        out.bytes(slot.as_bytes());
        out.bytes(peer_address.as_bytes());
        out.raw(incarnation);
    }
    out.finish()
}

/// Decodes a membership.
///
/// # Errors
/// If the bytes are not exactly one membership of a known version, it has more than two configurations, ids do not
/// ascend, or a voter is not among the nodes.
pub fn decode_membership(bytes: Bytes) -> Result<Membership, DecodeError> {
    let mut reader = Reader::new("membership", bytes);
    reader.version(VERSION)?;
    let count = reader.count(1)?;
    if count > 2 {
        return Err(reader.inconsistent("it has more than two configurations"));
    }
    let mut configs = Vec::with_capacity(count);
    for _ in 0..count {
        let count = reader.count(1)?;
        let mut config = Vec::with_capacity(count);
        for _ in 0..count {
            let id = reader.varint()?;
            if config.last().is_some_and(|last| *last >= id) {
                return Err(reader.inconsistent("its voters do not ascend"));
            }
            config.push(id);
        }
        configs.push(config);
    }
    let count = reader.count(LEAST_NODE_BYTES)?;
    let mut nodes = BTreeMap::new();
    for _ in 0..count {
        let id = reader.varint()?;
        if nodes.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(reader.inconsistent("its nodes do not ascend"));
        }
        let node =
            MemberNode { slot: reader.text()?, peer_address: reader.text()?, incarnation: reader.array()? };
        nodes.insert(id, node);
    }
    let membership = Membership { configs, nodes };
    if membership.voters().any(|voter| !membership.nodes.contains_key(&voter)) {
        return Err(reader.inconsistent("a voter is not among its nodes"));
    }
    reader.finish()?;
    Ok(membership)
}

/// Writes a boot record with its slot.
pub(in crate::state) fn put_boot(out: &mut Writer, slot: &str, boot: &BootRecord) {
    out.bytes(slot.as_bytes());
    out.varint(boot.raft_id);
    out.raw(&boot.incarnation);
    out.varint(boot.boot_counter);
    out.u64_le(boot.nonce);
}

/// Reads a boot record and its slot.
pub(in crate::state) fn get_boot(reader: &mut Reader) -> Result<(String, BootRecord), DecodeError> {
    let slot = reader.text()?;
    let boot = BootRecord {
        raft_id: reader.varint()?,
        incarnation: reader.array()?,
        boot_counter: reader.varint()?,
        nonce: reader.u64_le()?,
    };
    Ok((slot, boot))
}
