//! A majority that is lost for good: nothing happens by itself, `larder recover` makes the survivor a new cluster with every
//! acknowledged write, and nobody comes back into it on the old data.

use std::{process::Output, time::Duration};

use tokio::task::spawn_blocking;

use crate::harness::{Cluster, Node, Options, alone, copy_dir, eventually, larder, only, said};

/// How long anything that should happen may take.
const SOON: Duration = Duration::from_secs(30);

/// Runs `larder` against one node.
async fn cli(node: &Node, arguments: &[&str]) -> Output {
    let mut command = larder();
    command.args(["--endpoints", &node.endpoint()]).args(arguments);
    spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn cluster_id(cluster: &Cluster, slot: usize) -> String {
    cluster.status(slot).await.unwrap().header.unwrap().cluster_id
}

fn value(n: u32) -> String {
    format!("value-{n}-{}", "v".repeat(1000))
}

async fn write(cluster: &Cluster, slot: usize, from: u32, to: u32) {
    let pairs: Vec<_> = (from..to).map(|n| (n.to_string().into(), value(n).into())).collect();
    for batch in pairs.chunks(500) {
        eventually("a batch", SOON, async || {
            cluster.client(slot).set_all(batch.to_vec()).await.map_err(|e| e.to_string())
        })
        .await;
    }
}

async fn assert_all_there(node: &Node, to: u32) {
    let client = only(node);
    for n in 0..to {
        let found = client.get(n.to_string()).await.unwrap();
        assert_eq!(found, Some(value(n).into()), "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_lost_for_good_and_the_survivor_recovered() {
    let _machine = alone().await;
    // Snapshots and purged entries on the way: what is recovered comes from a snapshot and the log behind it.
    let mut cluster = Cluster::start(&Options::with("--snapshot-log-bytes", 1 << 20)).await;
    write(&cluster, 0, 0, 2000).await;
    // The survivor is a follower: what it has not heard to be committed is acknowledged all the same.
    let leader = cluster.leader().await;
    let (survivor, lost) = ((leader + 1) % 3, [leader, (leader + 2) % 3]);
    let snapshots = async || match cluster.status(survivor).await?.snapshot_index {
        0 => Err("none yet".to_owned()),
        index => Ok(index),
    };
    let snapshot = eventually("a snapshot", SOON, snapshots).await;
    write(&cluster, survivor, 2000, 2500).await;
    cluster.converged().await;
    let before = cluster.status(survivor).await.unwrap();
    assert!(before.last_log_index > snapshot, "there are entries behind the snapshot");
    let old_id = cluster_id(&cluster, survivor).await;

    // While there is a leader there is nothing to recover, and nothing is changed.
    let refused = cli(&cluster.nodes[survivor], &["recover", "--confirm", &old_id]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("has a leader"), "{}", said(&refused));

    // A copy of the old data of one of them turns up again later.
    let fossil = cluster.folder("fossil");
    for slot in lost {
        cluster.nodes[slot].kill();
    }
    copy_dir(&cluster.nodes[lost[1]].data, &fossil);
    for slot in lost {
        cluster.nodes[slot].wipe();
        cluster.nodes[slot].start();
    }
    for slot in lost {
        let why = eventually("a wiped node to wait and say why", SOON, async || {
            match cluster.nodes[slot].http("/readyz").await? {
                (503, body) => Ok(body),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        println!("wiped node {slot}: {}", why.trim());
    }
    let why = eventually("the survivor to say why it is not ready", SOON, async || {
        match cluster.nodes[survivor].http("/readyz").await? {
            (503, body)
                if body.contains("[-]leader: no leader, and none can come")
                    && body.contains("larder recover") =>
            {
                Ok(body)
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    println!("the survivor: {}", why.trim());
    let no_write = cluster.client(survivor).set("key", "value").await.unwrap_err();
    println!("a write meanwhile: {no_write}");
    assert_eq!(cluster_id(&cluster, survivor).await, old_id, "nothing happens by itself");

    // Without a confirmation nothing is changed, and what to confirm is said; the id of another cluster is refused.
    let look = cli(&cluster.nodes[survivor], &["recover"]).await;
    assert_eq!(look.status.code(), Some(2), "{}", said(&look));
    assert!(said(&look).contains(&format!("--confirm {old_id}")), "{}", said(&look));
    let other = cli(&cluster.nodes[survivor], &["recover", "--confirm", &"0".repeat(32)]).await;
    assert_eq!(other.status.code(), Some(1), "{}", said(&other));
    assert!(said(&other).contains(&old_id), "{}", said(&other));
    assert_eq!(cluster_id(&cluster, survivor).await, old_id);

    let done = cli(&cluster.nodes[survivor], &["recover", "--confirm", &old_id]).await;
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    println!("{}", said(&done));
    let new_id = String::from_utf8(done.stdout).unwrap().trim().to_owned();
    assert!(new_id.len() == 32 && new_id != old_id, "{new_id}");

    let recovered = eventually("the survivor ready in the new cluster", SOON, async || {
        let status = cluster.status(survivor).await?;
        let id = status.header.as_ref().unwrap().cluster_id.clone();
        if status.ready && id == new_id {
            Ok(status)
        } else {
            Err(format!("{id} {:?}", status.not_ready_because))
        }
    })
    .await;
    assert_eq!((recovered.keys, recovered.header.as_ref().unwrap().revision), (2500, 2500));
    assert_ne!(recovered.incarnation, before.incarnation);
    assert!(recovered.term > before.term && recovered.applied_index > before.applied_index);
    assert_all_there(&cluster.nodes[survivor], 2500).await;
    let client = only(&cluster.nodes[survivor]);
    assert_eq!(client.set("on", "we go").await.unwrap(), 2501, "revisions go on");

    // It is what its disk says, also after a crash.
    cluster.nodes[survivor].kill();
    cluster.nodes[survivor].start();
    cluster.nodes[survivor].wait_ready(SOON).await;
    assert_eq!(cluster_id(&cluster, survivor).await, new_id);
    assert_all_there(&cluster.nodes[survivor], 2500).await;

    // Who lost its data comes back as a new member of the new cluster.
    let joined = lost[0];
    cluster.nodes[joined].wait_ready(SOON * 2).await;
    assert_eq!(cluster_id(&cluster, joined).await, new_id);
    assert_all_there(&cluster.nodes[joined], 2500).await;

    // The old data of a lost node, started again: it never gets into the new cluster, nor the survivor back into the old one.
    cluster.nodes[lost[1]].kill();
    cluster.nodes[lost[1]].set_data_dir(&fossil);
    cluster.nodes[lost[1]].start();
    eventually("the others to refuse the fossil", SOON, async || {
        let metrics = cluster.nodes[survivor].http("/metrics").await?.1;
        let refusals = metrics
            .lines()
            .find(|line| line.contains("refused") && line.contains("CLUSTER") && !line.ends_with(" 0"));
        refusals.map(ToOwned::to_owned).ok_or(metrics)
    })
    .await;
    let (code, body) = cluster.nodes[lost[1]].http("/readyz").await.unwrap();
    assert_eq!(code, 503, "{body}");
    assert_eq!(cluster_id(&cluster, lost[1]).await, old_id);
    client.set("on", "and on").await.unwrap();
    let status = cluster.status(survivor).await.unwrap();
    assert!(status.ready && status.header.unwrap().cluster_id == new_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_that_still_answers_is_not_given_up() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    write(&cluster, 0, 0, 10).await;
    let old_id = cluster_id(&cluster, 0).await;
    // Stopped processes hold their data; the last one may be recovered only by somebody who says that they are lost.
    cluster.kill_all();
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    eventually("a leader again", SOON, async || {
        cluster.client(0).set("again", "1").await.map_err(|e| e.to_string())
    })
    .await;
    let refused = cli(&cluster.nodes[0], &["recover", "--confirm", &old_id]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("nothing to recover"), "{}", said(&refused));
    // A cluster of one has its majority always.
    let single = Cluster::start(&Options { nodes: 1, ..Options::default() }).await;
    let id = cluster_id(&single, 0).await;
    let refused = cli(&single.nodes[0], &["recover", "--confirm", &id]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert_eq!(cluster_id(&single, 0).await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_that_lost_its_followers_is_recovered_too() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    write(&cluster, 0, 0, 100).await;
    let leader = cluster.leader().await;
    let old_id = cluster_id(&cluster, leader).await;
    for slot in (0..3).filter(|slot| *slot != leader) {
        cluster.nodes[slot].kill();
    }
    eventually("the leader to say why it is not ready", SOON, async || {
        match cluster.nodes[leader].http("/readyz").await? {
            (503, body) if body.contains("[-]leader: no leader") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(cluster.nodes[leader].http("/livez").await.unwrap().0, 200, "waiting is alive");
    // It goes on proposing, and nobody acknowledges: whether that was done is unknown, so it may be there afterwards.
    let unknown = only(&cluster.nodes[leader]).set("unknown", "maybe").await.unwrap_err();
    println!("a write meanwhile: {unknown}");
    let done = cli(&cluster.nodes[leader], &["recover", "--confirm", &old_id]).await;
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let new_id = String::from_utf8(done.stdout).unwrap().trim().to_owned();
    eventually("the survivor ready in the new cluster", SOON, async || {
        let status = cluster.status(leader).await?;
        let id = status.header.as_ref().unwrap().cluster_id.clone();
        if status.ready && id == new_id {
            Ok(())
        } else {
            Err(format!("{id} {:?}", status.not_ready_because))
        }
    })
    .await;
    assert_all_there(&cluster.nodes[leader], 100).await;
    // The others were only stopped. They still form the old cluster, with its id, which has nothing to do with the new one.
    cluster.start_all();
    let other = (leader + 1) % 3;
    eventually("the two others to lead the old cluster", SOON, async || {
        only(&cluster.nodes[other]).set("old", "cluster").await.map_err(|e| e.to_string())
    })
    .await;
    assert_eq!(cluster_id(&cluster, other).await, old_id);
    assert_eq!(only(&cluster.nodes[leader]).get("old").await.unwrap(), None);
    assert_all_there(&cluster.nodes[other], 100).await;
}
