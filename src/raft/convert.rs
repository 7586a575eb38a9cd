//! Between openraft's types, the peer protocol's messages and the log's records.
//!
//! What comes from a peer or from the disk is never trusted: every conversion from there can fail, with a sentence.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{
    EntryPayload, LogId as OpenLogId,
    raft::{AppendEntriesRequest, StreamAppendError, VoteRequest, VoteResponse},
};

use super::types::{Entry, LogId, Membership, PeerNode, Proposal, StoredMembership, TypeConfig, Vote};
use crate::{
    proto::raft as pb,
    state::{self, LogPosition},
    store::{Position, Record, VoteRecord},
};

/// Record kinds, on disk and on the wire.
const BLANK: u8 = 0;
const COMMANDS: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// A message or a record that cannot be what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {why}")]
pub(crate) struct Malformed {
    what: &'static str,
    why: String,
}

fn malformed(what: &'static str, why: impl ToString) -> Malformed {
    Malformed { what, why: why.to_string() }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    OpenLogId::new_term_index(term, index)
}

pub(crate) fn position(id: &LogId) -> Position {
    Position { term: id.leader_id.term, index: id.index }
}

pub(crate) fn from_position(at: Position) -> LogId {
    log_id(at.term, at.index)
}

pub(crate) fn state_position(id: &LogId) -> LogPosition {
    LogPosition { term: id.leader_id.term, index: id.index }
}

pub(crate) fn from_state_position(at: LogPosition) -> LogId {
    log_id(at.term, at.index)
}

// ---- votes

pub(crate) fn vote_record(vote: &Vote) -> VoteRecord {
    VoteRecord { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn from_vote_record(record: VoteRecord) -> Vote {
    if record.committed {
        Vote::new_committed(record.term, record.node)
    } else {
        Vote::new(record.term, record.node)
    }
}

pub(crate) fn vote_to_pb(vote: &Vote) -> pb::VoteId {
    pb::VoteId { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from_pb(vote: Option<pb::VoteId>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or_else(|| malformed("vote", "it is missing"))?;
    Ok(from_vote_record(VoteRecord { term: vote.term, node: vote.node, committed: vote.committed }))
}

/// The vote of somebody who says that it leads.
pub(crate) fn leaders_vote_from_pb(vote: Option<pb::VoteId>) -> Result<Vote, Malformed> {
    let vote = vote_from_pb(vote)?;
    if vote.committed {
        Ok(vote)
    } else {
        Err(malformed("vote", "a leader's vote is one that a quorum granted"))
    }
}

pub(crate) fn log_id_to_pb(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn log_id_from_pb(id: pb::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn vote_request_to_pb(
    request: &VoteRequest<TypeConfig>,
    header: pb::PeerHeader,
) -> pb::VoteRequest {
    pb::VoteRequest {
        header: Some(header),
        vote: Some(vote_to_pb(&request.vote)),
        last_log: request.last_log_id.as_ref().map(log_id_to_pb),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_from_pb(request: pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Malformed> {
    Ok(VoteRequest {
        vote: vote_from_pb(request.vote)?,
        last_log_id: request.last_log.map(log_id_from_pb),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(crate) fn vote_response_to_pb(response: &VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(vote_to_pb(&response.vote)),
        granted: response.vote_granted,
        last_log: response.last_log_id.as_ref().map(log_id_to_pb),
        from: None,
    }
}

pub(crate) fn vote_response_from_pb(
    response: pb::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse {
        vote: vote_from_pb(response.vote)?,
        vote_granted: response.granted,
        last_log_id: response.last_log.map(log_id_from_pb),
    })
}

// ---- membership

pub(crate) fn membership_to_state(membership: &Membership) -> state::Membership {
    state::Membership {
        configs: membership.get_joint_config().iter().map(|c| c.iter().copied().collect()).collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, member_node(node))).collect(),
    }
}

fn member_node(node: &PeerNode) -> state::MemberNode {
    // Where a member is dialled follows from its slot, at every dial; an address is never stored.
    state::MemberNode { slot: node.slot.clone(), peer_address: String::new(), incarnation: node.incarnation }
}

pub(crate) fn membership_from_state(membership: &state::Membership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.iter().map(|c| c.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, PeerNode> = membership
        .nodes
        .iter()
        .map(|(id, node)| (*id, PeerNode { slot: node.slot.clone(), incarnation: node.incarnation }))
        .collect();
    Membership::new(configs, nodes).map_err(|e| malformed("membership", e))
}

/// The membership that a state holds, as openraft stores it. An empty one is no membership at all.
pub(crate) fn stored_membership(
    at: Option<LogPosition>,
    membership: &state::Membership,
) -> Result<StoredMembership, Malformed> {
    match at {
        None => Ok(StoredMembership::default()),
        Some(at) => {
            Ok(StoredMembership::new(Some(from_state_position(at)), membership_from_state(membership)?))
        }
    }
}

// ---- entries

fn parts_of(payload: EntryPayload<Proposal, u64, PeerNode>) -> (u8, Bytes) {
    match payload {
        EntryPayload::Blank => (BLANK, Bytes::new()),
        EntryPayload::Normal(proposal) => (COMMANDS, proposal.0),
        EntryPayload::Membership(m) => {
            (MEMBERSHIP, state::codec::encode_membership(&membership_to_state(&m)))
        }
    }
}

fn payload_of(kind: u8, payload: Bytes) -> Result<EntryPayload<Proposal, u64, PeerNode>, Malformed> {
    match kind {
        BLANK => Ok(EntryPayload::Blank),
        COMMANDS => Ok(EntryPayload::Normal(Proposal(payload))),
        MEMBERSHIP => {
            let membership =
                state::codec::decode_membership(payload).map_err(|e| malformed("membership entry", e))?;
            Ok(EntryPayload::Membership(membership_from_state(&membership)?))
        }
        other => Err(malformed("log entry", format!("kind {other} is not known to this release"))),
    }
}

pub(crate) fn record(entry: Entry) -> Record {
    let (kind, payload) = parts_of(entry.payload);
    Record { index: entry.log_id.index, term: entry.log_id.leader_id.term, kind, payload }
}

/// The commands in a record, for metrics.
pub(crate) fn commands_in(record: &Record) -> u64 {
    if record.kind == COMMANDS { state::codec::count_commands(&record.payload) } else { 0 }
}

pub(crate) fn entry(record: Record) -> Result<Entry, Malformed> {
    Ok(Entry { log_id: log_id(record.term, record.index), payload: payload_of(record.kind, record.payload)? })
}

pub(crate) fn append_to_pb(
    request: AppendEntriesRequest<TypeConfig>,
    header: Option<pb::PeerHeader>,
) -> pb::AppendRequest {
    pb::AppendRequest {
        header,
        vote: Some(vote_to_pb(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_pb),
        entries: request
            .entries
            .into_iter()
            .map(|entry| {
                let id = Some(log_id_to_pb(&entry.log_id));
                let (kind, payload) = parts_of(entry.payload);
                pb::LogEntry { id, kind: kind.into(), payload }
            })
            .collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to_pb),
    }
}

pub(crate) fn append_from_pb(
    request: pb::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let entries = request
        .entries
        .into_iter()
        .map(|entry| {
            let id = entry.id.ok_or_else(|| malformed("log entry", "it has no id"))?;
            let kind = u8::try_from(entry.kind).map_err(|e| malformed("log entry", e))?;
            Ok(Entry { log_id: log_id_from_pb(id), payload: payload_of(kind, entry.payload)? })
        })
        .collect::<Result<Vec<_>, Malformed>>()?;
    // openraft takes for granted that entries follow one another; a peer must not be able to break that.
    let mut next = request.previous.and_then(|id| id.index.checked_add(1));
    for entry in &entries {
        if next.is_some_and(|next| next != entry.log_id.index) {
            return Err(malformed(
                "append",
                format!("entry {} does not follow the one before", entry.log_id.index),
            ));
        }
        next = entry.log_id.index.checked_add(1);
    }
    Ok(AppendEntriesRequest {
        vote: leaders_vote_from_pb(request.vote)?,
        prev_log_id: request.previous.map(log_id_from_pb),
        entries,
        leader_commit: request.leader_commit.map(log_id_from_pb),
    })
}

pub(crate) type AppendResult = Result<Option<LogId>, StreamAppendError<TypeConfig>>;

pub(crate) fn append_result_to_pb(result: &AppendResult) -> pb::AppendResponse {
    use pb::append_response::Result as R;
    let result = match result {
        Ok(last) => R::Matched(pb::Matched { last: last.as_ref().map(log_id_to_pb) }),
        Err(StreamAppendError::Conflict(at)) => R::Conflict(log_id_to_pb(at)),
        Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(vote_to_pb(vote)),
    };
    pb::AppendResponse { result: Some(result), from: None }
}

pub(crate) fn append_result_from_pb(response: pb::AppendResponse) -> Result<AppendResult, Malformed> {
    use pb::append_response::Result as R;
    Ok(match response.result.ok_or_else(|| malformed("append response", "it is empty"))? {
        R::Matched(matched) => Ok(matched.last.map(log_id_from_pb)),
        R::Conflict(at) => Err(StreamAppendError::Conflict(log_id_from_pb(at))),
        R::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_from_pb(Some(vote))?)),
    })
}

pub(crate) fn read_index_to_pb(index: u64) -> pb::ReadIndexResponse {
    pb::ReadIndexResponse { read_log: Some(pb::LogId { term: 0, index }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let node = |slot: &str, byte| PeerNode { slot: slot.into(), incarnation: [byte; 16] };
        Membership::new(
            vec![BTreeSet::from([1, 2, 3])],
            BTreeMap::from([(1, node("0", 1)), (2, node("1", 2)), (3, node("2", 3))]),
        )
        .unwrap()
    }

    fn request() -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 2),
            prev_log_id: Some(log_id(2, 6)),
            entries: vec![
                Entry { log_id: log_id(3, 7), payload: EntryPayload::Blank },
                Entry { log_id: log_id(3, 8), payload: EntryPayload::Membership(membership()) },
                Entry {
                    log_id: log_id(3, 9),
                    payload: EntryPayload::Normal(Proposal(Bytes::from_static(b"x"))),
                },
            ],
            leader_commit: Some(log_id(2, 5)),
        }
    }

    #[test]
    fn an_append_survives_the_wire_and_the_disk() {
        let there = append_to_pb(request(), None);
        let back = append_from_pb(there).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", request()));
        for entry_before in request().entries {
            let entry_after = entry(record(entry_before.clone())).unwrap();
            assert_eq!(entry_after, entry_before);
        }
    }

    #[test]
    fn the_commands_of_a_record_are_counted_without_decoding_them() {
        let command = state::codec::encode_command(&state::Command::new(state::Operation::Open));
        let stamp = state::Stamp { touched: vec![1, 2], ..state::Stamp::default() };
        let entry_of = |count: usize| Record {
            index: 1,
            term: 1,
            kind: COMMANDS,
            payload: state::codec::encode_entry(&stamp, &vec![command.clone(); count]),
        };
        assert_eq!([0, 1, 200].map(|count| commands_in(&entry_of(count))), [0, 1, 200]);
        assert_eq!(commands_in(&Record { payload: Bytes::from_static(b"?"), ..entry_of(1) }), 0);
        assert_eq!(commands_in(&Record { kind: BLANK, ..entry_of(1) }), 0);
    }

    #[test]
    fn a_hole_between_entries_is_refused() {
        let mut there = append_to_pb(request(), None);
        there.entries.remove(1);
        let error = append_from_pb(there).unwrap_err().to_string();
        assert!(error.contains("does not follow"), "{error}");
    }

    #[test]
    fn an_unknown_kind_and_a_missing_vote_are_refused() {
        let mut there = append_to_pb(request(), None);
        there.entries[0].kind = 77;
        assert!(append_from_pb(there).is_err());
        let mut there = append_to_pb(request(), None);
        there.vote = None;
        assert!(append_from_pb(there).is_err());
    }
}
