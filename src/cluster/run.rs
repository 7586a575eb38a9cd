//! The loop around the decision: ask, decide, save, speak, ask anew.
//!
//! # Flow
//! [`Genesis::run`] is called once a node's identity is on disk and its peer port answers Hello, and ends when the node is
//! bound; then Raft is started. While a founder's log holds nothing after the first entry, [`watch_founder`] goes on asking, beside
//! Raft, whether the cluster can still come to be.
//!
//! # Invariants
//! - A step is on disk before [`Genesis::published`] shows it, and Hello answers from there alone.
//! - Each round asks anew, and a step that changes the disk ends its round: a decision rests on answers to questions that were
//!   asked after this node's last step.
//! - A round has one question under way to each other seed, and no question outlives its timeout.
//! - The reason for waiting is logged when it changes, not in every round.
//!
//! # Not here
//! The network behind [`Peers`], the file behind [`BindingStore`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, stream::FuturesUnordered};
use rand::Rng;
use tokio::sync::watch;

use super::genesis::{Answers, Door, Scope, SeedAnswer, Step, View, decide};
use crate::{
    error::{Error, Result},
    raft::NotJoined,
    store::identity::{Binding, ClusterId, FoundingSet, Identity},
};

/// How other seeds are asked.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Asks whoever answers at `slot`'s address who it is and what it is bound to.
    ///
    /// # Errors
    /// Why there is no answer, in a few words for the log ("connection refused", "the name does not resolve").
    async fn hello(&self, slot: &str) -> Result<SeedAnswer, String>;

    /// Asks a bound node to let this one join, and returns once the cluster has it as a learner.
    ///
    /// # Errors
    /// Why it has not, as a sentence for the log.
    async fn join(&self, door: &Door) -> Result<ClusterId, NotJoined>;

    /// Other slots than the seeds' where members may be.
    async fn others(&self) -> Vec<String>;

    /// The claim of a cluster of these seeds that was written to, if there is one. Asked only before a step of founding.
    ///
    /// # Errors
    /// Why it is not known whether there is one, as a sentence for the log.
    async fn claim(&self) -> Result<Option<String>, String>;
}

/// Where this node's binding is kept.
pub trait BindingStore: Send + 'static {
    /// The identity as it is on disk.
    fn identity(&self) -> Identity;

    /// Replaces the binding, and returns once it is durable. Blocks; called off the runtime's threads.
    ///
    /// # Errors
    /// `Storage` if it could not be written. Nobody knows then what is on disk: the node must stop.
    fn save(&mut self, binding: Binding) -> Result<()>;
}

/// How often and how long is asked.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The pause between two rounds; each is drawn between half and one and a half of it.
    pub pause: Duration,
    /// How long one question may take, its dialling included.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { pause: Duration::from_millis(200), timeout: Duration::from_secs(2) }
    }
}

/// A node that is bound.
#[derive(Debug)]
pub struct Founded<S> {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its founders, who are the first membership; `None` if it joined.
    pub founders: Option<FoundingSet>,
    /// Where its binding is kept.
    pub store: S,
    /// Where a later binding is published.
    pub published: watch::Sender<Identity>,
}

/// How genesis ends.
#[derive(Debug)]
pub enum Outcome<S> {
    /// The node is bound.
    Bound(Founded<S>),
    /// The cluster has retired this incarnation before it was bound: only another one can join. It acknowledged nothing, so its directory may be
    /// formatted anew.
    Retired(S),
}

/// The genesis of one node.
pub struct Genesis<S> {
    seeds: Vec<String>,
    store: S,
    peers: Arc<dyn Peers>,
    options: Options,
    published: watch::Sender<Identity>,
    waiting: watch::Sender<Option<String>>,
}

impl<S: BindingStore> Genesis<S> {
    /// Prepares the genesis of the node whose identity is in `store`, among `seeds` (all of them, this one too).
    pub fn new(store: S, seeds: Vec<String>, peers: Arc<dyn Peers>, options: Options) -> Self {
        let identity = store.identity();
        let bound = matches!(identity.binding, Binding::Bound { .. });
        let waiting = (!bound).then(|| "no cluster yet; asking the other seeds".to_string());
        let (published, waiting) = (watch::Sender::new(identity), watch::Sender::new(waiting));
        Self { seeds, store, peers, options, published, waiting }
    }

    /// This node's identity as others may know it: what Hello answers.
    pub fn published(&self) -> watch::Receiver<Identity> {
        self.published.subscribe()
    }

    /// Why this node is not bound yet, as a sentence; `None` once it is. For `/readyz`.
    pub fn waiting(&self) -> watch::Receiver<Option<String>> {
        self.waiting.subscribe()
    }

    /// Goes on until this node is bound to a cluster, however long that takes. A node that is bound already asks nobody.
    ///
    /// May be dropped at any time: what was saved stays, and is spoken of after the next start.
    ///
    /// # Errors
    /// `Storage` if a step could not be made durable; the node must stop.
    pub async fn run(self) -> Result<Outcome<S>> {
        let Self { seeds, mut store, peers, options, published, waiting } = self;
        loop {
            let identity = store.identity();
            if let Binding::Bound { cluster, founders } = identity.binding {
                waiting.send_replace(None);
                let (slot, incarnation) = (identity.slot, identity.incarnation);
                tracing::info!(%cluster, slot, %incarnation, "bound to its cluster");
                return Ok(Outcome::Bound(Founded { cluster, founders, store, published }));
            }
            let me = view(identity, false);
            let others = peers.others().await.into_iter().filter(|slot| !seeds.contains(slot)).collect();
            let mut scope = Scope { seeds: seeds.clone(), others, claim: None };
            let (mut step, answers) = ask_round(&me, &scope, &*peers, options).await;
            if matches!(step, Step::Promise(_) | Step::Found(_)) {
                match peers.claim().await {
                    Ok(claim) => scope.claim = claim,
                    Err(why) => {
                        tell(
                            &waiting,
                            format!("no cluster yet; whether these seeds had one is not known: {why}"),
                        );
                        pause(options).await;
                        continue;
                    }
                }
                step = decide(&me, &answers, &scope);
            }
            let binding = match step {
                Step::Promise(set) => {
                    tracing::info!(cluster = %set.cluster_id(), "every seed answered; promising to found with them");
                    Binding::Promised(set)
                }
                Step::Found(set) | Step::Follow(set) => {
                    Binding::Bound { cluster: set.cluster_id(), founders: Some(set) }
                }
                Step::Join(doors) => match join(&*peers, &doors).await {
                    Ok(cluster) => {
                        tracing::info!(%cluster, "joined as a learner");
                        Binding::Bound { cluster, founders: None }
                    }
                    Err(NotJoined::Retired) => return Ok(Outcome::Retired(store)),
                    Err(NotJoined::Because(why)) => {
                        tell(&waiting, why);
                        pause(options).await;
                        continue;
                    }
                },
                Step::Wait(why) => {
                    tell(&waiting, why.to_string());
                    pause(options).await;
                    continue;
                }
                // Only a bound node stays or gives up, and this one is not.
                Step::Stay | Step::GiveUp => {
                    pause(options).await;
                    continue;
                }
            };
            store = save(store, binding).await?;
            published.send_replace(store.identity());
        }
    }
}

/// How the watch of a founder ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// It holds an entry after the first, or is no founder among others: it never gives up.
    Settled,
    /// Its cluster can never come to be, since every other founder is gone. The caller stops Raft, looks once more that the log holds
    /// nothing after the first entry (else it starts Raft again), formats the directory anew (a new incarnation first, which
    /// makes log and vote of the old one void), and starts over.
    GiveUp,
}

/// Asks, beside Raft, whether the cluster that this founder is bound to can still come to be.
///
/// `holds_data` says whether the log reaches beyond the first entry now, as it is on disk.
pub async fn watch_founder(
    identity: Identity,
    peers: &dyn Peers,
    options: Options,
    holds_data: impl Fn() -> bool + Send + Sync,
) -> Watched {
    let scope = match &identity.binding {
        Binding::Bound { founders: Some(set), .. } if set.0.len() > 1 => {
            Scope { seeds: set.0.keys().cloned().collect(), ..Scope::default() }
        }
        _ => return Watched::Settled,
    };
    let me = view(identity, false);
    loop {
        if holds_data() {
            return Watched::Settled;
        }
        // Raft may have appended while the question was under way.
        if ask_round(&me, &scope, peers, options).await.0 == Step::GiveUp && !holds_data() {
            tracing::warn!(
                slot = me.slot,
                incarnation = %me.incarnation,
                "every other founder of this cluster is gone, and nothing was written to it: giving it up for a new one"
            );
            return Watched::GiveUp;
        }
        pause(options).await;
    }
}

fn view(identity: Identity, holds_data: bool) -> View {
    let Identity { slot, incarnation, binding, .. } = identity;
    View { slot, incarnation, binding, holds_data }
}

/// Tries one door after another.
async fn join(peers: &dyn Peers, doors: &[Door]) -> Result<ClusterId, NotJoined> {
    let mut why = String::new();
    for door in doors {
        match peers.join(door).await {
            Err(NotJoined::Because(error)) => {
                why = format!("joining cluster {} through slot {}: {error}", door.cluster, door.slot);
            }
            done => return done,
        }
    }
    Err(NotJoined::Because(why))
}

/// Asks everybody else once, all at the same time, and decides as soon as the answers allow a step.
async fn ask_round(me: &View, scope: &Scope, peers: &dyn Peers, options: Options) -> (Step, Answers) {
    let mut answers = Answers::new();
    let mut asked: FuturesUnordered<_> = scope
        .seeds
        .iter()
        .chain(&scope.others)
        .filter(|slot| **slot != me.slot)
        .map(|slot| async move { (slot.clone(), ask(slot, peers, options.timeout).await) })
        .collect();
    while let Some((slot, answer)) = asked.next().await {
        answers.insert(slot, answer);
        let step = decide(me, &answers, scope);
        // Another answer may open a better door, and a door closes the way to a cluster of one's own.
        if !matches!(step, Step::Wait(_) | Step::Stay | Step::Join(_)) {
            return (step, answers);
        }
    }
    (decide(me, &answers, scope), answers)
}

async fn ask(slot: &str, peers: &dyn Peers, timeout: Duration) -> Result<SeedAnswer, String> {
    let answer = tokio::time::timeout(timeout, peers.hello(slot))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} ms", timeout.as_millis())))?;
    if answer.slot != slot {
        let there = answer.slot;
        return Err(format!(
            "its address is answered by slot {there}; check the peer lists and --slot of both"
        ));
    }
    Ok(answer)
}

/// Makes a step durable, off the runtime's threads: a sync may take long, and they answer probes and peers meanwhile.
///
/// # Errors
/// `Storage` if it could not be written; the node must stop.
pub async fn save<S: BindingStore>(mut store: S, binding: Binding) -> Result<S> {
    let saving = tokio::task::spawn_blocking(move || store.save(binding).map(|()| store));
    saving.await.map_err(|error| Error::Storage(format!("saving the identity was broken off: {error}")))?
}

/// Publishes why the node waits; logs it if it is new.
fn tell(waiting: &watch::Sender<Option<String>>, reason: String) {
    waiting.send_if_modified(|now| {
        if now.as_deref() == Some(&reason) {
            return false;
        }
        tracing::info!(reason, "waiting for the cluster to come to be");
        *now = Some(reason);
        true
    });
}

/// Waits between rounds, each time a little differently, so that seeds started together do not ask in step.
async fn pause(options: Options) {
    let share = rand::rng().random_range(0.5..1.5);
    tokio::time::sleep(options.pause.mul_f64(share)).await;
}

#[cfg(test)]
mod tests;
