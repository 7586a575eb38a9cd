//! Copies of a data directory: a volume that was rolled back, and two processes with one directory.
//!
//! Three voters, whose membership does not change. The directory of the third is copied at some moment, and the copy is started at
//! another one, as a process of the same Raft id with an older vote and an older log. The one that was copied goes on or not, as
//! it likes: so a rolled back volume (it never acts again) and a clone (both act) are one case. Every call and every answer is
//! checked by the product's own `Expectation::check` and `Heard::answered`; what is recorded in the log goes through `Heard::record`.
//!
//! What protects is that *each of the others* knows a later start than the copy's, or another one of the same number. What does
//! not is told by the tests that expect a loss.

use std::{cell::RefCell, collections::HashMap};

use larder::{
    raft::handshake::{Expectation, Header, Heard, IdentityRef, Standing},
    store::identity::ClusterId,
};
use stateright::{Model, Property};
use uuid::Uuid;

const NODES: usize = 3;
/// The node whose directory is copied, and its first process.
const COPIED: usize = 2;
/// The process on the copy.
const COPY: usize = 3;

/// A start of a directory. The nonces of the copy's starts are other ones than those of the original's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Start {
    counter: u8,
    nonce: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Payload {
    Blank,
    Write,
    /// A start is recorded.
    Boot(usize, Start),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    term: u8,
    payload: Payload,
}

/// What is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Directory {
    counter: u8,
    term: u8,
    log: Vec<Entry>,
    /// So many entries are applied.
    commit: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    directory: Directory,
    nonce: u8,
    /// The last start that it heard of each node; what it applied is in there, too.
    heard: [Option<Start>; NODES],
    /// It leads, and how many entries each node acknowledged.
    matched: Option<[usize; NODES]>,
}

impl Process {
    fn start(&self) -> Start {
        Start { counter: self.directory.counter, nonce: self.nonce }
    }

    fn last(&self) -> (u8, usize) {
        (self.directory.log.last().map_or(0, |entry| entry.term), self.directory.log.len())
    }

    /// What it applied is known to it.
    fn apply(&mut self) {
        for entry in &self.directory.log[..self.directory.commit] {
            if let Payload::Boot(node, start) = entry.payload {
                let known = &mut self.heard[node];
                let memory = Heard::new();
                known
                    .iter()
                    .for_each(|known| memory.record(id(node), known.counter.into(), known.nonce.into()));
                memory.record(id(node), start.counter.into(), start.nonce.into());
                *known = memory
                    .last(id(node))
                    .map(|(counter, nonce)| Start { counter: counter as u8, nonce: nonce as u8 });
            }
        }
    }

    /// It starts (again) on its directory.
    fn boot(&mut self, nonce: u8) {
        self.directory.counter += 1;
        (self.nonce, self.heard, self.matched) = (nonce, [None; NODES], None);
        self.apply();
    }

    fn recorded(&self, node: usize) -> Option<Start> {
        self.directory.log.iter().rev().find_map(|entry| match entry.payload {
            Payload::Boot(of, start) if of == node => Some(start),
            _ => None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// By node; the last one runs on the copy.
    processes: Vec<Option<Process>>,
    copied: Option<Directory>,
    committed: Vec<Entry>,
    lost: bool,
    writes: u8,
    restarts: [u8; COPY + 1],
}

/// When the copy is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Each of the others has applied the record of a start of the original after the one that was copied.
    AllApplied,
    /// Each of the others has heard a start of the original after the one that was copied.
    AllHeard,
    /// The record of such a start is committed.
    Committed,
    /// The original has started again since it was copied.
    StartedSince,
    /// At any time.
    AnyTime,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Boots {
    /// Whether starts are checked at all.
    pub(crate) check: bool,
    pub(crate) when: When,
    /// How often each process starts again: two others, the original, the copy.
    pub(crate) restarts: [u8; COPY + 1],
    pub(crate) terms: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A process is elected by the vote of another one.
    Elect(usize, usize),
    Replicate(usize, usize),
    Write(usize),
    Record(usize, usize),
    Restart(usize),
    Copy,
    StartCopy,
}

fn node_of(process: usize) -> usize {
    process.min(COPIED)
}

fn incarnation(node: usize) -> Uuid {
    Uuid::from_u128(100 + node as u128)
}

fn id(node: usize) -> u64 {
    100 + node as u64
}

fn identity(node: usize, start: Start) -> IdentityRef {
    IdentityRef {
        slot: node.to_string(),
        incarnation: incarnation(node),
        raft_id: id(node),
        boot_counter: start.counter.into(),
        nonce: start.nonce.into(),
    }
}

/// Whether the product lets in a call (or takes an answer) from this start, when it knows that one.
fn admits(me: (usize, Start), known: Option<Start>, from: (usize, Start), answer: bool) -> bool {
    type Question = ((usize, Start), Option<Start>, (usize, Start), bool);
    thread_local!(static KNOWN: RefCell<HashMap<Question, bool>> = RefCell::default());
    let question = (me, known, from, answer);
    if let Some(admitted) = KNOWN.with_borrow(|known| known.get(&question).copied()) {
        return admitted;
    }
    let heard = Heard::new();
    known.iter().for_each(|start| heard.record(id(from.0), start.counter.into(), start.nonce.into()));
    let sender = identity(from.0, from.1);
    let admitted = if answer {
        heard.answered(id(from.0), &sender).is_ok()
    } else {
        let cluster = Some(ClusterId([1; 16]));
        let expectation = Expectation { cluster, group: 0, me: identity(me.0, me.1) };
        let header = Header {
            cluster,
            group: 0,
            from: sender,
            to: id(me.0),
            feature_level: 1,
            wall_clock_ms: 0,
            memory_limit_bytes: 0,
            client_address: String::new(),
        };
        let slot = from.0.to_string();
        expectation.check(&header, |_| Standing::Member(&slot), &heard).is_ok()
    };
    KNOWN.with_borrow_mut(|known| known.insert(question, admitted));
    admitted
}

impl Boots {
    /// `to` hears `from`: whether it takes what it hears.
    fn hears(&self, world: &mut World, to: usize, from: usize, answer: bool) -> bool {
        let sender = world.process(from).start();
        let receiver = world.process(to);
        let node = node_of(from);
        if self.check
            && !admits((node_of(to), receiver.start()), receiver.heard[node], (node, sender), answer)
        {
            return false;
        }
        world.process_mut(to).heard[node] = Some(sender);
        true
    }

    fn may_start_copy(&self, world: &World) -> bool {
        let Some(copied) = &world.copied else { return false };
        let (World { processes, .. }, original) = (world, world.process(COPIED).start());
        let since = original.counter > copied.counter;
        let others = || processes[..COPIED].iter().flatten();
        let recorded = |log: &[Entry]| log.iter().any(|e| e.payload == Payload::Boot(COPIED, original));
        match self.when {
            When::AllApplied => since && others().all(|p| recorded(&p.directory.log[..p.directory.commit])),
            When::AllHeard => since && others().all(|p| p.heard[COPIED] == Some(original)),
            When::Committed => since && recorded(&world.committed),
            When::StartedSince => since,
            When::AnyTime => true,
        }
    }

    fn elect(&self, world: &mut World, candidate: usize, voter: usize) {
        // The voter takes the call first; its vote is durable, whatever the candidate thinks of the answer.
        if !self.hears(world, voter, candidate, false) {
            return;
        }
        let term = world.process(candidate).directory.term.max(world.process(voter).directory.term) + 1;
        let voting = world.process_mut(voter);
        (voting.directory.term, voting.matched) = (term, None);
        let counted = self.hears(world, candidate, voter, true);
        let process = world.process_mut(candidate);
        (process.directory.term, process.matched) = (term, None);
        if counted {
            process.matched = Some([0; NODES]);
            let log = process.directory.log.clone();
            world.lost |= !log.starts_with(&world.committed);
            world.append(candidate, Payload::Blank);
        }
    }

    fn replicate(&self, world: &mut World, leader: usize, to: usize) {
        if !self.hears(world, to, leader, false) {
            return;
        }
        let sender = world.process(leader).clone();
        let receiver = world.process_mut(to);
        if receiver.directory.term > sender.directory.term {
            let term = receiver.directory.term;
            if self.hears(world, leader, to, true) {
                let process = world.process_mut(leader);
                (process.directory.term, process.matched) = (term, None);
            }
            return;
        }
        let directory = &mut receiver.directory;
        (directory.term, receiver.matched) = (sender.directory.term, None);
        if !directory.log.starts_with(&sender.directory.log) {
            directory.log.clone_from(&sender.directory.log);
        }
        directory.commit = directory.commit.max(sender.directory.commit).min(directory.log.len());
        receiver.apply();
        if self.hears(world, leader, to, true) {
            if let Some(matched) = &mut world.process_mut(leader).matched {
                matched[node_of(to)] = sender.directory.log.len();
            }
            world.commit(leader);
        }
    }
}

impl World {
    fn process(&self, process: usize) -> &Process {
        self.processes[process].as_ref().expect("it was started")
    }

    fn process_mut(&mut self, process: usize) -> &mut Process {
        self.processes[process].as_mut().expect("it was started")
    }

    fn append(&mut self, leader: usize, payload: Payload) {
        let process = self.process_mut(leader);
        process.directory.log.push(Entry { term: process.directory.term, payload });
        if let Some(matched) = &mut process.matched {
            matched[node_of(leader)] = process.directory.log.len();
        }
    }

    fn commit(&mut self, leader: usize) {
        let process = self.process_mut(leader);
        let Some(matched) = process.matched else { return };
        let directory = &mut process.directory;
        let newly = (directory.commit + 1..=directory.log.len()).rev().find(|length| {
            directory.log[length - 1].term == directory.term
                && matched.iter().filter(|matched| **matched >= *length).count() * 2 > NODES
        });
        let Some(length) = newly else { return };
        directory.commit = length;
        process.apply();
        let log = process.directory.log[..length].to_vec();
        let common = length.min(self.committed.len());
        if log[..common] != self.committed[..common] {
            self.lost = true;
        } else if length > common {
            self.committed = log;
        }
    }
}

impl Model for Boots {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let process = |node: usize| {
            let log = vec![Entry { term: 1, payload: Payload::Blank }];
            let leads = node == 0;
            Some(Process {
                directory: Directory { counter: 1, term: 1, log, commit: 1 },
                nonce: 0,
                heard: [Some(Start { counter: 1, nonce: 0 }); NODES],
                matched: leads.then_some([1; NODES]),
            })
        };
        let processes = (0..NODES).map(process).chain([None]).collect();
        let committed = vec![Entry { term: 1, payload: Payload::Blank }];
        vec![World { processes, copied: None, committed, lost: false, writes: 1, restarts: self.restarts }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.lost {
            return;
        }
        let running = || world.processes.iter().enumerate().filter_map(|(at, p)| Some((at, p.as_ref()?)));
        for (at, process) in running() {
            for (to, other) in running().filter(|(to, _)| node_of(*to) != node_of(at)) {
                let term = process.directory.term.max(other.directory.term);
                if term < self.terms && other.last() <= process.last() {
                    actions.push(Action::Elect(at, to));
                }
                if process.matched.is_some() {
                    actions.push(Action::Replicate(at, to));
                }
            }
            if process.matched.is_some() {
                if world.writes > 0 {
                    actions.push(Action::Write(at));
                }
                // Starts that nobody doubts are not recorded, to keep it small.
                let last = process.heard[COPIED].filter(|start| start.counter > 1);
                if last.is_some() && process.recorded(COPIED) != last {
                    actions.push(Action::Record(at, COPIED));
                }
            }
            if world.restarts[at] > 0 {
                actions.push(Action::Restart(at));
            }
        }
        if world.copied.is_none() {
            actions.push(Action::Copy);
        } else if world.processes[COPY].is_none() && self.may_start_copy(world) {
            actions.push(Action::StartCopy);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Elect(candidate, voter) => self.elect(&mut world, candidate, voter),
            Action::Replicate(leader, to) => self.replicate(&mut world, leader, to),
            Action::Write(leader) => {
                world.writes -= 1;
                world.append(leader, Payload::Write);
            }
            Action::Record(leader, node) => {
                let start = world.process(leader).heard[node]?;
                world.append(leader, Payload::Boot(node, start));
            }
            Action::Restart(at) => {
                world.restarts[at] -= 1;
                let process = world.process_mut(at);
                let nonce = process.nonce;
                process.boot(nonce);
            }
            Action::Copy => world.copied = Some(world.process(COPIED).directory.clone()),
            Action::StartCopy => {
                let directory = world.copied.clone()?;
                let mut process = Process { directory, nonce: 0, heard: [None; NODES], matched: None };
                process.boot(1);
                world.processes[COPY] = Some(process);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(LOST, |_, world: &World| !world.lost),
            Property::sometimes("the copy runs", |_, world: &World| world.processes[COPY].is_some()),
            Property::sometimes("a write is acknowledged while the copy runs", |_, world: &World| {
                world.processes[COPY].is_some() && world.committed.iter().any(|e| e.payload == Payload::Write)
            }),
        ];
        if !self.check || !self.is_covered() {
            all.truncate(1);
        }
        all
    }
}

impl Boots {
    fn is_covered(&self) -> bool {
        matches!(self.when, When::AllApplied | When::AllHeard)
    }
}

pub(crate) const LOST: &str = "what was committed is not lost by a copy";
