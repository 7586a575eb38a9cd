//! Three seeds in one process, with disks that outlive them and links that can be cut. Time is tokio's paused clock: it
//! jumps when everybody waits, so nothing here takes long.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;

const SLOTS: [&str; 3] = ["0", "1", "2"];

/// What a seed's directory holds. Outlives the process.
type Disk = Arc<Mutex<Identity>>;

fn empty_disk(slot: &str) -> Disk {
    Arc::new(Mutex::new(Identity {
        incarnation: Uuid::new_v4(),
        slot: slot.into(),
        boot_counter: 1,
        binding: Binding::Formatted,
    }))
}

/// Keeps the binding on a `Disk`, and every cluster that anybody ever bound itself to in `founded`.
#[derive(Debug)]
struct FakeStore {
    disk: Disk,
    founded: Arc<Mutex<BTreeSet<ClusterId>>>,
}

impl BindingStore for FakeStore {
    fn identity(&self) -> Identity {
        self.disk.lock().unwrap().clone()
    }

    fn save(&mut self, binding: Binding) -> Result<()> {
        if let Binding::Bound { cluster, .. } = &binding {
            self.founded.lock().unwrap().insert(*cluster);
        }
        self.disk.lock().unwrap().binding = binding;
        Ok(())
    }
}

/// Everything between the seeds.
struct Net {
    /// Who runs, and what it says of itself.
    running: Mutex<BTreeMap<String, watch::Receiver<Identity>>>,
    /// Pairs that do not hear each other.
    cut: Mutex<BTreeSet<(String, String)>>,
    /// The share of questions that are lost, and the dice.
    loss: Mutex<(f64, StdRng)>,
    /// What those who let somebody join, or not, answer; by slot.
    doors: Mutex<BTreeMap<String, Result<ClusterId, NotJoined>>>,
    /// What the Kubernetes API says of a claim.
    claim: Mutex<Result<Option<String>, String>>,
}

impl Net {
    fn set_cut(&self, pairs: &[(&str, &str)]) {
        let both = pairs.iter().flat_map(|(a, b)| [(a, b), (b, a)]);
        *self.cut.lock().unwrap() = both.map(|(a, b)| (a.to_string(), b.to_string())).collect();
    }

    fn roll(&self, range: std::ops::Range<f64>) -> f64 {
        self.loss.lock().unwrap().1.random_range(range)
    }
}

struct FakePeers {
    me: String,
    net: Arc<Net>,
}

/// A latency of the pretended network, on the paused clock.
async fn delay(pause: Duration) {
    let _ = tokio::time::timeout(pause, std::future::pending::<()>()).await;
}

#[async_trait]
impl Peers for FakePeers {
    async fn hello(&self, slot: &str) -> Result<SeedAnswer, String> {
        let pause = Duration::from_secs_f64(self.net.roll(0.0..0.1));
        delay(pause).await;
        let lost = self.net.roll(0.0..1.0) < self.net.loss.lock().unwrap().0;
        if lost || self.net.cut.lock().unwrap().contains(&(self.me.clone(), slot.into())) {
            std::future::pending::<()>().await;
        }
        let Some(published) = self.net.running.lock().unwrap().get(slot).cloned() else {
            return Err("connection refused".into());
        };
        let identity = published.borrow().clone();
        // The answer may take longer than the seed stays as it is.
        delay(pause).await;
        let Identity { slot, incarnation, binding, .. } = identity;
        Ok(SeedAnswer { slot, incarnation, binding, seeds: Vec::new() })
    }

    async fn join(&self, door: &Door) -> Result<ClusterId, NotJoined> {
        if let Some(answer) = self.net.doors.lock().unwrap().get(&door.slot) {
            return answer.clone();
        }
        Err(NotJoined::Because(format!("slot {} lets nobody in", door.slot)))
    }

    async fn others(&self) -> Vec<String> {
        Vec::new()
    }

    async fn claim(&self) -> Result<Option<String>, String> {
        self.net.claim.lock().unwrap().clone()
    }
}

/// A seed that runs.
struct Running {
    task: JoinHandle<Result<Outcome<FakeStore>>>,
    published: watch::Receiver<Identity>,
    waiting: watch::Receiver<Option<String>>,
}

impl<S> Outcome<S> {
    fn bound(self) -> Founded<S> {
        match self {
            Self::Bound(founded) => founded,
            Self::Retired(_) => panic!("it was retired"),
        }
    }
}

impl Running {
    async fn waits_with(&mut self, words: &str) -> String {
        let reason =
            self.waiting.wait_for(|reason| reason.as_ref().is_some_and(|reason| reason.contains(words)));
        let reason = within(reason, words).await.expect("the seed runs on");
        reason.clone().expect("it waits")
    }

    async fn founded(self) -> Founded<FakeStore> {
        within(self.task, "bound").await.expect("no panic").expect("no error").bound()
    }
}

async fn within<T>(future: impl Future<Output = T>, what: &str) -> T {
    tokio::time::timeout(Duration::from_secs(600), future)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"))
}

struct Cluster {
    net: Arc<Net>,
    disks: BTreeMap<&'static str, Disk>,
    founded: Arc<Mutex<BTreeSet<ClusterId>>>,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let net = Net {
            running: Mutex::default(),
            cut: Mutex::default(),
            loss: Mutex::new((0.0, StdRng::seed_from_u64(seed))),
            doors: Mutex::default(),
            claim: Mutex::new(Ok(None)),
        };
        let disks = SLOTS.map(|slot| (slot, empty_disk(slot))).into();
        Self { net: Arc::new(net), disks, founded: Arc::default() }
    }

    fn peers(&self, slot: &str) -> Arc<FakePeers> {
        Arc::new(FakePeers { me: slot.into(), net: self.net.clone() })
    }

    fn start(&self, slot: &str) -> Running {
        let store = FakeStore { disk: self.disks[slot].clone(), founded: self.founded.clone() };
        let seeds = SLOTS.map(String::from).to_vec();
        let genesis = Genesis::new(store, seeds, self.peers(slot), Options::default());
        let (published, waiting) = (genesis.published(), genesis.waiting());
        self.net.running.lock().unwrap().insert(slot.into(), published.clone());
        Running { task: tokio::spawn(genesis.run()), published, waiting }
    }

    /// Kills the process; the disk stays.
    async fn kill(&self, slot: &str, running: Running) {
        self.net.running.lock().unwrap().remove(slot);
        running.task.abort();
        let _ended = running.task.await;
    }

    fn wipe(&mut self, slot: &'static str) {
        self.net.running.lock().unwrap().remove(slot);
        self.disks.insert(slot, empty_disk(slot));
    }

    fn identity(&self, slot: &str) -> Identity {
        self.disks[slot].lock().unwrap().clone()
    }

    /// All three end in one cluster with one another, and nobody ever was in another one.
    async fn all_founded(&self, running: impl IntoIterator<Item = Running>) -> ClusterId {
        let mut clusters = BTreeSet::new();
        for node in running {
            let founded = node.founded().await;
            let set = founded.founders.expect("a founder");
            assert_eq!(set.cluster_id(), founded.cluster);
            for slot in SLOTS {
                assert_eq!(set.0[slot], self.identity(slot).incarnation);
            }
            clusters.insert(founded.cluster);
        }
        assert_eq!(clusters.len(), 1, "{clusters:?}");
        assert_eq!(*self.founded.lock().unwrap(), clusters, "nobody was ever bound to another one");
        clusters.pop_first().expect("one")
    }
}

#[tokio::test(start_paused = true)]
async fn started_in_any_order_they_wait_for_the_last_and_become_one_cluster() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let cluster = Cluster::new(1);
        let [first, second, last] = order.map(|at| SLOTS[at]);
        let mut a = cluster.start(first);
        let reason = a.waits_with(&format!("seed {last} is missing (connection refused)")).await;
        assert!(reason.contains(&format!("seed {second} is missing")), "{reason}");
        let mut b = cluster.start(second);
        let reason = b.waits_with(&format!("seed {last} is missing")).await;
        assert!(!reason.contains(&format!("seed {first} is missing")), "{reason}");
        assert!(cluster.founded.lock().unwrap().is_empty(), "nothing is founded out of silence");
        let waiting = a.waiting.clone();
        let c = cluster.start(last);
        cluster.all_founded([a, b, c]).await;
        assert_eq!(*waiting.borrow(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lossy_network_and_crashes_give_one_cluster() {
    for seed in 0..50 {
        let cluster = Cluster::new(seed);
        cluster.net.loss.lock().unwrap().0 = 0.7;
        let mut running: Vec<_> = SLOTS.iter().map(|slot| Some(cluster.start(slot))).collect();
        for _ in 0..10 {
            let victim = cluster.net.roll(0.0..3.0) as usize;
            let until = Duration::from_secs_f64(cluster.net.roll(0.0..3.0));
            let mut changed = running[victim].as_ref().expect("it runs").published.clone();
            // Right after a step, or at any time.
            let _either = tokio::time::timeout(until, changed.changed()).await;
            cluster.kill(SLOTS[victim], running[victim].take().expect("it runs")).await;
            running[victim] = Some(cluster.start(SLOTS[victim]));
        }
        cluster.all_founded(running.into_iter().flatten()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn partitioned_at_first_start_in_every_way_and_healed() {
    let links = [("0", "1"), ("0", "2"), ("1", "2")];
    for ways in 1..8_usize {
        let cluster = Cluster::new(ways as u64);
        let cut: Vec<_> = (0..3).filter(|at| ways & (1 << at) != 0).map(|at| links[at]).collect();
        cluster.net.set_cut(&cut);
        let mut running = SLOTS.map(|slot| cluster.start(slot));
        for (a, b) in &cut {
            for (me, other) in [(a, b), (b, a)] {
                let at = me.parse::<usize>().unwrap();
                let words = format!("seed {other} is missing (no answer within 2000 ms)");
                running[at].waits_with(&words).await;
            }
        }
        assert!(cluster.founded.lock().unwrap().is_empty(), "cut {cut:?}");
        cluster.net.set_cut(&[]);
        cluster.all_founded(running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_bound_seed_is_enough_to_follow() {
    let cluster = Cluster::new(1);
    let id = cluster.all_founded(SLOTS.map(|slot| cluster.start(slot))).await;
    // Seed 2 stopped between promise and founding, and seed 1 is down when it comes back.
    let Binding::Bound { founders: Some(set), .. } = cluster.identity("2").binding else { panic!() };
    cluster.disks["2"].lock().unwrap().binding = Binding::Promised(set);
    cluster.net.running.lock().unwrap().remove("1");
    assert_eq!(cluster.start("2").founded().await.cluster, id);
}

#[tokio::test(start_paused = true)]
async fn a_wiped_seed_asks_to_join_the_cluster_that_does_not_name_it() {
    let mut cluster = Cluster::new(1);
    let id = cluster.all_founded(SLOTS.map(|slot| cluster.start(slot))).await;
    cluster.wipe("2");
    let mut newcomer = cluster.start("2");
    let reason = newcomer.waits_with("lets nobody in").await;
    assert!(reason.contains(&format!("joining cluster {id} through slot")), "{reason}");
    assert_eq!(cluster.identity("2").binding, Binding::Formatted);
    // The first door stays shut; the other one opens.
    cluster.net.doors.lock().unwrap().insert("1".into(), Ok(id));
    let joined = newcomer.founded().await;
    assert_eq!((joined.cluster, joined.founders), (id, None));
    assert_eq!(cluster.identity("2").binding, Binding::Bound { cluster: id, founders: None });
}

#[tokio::test(start_paused = true)]
async fn an_incarnation_that_was_retired_before_it_was_bound_ends_as_that() {
    let mut cluster = Cluster::new(1);
    cluster.all_founded(SLOTS.map(|slot| cluster.start(slot))).await;
    cluster.wipe("2");
    cluster.net.doors.lock().unwrap().insert("0".into(), Err(NotJoined::Retired));
    let outcome = within(cluster.start("2").task, "ended").await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Retired(_)), "{outcome:?}");
    assert_eq!(cluster.identity("2").binding, Binding::Formatted);
}

#[tokio::test(start_paused = true)]
async fn empty_seeds_wait_while_a_claim_stands_or_may_stand() {
    let cluster = Cluster::new(1);
    *cluster.net.claim.lock().unwrap() = Err("the API does not answer".into());
    let mut seeds = SLOTS.map(|slot| cluster.start(slot));
    for seed in &mut seeds {
        seed.waits_with("whether these seeds had one is not known: the API does not answer").await;
    }
    *cluster.net.claim.lock().unwrap() = Ok(Some("c0ffee".into()));
    for seed in &mut seeds {
        seed.waits_with("their cluster c0ffee was written to before").await;
    }
    assert!(cluster.founded.lock().unwrap().is_empty());
    *cluster.net.claim.lock().unwrap() = Ok(None);
    cluster.all_founded(seeds).await;
}

#[tokio::test(start_paused = true)]
async fn a_seed_wiped_after_its_promise_is_promised_anew() {
    let mut cluster = Cluster::new(1);
    // Seeds 0 and 1 promised to found with a seed 2 that lost its disk since.
    let old = FoundingSet(SLOTS.map(|slot| (slot.to_string(), cluster.identity(slot).incarnation)).into());
    for slot in ["0", "1"] {
        cluster.disks[slot].lock().unwrap().binding = Binding::Promised(old.clone());
    }
    cluster.wipe("2");
    let id = cluster.all_founded(SLOTS.map(|slot| cluster.start(slot))).await;
    assert_ne!(id, old.cluster_id());
}

#[tokio::test(start_paused = true)]
async fn a_founder_left_alone_gives_up_and_founds_anew() {
    let mut cluster = Cluster::new(1);
    let first = cluster.all_founded(SLOTS.map(|slot| cluster.start(slot))).await;
    let founder = cluster.identity("0");
    let peers = cluster.peers("0");
    let watch = |data| watch_founder(founder.clone(), &*peers, Options::default(), move || data);

    assert_eq!(within(watch(true), "settled").await, Watched::Settled);
    cluster.wipe("1");
    cluster.wipe("2");
    let [mut b, mut c] = ["1", "2"].map(|slot| cluster.start(slot));
    b.waits_with("lets nobody in").await;
    c.waits_with("lets nobody in").await;
    assert_eq!(within(watch(true), "settled").await, Watched::Settled, "what it holds is not thrown away");
    assert_eq!(within(watch(false), "given up").await, Watched::GiveUp);

    cluster.wipe("0");
    cluster.founded.lock().unwrap().clear();
    let second = cluster.all_founded([cluster.start("0"), b, c]).await;
    assert_ne!(first, second);
}

#[tokio::test(start_paused = true)]
async fn a_founder_whose_peers_are_there_or_silent_does_not_give_up() {
    let cluster = Cluster::new(1);
    cluster.all_founded(SLOTS.map(|slot| cluster.start(slot))).await;
    let peers = cluster.peers("0");
    let data = AtomicBool::new(false);
    let watch =
        watch_founder(cluster.identity("0"), &*peers, Options::default(), || data.load(Ordering::Relaxed));
    tokio::pin!(watch);
    for cut in [[].as_slice(), &[("0", "1"), ("0", "2")]] {
        cluster.net.set_cut(cut);
        let minute = tokio::time::timeout(Duration::from_secs(60), &mut watch).await;
        assert!(minute.is_err(), "it ended with {minute:?}");
    }
    data.store(true, Ordering::Relaxed);
    assert_eq!(within(watch, "settled").await, Watched::Settled);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_another_slot_answers_is_named() {
    let cluster = Cluster::new(1);
    let (_one, two) = (cluster.start("1"), cluster.start("2"));
    cluster.net.running.lock().unwrap().insert("1".into(), two.published.clone());
    let mut zero = cluster.start("0");
    zero.waits_with("seed 1 is missing (its address is answered by slot 2").await;
    assert!(cluster.founded.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lone_seed_founds_at_once() {
    let cluster = Cluster::new(1);
    let store = FakeStore { disk: cluster.disks["0"].clone(), founded: cluster.founded.clone() };
    let genesis = Genesis::new(store, vec!["0".into()], cluster.peers("0"), Options::default());
    let founded = within(genesis.run(), "bound").await.unwrap().bound();
    assert_eq!(founded.founders.unwrap().0, [("0".to_string(), cluster.identity("0").incarnation)].into());
    assert_eq!(founded.store.identity().binding, cluster.identity("0").binding);
}

/// A disk that takes as long as the test wants, or fails.
struct SlowStore {
    inner: FakeStore,
    begun: mpsc::Sender<()>,
    verdict: mpsc::Receiver<Result<()>>,
}

impl BindingStore for SlowStore {
    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn save(&mut self, binding: Binding) -> Result<()> {
        self.begun.send(()).expect("the test listens");
        self.verdict.recv().expect("the test answers")?;
        self.inner.save(binding)
    }
}

/// A lone seed on a slow disk: it, what it says, and the two ends of its disk.
fn on_a_slow_disk() -> (Genesis<SlowStore>, mpsc::Receiver<()>, mpsc::Sender<Result<()>>) {
    let cluster = Cluster::new(1);
    let inner = FakeStore { disk: cluster.disks["0"].clone(), founded: cluster.founded.clone() };
    let ((begun, has_begun), (give, verdict)) = (mpsc::channel(), mpsc::channel());
    let store = SlowStore { inner, begun, verdict };
    (Genesis::new(store, vec!["0".into()], cluster.peers("0"), Options::default()), has_begun, give)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_spoken_of_before_it_is_durable() {
    let (genesis, has_begun, verdict) = on_a_slow_disk();
    let published = genesis.published();
    let task = tokio::spawn(genesis.run());
    tokio::task::spawn_blocking(move || has_begun.recv()).await.unwrap().unwrap();
    assert_eq!(published.borrow().binding, Binding::Formatted);
    verdict.send(Ok(())).unwrap();
    let founded = within(task, "bound").await.unwrap().unwrap().bound();
    assert_eq!(published.borrow().binding, founded.store.identity().binding);
}

#[tokio::test]
async fn a_disk_that_fails_ends_it_and_nothing_is_spoken_of() {
    let (genesis, _has_begun, verdict) = on_a_slow_disk();
    let published = genesis.published();
    verdict.send(Err(Error::Storage("no space left on device".into()))).unwrap();
    let error = within(genesis.run(), "ended").await.err().expect("the disk failed");
    assert_eq!(error, Error::Storage("no space left on device".into()));
    assert_eq!(published.borrow().binding, Binding::Formatted);
}
