//! Genesis' gate, at work: the leader proposes `Open` once every voter has acknowledged an entry of a leader.
//!
//! The rule is [`gate_open`]; that nothing is written before is the state's ([`Operation::Open`]). A leader
//! whose state is open asks no more.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::genesis::{FIRST_INDEX, gate_open};
use crate::{
    error::Error,
    raft::Node,
    state::{Command, Operation, codec::encode_command},
};

/// How often the leader of a cluster that is not open yet looks.
const ROUND: Duration = Duration::from_millis(20);
/// How long the proposal may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Returns once the cluster is open.
pub async fn keep(node: Arc<Node>) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !node.state().read().is_open() {
        rounds.tick().await;
        if !node.is_leader() {
            continue;
        }
        let (voters, matched) = node.voters_and_matched();
        if !gate_open(&voters, &matched, FIRST_INDEX) {
            continue;
        }
        let open = encode_command(&Command::new(Operation::Open));
        match node.propose(open, Instant::now() + TIMEOUT).await {
            Ok(_) => tracing::info!("every founder has acknowledged an entry: the cluster is open"),
            // Another round follows, here or on the next leader.
            Err(Error::NotLeader { .. } | Error::Shutdown) => {}
            Err(error) => tracing::warn!(%error, "the gate is not open yet"),
        }
    }
}
