//! Members that are lost, wiped, copied and rolled back, by what users suffered from elsewhere: nobody comes back as somebody else, and
//! nothing that was acknowledged is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};

use larder::proto::v1::{MembersRequest, Role};
use tokio::{
    task::{AbortHandle, spawn_blocking},
    time::Instant,
};

use crate::harness::{
    Cluster, Load, Node, Options, Rpc, Workload, alone, copy_dir, eventually, history::Action, larder, only,
    said, shared, signal,
};

/// How long anything that should happen may take.
const SOON: Duration = Duration::from_secs(30);
/// Successes before, during and after each fault.
const ENOUGH: u64 = 100;

/// A member, as the membership has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    slot: String,
    id: u64,
    voter: bool,
}

/// The membership, as the node of a slot knows it.
async fn members(cluster: &Cluster, asked: usize) -> Result<Vec<Member>, String> {
    let answer = cluster.client(asked).cluster().members(MembersRequest {}).await;
    let members = answer.map_err(|e| e.to_string())?.into_inner().members;
    Ok(members
        .into_iter()
        .map(|member| {
            let node = member.node.unwrap();
            Member { slot: node.slot, id: node.id, voter: member.voter }
        })
        .collect())
}

/// The Raft id of the node of a slot.
async fn id_of(cluster: &Cluster, slot: usize) -> u64 {
    let status = cluster.status(slot).await.unwrap();
    status.header.unwrap().node.unwrap().id
}

/// Waits until the membership is one voter in each slot, seen by every node that runs.
async fn all_vote(cluster: &Cluster) -> Vec<Member> {
    let want: BTreeSet<String> = cluster.nodes.iter().map(|node| node.slot.to_string()).collect();
    let running = cluster.running();
    eventually("one voter in each slot", SOON * 2, async || {
        let first = members(cluster, running[0]).await?;
        for &slot in &running {
            let seen = members(cluster, slot).await?;
            let voters = seen.iter().filter(|member| member.voter);
            if seen != first
                || seen.len() != want.len()
                || voters.map(|member| member.slot.clone()).collect::<BTreeSet<_>>() != want
            {
                return Err(format!("node {slot} sees {seen:?}"));
            }
        }
        Ok(first)
    })
    .await
}

/// Runs `larder` against these nodes.
async fn cli(nodes: &[Node], arguments: &[&str]) -> Output {
    let endpoints: Vec<_> = nodes.iter().map(Node::endpoint).collect();
    let mut command = larder();
    command.args(["--endpoints", &endpoints.join(",")]).args(arguments);
    spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Waits until `/readyz` of a node answers 503 and names the reason.
async fn waits_because(node: &Node, reason: &str) -> String {
    eventually(&format!("node {} to wait because {reason:?}", node.slot), SOON, async || {
        match node.http("/readyz").await? {
            (503, body) if body.contains(reason) => Ok(body),
            (code, body) => Err(format!("{code} {body}")),
        }
    })
    .await
}

/// Writes until one is acknowledged.
async fn set_surely(client: &Rpc, key: &str, value: &str) {
    eventually(&format!("{key} to be acknowledged"), SOON, async || {
        client.set(key.to_owned(), value.to_owned()).await.map_err(|e| e.to_string())
    })
    .await;
}

async fn assert_there(cluster: &Cluster, slot: usize, key: &str, value: &str) {
    let client = only(&cluster.nodes[slot]);
    let found =
        eventually("an answer", SOON, async || client.get(key.to_owned()).await.map_err(|e| e.to_string()))
            .await;
    assert_eq!(found.as_deref(), Some(value.as_bytes()), "{key} at node {slot}");
}

// A wiped pod returns under its old id: etcd#11410, bitnami/charts#15783.

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_voter_comes_back_as_another_member_and_nothing_acknowledged_is_lost() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let load = Load::start(&cluster, Workload { seed: 21, ..Workload::default() });
    let leader = cluster.leader().await;
    let mut old_ids = BTreeSet::new();
    // A follower, then whoever leads.
    for wiped in [Some((leader + 1) % 3), None] {
        load.more("before", ENOUGH).await;
        let wiped = match wiped {
            Some(slot) => slot,
            None => cluster.leader().await,
        };
        let old = id_of(&cluster, wiped).await;
        old_ids.insert(old);
        cluster.nodes[wiped].kill();
        cluster.nodes[wiped].wipe();
        let lost = Instant::now();
        cluster.nodes[wiped].start();
        cluster.nodes[wiped].wait_ready(SOON).await;
        let members = all_vote(&cluster).await;
        println!("slot {wiped} (id {old}) wiped: another voter {:?} later: {members:?}", lost.elapsed());
        assert!(members.iter().all(|m| !old_ids.contains(&m.id)), "{old_ids:?} are gone: {members:?}");
        load.more("after", ENOUGH).await;
    }
    load.finish(&cluster).await;
    cluster.converged().await;
}

/// What happens to the five once a write is on three of them.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// One of the three loses its data and comes back.
    Wipe,
    /// Another one of them dies.
    Crash,
    /// The two others are back.
    Return,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_three_of_five_acknowledged_survives_one_wiped_and_another_crashed_in_any_order() {
    use Event::{Crash, Return, Wipe};
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options { nodes: 5, ..Options::default() }).await;
    all_vote(&cluster).await;
    // Of the three that hold it, as distances from the leader: who is wiped, who crashes; the leader is one of them, so there is an election.
    // And whether the two others are only stopped, so that what was sent to them may still reach them.
    let rounds = [
        ([Wipe, Crash, Return], 1, 0, false),
        ([Wipe, Return, Crash], 1, 0, false),
        ([Crash, Wipe, Return], 0, 1, false),
        ([Crash, Return, Wipe], 1, 0, false),
        ([Return, Wipe, Crash], 0, 1, true),
        ([Return, Crash, Wipe], 2, 0, true),
        ([Wipe, Crash, Return], 0, 1, true),
    ];
    let mut written = BTreeMap::new();
    for (round, (events, wiped, crashed, paused)) in rounds.into_iter().enumerate() {
        let leader = cluster.leader().await;
        let slot = |distance: usize| (leader + distance) % 5;
        let (wiped, crashed, away) = (slot(wiped), slot(crashed), [slot(3), slot(4)]);
        let old = id_of(&cluster, wiped).await;
        let term = cluster.status(leader).await.unwrap().term;
        for &slot in &away {
            if paused { signal("STOP", cluster.nodes[slot].pid()) } else { cluster.nodes[slot].kill() }
        }
        for n in 0..20 {
            let (key, value) = (format!("{round}-{n}"), format!("value {n} of round {round}"));
            only(&cluster.nodes[leader]).set(key.clone(), value.clone()).await.unwrap();
            written.insert(key, value);
        }
        let began = Instant::now();
        for event in events {
            match event {
                Wipe => {
                    cluster.nodes[wiped].kill();
                    cluster.nodes[wiped].wipe();
                    cluster.nodes[wiped].start();
                }
                Crash => cluster.nodes[crashed].kill(),
                Return => {
                    for &slot in &away {
                        if paused {
                            signal("CONT", cluster.nodes[slot].pid());
                        } else {
                            cluster.nodes[slot].start();
                        }
                    }
                }
            }
        }
        // Without the one that crashed: only one of the old three still has what was written.
        let back = slot(3);
        for (key, value) in &written {
            assert_there(&cluster, back, key, value).await;
        }
        let now = cluster.status(back).await.unwrap().term;
        assert!(now > term, "an election: term {term} before, {now} after");
        println!(
            "{events:?}, leader {leader}, wiped {wiped}, crashed {crashed}: all read {:?} later",
            began.elapsed()
        );
        cluster.start_all();
        cluster.wait_ready().await;
        let members = all_vote(&cluster).await;
        assert!(members.iter().all(|member| member.id != old), "{old} is gone: {members:?}");
        for slot in 0..5 {
            for (key, value) in &written {
                assert_there(&cluster, slot, key, value).await;
            }
        }
        cluster.converged().await;
    }
}

// Readiness that never catches a moving target: qdrant#6431.

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_is_ready_in_bounded_time_while_writes_go_on() {
    let _machine = alone().await;
    // Snapshots and purged entries: who comes back without data needs a snapshot first, and then what was written meanwhile.
    let mut cluster = Cluster::start(&Options::with("--snapshot-log-bytes", 1 << 20)).await;
    let workload = Workload { seed: 23, reads_percent: 0, keys: 500, clients: 16, ..Workload::default() };
    let load = Load::start(&cluster, workload);
    for wiped in [false, true] {
        load.more("before", 5 * ENOUGH).await;
        let away = (cluster.leader().await + 1) % 3;
        cluster.nodes[away].kill();
        if wiped {
            cluster.nodes[away].wipe();
        }
        load.more("while it is away", 5 * ENOUGH).await;
        let (before, back) = (load.succeeded(), Instant::now());
        cluster.nodes[away].start();
        cluster.nodes[away].wait_ready(SOON).await;
        let meanwhile = load.succeeded() - before;
        println!("away {away}, wiped {wiped}: ready {:?} and {meanwhile} writes later", back.elapsed());
        all_vote(&cluster).await;
        // The target did move, before and after.
        load.more("after", ENOUGH).await;
    }
    load.finish(&cluster).await;
    cluster.converged().await;
}

// Liveness that kills a recovering node: etcd#14497.

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_is_alive_and_says_what_it_waits_for() {
    let _machine = shared().await;
    let mut cluster = Cluster::prepare(&Options { nodes: 4, ..Options::default() });
    let alive = async |node: &Node| {
        let (code, body) = node.http("/livez").await.unwrap();
        assert_eq!(code, 200, "waiting is alive: {body}");
    };
    // To be founded.
    cluster.nodes[0].start();
    println!("genesis: {}", waits_because(&cluster.nodes[0], "no cluster yet").await);
    alive(&cluster.nodes[0]).await;
    // To join, where there is nothing yet.
    cluster.nodes[3].start();
    println!("no door: {}", waits_because(&cluster.nodes[3], "cluster").await);
    alive(&cluster.nodes[3]).await;
    cluster.start_all();
    cluster.wait_ready().await;
    set_surely(&cluster.client(0), "key", "value").await;

    // No quorum, for a voter and for one that wants to join.
    for slot in [0, 1] {
        cluster.nodes[slot].kill();
    }
    cluster.nodes[3].kill();
    cluster.nodes[3].wipe();
    cluster.nodes[3].start();
    println!("no quorum: {}", waits_because(&cluster.nodes[2], "no leader").await);
    println!("no quorum to join: {}", waits_because(&cluster.nodes[3], "joining cluster").await);
    for slot in [2, 3] {
        alive(&cluster.nodes[slot]).await;
        let refused = only(&cluster.nodes[slot]).set("key", "other").await.unwrap_err();
        println!("a write at {slot}: {refused}");
    }
    cluster.start_all();
    cluster.wait_ready().await;
    set_surely(&cluster.client(3), "key", "again").await;
}

// Volumes that are cloned or rolled back: kubernetes#64869.

/// Asks everybody all the while who leads in which term.
struct Terms {
    leaders: Arc<Mutex<BTreeMap<u64, BTreeSet<String>>>>,
    looking: AbortHandle,
}

impl Terms {
    fn watch(nodes: Vec<(String, Rpc)>) -> Self {
        let leaders = Arc::<Mutex<BTreeMap<u64, BTreeSet<String>>>>::default();
        let seen = leaders.clone();
        let looking = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            loop {
                ticks.tick().await;
                for (name, client) in &nodes {
                    if let Ok(status) = client.status().await
                        && status.role() == Role::Leader
                    {
                        seen.lock().unwrap().entry(status.term).or_default().insert(name.clone());
                    }
                }
            }
        });
        Self { leaders, looking: looking.abort_handle() }
    }

    /// The last term in which a leader was seen.
    fn last(&self) -> Option<u64> {
        self.leaders.lock().unwrap().keys().last().copied()
    }

    /// Waits for a leader of a later term than `before`.
    async fn later_than(&self, before: Option<u64>) {
        eventually("a leader of a later term", SOON, async || match self.last() {
            now if now > before => Ok(()),
            now => Err(format!("the last term with a leader is {now:?}")),
        })
        .await;
    }

    /// At most one leader in each term.
    fn judge(self) {
        self.looking.abort();
        let leaders = self.leaders.lock().unwrap();
        println!("leaders by term: {leaders:?}");
        assert!(leaders.values().all(|one| one.len() == 1), "{leaders:?}");
    }
}

/// A node of this slot at an address that nobody dials, on a copy of the directory of the one that is dialled. The cluster of one
/// keeps the address.
fn clone_of(cluster: &Cluster, slot: usize) -> (Cluster, Node) {
    let elsewhere = Cluster::prepare(&Options { nodes: 1, ..Options::default() });
    let address = elsewhere.nodes[0].address.clone();
    let peers: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| {
            let at = if node.slot == slot { &address } else { &node.address };
            format!("{}={at}:{}", node.slot, Node::port(node.slot, 1))
        })
        .collect();
    let node = Node::new(slot, &address, elsewhere.home(), &peers.join(","), &[]);
    copy_dir(&cluster.nodes[slot].data, &node.data);
    (elsewhere, node)
}

/// It stopped with the named error, and stays stopped.
async fn is_superseded(node: &mut Node, names: &[&str]) {
    let exit = node.exit(SOON).await;
    println!("slot {}: {}", node.slot, exit.log.lines().last().unwrap_or_default());
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(names.iter().any(|name| exit.log.contains(name)), "{names:?}: {}", exit.log);
    node.start();
    let again = node.exit(SOON).await;
    assert_eq!(again.code, Some(1), "{}", again.log);
    assert!(
        again.log.contains("must not be copied or rolled back") && again.log.contains("empty directory"),
        "{}",
        again.log
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_on_copies_of_one_directory_one_stops_for_good() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let load = Load::start(&cluster, Workload { seed: 25, ..Workload::default() });
    load.more("before", ENOUGH).await;
    let leader = cluster.leader().await;
    let slot = (leader + 1) % 3;
    cluster.nodes[slot].kill();
    let (_elsewhere, mut copy) = clone_of(&cluster, slot);
    let mut everybody: Vec<_> =
        cluster.nodes.iter().map(|node| (node.slot.to_string(), only(node))).collect();
    everybody.push((format!("the copy of {slot}"), only(&copy)));
    let terms = Terms::watch(everybody);
    terms.later_than(None).await;

    // Both at once, and an election while both may vote.
    cluster.nodes[slot].start();
    copy.start();
    let before = terms.last();
    cluster.nodes[leader].kill();
    let original_ended = eventually("one of the two to end", SOON, async || {
        match (cluster.nodes[slot].ended(), copy.ended()) {
            (false, false) => Err("both run".to_owned()),
            (original, _) => Ok(original),
        }
    })
    .await;
    let names = ["CLONED", "STALE_BOOT"];
    if original_ended {
        // The copy lacks what was written since, so it cannot lead, and nobody dials it: only the third one is left.
        println!("the original was refused");
        is_superseded(&mut cluster.nodes[slot], &names).await;
    } else {
        println!("the copy was refused");
        is_superseded(&mut copy, &names).await;
        terms.later_than(before).await;
    }
    cluster.nodes[leader].start();
    load.more("with one of them refused", ENOUGH).await;

    // As its sentence says: an empty directory makes it a new member, once the copy that was taken for the member is gone.
    if original_ended {
        copy.kill();
        cluster.nodes[slot].wipe();
        cluster.nodes[slot].start();
    }
    cluster.wait_ready().await;
    all_vote(&cluster).await;

    // A copy that comes late, while the original serves.
    cluster.nodes[slot].kill();
    let (_elsewhere, mut late) = clone_of(&cluster, slot);
    cluster.nodes[slot].start();
    cluster.nodes[slot].wait_ready(SOON).await;
    load.more("before the late copy", ENOUGH).await;
    late.start();
    is_superseded(&mut late, &names).await;
    cluster.nodes[slot].wait_ready(SOON).await;

    load.more("after it all", ENOUGH).await;
    load.finish(&cluster).await;
    cluster.converged().await;
    terms.judge();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_rolled_back_is_refused_and_the_cluster_goes_on() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    set_surely(&cluster.client(0), "old", "value").await;
    let slot = (cluster.leader().await + 1) % 3;
    let data = cluster.nodes[slot].data.clone();
    for all_restart in [false, true] {
        cluster.nodes[slot].kill();
        let backup = cluster.home().join(format!("backup-{all_restart}"));
        copy_dir(&data, &backup);
        // Two later starts, and writes in both.
        for n in 0..2 {
            cluster.nodes[slot].start();
            cluster.nodes[slot].wait_ready(SOON).await;
            set_surely(&only(&cluster.nodes[slot]), &format!("key-{all_restart}-{n}"), "value").await;
            cluster.converged().await;
            cluster.nodes[slot].kill();
        }
        // Nobody who was restarted has heard anybody: then the state says which start was the last.
        if all_restart {
            cluster.kill_all();
        }
        cluster.nodes[slot].wipe();
        copy_dir(&backup, &data);
        cluster.start_all();
        // Whoever knows the last start finds it stale; to one that knows only the start before, it is another process of that one.
        is_superseded(&mut cluster.nodes[slot], &["STALE_BOOT", "CLONED"]).await;
        set_surely(&cluster.client((slot + 1) % 3), &format!("on-{all_restart}"), "and on").await;

        // As its sentence says: an empty directory makes it a new member.
        cluster.nodes[slot].wipe();
        cluster.start_all();
        cluster.wait_ready().await;
        all_vote(&cluster).await;
        for key in ["key-false-0", "key-false-1", "on-false", "key-true-0", "key-true-1", "on-true"] {
            if all_restart || !key.contains("true") {
                let value = if key.starts_with("on") { "and on" } else { "value" };
                assert_there(&cluster, slot, key, value).await;
            }
        }
    }
    cluster.converged().await;
}

// What operators do by hand.

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_retired_and_comes_back_as_another_and_a_live_one_is_not() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    set_surely(&cluster.client(0), "key", "value").await;
    let gone = (cluster.leader().await + 1) % 3;
    let (name, old) = (gone.to_string(), id_of(&cluster, gone).await);
    let refused = cli(&cluster.nodes, &["member", "retire", &name]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains(&format!("slot {gone} answers; stop its node first")),
        "{}",
        said(&refused)
    );
    let nobody = cli(&cluster.nodes, &["member", "retire", "9"]).await;
    assert_eq!(nobody.status.code(), Some(1), "{}", said(&nobody));
    assert!(said(&nobody).contains("the members are 0, 1, 2"), "{}", said(&nobody));
    assert_eq!(all_vote(&cluster).await.len(), 3);

    cluster.nodes[gone].kill();
    // Right after its end it still counts as answering.
    eventually("the dead member to be retired", SOON, async || {
        let done = cli(&cluster.nodes, &["member", "retire", &name]).await;
        match done.status.code() {
            Some(0) => Ok(()),
            code => Err(format!("{code:?}: {}", said(&done))),
        }
    })
    .await;
    let asked = (gone + 1) % 3;
    let left = members(&cluster, asked).await.unwrap();
    assert!(left.len() == 2 && left.iter().all(|member| member.id != old), "{left:?}");
    set_surely(&cluster.client(asked), "on", "and on").await;

    cluster.nodes[gone].start();
    cluster.nodes[gone].wait_ready(SOON).await;
    let now = all_vote(&cluster).await;
    assert!(now.iter().all(|member| member.id != old), "{old} is gone: {now:?}");
    assert_ne!(id_of(&cluster, gone).await, old);
    for key in [("key", "value"), ("on", "and on")] {
        assert_there(&cluster, gone, key.0, key.1).await;
    }
    cluster.converged().await;
}

/// The slots that vote and those that do not, as `larder member list` shows them.
async fn listed(nodes: &[Node]) -> (Vec<String>, Vec<String>) {
    let output = cli(nodes, &["--output", "json", "member", "list"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let members = list["members"].as_array().unwrap();
    let of = |voter: bool| -> Vec<String> {
        let mut slots: Vec<_> = members
            .iter()
            .filter(|member| member["voter"] == voter)
            .map(|member| member["slot"].as_str().unwrap().to_owned())
            .collect();
        slots.sort();
        slots
    };
    (of(true), of(false))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_promoted_over_a_dead_voter_and_not_without_room() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options { nodes: 4, ..Options::with("--max-voters", 3) }).await;
    let of = |slots: &[&str]| slots.iter().map(|slot| (*slot).to_owned()).collect::<Vec<_>>();
    assert_eq!(listed(&cluster.nodes).await, (of(&["0", "1", "2"]), of(&["3"])));
    let refused = cli(&cluster.nodes, &["member", "promote", "3"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("slot 3 is not promoted") && said(&refused).contains("raise --max-voters"),
        "{}",
        said(&refused)
    );
    assert_eq!(listed(&cluster.nodes).await, (of(&["0", "1", "2"]), of(&["3"])));

    let dead = (cluster.leader().await + 1) % 3;
    cluster.nodes[dead].kill();
    eventually("the learner to vote", SOON, async || {
        let done = cli(&cluster.nodes, &["member", "promote", "3"]).await;
        match done.status.code() {
            Some(0) => Ok(()),
            code => Err(format!("{code:?}: {}", said(&done))),
        }
    })
    .await;
    let mut voters = of(&["0", "1", "2", "3"]);
    voters.remove(dead);
    assert_eq!(listed(&cluster.nodes).await, (voters.clone(), vec![dead.to_string()]));
    let table = cli(&cluster.nodes, &["member", "list"]).await;
    println!("{}", String::from_utf8_lossy(&table.stdout));

    // Its vote counts: with another voter down it makes the majority.
    let leader = cluster.leader().await;
    let other = (0..3).find(|slot| *slot != leader && *slot != dead).unwrap();
    cluster.nodes[other].kill();
    set_surely(&only(&cluster.nodes[leader]), "key", "value").await;
    cluster.start_all();
    cluster.wait_ready().await;
    // Who was dead is a learner now.
    assert_eq!(listed(&cluster.nodes).await, (voters, vec![dead.to_string()]));
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_limit_is_in_the_status() {
    let _machine = shared().await;
    let cluster = Cluster::start(&Options { nodes: 1, ..Options::with("--memory-limit", "1Gi") }).await;
    let output = cli(&cluster.nodes, &["status", "--output", "json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["nodes"][0]["memory_limit_bytes"], 1_u64 << 30, "{status}");
}

// A rolling upgrade that loses writes: bitnami-docker-etcd#10.

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_with_the_stop_hook_fails_no_write() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    let scale = cluster.home().join("scale.toml").display().to_string();
    std::fs::write(&scale, "seeds = \"0,1,2\"\nreplicas = 3\n").unwrap();
    let before = members(&cluster, 0).await.unwrap();
    let load = Load::start(&cluster, Workload { seed: 29, ..Workload::default() });
    // From the highest, as a StatefulSet does, and one of them surely leads.
    for slot in [2, 1, 0] {
        load.more("before", ENOUGH).await;
        let mut hook = larder();
        hook.args(["prestop", "--drain", "500ms", "--slot", &slot.to_string(), "--scale-file", &scale]);
        hook.args(["--client-addr", &cluster.nodes[slot].endpoint()]);
        let hook = spawn_blocking(move || hook.output().unwrap()).await.unwrap();
        println!("{}", said(&hook).trim());
        assert_eq!(hook.status.code(), Some(0), "{}", said(&hook));
        assert!(
            said(&hook).contains("prestop: restart") && !said(&hook).contains("not done"),
            "{}",
            said(&hook)
        );
        let status = cluster.status(slot).await.unwrap();
        assert_ne!(status.role(), Role::Leader, "slot {slot} handed over");
        cluster.nodes[slot].terminate();
        let exit = cluster.nodes[slot].exit(Duration::from_secs(15)).await;
        assert_eq!(exit.code, Some(0), "said: {}", exit.log);
        load.more("with two", ENOUGH).await;
        cluster.nodes[slot].start();
        cluster.nodes[slot].wait_ready(SOON).await;
    }
    load.more("after", ENOUGH).await;
    let seen = load.finish(&cluster).await;
    let mut written: Vec<_> =
        seen.ops.iter().filter(|op| matches!(op.action, Action::Write(_))).map(|op| op.end).collect();
    written.sort();
    let gap = written.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    println!("{} writes; longest time without one {gap:?}; {} retried", written.len(), seen.failures.len());
    let worse: Vec<_> = seen.failures.iter().filter(|failure| !failure.surely_not_applied).collect();
    assert!(worse.is_empty(), "{} failures are not simply to be retried: {}", worse.len(), worse[0]);
    // Each hand-over is quicker than an election by timeout; generous, as the machine may be busy.
    assert!(gap < Duration::from_secs(2), "{gap:?} without a write");
    assert_eq!(members(&cluster, 0).await.unwrap(), before, "a restart is no leave");
    cluster.converged().await;
}

// Bad input.

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_for_a_slot_waits_until_the_first_is_gone() {
    let _machine = alone().await;
    let cluster = Cluster::start(&Options::default()).await;
    set_surely(&cluster.client(0), "key", "value").await;
    let slot = (cluster.leader().await + 1) % 3;
    let old = id_of(&cluster, slot).await;
    let (_elsewhere, mut second) = clone_of(&cluster, slot);
    std::fs::remove_dir_all(&second.data).unwrap();
    second.start();
    let body = waits_because(&second, &format!("slot {slot} is occupied")).await;
    println!("{body}");
    assert!(body.contains("stop one of them"), "{body}");
    assert_eq!(second.http("/livez").await.unwrap().0, 200);
    cluster.nodes[slot].ready().await.unwrap();
    assert_eq!(id_of(&cluster, slot).await, old);
    second.kill();
    cluster.converged().await;
}
