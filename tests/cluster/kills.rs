//! kill -9 under load (F01-F03): nothing acknowledged is missing, nothing read is stale, every history is linearizable.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Cluster, Load, Options, Workload, alone, eventually};

/// Successes before, during and after each fault (A8).
const ENOUGH: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn each_node_in_turn_is_killed_under_load() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let load = Load::start(&cluster, Workload { seed: 2, ..Workload::default() });
    for slot in 0..3 {
        load.more("before the kill", ENOUGH).await;
        cluster.nodes[slot].kill();
        let struck = Instant::now();
        write_succeeds(&cluster, (slot + 1) % 3).await;
        println!("node {slot} killed: a write succeeded {:?} later", struck.elapsed());
        load.more("while it is down", ENOUGH).await;
        cluster.nodes[slot].start();
        cluster.nodes[slot].wait_ready(Duration::from_secs(30)).await;
        load.more("after it is back", ENOUGH).await;
    }
    let seen = load.finish(&cluster).await;
    println!("{} operations judged, {} failures", seen.ops.len(), seen.failures.len());
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_under_load_again_and_again() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let load = Load::start(&cluster, Workload { seed: 3, ..Workload::default() });
    for round in 0..5 {
        load.more("before the kill", ENOUGH).await;
        let leader = cluster.leader().await;
        cluster.nodes[leader].kill();
        let struck = Instant::now();
        write_succeeds(&cluster, (leader + 1) % 3).await;
        println!("round {round}: leader {leader} killed, a write succeeded {:?} later", struck.elapsed());
        load.more("while it is down", ENOUGH).await;
        cluster.nodes[leader].start();
        cluster.nodes[leader].wait_ready(Duration::from_secs(30)).await;
    }
    load.more("after it all", ENOUGH).await;
    load.finish(&cluster).await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_at_once_are_killed_under_load() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let load = Load::start(&cluster, Workload { seed: 4, ..Workload::default() });
    for _ in 0..3 {
        load.more("before the kill", ENOUGH).await;
        cluster.kill_all();
        cluster.start_all();
        cluster.wait_ready().await;
        load.more("after the restart", ENOUGH).await;
    }
    load.finish(&cluster).await;
    cluster.converged().await;
}

/// With a quorum intact a write succeeds within seconds of the fault (A4 names 3 s; the bound here leaves room for a machine
/// that is busy with something else).
async fn write_succeeds(cluster: &Cluster, slot: usize) {
    let client = cluster.client(slot);
    eventually("a write after the fault", Duration::from_secs(10), async || {
        client.set("after-the-fault", "value").await.map_err(|e| e.to_string())
    })
    .await;
}
