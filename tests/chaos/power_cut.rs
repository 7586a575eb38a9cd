//! Power cuts under load (F13, F14): an acknowledged write is on the disks of a majority, so no cut loses it.
//!
//! kill -9 cannot show that: the kernel still writes what a killed process had written. Here it does not.

use std::{fs, io::Write, time::Duration};

use super::{
    disk::Disk,
    harness::{Cluster, Load, Options, Workload},
};

/// Cuts in each test, and successes before, during and after each (A8).
const ROUNDS: u64 = 5;
const ENOUGH: u64 = 100;

/// The instrument itself: without this the tests below could pass for want of a cut.
pub fn the_cut_cuts() {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = Disk::create(home.path(), "disk").unwrap();
    let mut synced = fs::File::create(disk.mount.join("synced")).unwrap();
    synced.write_all(&[1; 100_000]).unwrap();
    synced.sync_all().unwrap();
    fs::File::open(&disk.mount).unwrap().sync_all().unwrap();
    fs::write(disk.mount.join("not-synced"), [2; 100_000]).unwrap();
    disk.cut().unwrap();
    drop(synced);
    disk.restore().unwrap();
    assert_eq!(fs::read(disk.mount.join("synced")).unwrap(), [1; 100_000], "what was synced is there");
    assert!(!disk.mount.join("not-synced").exists(), "what was not synced is lost");
}

/// One node, each time the leader.
pub async fn one_node() {
    let (mut cluster, disks) = cluster_on_disks();
    cluster.start_all();
    cluster.wait_ready().await;
    let load = Load::start(&cluster, workload(13));
    for _ in 0..ROUNDS {
        load.more("before the cut", ENOUGH).await;
        let leader = cluster.leader().await;
        disks[leader].cut().unwrap();
        cluster.nodes[leader].strike();
        cluster.nodes[leader].reap();
        load.more("while one is without power", ENOUGH).await;
        disks[leader].restore().unwrap();
        cluster.nodes[leader].start();
        cluster.nodes[leader].wait_ready(Duration::from_secs(30)).await;
    }
    load.more("after the cuts", ENOUGH).await;
    judge(load, &cluster).await;
}

/// All nodes, as close to one moment as can be.
pub async fn all_nodes_at_once() {
    let (mut cluster, disks) = cluster_on_disks();
    cluster.start_all();
    cluster.wait_ready().await;
    let load = Load::start(&cluster, workload(14));
    for _ in 0..ROUNDS {
        load.more("before the cut", ENOUGH).await;
        // All begin before any is waited for; and first the disks, so that nothing is written after a kill.
        std::thread::scope(|scope| {
            for disk in &disks {
                scope.spawn(|| disk.cut().unwrap());
            }
        });
        cluster.kill_all();
        for disk in &disks {
            disk.restore().unwrap();
        }
        cluster.start_all();
        cluster.wait_ready().await;
        load.more("after the cut", ENOUGH).await;
    }
    judge(load, &cluster).await;
}

/// Values of all sizes, up to the limit; snapshots often, so that cuts meet them too.
fn workload(seed: u64) -> Workload {
    let sizes = vec![8, 100, 100, 3000, 7000, 8000, 50_000, 1 << 20];
    Workload { clients: 8, keys: 40, sizes, reads_percent: 20, seed }
}

fn cluster_on_disks() -> (Cluster, Vec<Disk>) {
    let mut cluster = Cluster::prepare(&Options::with("--snapshot-log-bytes", 16 << 20));
    let home = cluster.home().to_owned();
    let mut disks = Vec::new();
    for node in &mut cluster.nodes {
        let disk = Disk::create(&home, &format!("disk-{}", node.slot)).unwrap();
        node.set_data_dir(&disk.mount.join("data"));
        disks.push(disk);
    }
    (cluster, disks)
}

async fn judge(load: Load, cluster: &Cluster) {
    let seen = load.finish(cluster).await;
    println!("{ROUNDS} cuts; {} operations judged, {} failures", seen.ops.len(), seen.failures.len());
    cluster.converged().await;
}
