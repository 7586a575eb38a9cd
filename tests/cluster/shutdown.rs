//! SIGTERM: leadership handed over, requests under way finished, exit 0.

use std::time::Duration;

use crate::harness::{Cluster, Load, Options, Workload, alone, eventually};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_nobody() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let load = Load::start(&cluster, Workload { seed: 5, ..Workload::default() });
    // The leader each time it comes to its turn, and one more round, so that handing over is surely seen.
    for _ in 0..4 {
        load.more("before", 100).await;
        let leader = cluster.leader().await;
        let term = cluster.status(leader).await.unwrap().term;
        let asked = Instant::now();
        cluster.nodes[leader].terminate();
        let other = (leader + 1) % 3;
        eventually("another leader", Duration::from_secs(10), async || {
            let status = cluster.status(other).await?;
            match status.leader {
                Some(l) if l.slot != leader.to_string() => Ok(()),
                known => Err(format!("{known:?} in term {}", status.term)),
            }
        })
        .await;
        let gap = asked.elapsed();
        let exit = cluster.nodes[leader].exit(Duration::from_secs(15)).await;
        println!(
            "leader {leader} of term {term}: another one after {gap:?}, gone after {:?}",
            asked.elapsed()
        );
        assert_eq!(exit.code, Some(0), "said: {}", exit.log);
        // A hand-over is quicker than any election by timeout: that takes at least the 500 ms of silence.
        assert!(gap < Duration::from_millis(500), "leadership was not handed over: {gap:?}\n{}", exit.log);
        load.more("with two", 100).await;
        cluster.nodes[leader].start();
        cluster.nodes[leader].wait_ready(Duration::from_secs(30)).await;
    }
    load.more("after", 100).await;
    let seen = load.finish(&cluster).await;
    println!("{} operations, {} retryable failures", seen.ops.len(), seen.failures.len());
    let worse: Vec<_> = seen.failures.iter().filter(|f| !f.surely_not_applied).collect();
    assert!(worse.is_empty(), "{} failures are not simply to be retried: {}", worse.len(), worse[0]);
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_had_a_cluster_stops_too() {
    let _machine = crate::harness::shared().await;
    let mut cluster = Cluster::prepare(&Options::default());
    cluster.nodes[0].start();
    eventually("the node to wait for its seeds", Duration::from_secs(10), async || {
        match cluster.nodes[0].http("/readyz").await? {
            (503, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    cluster.nodes[0].terminate();
    let exit = cluster.nodes[0].exit(Duration::from_secs(10)).await;
    assert_eq!(exit.code, Some(0), "said: {}", exit.log);
}
