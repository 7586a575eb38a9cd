//! Pods that stop and come back as who they were: with other addresses, and with somebody else's.

use tokio::time::Instant;

use crate::fleet::{ELECTION_MAX, Fleet, Options, assert_written, eventually, write};

/// How long nodes that are started one after the other in this process may take until they look for a leader.
const START_UP: std::time::Duration = std::time::Duration::from_secs(5);

/// Why a node refuses what was meant for another member.
const MISDIRECTED: &str = "WRONG_ADDRESSEE";

#[tokio::test(flavor = "multi_thread")]
async fn all_pods_restart_at_once_with_new_addresses_and_nothing_changes_but_the_term() {
    let mut fleet = Fleet::formed(Options::replicas(3)).await;
    write(&fleet.client(), 0..20).await;
    let members = fleet.settled(&[0, 1, 2]).await;
    let cluster = fleet.cluster_id(0);
    let addresses = [0, 1, 2].map(|slot| fleet.dns.address(slot));
    let mut memberships = Vec::new();
    let mut terms = Vec::new();

    for _ in 0..2 {
        terms.push([0, 1, 2].map(|slot| fleet.status(slot).term).into_iter().max().unwrap());
        fleet.stop(&[0, 1, 2]).await;
        memberships.push([0, 1, 2].map(|slot| fleet.memberships(slot)));
        let begun = Instant::now();
        fleet.start_all(&[0, 1, 2]).await;
        fleet.leader().await;
        let took = begun.elapsed();
        assert!(took < START_UP + 3 * ELECTION_MAX, "{took:?}");
        fleet.ready(&[0, 1, 2]).await;
    }

    let term = fleet.status(fleet.leader().await).term;
    for (before, after) in terms.iter().zip(terms[1..].iter().chain([&term])) {
        // Every election that failed would have cost a term.
        assert!(*after > *before && *after <= before + 3, "the terms {terms:?}, then {term}");
    }
    assert_eq!(fleet.settled(&[0, 1, 2]).await, members, "the same ids");
    assert_eq!([0, 1, 2].map(|slot| fleet.cluster_id(slot)), [(); 3].map(|()| cluster.clone()));
    for (slot, before) in (0..).zip(addresses) {
        assert_ne!(fleet.dns.address(slot).ip(), before.ip(), "the addresses are other ones");
    }
    assert_written(&fleet.client(), 0..20).await;
    fleet.stop(&[0, 1, 2]).await;
    memberships.push([0, 1, 2].map(|slot| fleet.memberships(slot)));
    assert_eq!(memberships[0][0].len(), 1, "the founding one");
    assert!(memberships.iter().flatten().all(|found| *found == memberships[0][0]), "{memberships:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_got_each_others_address_are_not_taken_for_one_another() {
    let mut fleet = Fleet::formed(Options::replicas(3)).await;
    write(&fleet.client(), 0..20).await;
    let (members, cluster) = (fleet.settled(&[0, 1, 2]).await, fleet.cluster_id(0));
    assert_eq!(fleet.refused(1, MISDIRECTED).await + fleet.refused(2, MISDIRECTED).await, 0);

    // DNS still says what was right before: each name leads to the other pod.
    fleet.stop(&[0, 1, 2]).await;
    fleet.start_all(&[1, 2]).await;
    fleet.dns.swap(1, 2);
    fleet.start(0).await;
    eventually("slots 1 and 2 to refuse what was meant for the other", async || {
        match (fleet.refused(1, MISDIRECTED).await, fleet.refused(2, MISDIRECTED).await) {
            (one, two) if one > 0 && two > 0 => Ok(()),
            refused => Err(format!("{refused:?}")),
        }
    })
    .await;
    for slot in [0, 1, 2] {
        assert_eq!(fleet.cluster_id(slot), cluster);
        assert!(fleet.members(slot).is_empty() || fleet.members(slot) == members);
    }

    fleet.dns.swap(1, 2);
    fleet.ready(&[0, 1, 2]).await;
    assert_eq!(fleet.settled(&[0, 1, 2]).await, members);
    let client = fleet.client();
    write(&client, 20..30).await;
    assert_written(&client, 0..30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_another_cluster_got_leads_nowhere() {
    let mut ours = Fleet::formed(Options::replicas(3)).await;
    let theirs = Fleet::formed(Options::replicas(3)).await;
    write(&ours.client(), 0..20).await;
    write(&theirs.client(), 100..105).await;
    let members = ours.settled(&[0, 1, 2]).await;
    let keys = theirs.status(0).keys;

    ours.crash(&[1]).await;
    ours.dns.set(1, theirs.dns.address(1));
    eventually("the other cluster to refuse what was meant for ours", async || {
        match theirs.refused(1, "CLUSTER").await {
            0 => Err(theirs.http(1, "/metrics").await),
            _ => Ok(()),
        }
    })
    .await;
    write(&ours.client(), 20..30).await;

    ours.start(1).await;
    ours.ready(&[0, 1, 2]).await;
    assert_eq!(ours.settled(&[0, 1, 2]).await, members);
    assert_written(&ours.client(), 0..30).await;
    assert_eq!(theirs.status(0).keys, keys, "nothing of ours got into theirs");
    assert_ne!(ours.cluster_id(1), theirs.cluster_id(1));
}
