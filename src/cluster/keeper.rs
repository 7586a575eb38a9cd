//! Who keeps the membership: the loop on the leader around [`plan`].
//!
//! # Flow
//! Every node runs one; only a leader's acts. Each round it looks at who is in the cluster and who answers ([`Node::sight`]), answers the wishes
//! that are fulfilled or cannot be, asks the plan for the next change and carries it out. Beside that it records each member's last start in
//! the state, and takes for leaving whoever was scaled away and is silent.
//!
//! # Invariants
//! - One change at a time, each on the membership that it was decided on; what is on its way is waited for.
//! - A leader does nothing before it has led for one election timeout: until then it cannot know who answers.
//! - A wish is answered `Ok` only once what it asks for is applied here.
//! - Wishes are not remembered beyond their askers' patience, and not by the next leader: those who have one ask again.
//! - Before the first member that is no seed is added, the cluster has claimed its seeds, where there is a Kubernetes API.
//!
//! # Not here
//! Which change comes next (`plan`), how it is done (`raft`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    genesis::FIRST_INDEX,
    plan::{self, Blocked, Change, Member, Roster},
    scale::Scale,
};
use crate::{
    error::{Error, Result},
    kubernetes::ApiError,
    raft::{Asked, MemberWish, Newcomer, Node, Sight},
    state::{BootRecord, Command, Operation, codec::encode_command},
};

/// How often the leader looks.
const ROUND: Duration = Duration::from_millis(50);
/// How long one change may take before the leader looks again; it may still come to pass.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a record of a start may take.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the number of wanted replicas is asked for, while a member is silent.
const SCALE_ROUND: Duration = Duration::from_secs(5);
/// Wishes that are kept while they cannot be fulfilled yet.
const MAX_WISHES: usize = 256;

/// How the keeper works.
#[derive(Debug, Clone)]
pub struct Options {
    /// The slots of the seeds.
    pub seeds: Vec<String>,
    /// How many voters there may be.
    pub max_voters: usize,
    /// How long a member must be silent before it is taken for gone, if it was scaled away.
    pub silent: Duration,
}

/// Keeps the membership while its node leads.
pub struct Keeper {
    node: Arc<Node>,
    scale: Arc<Scale>,
    options: Options,
    asked: mpsc::Receiver<Asked>,
    wishes: Vec<Asked>,
    /// What is remembered while this node leads in one term.
    reign: Option<Reign>,
}

/// What a leader remembers.
struct Reign {
    term: u64,
    since: Instant,
    /// The last index of the log a round ago: who has that is caught up.
    goal: u64,
    /// Since when a member does not answer.
    silent_since: BTreeMap<u64, Instant>,
    /// Members that were scaled away and are silent.
    surplus: BTreeSet<u64>,
    scale_asked: Instant,
    claimed: bool,
    claim_tried: Option<Instant>,
    /// What was last logged as waiting.
    told: Vec<Blocked>,
}

impl Reign {
    fn new(sight: &Sight) -> Self {
        let now = Instant::now();
        Self {
            term: sight.term,
            since: now,
            goal: sight.last_index,
            silent_since: BTreeMap::new(),
            surplus: BTreeSet::new(),
            scale_asked: now,
            claimed: false,
            claim_tried: None,
            told: Vec::new(),
        }
    }
}

impl Keeper {
    /// A keeper that is asked through `asked`.
    pub fn new(node: Arc<Node>, scale: Arc<Scale>, options: Options, asked: mpsc::Receiver<Asked>) -> Self {
        Self { node, scale, options, asked, wishes: Vec::new(), reign: None }
    }

    /// Runs until the task is aborted.
    pub async fn run(mut self) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            listen(&mut self.asked, &mut self.wishes);
            if !self.node.is_leader() {
                self.reign = None;
                let leader = self.node.leader();
                self.wishes
                    .drain(..)
                    .for_each(|asked| reply(asked, Err(Error::NotLeader { leader: leader.clone() })));
                continue;
            }
            // Nothing while a change is on its way.
            let Some(sight) = self.node.sight() else { continue };
            if self.reign.as_ref().is_none_or(|reign| reign.term != sight.term) {
                self.reign = Some(Reign::new(&sight));
            }
            self.record_starts(&sight).await;
            self.round(&sight).await;
        }
    }

    async fn round(&mut self, sight: &Sight) {
        let election = self.election();
        let answers = |silent| answers(silent, election);
        self.look_for_surplus(sight, &answers).await;
        let Some(reign) = &mut self.reign else { return };
        let goal = std::mem::replace(&mut reign.goal, sight.last_index);
        if reign.since.elapsed() < election {
            return;
        }
        let mut roster = Roster {
            me: self.node.peers().myself().raft_id,
            open: self.node.state().read().is_open(),
            configs: sight.configs.clone(),
            members: sight
                .members
                .iter()
                .map(|(id, seen)| {
                    let member = Member {
                        slot: seen.slot.clone(),
                        incarnation: seen.incarnation,
                        answers: answers(seen.silent),
                        caught_up: seen.matched.is_some_and(|matched| matched >= goal),
                        holds_entry: seen.matched.is_some_and(|matched| matched > FIRST_INDEX),
                    };
                    (*id, member)
                })
                .collect(),
            max_voters: self.options.max_voters,
            leaving: reign.surplus.clone(),
            promote: None,
            newcomers: BTreeMap::new(),
        };
        for mut asked in std::mem::take(&mut self.wishes) {
            match settle(&asked.wish, &roster, &self.node) {
                Wish::Settled(answer) => reply(asked, answer),
                Wish::Open(wish) => {
                    asked.wish = wish;
                    self.wishes.push(asked);
                }
            }
        }
        self.wishes.iter().for_each(|asked| want(&mut roster, &asked.wish));
        let plan::Plan { change, blocked } = plan::next(&roster);
        self.tell(blocked, change.is_some());
        if let Some(change) = change {
            self.carry_out(sight, change).await;
        }
    }

    /// Logs what waits when that changes, and lets those who asked know when nothing else goes on: a newcomer asks again anyway, and an operator
    /// wants to hear why.
    fn tell(&mut self, blocked: Vec<Blocked>, busy: bool) {
        if let Some(reign) = &mut self.reign
            && reign.told != blocked
        {
            blocked.iter().for_each(|why| tracing::info!("membership: {why}"));
            reign.told.clone_from(&blocked);
        }
        let final_word = |wish: &MemberWish| blocked.iter().find(|why| why.answers_for_good(slot_of(wish)));
        if busy {
            return;
        }
        for asked in std::mem::take(&mut self.wishes) {
            match final_word(&asked.wish) {
                Some(why) => reply(asked, Err(Error::Unavailable(why.to_string()))),
                None => self.wishes.push(asked),
            }
        }
    }

    async fn carry_out(&mut self, sight: &Sight, change: Change) {
        if let Change::Add(newcomer) = &change
            && !self.claim_before(newcomer).await
        {
            return;
        }
        tracing::info!(?change, "membership");
        let doing = async {
            match &change {
                Change::Add(newcomer) => self.node.add_learner(sight, newcomer).await,
                Change::Remove(id) => self.node.remove_learner(sight, *id).await,
                Change::Voters { ids, keep_removed } => {
                    self.node.set_voters(sight, ids.clone(), *keep_removed).await
                }
                Change::HandOver(slot) => self.node.hand_over(slot).await.map(drop),
            }
        };
        match timeout(CHANGE_TIMEOUT, doing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(?change, %error, "the membership was not changed; looking again")
            }
            Err(_) => tracing::warn!(?change, "the membership was not changed in time; looking again"),
        }
    }

    /// Whether this newcomer may be added: the first one that is no seed only once the cluster has claimed its seeds, so that these, if all are wiped
    /// while it holds data, do not found anew.
    async fn claim_before(&mut self, newcomer: &Newcomer) -> bool {
        let Some(reign) = &mut self.reign else { return false };
        let Some(kubernetes) = self.scale.kubernetes() else { return true };
        if reign.claimed || self.options.seeds.contains(&newcomer.slot) {
            return true;
        }
        let Some(cluster) = self.node.peers().cluster() else { return false };
        // The newcomer asks on and on; the API is asked now and then.
        let now = Instant::now();
        if reign.claim_tried.is_some_and(|at| now.duration_since(at) < SCALE_ROUND) {
            return false;
        }
        reign.claim_tried = Some(now);
        match kubernetes.create_claim(&cluster.to_string()).await {
            Ok(()) => reign.claimed = true,
            Err(error @ ApiError::Denied(_)) => {
                tracing::warn!(
                    "no claim is made, so seeds that are all wiped would found a new cluster: {error}"
                );
                reign.claimed = true;
            }
            Err(error @ ApiError::Unreachable(_)) => {
                tracing::warn!(slot = newcomer.slot, "a member that is no seed waits for the claim: {error}");
            }
        }
        reign.claimed
    }

    /// Notes who is silent, and of those for long who was scaled away.
    async fn look_for_surplus(&mut self, sight: &Sight, answers: &impl Fn(Option<Duration>) -> bool) {
        let Some(reign) = &mut self.reign else { return };
        let now = Instant::now();
        reign.silent_since.retain(|id, _| sight.members.get(id).is_some_and(|seen| !answers(seen.silent)));
        reign.surplus.retain(|id| reign.silent_since.contains_key(id));
        for (id, seen) in &sight.members {
            if !answers(seen.silent) {
                reign.silent_since.entry(*id).or_insert(now);
            }
        }
        if now.duration_since(reign.scale_asked) < SCALE_ROUND.min(self.options.silent) {
            return;
        }
        reign.scale_asked = now;
        let long = |since: &Instant| now.duration_since(*since) >= self.options.silent;
        for id in reign.silent_since.iter().filter(|(_, since)| long(since)).map(|(id, _)| *id) {
            let slot = &sight.members[&id].slot;
            match self.scale.is_surplus(slot).await {
                Ok(true) if reign.surplus.insert(id) => {
                    tracing::info!(slot, id, "a member was scaled away and is silent: retiring it");
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(slot, "whether it was scaled away is not known: {error}"),
            }
        }
    }

    /// Records in the state which start each member's last one was, so that everybody refuses an older copy of its volume, also after everybody
    /// was restarted.
    async fn record_starts(&self, sight: &Sight) {
        let me = self.node.peers().identity();
        let heard = |id: u64| match id == me.raft_id {
            true => Some((me.boot_counter, me.nonce)),
            false => self.node.peers().heard().last(id),
        };
        let to_record =
            starts_to_record(sight, self.election(), heard, self.node.state().read().boot_records());
        for (slot, boot) in to_record {
            let command = encode_command(&Command::new(Operation::RecordBoot { slot, boot }));
            if let Err(error) = self.node.propose(command, Instant::now() + RECORD_TIMEOUT).await {
                tracing::debug!(%error, "a start is not recorded yet");
                return;
            }
        }
    }

    fn election(&self) -> Duration {
        Duration::from_millis(self.node.options().election_timeout_max_ms)
    }
}

/// Gives up the wishes that nobody waits for any more, and takes what was asked since the last round, as far as there is room: whoever asks
/// beyond that is refused when the channel is full too.
fn listen(asked: &mut mpsc::Receiver<Asked>, wishes: &mut Vec<Asked>) {
    wishes.retain(|asked| !asked.answer.is_closed() && Instant::now() < asked.deadline);
    while wishes.len() < MAX_WISHES
        && let Ok(asked) = asked.try_recv()
    {
        wishes.push(asked);
    }
}

/// The starts, by slot, that the state does not know yet, of members that answer: while a slot is being replaced it has two members, and only one
/// record, which the dead one must not take back again and again.
fn starts_to_record(
    sight: &Sight,
    election: Duration,
    heard: impl Fn(u64) -> Option<(u64, u64)>,
    known: &BTreeMap<String, BootRecord>,
) -> Vec<(String, BootRecord)> {
    let answering = sight.members.iter().filter(|(_, seen)| answers(seen.silent, election));
    let starts = answering.filter_map(|(id, seen)| {
        let (boot_counter, nonce) = heard(*id)?;
        let incarnation = *seen.incarnation.as_bytes();
        Some((&seen.slot, BootRecord { raft_id: *id, incarnation, boot_counter, nonce }))
    });
    starts
        .filter(|(slot, boot)| {
            let is_known = |known: &BootRecord| {
                known == boot || (known.raft_id == boot.raft_id && known.boot_counter >= boot.boot_counter)
            };
            !known.get(*slot).is_some_and(is_known)
        })
        .map(|(slot, boot)| (slot.clone(), boot))
        .collect()
}

/// Whether a member that has been silent so long counts as one that answers.
fn answers(silent: Option<Duration>, election: Duration) -> bool {
    silent.is_some_and(|silent| silent <= election)
}

fn reply(asked: Asked, answer: Result<()>) {
    // Whoever asked may have given up meanwhile.
    drop(asked.answer.send(answer));
}

fn slot_of(wish: &MemberWish) -> Option<&str> {
    match wish {
        MemberWish::Join(newcomer) => Some(&newcomer.slot),
        MemberWish::Promote { slot } | MemberWish::Retire { slot } => Some(slot),
        MemberWish::Leave { .. } => None,
    }
}

fn member_in<'a>(roster: &'a Roster, slot: &str) -> Option<(u64, &'a Member)> {
    // While a slot is being replaced it has two members; the one that votes is the one that operators see.
    let mut in_slot: Vec<_> =
        roster.members.iter().filter(|(_, m)| m.slot == slot).map(|(id, m)| (*id, m)).collect();
    in_slot.sort_by_key(|(id, _)| !plan::is_voter(roster, *id));
    in_slot.first().copied()
}

/// What has become of a wish.
enum Wish {
    /// It is fulfilled, or cannot be.
    Settled(Result<()>),
    /// It may still come to be, and this is what it means.
    Open(MemberWish),
}

fn settle(wish: &MemberWish, roster: &Roster, node: &Node) -> Wish {
    let unknown = |slot: &str| {
        let mut slots: Vec<&str> = roster.members.values().map(|member| member.slot.as_str()).collect();
        slots.sort_by_key(|slot| crate::raft::handshake::slot_order(slot));
        refused(format!("slot {slot:?} is no member; the members are {}", slots.join(", ")))
    };
    let done_if = |done: bool| if done { Wish::Settled(Ok(())) } else { Wish::Open(wish.clone()) };
    match wish {
        MemberWish::Join(newcomer) if node.state().read().retired().contains(&newcomer.raft_id) => refused(
            "this incarnation was retired from the cluster; start its slot on an empty data directory".into(),
        ),
        MemberWish::Join(newcomer) => done_if(roster.members.contains_key(&newcomer.raft_id)),
        MemberWish::Leave { raft_id } => done_if(!roster.members.contains_key(raft_id)),
        MemberWish::Retire { slot } => match member_in(roster, slot) {
            None => unknown(slot),
            Some((id, member)) if id == roster.me || member.answers => refused(format!(
                "slot {slot} answers; stop its node first, or scale down: then it leaves by itself"
            )),
            // From here on this very member is meant, and not whoever comes to its slot.
            Some((raft_id, _)) => Wish::Open(MemberWish::Leave { raft_id }),
        },
        MemberWish::Promote { slot } => match member_in(roster, slot) {
            None => unknown(slot),
            Some((id, _)) => done_if(plan::is_voter(roster, id)),
        },
    }
}

fn refused(sentence: String) -> Wish {
    Wish::Settled(Err(Error::Invalid(sentence)))
}

/// What a wish that is not settled means for the plan.
fn want(roster: &mut Roster, wish: &MemberWish) {
    match wish {
        MemberWish::Join(newcomer) => {
            roster.newcomers.insert(newcomer.slot.clone(), newcomer.clone());
        }
        MemberWish::Leave { raft_id } => {
            roster.leaving.insert(*raft_id);
        }
        // It has become a leaving of that member.
        MemberWish::Retire { .. } => {}
        MemberWish::Promote { slot } => roster.promote = member_in(roster, slot).map(|(id, _)| id),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::raft::MemberSight;

    fn seen(slot: &str, id: u64, silent_ms: Option<u64>) -> (u64, MemberSight) {
        let silent = silent_ms.map(Duration::from_millis);
        let incarnation = Uuid::from_u128(id.into());
        (id, MemberSight { slot: slot.into(), incarnation, silent, matched: None })
    }

    fn boot(id: u64, boot_counter: u64) -> BootRecord {
        let incarnation = *Uuid::from_u128(id.into()).as_bytes();
        BootRecord { raft_id: id, incarnation, boot_counter, nonce: 7 }
    }

    #[test]
    fn wishes_are_bounded_and_those_that_nobody_waits_for_make_room() {
        let (ask, mut asked) = mpsc::channel(2 * MAX_WISHES);
        let mut waiting: Vec<_> = (0..MAX_WISHES as u64 + 10)
            .map(|raft_id| {
                let (answer, answered) = tokio::sync::oneshot::channel();
                let deadline = Instant::now() + Duration::from_secs(3600);
                ask.try_send(Asked { wish: MemberWish::Leave { raft_id }, deadline, answer }).unwrap();
                answered
            })
            .collect();
        let mut wishes = Vec::new();
        listen(&mut asked, &mut wishes);
        assert_eq!(wishes.len(), MAX_WISHES);
        waiting.drain(..3);
        listen(&mut asked, &mut wishes);
        assert_eq!((wishes.len(), asked.len()), (MAX_WISHES, 7));
        assert_eq!(wishes[0].wish, MemberWish::Leave { raft_id: 3 });
    }

    #[test]
    fn of_two_members_of_one_slot_only_the_one_that_answers_is_recorded() {
        let sight = Sight::of([
            seen("0", 10, Some(0)),
            seen("1", 20, Some(9_000)),
            seen("1", 21, Some(30)),
            seen("2", 30, None),
        ]);
        let to_record = |known: &[(&str, BootRecord)]| {
            let known = known.iter().map(|(slot, boot)| (slot.to_string(), boot.clone())).collect();
            starts_to_record(&sight, Duration::from_millis(1000), |_| Some((3, 7)), &known)
        };
        let expect = |slot: &str, id| (slot.to_string(), boot(id, 3));
        assert_eq!(to_record(&[]), [expect("0", 10), expect("1", 21)]);
        // Once it is recorded nothing is left to do, however long the dead one stays a member; nor is a later record taken back.
        assert_eq!(to_record(&[("0", boot(10, 3)), ("1", boot(21, 3))]), []);
        assert_eq!(to_record(&[("0", boot(10, 4)), ("1", boot(20, 9))]), [expect("1", 21)]);
        // Another process of the same start: the state would refuse it again and again.
        let copy = BootRecord { nonce: 8, ..boot(10, 3) };
        assert_eq!(to_record(&[("0", copy), ("1", boot(21, 3))]), []);
    }
}
