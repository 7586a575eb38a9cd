//! What a node does without being asked: snapshots, purging, watching the disk.
//!
//! Every node by itself takes a snapshot when its log has grown, purges what the snapshot before
//! covers, and looks whether its disk has room. Genesis' gate is the business of `cluster`.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::raft::{Host, Node, hello};

/// How often the duties are looked at.
const ROUND: Duration = Duration::from_millis(50);
/// How often members whose address is missing are asked.
const LEARN_ROUND: Duration = Duration::from_millis(500);
/// How often the disk is looked at.
const DISK_ROUND: Duration = Duration::from_secs(1);

/// Runs until the task is aborted.
pub async fn run(node: Arc<Node>) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut disk_checked: Option<Instant> = None;
    let mut snapshot_asked_at = None;
    loop {
        rounds.tick().await;
        if disk_checked.is_none_or(|at| at.elapsed() >= DISK_ROUND) {
            disk_checked = Some(Instant::now());
            look_at_disk(&node).await;
        }
        compact(&node, &mut snapshot_asked_at).await;
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

async fn look_at_disk(node: &Node) {
    let log = node.log().clone();
    if let Ok(room) = tokio::task::spawn_blocking(move || log.free_space_ok()).await {
        node.set_disk_has_room(room);
    }
}

/// A snapshot when the log has grown by the configured bytes since the last one. What is purged is what the snapshot *before*
/// covers: so a follower that is a little behind still finds the entries it needs, and the log stays below two rounds of growth.
async fn compact(node: &Node, asked_at: &mut Option<u64>) {
    let (snapshot, purged) = node.snapshot_and_purged();
    let Some(applied) = node.state().read().last_applied() else { return };
    let since = snapshot.unwrap_or(0);
    if node.log().bytes_since(since) < node.options().snapshot_log_bytes || *asked_at == Some(since) {
        return;
    }
    if applied.index <= since {
        return;
    }
    *asked_at = Some(since);
    if node.trigger_snapshot().await.is_ok() && snapshot > purged {
        node.purge_to(since).await;
    }
}
