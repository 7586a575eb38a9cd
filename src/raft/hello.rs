//! Hello: who are you, and in what state? Asked before a cluster exists, answered always.

use std::time::Duration;

use tokio::time::timeout;
use uuid::Uuid;

use super::{
    handshake::{Expectation, Header, IdentityRef, is_slot},
    node::Node,
    peers::{GROUP, Lane, Peers},
};
use crate::{
    net::DialError,
    proto::raft as pb,
    store::{Binding, ClusterId, FoundingSet, raft_id},
};

/// How long an answer may take: a seed that is up answers from memory.
const TIMEOUT: Duration = Duration::from_secs(2);
/// More seeds than any release has: a longer list is not believed.
const MAX_SEEDS: usize = 16;

/// What a node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloAnswer {
    /// Who answered.
    pub from: IdentityRef,
    /// What it is bound to.
    pub binding: Binding,
    /// Its last log index.
    pub last_log_index: u64,
    /// The leader it knows, by Raft id.
    pub leader: Option<u64>,
    /// Where its clients connect.
    pub client_address: String,
    /// Whether it may lead: not shortly after a start, and not while it is stopping.
    pub may_lead: bool,
    /// Why it refuses every other call of this node, for good: `RETIRED`, `STALE_BOOT`, `CLONED`; else empty.
    pub refused: String,
    /// The slots of the seeds, as it was told.
    pub seeds: Vec<String>,
}

/// What a node answers: `header` without an addressee, and `node` once Raft runs.
pub(super) fn answer(
    mut header: pb::PeerHeader,
    binding: &Binding,
    seeds: &[String],
    node: Option<&Node>,
) -> pb::HelloResponse {
    let (state, set) = match binding {
        Binding::Formatted => (pb::BindState::Formatted, None),
        Binding::Promised(set) => (pb::BindState::Promised, Some(set)),
        Binding::Bound { founders, .. } => (pb::BindState::Bound, founders.as_ref()),
        // Never heard of: such a node does not serve.
        Binding::Left { .. } | Binding::Superseded { .. } => (pb::BindState::Left, None),
    };
    let seed = |slot: &str, incarnation: [u8; 16], raft_id: u64| pb::Seed {
        slot: slot.into(),
        incarnation: incarnation.to_vec().into(),
        raft_id,
    };
    let set = set.map(|set| pb::SeedSet {
        seeds: set.0.iter().map(|(slot, i)| seed(slot, *i.as_bytes(), raft_id(*i))).collect(),
    });
    let members = node.map(|node| node.metrics().membership_config).map(|membership| {
        membership.nodes().map(|(id, peer)| seed(&peer.slot, peer.incarnation, *id)).collect()
    });
    // A node that left speaks for its cluster no more, but says which one it was.
    if let Binding::Left { cluster } = binding {
        header.cluster_id = cluster.0.to_vec().into();
    }
    pb::HelloResponse {
        header: Some(header),
        state: state.into(),
        set,
        leader: node.and_then(|n| n.leader()).map_or(0, |leader| leader.id),
        last_log_index: node.and_then(|n| n.log().last()).map_or(0, |at| at.index),
        members: members.unwrap_or_default(),
        may_lead: node.is_some_and(|node| node.may_lead()),
        refused: String::new(),
        seeds: match binding {
            Binding::Formatted | Binding::Promised(_) => seeds.to_vec(),
            Binding::Bound { .. } | Binding::Left { .. } | Binding::Superseded { .. } => Vec::new(),
        },
    }
}

/// Asks whoever is at a slot. `Err` is a sentence for the log.
///
/// # Errors
/// If nobody answers in time, or what answers makes no sense.
pub async fn hello(peers: &Peers, slot: &str) -> Result<HelloAnswer, String> {
    let mut client = peers.client(slot, Lane::Control)?;
    let request = pb::HelloRequest { header: Some(peers.header(0)) };
    let answer = match timeout(TIMEOUT, client.hello(request)).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => {
            return Err(no_answer(&peers.address_of(slot), &status));
        }
        Err(_) => return Err(format!("{} did not answer in time", peers.address_of(slot))),
    };
    let header = answer.header.clone().ok_or("the answer does not say who sends it")?;
    let header = Header::try_from(header).map_err(|refusal| refusal.to_string())?;
    let me = peers.identity();
    let expectation = Expectation { cluster: peers.cluster(), group: GROUP, me };
    let checked = expectation.check_answer(&header, 0);
    let elsewhere =
        || header.cluster.is_some() && peers.cluster().is_some() && header.cluster != peers.cluster();
    let outdated = || peers.heard().compare(&header.from).is_err();
    if checked.is_err() || header.from.slot != slot || elsewhere() || outdated() {
        // Its address may have become somebody else's, who keeps the connection alive: the name may lead elsewhere by now.
        peers.hang_up(slot);
    }
    checked.map_err(|refusal| refusal.to_string())?;
    let binding = binding(&answer, header.cluster)?;
    if answer.seeds.len() > MAX_SEEDS || answer.seeds.iter().any(|slot| !is_slot(slot)) {
        return Err("a list of seeds that cannot be".into());
    }
    Ok(HelloAnswer {
        from: header.from,
        binding,
        last_log_index: answer.last_log_index,
        leader: (answer.leader != 0).then_some(answer.leader),
        client_address: header.client_address,
        may_lead: answer.may_lead,
        refused: answer.refused,
        seeds: answer.seeds,
    })
}

/// tonic says "transport error" and hides why in its sources.
fn no_answer(address: &str, status: &tonic::Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref() {
        Some(DialError::Unresolved(why)) => format!("{address} does not resolve: {why}"),
        _ => format!("{address} does not answer: {cause}"),
    }
}

fn binding(answer: &pb::HelloResponse, cluster: Option<ClusterId>) -> Result<Binding, String> {
    let set = answer.set.as_ref().map(founding_set).transpose()?;
    let cluster_of = |what: &str| cluster.ok_or(format!("a node that says it {what} names no cluster"));
    match (answer.state(), set) {
        (pb::BindState::Formatted, _) => Ok(Binding::Formatted),
        (pb::BindState::Promised, Some(set)) => Ok(Binding::Promised(set)),
        (pb::BindState::Bound, founders) => {
            let cluster = cluster_of("is bound")?;
            if founders.as_ref().is_some_and(|set| set.cluster_id() != cluster) {
                return Err("a node's founding set is not that of its cluster".into());
            }
            Ok(Binding::Bound { cluster, founders })
        }
        (pb::BindState::Left, _) => Ok(Binding::Left { cluster: cluster_of("left")? }),
        (pb::BindState::Promised, None) => Err("a promise without a set".into()),
        (pb::BindState::Unspecified, _) => Err("a state that this release does not know".into()),
    }
}

fn founding_set(set: &pb::SeedSet) -> Result<FoundingSet, String> {
    if set.seeds.len() > MAX_SEEDS {
        return Err(format!("a founding set of {} seeds; at most {MAX_SEEDS} are believed", set.seeds.len()));
    }
    let mut founders = FoundingSet::default();
    for seed in &set.seeds {
        let incarnation =
            Uuid::from_slice(&seed.incarnation).map_err(|e| format!("a seed's incarnation: {e}"))?;
        if !is_slot(&seed.slot) || founders.0.insert(seed.slot.clone(), incarnation).is_some() {
            return Err("a founding set names a slot twice, or one that cannot be".into());
        }
    }
    Ok(founders)
}
