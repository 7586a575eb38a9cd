//! A volume that is full (etcd#14497): writes are refused in a typed way, reads go on, nobody dies or is taken for dead, and with room again
//! everything resumes by itself.

use std::{fs, io::Write, path::PathBuf, time::Duration};

use super::{
    disk::Disk,
    harness::{Cluster, Failure, Node, Options, eventually},
};

const SOON: Duration = Duration::from_secs(30);
/// Small, so that it is full soon; the watermark is its least, 16 MiB.
const SIZE: &str = "128M";

/// A cluster, each node on a disk of its own.
async fn on_small_disks() -> (Cluster, Vec<Disk>) {
    let mut cluster = Cluster::prepare(&Options::default());
    let home = cluster.home().to_owned();
    let mut disks = Vec::new();
    for node in &mut cluster.nodes {
        let disk = Disk::sized(&home, &format!("disk-{}", node.slot), SIZE).unwrap();
        node.set_data_dir(&disk.mount.join("data"));
        disks.push(disk);
    }
    cluster.start_all();
    cluster.wait_ready().await;
    (cluster, disks)
}

/// Fills what is left of a disk to the last block, as something else on the volume would.
fn fill(disk: &Disk) -> PathBuf {
    let path = disk.mount.join("something-else");
    let mut file = fs::File::create(&path).unwrap();
    for block in [1 << 20, 4096, 1] {
        let block = vec![0xAB; block];
        while file.write_all(&block).is_ok() {}
    }
    file.sync_all().unwrap();
    path
}

async fn alive(node: &Node) {
    let (code, body) = node.http("/livez").await.unwrap();
    assert_eq!(code, 200, "node {} is alive: {body}", node.slot);
}

async fn refused(cluster: &Cluster, slot: usize) -> Failure {
    eventually("a write to be refused for want of room", SOON, async || {
        match cluster.client(slot).set("refused", "value").await {
            Err(failure) if failure.reason == "RESOURCE_EXHAUSTED" => Ok(failure),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

pub async fn writes_are_refused_reads_go_on_and_it_recovers_by_itself() {
    let (mut cluster, disks) = on_small_disks().await;
    cluster.client(0).set("key", "value").await.unwrap();
    // One is down while its disk fills, the others run.
    let restarted = (cluster.leader().await + 1) % 3;
    cluster.nodes[restarted].kill();
    let fillers: Vec<_> = disks.iter().map(fill).collect();
    cluster.nodes[restarted].start();
    // It has started. Whether it is up to date depends on whether the leader has written since, as of its start; the others read on in any case.
    eventually("a start on a full disk", SOON, async || {
        match cluster.nodes[restarted].http("/startupz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let other = (restarted + 1) % 3;
    assert_eq!(cluster.client(other).get("key").await.unwrap().as_deref(), Some(b"value".as_slice()));
    for slot in 0..3 {
        let failure = refused(&cluster, slot).await;
        assert_eq!(failure.code, tonic::Code::ResourceExhausted, "{failure}");
        assert!(failure.surely_not_applied, "it says that it was not applied: {failure}");
        assert!(failure.text.contains("free space"), "it says what to do: {failure}");
        println!("a write at {slot}: {failure}");
    }
    for slot in 0..3 {
        alive(&cluster.nodes[slot]).await;
        if slot == restarted {
            continue;
        }
        let found = cluster.client(slot).get("key").await.unwrap();
        assert_eq!(found.as_deref(), Some(b"value".as_slice()), "reads go on");
        assert_eq!(cluster.client(slot).get("refused").await.unwrap(), None, "it was not applied");
    }

    for filler in fillers {
        fs::remove_file(filler).unwrap();
    }
    for slot in 0..3 {
        eventually("a write with room again", SOON, async || {
            cluster.client(slot).set(format!("again-{slot}"), "value").await.map_err(|e| e.to_string())
        })
        .await;
    }
    cluster.wait_ready().await;
    cluster.converged().await;
    // Nobody ended meanwhile.
    cluster
        .nodes
        .iter_mut()
        .for_each(|node| assert!(!node.ended(), "node {} ended: {}", node.slot, node.output()));
}

pub async fn a_full_follower_holds_nobody_up() {
    let (mut cluster, disks) = on_small_disks().await;
    let leader = cluster.leader().await;
    let full = (leader + 1) % 3;
    let filler = fill(&disks[full]);
    eventually("the follower to be full", SOON, async || {
        match cluster.nodes[full].output().contains("too little room on the disk") {
            true => Ok(()),
            false => Err("it has not noticed".to_owned()),
        }
    })
    .await;
    for n in 0..100 {
        cluster.client(leader).set(format!("key-{n}"), "value").await.unwrap();
    }
    alive(&cluster.nodes[full]).await;
    fs::remove_file(filler).unwrap();
    cluster.converged().await;
    cluster
        .nodes
        .iter_mut()
        .for_each(|node| assert!(!node.ended(), "node {} ended: {}", node.slot, node.output()));
}
