//! A follower that was away until the log it needs was purged comes back by snapshot (F12), and a restart begins with one.

use std::time::Duration;

use bytes::Bytes;

use crate::harness::{Cluster, Options, alone, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_log_comes_back_by_snapshot() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::with("--snapshot-log-bytes", 1 << 20)).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    let at_kill = cluster.status(behind).await.unwrap().last_log_index;
    cluster.nodes[behind].kill();

    let client = cluster.client(leader);
    let mut round = 0_u32;
    let purged =
        eventually("the log below the follower's end to be purged", Duration::from_secs(60), async || {
            for _ in 0..20 {
                let pairs = (0..64).map(|i| (format!("key-{}", i % 32).into(), value(round, i))).collect();
                client.set_all(pairs).await.map_err(|e| e.to_string())?;
                round += 1;
            }
            let status = cluster.status(leader).await?;
            let first = status.first_log_index;
            if first > at_kill + 1 {
                Ok(first)
            } else {
                Err(format!("the log begins at {first}; {status:?}"))
            }
        })
        .await;
    println!("{round} batches; the log begins at {purged}, the follower ended at {at_kill}");

    cluster.nodes[behind].start();
    cluster.nodes[behind].wait_ready(Duration::from_secs(30)).await;
    cluster.converged().await;
    let status = cluster.status(behind).await.unwrap();
    assert!(status.snapshot_index > at_kill, "it came back by a snapshot: {status:?}");
    read_all(&cluster, behind, round).await;

    // And all of them from their own snapshots.
    cluster.kill_all();
    cluster.start_all();
    cluster.wait_ready().await;
    for slot in 0..3 {
        read_all(&cluster, slot, round).await;
    }
    cluster.converged().await;
}

fn value(round: u32, i: u32) -> Bytes {
    format!("{round}-{i}-{}", "x".repeat(500)).into()
}

/// Every key holds what the last round wrote last.
async fn read_all(cluster: &Cluster, slot: usize, rounds: u32) {
    for key in 0..32 {
        let found = cluster.client(slot).get(format!("key-{key}")).await.unwrap();
        assert_eq!(found, Some(value(rounds - 1, 32 + key)), "key-{key} at node {slot}");
    }
}
