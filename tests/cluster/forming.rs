//! Three nodes become one cluster by themselves; those that cannot wait, and say for whom.

use std::time::Duration;

use crate::harness::{Cluster, Options, eventually, shared};

/// Time enough for a wrong decision to show.
const STEADY: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_on_one_node_is_read_on_the_others() {
    let _machine = shared().await;
    let cluster = Cluster::start(&Options::default()).await;
    for writer in 0..3 {
        let key = format!("from-{writer}");
        cluster.client(writer).set(key.clone(), "value").await.unwrap();
        for reader in 0..3 {
            let value = cluster.client(reader).get(key.clone()).await.unwrap();
            assert_eq!(value.as_deref(), Some(b"value".as_slice()), "set on {writer}, read on {reader}");
        }
    }
    let mut ids = Vec::new();
    for slot in 0..3 {
        let status = cluster.status(slot).await.unwrap();
        let header = status.header.unwrap();
        assert_eq!(header.node.unwrap().slot, slot.to_string());
        ids.push(header.cluster_id);
    }
    assert!(ids[0].len() == 32 && ids.iter().all(|id| *id == ids[0]), "one cluster: {ids:?}");
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_is_a_cluster_and_keeps_its_data() {
    let _machine = shared().await;
    let mut cluster = Cluster::start(&Options { nodes: 1, ..Options::default() }).await;
    cluster.client(0).set("key", "value").await.unwrap();
    cluster.nodes[0].kill();
    cluster.start_all();
    cluster.wait_ready().await;
    assert_eq!(cluster.client(0).get("key").await.unwrap().as_deref(), Some(b"value".as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_seeds_wait_and_name_the_missing_one() {
    let _machine = shared().await;
    let mut cluster = Cluster::prepare(&Options::default());
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    for slot in [0, 1] {
        let body = not_ready_naming(&cluster, slot, "seed 2").await;
        assert!(
            !body.contains("seed 0") && !body.contains("seed 1 is missing"),
            "only slot 2 is missing: {body}"
        );
        assert_eq!(cluster.nodes[slot].http("/livez").await.unwrap().0, 200, "waiting is alive");
    }
    let refused = cluster.client(0).set("key", "value").await.unwrap_err();
    assert!(refused.surely_not_applied, "a node without a cluster takes no write: {refused}");

    cluster.nodes[2].start();
    cluster.wait_ready().await;
    cluster.client(2).set("key", "value").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_joins_by_itself_once_the_others_have_a_majority_and_not_before() {
    let _machine = shared().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    cluster.client(0).set("before", "value").await.unwrap();
    let wiped = cluster.leader().await;
    let survivor = (wiped + 1) % 3;
    for slot in (0..3).filter(|slot| *slot != survivor) {
        cluster.nodes[slot].kill();
    }
    cluster.nodes[wiped].wipe();
    cluster.nodes[wiped].start();
    // One of three that hold the data is no majority: nobody is let in, and no other cluster is founded.
    not_ready_naming(&cluster, wiped, "joining cluster").await;
    let refused = cluster.client(wiped).set("key", "value").await.unwrap_err();
    assert!(refused.surely_not_applied, "the wiped node takes no write: {refused}");

    cluster.start_all();
    cluster.wait_ready().await;
    let value = cluster.client(wiped).get("before").await.unwrap();
    assert_eq!(value.as_deref(), Some(b"value".as_slice()), "what was acknowledged is at the wiped node");
    cluster.converged().await;
}

/// Waits until the node's `/readyz` names the reason, and sees it steady: answers stay 503 with it.
async fn not_ready_naming(cluster: &Cluster, slot: usize, reason: &str) -> String {
    let ask = async || {
        let (code, body) = cluster.nodes[slot].http("/readyz").await?;
        if code == 503 && body.contains(reason) { Ok(body) } else { Err(format!("{code} {body}")) }
    };
    let body =
        eventually(&format!("/readyz of node {slot} to say {reason:?}"), Duration::from_secs(20), ask).await;
    let start = tokio::time::Instant::now();
    eventually("a while of the same answer", STEADY * 5, async || {
        let (code, now) = cluster.nodes[slot].http("/readyz").await?;
        assert_eq!(code, 503, "node {slot} became ready: {now}");
        if start.elapsed() > STEADY { Ok(()) } else { Err("not long enough".to_owned()) }
    })
    .await;
    body
}
