//! Volumes that are lost: all of them, or all but one.

use larder::kubernetes::{ApiError, Kubernetes};

use crate::fleet::{Fleet, Options, assert_written, eventually, stays, write};

const SEEDS: [u32; 3] = [0, 1, 2];

fn nobody_is_in_a_cluster(fleet: &Fleet, slots: &[u32]) -> Result<(), String> {
    match slots.iter().find(|slot| !fleet.cluster_id(**slot).is_empty()) {
        Some(slot) => Err(format!("slot {slot} is in the cluster {}", fleet.cluster_id(*slot))),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seeds_that_are_all_wiped_wait_while_a_claim_says_that_others_hold_data() {
    let mut fleet = Fleet::formed(Options::replicas(3)).await;
    write(&fleet.client(), 0..20).await;
    let cluster = fleet.cluster_id(0);
    assert_eq!(fleet.api.claim().await, Ok(None), "seeds alone need no claim");

    // The claim comes before the member.
    fleet.api.fail(Some(ApiError::Unreachable("no route".into())));
    fleet.scale(4);
    fleet.start(3).await;
    let not_added = || match fleet.members(0).len() {
        3 => Ok(()),
        count => Err(format!("{count} members")),
    };
    stays("slot 3 is not added without a claim", not_added).await;
    fleet.api.fail(None);
    fleet.ready(&[3]).await;
    assert_eq!(fleet.api.claim().await, Ok(Some(cluster.clone())));
    fleet.settled(&[0, 1, 2, 3]).await;

    // Everything is lost but slot 3, which does not run.
    fleet.stop(&[0, 1, 2, 3]).await;
    SEEDS.iter().for_each(|slot| fleet.wipe(*slot));
    fleet.start_all(&SEEDS).await;
    fleet.says(&SEEDS, &format!("their cluster {cluster} was written to before")).await;
    stays("nobody founds", || nobody_is_in_a_cluster(&fleet, &SEEDS)).await;

    // Slot 3 returns: it cannot lead alone, and the seeds wait for its cluster and found none of their own.
    fleet.start(3).await;
    fleet.says(&SEEDS, &format!("joining cluster {cluster} through slot 3")).await;
    fleet.says(&SEEDS, "no leader").await;
    stays("nobody founds", || nobody_is_in_a_cluster(&fleet, &SEEDS)).await;
    assert_eq!(fleet.cluster_id(3), cluster);

    // It is gone for good, and whoever knows that says so.
    fleet.stop(&[3]).await;
    fleet.says(&SEEDS, &format!("their cluster {cluster} was written to before")).await;
    fleet.api.delete_claim();
    fleet.ready(&SEEDS).await;
    fleet.settled(&SEEDS).await;
    assert_ne!(fleet.cluster_id(0), cluster);
    assert_eq!(fleet.status(0).keys, 0);
}

/// A cluster of nodes that keep nothing, with data, of which two come back as others at once.
async fn left_alone(rule: &'static str) -> (Fleet, String) {
    let mut fleet = Fleet::formed(Options { on_majority_lost: Some(rule), ..Options::replicas(3) }).await;
    write(&fleet.client(), 0..20).await;
    // All is there, also what only the others had heard to be committed.
    eventually("slot 0 to have it", async || match fleet.status(0).keys {
        20 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
    let cluster = fleet.cluster_id(0);
    let old = [1, 2].map(|slot| fleet.incarnation(slot));
    fleet.crash(&[1, 2]).await;
    // Silence is no proof.
    fleet.says(&[0], "a majority of the 3 voters must be up and connected").await;
    stays("slot 0 waits for those who are silent", || match fleet.cluster_id(0) == cluster {
        true => Ok(()),
        false => Err(fleet.cluster_id(0)),
    })
    .await;
    fleet.start_all(&[1, 2]).await;
    for (slot, old) in [1, 2].into_iter().zip(old) {
        assert_ne!(fleet.incarnation(slot), old);
    }
    (fleet, cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_survivor_goes_on_by_itself_where_that_was_asked_for() {
    let (fleet, cluster) = left_alone("recover").await;
    fleet.ready(&SEEDS).await;
    let members = fleet.settled(&SEEDS).await;
    assert_eq!(members.len(), 3);
    assert_ne!(fleet.cluster_id(0), cluster);
    assert_eq!(SEEDS.map(|slot| fleet.cluster_id(slot)), [(); 3].map(|()| fleet.cluster_id(0)));
    let client = fleet.client();
    assert_written(&client, 0..20).await;
    write(&client, 20..30).await;
    assert_written(&client, 0..30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_survivor_waits_where_nothing_else_was_asked_for() {
    let (fleet, cluster) = left_alone("wait").await;
    fleet.says(&[0], "those in the slots 1, 2 have lost their data directories").await;
    fleet.says(&[0], "larder recover").await;
    let waits = || match (fleet.cluster_id(0) == cluster, nobody_is_in_a_cluster(&fleet, &[1, 2])) {
        (true, Ok(())) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    stays("everybody waits", waits).await;
    assert_eq!(fleet.status(0).keys, 20, "and what it holds is kept");
}
