//! The first start: names that do not resolve, pods that do not find one another, seeds that were told different things.

use std::collections::BTreeMap;

use futures::future::join_all;
use larder::{kubernetes::ApiError, store::FoundingSet};

use crate::fleet::{Fleet, Options, assert_written, eventually, stays, write};

const SEEDS: [u32; 3] = [0, 1, 2];

fn nobody_founded(fleet: &Fleet) -> Result<(), String> {
    match fleet.running().into_iter().find(|slot| !fleet.cluster_id(*slot).is_empty()) {
        Some(slot) => Err(format!("slot {slot} is in the cluster {}", fleet.cluster_id(slot))),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_that_is_not_ready_for_long_is_waited_for_and_nobody_exits() {
    let mut fleet = Fleet::new(Options::replicas(3));
    fleet.dns.refuse_first(&SEEDS, 40);
    fleet.start_all(&SEEDS).await;
    let first: Vec<_> = SEEDS.map(|slot| (fleet.incarnation(slot), fleet.status(slot).boot_counter)).into();
    fleet.says(&SEEDS, "does not resolve: the name server is not ready").await;
    for slot in SEEDS {
        let answer = fleet.http(slot, "/readyz").await;
        assert!(answer.contains(" 503 ") && answer.contains("does not resolve"), "{answer}");
        assert!(fleet.http(slot, "/livez").await.contains(" 200 "), "it is alive meanwhile");
    }
    assert!(fleet.dns.refusals_left() > 0, "it was said while names did not resolve");
    nobody_founded(&fleet).unwrap();

    fleet.ready(&SEEDS).await;
    assert_eq!(fleet.dns.refusals_left(), 0, "no cluster while a name did not resolve");
    fleet.settled(&SEEDS).await;
    let now: Vec<_> = SEEDS.map(|slot| (fleet.incarnation(slot), fleet.status(slot).boot_counter)).into();
    assert_eq!(now, first, "nobody was started again");
}

/// Six ways from seed to seed, each open or not.
const WAYS: [(u32, u32); 6] = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)];

async fn forms_once_it_is_healed(cuts: u8) {
    let mut fleet = Fleet::new(Options::replicas(3));
    let cuts: Vec<_> =
        WAYS.iter().enumerate().filter(|(at, _)| cuts >> at & 1 == 1).map(|(_, way)| *way).collect();
    cuts.iter().for_each(|(by, slot)| fleet.dns.cut(*by, *slot));
    fleet.start_all(&SEEDS).await;
    let set = FoundingSet(SEEDS.map(|slot| (slot.to_string(), fleet.incarnation(slot))).into());
    // Everybody has gone as far as it gets.
    for (by, slot) in &cuts {
        fleet.says(&[*by], &format!("seed {slot} is missing")).await;
    }
    for slot in SEEDS.iter().filter(|slot| cuts.iter().all(|(by, _)| by != *slot)) {
        fleet.says(&[*slot], "has still to promise the same founders").await;
    }
    nobody_founded(&fleet).unwrap();

    fleet.dns.heal();
    fleet.ready(&SEEDS).await;
    for slot in SEEDS {
        // The id is made of the incarnations that were there from the first: nobody was ever bound to another one.
        assert_eq!(fleet.cluster_id(slot), set.cluster_id().to_string(), "slot {slot}, cut: {cuts:?}");
        assert_eq!(fleet.incarnation(slot), set.0[&slot.to_string()], "slot {slot}, cut: {cuts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_is_split_in_any_way_gives_one_cluster() {
    let all: Vec<u8> = (1..1 << WAYS.len()).collect();
    assert_eq!(all.len(), 63);
    for some in all.chunks(9) {
        join_all(some.iter().map(|cuts| forms_once_it_is_healed(*cuts))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_seed_that_reaches_nobody_waits_and_never_founds() {
    let mut fleet = Fleet::formed(Options::replicas(3)).await;
    write(&fleet.client(), 0..10).await;
    let (cluster, members) = (fleet.cluster_id(0), fleet.settled(&SEEDS).await);
    let old = fleet.incarnation(0);
    fleet.stop(&[0]).await;
    fleet.wipe(0);
    fleet.dns.cut(0, 1);
    fleet.dns.cut(0, 2);
    fleet.start(0).await;
    fleet.says(&[0], "seed 1 is missing").await;
    fleet.says(&[0], "seed 2 is missing").await;
    let waits = || match (fleet.cluster_id(0).as_str(), fleet.members(1) == members) {
        ("", true) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    stays("slot 0 waits", waits).await;
    write(&fleet.client_of(&[1, 2]), 10..20).await;

    fleet.dns.heal();
    fleet.ready(&SEEDS).await;
    let now = fleet.settled(&SEEDS).await;
    assert_eq!(fleet.cluster_id(0), cluster);
    assert_ne!(fleet.incarnation(0), old);
    assert_eq!(now.difference(&members).count(), 1, "only slot 0 is another one: {members:?}, {now:?}");
    assert_written(&fleet.client(), 0..20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seeds_that_were_told_different_lists_found_nothing_and_name_both() {
    let seeds_of = BTreeMap::from([(2, "0,2,3"), (3, "0,2,3")]);
    let mut fleet = Fleet::new(Options { seeds_of, ..Options::replicas(4) });
    fleet.start_all(&[0, 1, 2, 3]).await;
    let differ = |ours: &str, slot: u32, theirs: &str| {
        format!("this node was told that the seeds are {ours}, and seed {slot} that they are {theirs}")
    };
    for slot in [0, 1] {
        fleet.says(&[slot], &differ("0, 1, 2", 2, "0, 2, 3")).await;
    }
    for slot in [2, 3] {
        fleet.says(&[slot], &differ("0, 2, 3", 0, "0, 1, 2")).await;
    }
    stays("nobody founds", || nobody_founded(&fleet)).await;

    // They are told the same, and nothing else is needed.
    fleet.stop(&[2, 3]).await;
    fleet.forget_seeds_of_slots();
    fleet.start_all(&[2, 3]).await;
    fleet.ready(&[0, 1, 2, 3]).await;
    fleet.settled(&[0, 1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_does_not_answer_is_waited_for_and_one_that_denies_is_gone_without() {
    let mut fleet = Fleet::new(Options::replicas(3));
    fleet.api.fail(Some(ApiError::Unreachable("connection refused".into())));
    fleet.start_all(&SEEDS).await;
    fleet.says(&SEEDS, "whether these seeds had one is not known").await;
    fleet.says(&SEEDS, "connection refused").await;
    stays("nobody founds", || nobody_founded(&fleet)).await;

    fleet.api.fail(Some(ApiError::Denied("configmaps \"larder-cluster\" is forbidden".into())));
    fleet.ready(&SEEDS).await;
    fleet.settled(&SEEDS).await;
    // A member that is no seed is not kept out for it either.
    fleet.scale(4);
    fleet.start(3).await;
    fleet.ready(&[3]).await;
    eventually("four members", async || match fleet.members(0).len() {
        4 => Ok(()),
        count => Err(count.to_string()),
    })
    .await;
}
