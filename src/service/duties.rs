//! What a node does without being asked: snapshots, purging, learning where the others are.
//!
//! Every node by itself takes a snapshot when its log has grown, purges what the snapshot before
//! covers. Genesis' gate is the business of `cluster`.

use std::{sync::Arc, time::Duration};

use crate::raft::{Host, Node, hello};

/// How often the duties are looked at.
const ROUND: Duration = Duration::from_millis(50);
/// How often members whose address is missing are asked.
const LEARN_ROUND: Duration = Duration::from_millis(500);

/// Runs until the task is aborted.
pub async fn run(node: Arc<Node>) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut snapshot_asked_at = None;
    let mut no_room = false;
    loop {
        rounds.tick().await;
        remember_starts(&node);
        compact(&node, &mut snapshot_asked_at, &mut no_room).await;
    }
}

/// The starts that the state records count as heard, so that an older copy of a member's volume is refused also by a node that was just started.
pub fn remember_starts(node: &Node) {
    for boot in node.state().read().boot_records().values() {
        node.peers().heard().record(boot.raft_id, boot.boot_counter, boot.nonce);
    }
}

/// Asks members whose clients' address is not known, until all are: heartbeats tell only the leader's.
pub async fn learn_addresses(host: Arc<Host>, node: Arc<Node>) {
    let mut rounds = tokio::time::interval(LEARN_ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        for member in node.members() {
            if host.client_address_of(member.node.id).is_empty()
                && let Ok(answer) = hello(node.peers(), &member.node.slot).await
                && answer.from.raft_id == member.node.id
            {
                host.note_client_address(member.node.id, &answer.client_address);
            }
        }
    }
}

/// A snapshot when the log has grown by the configured bytes since the last one. What is purged is what the snapshot *before*
/// covers: so a follower that is a little behind still finds the entries it needs, and the log stays below two rounds of growth.
async fn compact(node: &Node, asked_at: &mut Option<u64>, no_room: &mut bool) {
    let (snapshot, purged) = node.snapshot_and_purged();
    let Some(applied) = node.state().read().last_applied() else { return };
    let since = snapshot.unwrap_or(0);
    if node.log().bytes_since(since) < node.options().snapshot_log_bytes || *asked_at == Some(since) {
        return;
    }
    if applied.index <= since {
        return;
    }
    // A snapshot that fills the disk would stop the node, and again at every start. The newest one stays until the next is whole.
    let expected = node.state().read().bytes();
    let log = node.log().clone();
    if !tokio::task::spawn_blocking(move || log.has_room_for(expected)).await.unwrap_or(false) {
        if !std::mem::replace(no_room, true) {
            tracing::warn!(
                bytes = expected,
                "no snapshot: the disk has no room for it; free space, or the log grows on"
            );
        }
        return;
    }
    *no_room = false;
    *asked_at = Some(since);
    if node.trigger_snapshot().await.is_ok() && snapshot > purged {
        node.purge_to(since).await;
    }
}
