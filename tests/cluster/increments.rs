//! A counter that many clients increment while the leader is killed: each acknowledged increment counts once, an unknown
//! one at most once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use crate::harness::{Cluster, Options, eventually, shared};

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_counts_what_was_acknowledged_also_across_a_kill() {
    let _machine = shared().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let (stop, acknowledged, unknown) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut clients = JoinSet::new();
    for number in 0..16 {
        let mut client = cluster.client(number % 3);
        let (stop, acknowledged, unknown) = (stop.clone(), acknowledged.clone(), unknown.clone());
        clients.spawn(async move {
            let mut patience = tokio::time::interval(Duration::from_millis(20));
            while !stop.load(Ordering::Relaxed) {
                match client.increment("counter").await {
                    Ok(_) => {
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    Err(failure) if failure.surely_not_applied => {}
                    Err(_) => {
                        unknown.fetch_add(1, Ordering::Relaxed);
                    }
                }
                client.rotate();
                patience.tick().await;
            }
        });
    }
    let more = async |count: u64| {
        let from = acknowledged.load(Ordering::Relaxed);
        eventually("more increments", Duration::from_secs(60), async || {
            let done = acknowledged.load(Ordering::Relaxed) - from;
            if done >= count { Ok(()) } else { Err(format!("{done} of {count}")) }
        })
        .await;
    };
    more(300).await;
    let leader = cluster.leader().await;
    cluster.nodes[leader].kill();
    more(300).await;
    cluster.nodes[leader].start();
    cluster.wait_ready().await;
    more(300).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }

    let value = cluster.client(leader).get("counter").await.unwrap().unwrap();
    let value: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
    let (acknowledged, unknown) = (acknowledged.load(Ordering::Relaxed), unknown.load(Ordering::Relaxed));
    println!("{acknowledged} acknowledged, {unknown} unknown, the counter holds {value}");
    assert!(
        (acknowledged..=acknowledged + unknown).contains(&value),
        "{acknowledged} increments were acknowledged and {unknown} are unknown, but the counter holds {value}"
    );
}
