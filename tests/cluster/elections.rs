//! Elections: asking first. Each network call of Raft that has a default which does nothing must have its effect.

use std::time::Duration;

use crate::harness::{Cluster, Options, eventually};

/// Without pre-vote every timeout of a lone node raises its term, and it disturbs a healthy leader when it comes back. openraft's
/// default for the call grants everything, without asking anybody: the term tells whether anybody was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_asks_again_and_again_and_never_raises_its_term() {
    let _machine = crate::harness::shared().await;
    // openraft says whom it asked in warnings that are silenced otherwise.
    let mut cluster = Cluster::start(&Options::with("--log-level", "info,openraft=warn")).await;
    let leader = cluster.leader().await;
    let alone = (leader + 1) % 3;
    let before = cluster.status(alone).await.unwrap().term;
    for slot in (0..3).filter(|slot| *slot != alone) {
        cluster.nodes[slot].kill();
    }
    eventually("the node to stand for election five times", Duration::from_secs(30), async || {
        // Both others are asked each time.
        match cluster.nodes[alone].output().matches("while requesting pre-vote").count() {
            asked if asked >= 10 => Ok(()),
            asked => Err(format!("asked {asked} times")),
        }
    })
    .await;
    assert_eq!(cluster.status(alone).await.unwrap().term, before, "{}", cluster.nodes[alone].output());
    cluster.start_all();
    cluster.wait_ready().await;
    cluster.converged().await;
}

/// openraft's default for the call to the next leader says that it is unreachable: only the target's taking over tells that it was made.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_the_slot_that_was_named() {
    let _machine = crate::harness::shared().await;
    let cluster = Cluster::start(&Options::default()).await;
    let leader = cluster.leader().await;
    let target = (leader + 1) % 3;
    // Asked on the third node, which passes it on to the leader.
    let asked = cluster.client((leader + 2) % 3);
    let request = larder::proto::v1::TransferLeaderRequest { slot: target.to_string() };
    let answer = asked.cluster().transfer_leader(request).await.unwrap().into_inner();
    assert_eq!(answer.leader.unwrap().slot, target.to_string());
    assert_eq!(cluster.leader().await, target);
    let nobody = larder::proto::v1::TransferLeaderRequest { slot: "7".into() };
    let refused = asked.cluster().transfer_leader(nobody).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
}
