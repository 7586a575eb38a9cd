//! Disk use is bounded by what lives and what the log keeps, never by what was ever written.

use std::{fs, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use crate::harness::{Cluster, Node, Options, alone, eventually};

/// Overwrites in all, and the keys they go to.
const OVERWRITES: u64 = 2_000_000;
const KEYS: u64 = 10_000;
/// Sets in one batch, the most there can be.
const BATCH: usize = 1024;
const VALUE: usize = 100;

/// Log bytes between snapshots, as given to the nodes.
const SNAPSHOT_LOG_BYTES: u64 = 16 << 20;
/// The bound, a node: the log kept around two snapshots, sled's own garbage until it is collected, two snapshots of the
/// data (10,000 keys of some 120 bytes, 2 MB each), and the segments that sled allocates ahead. The overwrites alone are 240 MB.
const BOUND: u64 = 160 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn two_million_overwrites_of_ten_thousand_keys_stay_below_the_bound() {
    let _machine = alone().await;
    let cluster = Cluster::start(&Options::with("--snapshot-log-bytes", SNAPSHOT_LOG_BYTES)).await;
    let start = Instant::now();
    let leader = cluster.leader().await;
    let client = cluster.client(leader);
    let batches = stream::iter((0..OVERWRITES).step_by(BATCH));
    let writing = batches.for_each_concurrent(8, async |from| {
        let pair = |n: u64| (Bytes::from(format!("key-{:05}", n % KEYS)), value(n));
        eventually("a batch", Duration::from_secs(30), async || {
            client.set_all((from..from + BATCH as u64).map(pair).collect()).await.map_err(|e| e.to_string())
        })
        .await;
    });
    tokio::pin!(writing);
    // Looked at all the while: the bound is on the most, not on the end.
    let mut most = 0;
    let mut look = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            () = &mut writing => break,
            _ = look.tick() => most = cluster.nodes.iter().map(Node::disk_bytes).fold(most, Ord::max),
        }
    }
    let written = start.elapsed();
    let last: Vec<_> = cluster.nodes.iter().map(|n| n.disk_bytes() >> 20).collect();
    println!(
        "{OVERWRITES} overwrites in {written:?}: at most {} MiB a node, {last:?} MiB at the end",
        most >> 20
    );
    assert!(most < BOUND, "a data directory grew to {} MiB, the bound is {} MiB", most >> 20, BOUND >> 20);
    let status = cluster.status(leader).await.unwrap();
    assert_eq!(status.keys, KEYS);
    assert!(status.snapshot_index > 0 && status.first_log_index > 1, "the log was cut: {status:?}");
    cluster.converged().await;
}

fn value(n: u64) -> Bytes {
    format!("{n:0VALUE$}").into()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_at_the_limit_never_make_a_blob_file() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::with("--snapshot-log-bytes", SNAPSHOT_LOG_BYTES)).await;
    let leader = cluster.leader().await;
    let client = cluster.client(leader);
    let big = |n: u8| Bytes::from(vec![n; 1 << 20]);
    for n in 0..48 {
        client.set(format!("big-{}", n % 6), big(n)).await.unwrap();
    }
    let refused = client.set("too-big", vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert_eq!(refused.code, tonic::Code::InvalidArgument, "{refused}");
    for node in &cluster.nodes {
        assert_eq!(blob_files(&node.data), Vec::<String>::new(), "node {}", node.slot);
    }
    cluster.converged().await;
    cluster.kill_all();
    cluster.start_all();
    cluster.wait_ready().await;
    for n in 42..48 {
        let found = cluster.client(leader).get(format!("big-{}", n % 6)).await.unwrap();
        assert!(found == Some(big(n)), "big-{} is not what was written last", n % 6);
    }
}

/// The files in any folder named `blobs`, however deep; there must be such a folder, else this looks at the wrong place.
fn blob_files(data: &std::path::Path) -> Vec<String> {
    let (mut folders, mut found, mut seen) = (vec![data.to_owned()], Vec::new(), false);
    while let Some(folder) = folders.pop() {
        let blobs = folder.file_name().is_some_and(|name| name == "blobs");
        seen |= blobs;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if blobs => found.push(path.display().to_string()),
                false => {}
            }
        }
    }
    assert!(seen, "sled has a folder `blobs` in {}", data.display());
    found
}
