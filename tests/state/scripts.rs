//! Golden scripts: what the state does, as data. A new regression is a new file in `scripts/`.
//!
//! One step a line, `step -> what it comes to`; `#` begins a comment. Steps that write:
//!
//! ```text
//! open
//! set KEY VALUE [if-absent | if-present | if-version N] [previous]
//! del KEY [if-version N] [previous]
//! incr KEY DELTA [initial N]
//! boot SLOT RAFT-ID COUNTER NONCE [incarnation BYTE]
//! batch STEP ; STEP ; ...            one command
//! entry STEP | STEP | ...            several commands in one log entry
//! ```
//! `at N` sets the leader's clock for the entries to come, `blank` applies an empty entry, `members CONFIG / CONFIG` (ids
//! separated by commas, each in the slot of its name or as ID@SLOT) a membership, `recovered ID@SLOT` goes on as a cluster of
//! one, `snapshot` goes on with a machine restored from a snapshot. Steps that read:
//! `get KEY`, `scan [prefix P] [after K]`, `state`, `retired`, `boots`, `members?`. The empty value is written `''`.

use std::{fmt::Write as _, fs, path::Path};

use bytes::Bytes;
use larder::{
    error::Rejection,
    state::{
        Applied, BootRecord, Condition, ENTRY_OVERHEAD_BYTES, Found, Machine, MemberNode, Membership,
        Operation, Outcome, Query, Versioned,
    },
};

use crate::support::{apply, next, restore, sections};

#[test]
fn every_script_comes_to_what_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/state/scripts");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no scripts in {}", folder.display());
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        run(&name, &fs::read_to_string(&file).unwrap());
    }
}

fn run(name: &str, script: &str) {
    let mut machine = Machine::new();
    let mut now = 0;
    for (number, line) in script.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (step, expected) = line.split_once("->").unwrap_or((line, ""));
        let before = machine.clone();
        let actual = do_step(&mut machine, &mut now, step.trim());
        assert_eq!(actual, expected.trim(), "{name}:{}: {}", number + 1, step.trim());
        machine.check_invariants();
        assert!(machine.clock() >= before.clock(), "{name}:{}: the clock went back", number + 1);
        assert!(machine.revision() >= before.revision(), "{name}:{}: the revision went back", number + 1);
        // What was frozen before the step is as it was.
        before.check_invariants();
    }
}

fn do_step(machine: &mut Machine, now: &mut i64, step: &str) -> String {
    let (word, rest) = step.split_once(' ').unwrap_or((step, ""));
    match word {
        "at" => {
            *now = rest.parse().unwrap();
            String::new()
        }
        "blank" => {
            machine.apply_blank(next(machine));
            String::new()
        }
        "members" => {
            machine.apply_membership(next(machine), membership(rest));
            String::new()
        }
        "recovered" => {
            let (id, slot) = rest.split_once('@').unwrap();
            let before = machine.last_applied().unwrap();
            *machine = machine.clone().recovered(slot, id.parse().unwrap(), [0; 16]);
            let after = machine.last_applied().unwrap();
            assert_eq!((after.term, after.index), (before.term + 1, before.index + 1));
            assert_eq!(machine.membership().0, Some(after));
            String::new()
        }
        "members?" => {
            let (_, membership) = machine.membership();
            let config = |ids: &Vec<u64>| {
                join(ids.iter().map(|id| format!("{id}@{}", membership.nodes[id].slot)), ",")
            };
            join(membership.configs.iter().map(config), " / ")
        }
        "snapshot" => {
            let written = sections(machine);
            let restored = restore(&written).unwrap();
            assert_eq!(sections(&restored), written, "a restored machine writes the same snapshot");
            assert_eq!(restored.state_hash(), machine.state_hash());
            *machine = restored;
            String::new()
        }
        "get" => {
            let query = Query::Get { keyspace: 0, keys: vec![bytes(rest)] };
            match machine.read(&query).found {
                Found::Values(values) => show_value(values[0].as_ref()),
                Found::View(_) => panic!("a get is answered with values"),
            }
        }
        "retired" => join(machine.retired().iter().map(u64::to_string), " "),
        "boots" => {
            let boots = machine.boot_records().iter();
            join(boots.map(|(slot, b)| format!("{slot}:{}/{}/{}", b.raft_id, b.boot_counter, b.nonce)), " ")
        }
        "scan" => scan(machine, rest),
        "state" => format!(
            "revision {} clock {} keys {} bytes {} {}",
            machine.revision(),
            machine.clock().0,
            machine.keys(),
            machine.bytes() - machine.keys() * ENTRY_OVERHEAD_BYTES,
            if machine.is_open() { "open" } else { "closed" },
        ),
        "entry" => {
            let operations = rest.split(" | ").map(operation).collect();
            join(apply(machine, *now, operations).iter().map(show_applied), " | ")
        }
        _ => join(apply(machine, *now, vec![operation(step)]).iter().map(show_applied), ""),
    }
}

fn scan(machine: &Machine, words: &str) -> String {
    let mut words = words.split_whitespace();
    let (mut prefix, mut after) = ("", "");
    while let Some(word) = words.next() {
        let argument = words.next().unwrap();
        match word {
            "prefix" => prefix = argument,
            "after" => after = argument,
            word => panic!("scan does not know {word}"),
        }
    }
    let Found::View(view) = machine.read(&Query::Scan { keyspace: 0 }).found else {
        panic!("a scan is answered with a view")
    };
    let range = view.range(prefix.as_bytes(), after.as_bytes());
    join(range.map(|(key, entry)| format!("{}={}", text(key), show_value(Some(entry)))), " ")
}

fn operation(step: &str) -> Operation {
    let step = step.trim();
    if let Some(steps) = step.strip_prefix("batch ") {
        return Operation::Batch(steps.split(" ; ").map(operation).collect());
    }
    let mut words = step.split_whitespace();
    let mut word = || words.next().unwrap_or_else(|| panic!("a word is missing in: {step}"));
    let verb = word();
    if verb == "open" {
        return Operation::Open;
    }
    if verb == "boot" {
        let slot = word().to_owned();
        let mut number = || word().parse::<u64>().unwrap();
        let (raft_id, boot_counter, nonce) = (number(), number(), number());
        let incarnation = [words.nth(1).map_or(0, |byte| byte.parse().unwrap()); 16];
        return Operation::RecordBoot {
            slot,
            boot: BootRecord { raft_id, incarnation, boot_counter, nonce },
        };
    }
    let key = bytes(word());
    let argument = if verb == "del" { "" } else { word() };
    let (mut condition, mut if_version, mut initial, mut return_previous) = (Condition::None, None, 0, false);
    while let Some(option) = words.next() {
        match option {
            "if-absent" => condition = Condition::IfAbsent,
            "if-present" => condition = Condition::IfPresent,
            "if-version" => if_version = Some(words.next().unwrap().parse().unwrap()),
            "initial" => initial = words.next().unwrap().parse().unwrap(),
            "previous" => return_previous = true,
            option => panic!("unknown option {option} in: {step}"),
        }
    }
    match verb {
        "set" => {
            let condition = if_version.map_or(condition, Condition::IfVersion);
            Operation::Set { key, value: bytes(argument), condition, ttl_ms: None, return_previous }
        }
        "del" => Operation::Delete { key, if_version, return_previous },
        "incr" => Operation::Increment { key, delta: argument.parse().unwrap(), initial, ttl_ms: None },
        verb => panic!("unknown step {verb}"),
    }
}

fn membership(text: &str) -> Membership {
    // An id, and its slot.
    let member = |text: &str| {
        let (id, slot) = text.trim().split_once('@').unwrap_or((text.trim(), text.trim()));
        (id.parse().unwrap(), slot.to_owned())
    };
    let configs: Vec<Vec<(u64, String)>> =
        text.split('/').map(|ids| ids.split(',').map(member).collect()).collect();
    let nodes = configs.iter().flatten().map(|(id, slot)| {
        let node = MemberNode { slot: slot.clone(), peer_address: format!("n{id}:1"), incarnation: [0; 16] };
        (*id, node)
    });
    let nodes = nodes.collect();
    let configs = configs.iter().map(|config| config.iter().map(|(id, _)| *id).collect()).collect();
    Membership { nodes, configs }
}

fn show_applied(applied: &Applied) -> String {
    show_outcome(&applied.outcome)
}

fn show_outcome(outcome: &Outcome) -> String {
    let with = |mut text: String, previous: &Option<Versioned>| {
        if let Some(previous) = previous {
            let _ = write!(text, " was {}", show_value(Some(previous)));
        }
        text
    };
    match outcome {
        Outcome::Set { version, previous } => with(format!("version {version}"), previous),
        Outcome::Deleted { existed: true, previous } => with("deleted".into(), previous),
        Outcome::Deleted { existed: false, previous } => with("missing".into(), previous),
        Outcome::Incremented { value, version } => format!("{value} version {version}"),
        Outcome::Batch(outcomes) => join(outcomes.iter().map(show_outcome), " ; "),
        Outcome::Opened => "opened".into(),
        Outcome::BootRecorded { accepted: true } => "recorded".into(),
        Outcome::BootRecorded { accepted: false } => "refused".into(),
        Outcome::Rejected(Rejection::ConditionFailed { current: Some(version) }) => {
            format!("failed {version}")
        }
        Outcome::Rejected(Rejection::ConditionFailed { current: None }) => "failed missing".into(),
        Outcome::Rejected(Rejection::NotANumber) => "not-a-number".into(),
        Outcome::Rejected(Rejection::OutOfRange) => "out-of-range".into(),
        Outcome::Rejected(Rejection::NotOpen) => "not-open".into(),
    }
}

fn show_value(entry: Option<&Versioned>) -> String {
    entry.map_or("missing".into(), |entry| format!("{}@{}", text(&entry.value), entry.version))
}

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(if word == "''" { b"" } else { word.as_bytes() })
}

fn text(bytes: &[u8]) -> String {
    if bytes.is_empty() { "''".into() } else { String::from_utf8_lossy(bytes).into_owned() }
}

fn join(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}
