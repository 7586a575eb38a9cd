//! Scaling down and up, and what must not be taken for it.

use std::collections::BTreeSet;

use larder::{
    kubernetes::{ApiError, Desired},
    service::{ClusterView, Ctx},
    store::Binding,
};

use crate::fleet::{Fleet, Membership, Options, SOON, Writer, assert_written, eventually, stays, write};

const FIVE: [u32; 5] = [0, 1, 2, 3, 4];
const NOBODY: [u32; 0] = [];

#[tokio::test(flavor = "multi_thread")]
async fn restart_deletion_scaling_to_nothing_and_a_failing_api_change_no_membership_but_scaling_down_does() {
    let mut fleet = Fleet::formed(Options::replicas(5)).await;
    write(&fleet.client(), 0..20).await;
    let members = fleet.settled(&FIVE).await;
    let mut memberships = Vec::new();

    // A restart of the last pod, and of the leader.
    for slot in [4, fleet.leader().await] {
        assert!(!fleet.prestop(slot).await);
        fleet.stop(&[slot]).await;
        memberships.push(fleet.memberships(slot));
        fleet.start(slot).await;
        fleet.ready(&[slot]).await;
    }
    // Nobody knows how many are wanted.
    for error in [ApiError::Denied("no role".into()), ApiError::Unreachable("no route".into())] {
        fleet.api.fail(Some(error));
        assert!(!fleet.prestop(4).await);
        fleet.stop(&[4]).await;
        memberships.push(fleet.memberships(4));
        fleet.api.fail(None);
        fleet.start(4).await;
        fleet.ready(&[4]).await;
    }
    // All pods go, the StatefulSet with them or not, and come back on their volumes.
    let deleting = Desired { deleting: true, ..Desired::replicas(5) };
    for gone in [Desired::ABSENT, deleting, Desired::replicas(0)] {
        fleet.api.set_desired(gone);
        assert_eq!(fleet.prestop_all(&FIVE).await, NOBODY);
        fleet.stop(&FIVE).await;
        memberships.push(fleet.memberships(4));
        fleet.api.set_desired(Desired::replicas(5));
        fleet.start_all(&FIVE).await;
        fleet.ready(&FIVE).await;
    }
    assert_eq!(fleet.settled(&FIVE).await, members);
    assert!(memberships.iter().all(|found| *found == memberships[0]), "{memberships:?}");

    fleet.scale(3);
    assert_eq!(fleet.prestop_all(&[4, 3]).await, [4, 3]);
    fleet.stop(&[3, 4]).await;
    let three: BTreeSet<_> = members.into_iter().filter(|(slot, ..)| slot != "3" && slot != "4").collect();
    assert_eq!(fleet.settled(&[0, 1, 2]).await, three);
    for slot in [3, 4] {
        assert!(matches!(fleet.binding(slot), Binding::Left { .. }), "{:?}", fleet.binding(slot));
    }
    assert_eq!(fleet.prestop_all(&[0, 1, 2]).await, NOBODY);
    assert_written(&fleet.client(), 0..20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_to_one_at_once_loses_nothing_and_never_the_quorum() {
    let mut fleet = Fleet::formed(Options::replicas(5)).await;
    // So that it has to hand over.
    fleet.view(0).transfer_leader("3").await.unwrap();
    let writer = Writer::start(fleet.client());
    writer.goes_on(20).await;
    fleet.scale(1);
    let leaving = [1, 2, 3, 4];
    // Each pod stops when its own hook is done, while others are still at it.
    assert_eq!(fleet.prestop_all(&leaving).await, leaving);
    assert_eq!(fleet.voters(0), ["0"]);
    writer.goes_on(20).await;
    fleet.stop(&leaving).await;
    writer.goes_on(20).await;
    assert_eq!(fleet.settled(&[0]).await.len(), 1);
    for slot in leaving {
        assert!(matches!(fleet.binding(slot), Binding::Left { .. }), "{:?}", fleet.binding(slot));
    }
    // A member that has left gives back at once what it cannot do any more: nobody waits out a timeout on it.
    assert!(writer.slowest() < SOON / 3, "{:?}", writer.slowest());
    writer.all_there(&fleet.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_to_two_to_three_over_kept_volumes_is_a_new_member_each_time() {
    let mut fleet = Fleet::formed(Options::replicas(3)).await;
    write(&fleet.client(), 0..20).await;
    let mut seen = BTreeSet::from([fleet.incarnation(2)]);
    for round in 0..2 {
        let before = fleet.settled(&[0, 1, 2]).await;
        fleet.scale(2);
        assert_eq!(fleet.prestop_all(&[2]).await, [2]);
        fleet.stop(&[2]).await;
        assert_eq!(fleet.settled(&[0, 1]).await.len(), 2);
        write(&fleet.client(), 20 + round * 10..30 + round * 10).await;

        fleet.scale(3);
        fleet.start(2).await;
        fleet.ready(&[0, 1, 2]).await;
        let after = fleet.settled(&[0, 1, 2]).await;
        assert_eq!(fleet.voters(0), ["0", "1", "2"]);
        assert_eq!(after.difference(&before).count(), 1, "{before:?}, {after:?}");
        assert!(seen.insert(fleet.incarnation(2)), "{seen:?}");
        // No loop: it was started once, and stays.
        let boots = fleet.status(2).boot_counter;
        let remains =
            || match (fleet.members(0) == after, fleet.status(2).boot_counter == boots, fleet.unready(2)) {
                (true, true, ready) if ready.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            };
        stays("slot 2 is the member that it became", remains).await;
    }
    assert_written(&fleet.client(), 0..40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_retired_if_it_was_scaled_away_and_only_then() {
    let mut fleet = Fleet::formed(Options { retire_after_ms: 500, ..Options::replicas(5) }).await;
    write(&fleet.client(), 0..20).await;
    let members = fleet.settled(&FIVE).await;
    let without_4: BTreeSet<u64> =
        members.into_iter().filter(|(slot, ..)| slot != "4").map(|(_, id, _)| id).collect();

    // Slot 3 is dead the longer, and is wanted.
    fleet.crash(&[3]).await;
    fleet.scale(4);
    fleet.crash(&[4]).await;
    eventually("slot 4 to be retired", async || match ids(&fleet.members(0)) {
        now if now == without_4 => Ok(()),
        now => Err(format!("{now:?}")),
    })
    .await;
    let stay =
        || if ids(&fleet.members(0)) == without_4 { Ok(()) } else { Err(format!("{:?}", fleet.members(0))) };
    stays("slot 3 is a member, dead as it is", stay).await;
    fleet.start(3).await;
    fleet.ready(&[0, 1, 2, 3]).await;
    assert_eq!(ids(&fleet.settled(&[0, 1, 2, 3]).await), without_4, "it comes back as who it was");

    // A silent API retires nobody, and an answer does.
    fleet.crash(&[3]).await;
    fleet.scale(3);
    fleet.api.fail(Some(ApiError::Unreachable("no route".into())));
    let stay =
        || if ids(&fleet.members(0)) == without_4 { Ok(()) } else { Err(format!("{:?}", fleet.members(0))) };
    stays("slot 3 is a member while nobody says how many are wanted", stay).await;
    fleet.api.fail(None);
    fleet.settled(&[0, 1, 2]).await;
    assert_eq!(fleet.voters(0), ["0", "1", "2"]);
    assert_written(&fleet.client(), 0..20).await;
}

fn ids(members: &Membership) -> BTreeSet<u64> {
    members.iter().map(|(_, id, _)| *id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_removed_while_it_is_away_comes_back_as_another_member() {
    let mut fleet = Fleet::formed(Options::replicas(3)).await;
    write(&fleet.client(), 0..20).await;
    let old = fleet.incarnation(2);
    fleet.crash(&[2]).await;
    eventually("slot 2 to be retired", async || {
        let retired = fleet.view(0).retire("2", Ctx { timeout: SOON }).await;
        retired.map_err(|error| error.to_string())
    })
    .await;
    // Its volume knows nothing of that.
    fleet.start(2).await;
    fleet.ready(&[0, 1, 2]).await;
    fleet.settled(&[0, 1, 2]).await;
    assert_ne!(fleet.incarnation(2), old);
    for slot in [0, 1, 2] {
        assert_eq!(fleet.client_of(&[slot]).members().await.unwrap().members.len(), 3);
    }
    assert_written(&fleet.client(), 0..20).await;
}
