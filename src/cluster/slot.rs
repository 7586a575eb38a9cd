//! Slots: the names of places, and which of them found a cluster.
//!
//! A slot is the name of a place: an ordinal (`0`), or a DNS name. It says where to dial and nothing about who is there.
//! Where a slot is: [`discovery`](super::discovery).

use std::cmp::Ordering;

use crate::raft::handshake::{MAX_SLOT_BYTES, is_slot};

/// How many seeds there may be. With two, one that is lost for good stops the other for ever, and genesis is unanimous: more would
/// only be more to wait for.
const SEEDS: [usize; 2] = [1, 3];

/// Why a slot, a list of slots or of peers, or a template cannot be used. Each sentence says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// No slot.
    #[error(
        "{0:?} is no slot: write 1 to {max} characters of a-z, 0-9, '.' and '-'",
        max = MAX_SLOT_BYTES
    )]
    Malformed(String),
    /// A number that could be written in two ways.
    #[error("{0:?} is no slot: write an ordinal without leading zeros")]
    LeadingZero(String),
    /// An item of the list is no `slot=host:port`.
    #[error("{0:?} in the list of peers is not slot=host:port; write for example 0=host-a:7401")]
    NoPair(String),
    /// No host and port.
    #[error("{address:?} of slot {slot} is not host:port: {why}")]
    Address {
        /// The slot.
        slot: String,
        /// What was written.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// One slot twice.
    #[error("slot {0} is in the list of peers twice; name every slot once")]
    Duplicate(String),
    /// Two slots at one address.
    #[error("slots {slot} and {other} have the same address {address}; each peer needs its own")]
    SharedAddress {
        /// A slot.
        slot: String,
        /// Another one.
        other: String,
        /// The address of both.
        address: String,
    },
    /// The list lacks this node.
    #[error(
        "slot {own} is not in the list of peers (it has {listed}); the list names every node, this one too"
    )]
    OwnMissing {
        /// This node's slot.
        own: String,
        /// The slots in the list.
        listed: String,
    },
    /// Too many peers.
    #[error("the list of peers has {count} nodes; name at most {most}, or use --peer-template")]
    TooMany {
        /// How many are named.
        count: usize,
        /// How many may be.
        most: usize,
    },
    /// A template of addresses that does not depend on the slot.
    #[error("{0:?} has no {{slot}} in its host; write for example larder-{{slot}}.larder-headless:7401")]
    NoPlaceholder(String),
    /// A template that is no address once a slot is in it.
    #[error("{template:?} is not host:port: {why}; write for example larder-{{slot}}.larder-headless:7401")]
    Template {
        /// What was written.
        template: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Neither 1 nor 3 seeds.
    #[error("there are {0} seeds; name 1 or 3: the slots that found the cluster together")]
    SeedCount(usize),
    /// A seed twice.
    #[error("seed {0} is named twice; name 1 or 3 different slots")]
    SeedTwice(String),
    /// A seed that no list knows.
    #[error("seed {seed} is not in the list of peers (it has {listed}); seeds are peers")]
    SeedUnknown {
        /// The seed.
        seed: String,
        /// The slots in the list.
        listed: String,
    },
    /// A hostname without an ordinal.
    #[error(
        "the hostname {0:?} does not end in an ordinal, as larder-2 does, so it says no slot: give this node's slot with --slot"
    )]
    NoOrdinal(String),
}

/// Reads a slot.
///
/// # Errors
/// If it is not 1 to 253 of `a-z`, `0-9`, `.` and `-`, or is a number with leading zeros.
pub fn parse_slot(text: &str) -> Result<String, SlotError> {
    if !is_slot(text) {
        return Err(SlotError::Malformed(text.chars().take(MAX_SLOT_BYTES + 1).collect()));
    }
    if text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SlotError::LeadingZero(text.into()));
    }
    Ok(text.into())
}

/// The slot of a pod: the ordinal at the end of its hostname, of a full name the first label's.
///
/// # Errors
/// If there is none, or one with leading zeros or of more than 9 digits, which no StatefulSet has.
pub fn ordinal_of(hostname: &str) -> Result<String, SlotError> {
    let label = hostname.split('.').next().unwrap_or_default();
    let ordinal = label.rsplit_once('-').filter(|(name, _)| !name.is_empty()).map(|(_, ordinal)| ordinal);
    ordinal
        .filter(|o| (1..=9).contains(&o.len()) && o.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|o| parse_slot(o).ok())
        .ok_or_else(|| SlotError::NoOrdinal(hostname.chars().take(MAX_SLOT_BYTES).collect()))
}

/// Reads the slots of all seeds, separated by commas.
///
/// # Errors
/// If they are neither 1 nor 3 different slots.
pub fn parse_seeds(list: &str) -> Result<Vec<String>, SlotError> {
    let mut seeds: Vec<String> = Vec::new();
    for item in list.split(',').map(str::trim) {
        let seed = parse_slot(item)?;
        if seeds.contains(&seed) {
            return Err(SlotError::SeedTwice(seed));
        }
        seeds.push(seed);
    }
    if SEEDS.contains(&seeds.len()) { Ok(seeds) } else { Err(SlotError::SeedCount(seeds.len())) }
}

/// The seeds among peers that nobody named: the first three, or the first alone where there are fewer than three. Ordinals come by
/// their number, before names.
pub fn default_seeds<'a>(slots: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut slots: Vec<&str> = slots.into_iter().collect();
    slots.sort_by(|a, b| by_number(a, b));
    let count = if slots.len() < 3 { 1 } else { 3 };
    slots.into_iter().take(count).map(Into::into).collect()
}

fn by_number(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots() {
        for good in ["0", "7", "10", "larder-0.larder-headless", "node-a.example", &"a".repeat(253)] {
            assert_eq!(parse_slot(good).as_deref(), Ok(good));
        }
        for bad in ["", "A", "a_b", "a b", "ü", "1=2", &"a".repeat(254)] {
            assert!(matches!(parse_slot(bad), Err(SlotError::Malformed(_))), "{bad}");
        }
        for bad in ["00", "01", "007"] {
            assert_eq!(parse_slot(bad), Err(SlotError::LeadingZero(bad.into())));
        }
    }

    #[test]
    fn a_hostname_ends_in_the_slot() {
        for (hostname, slot) in [
            ("larder-2", "2"),
            ("my-larder-0", "0"),
            ("larder-10.larder-headless.ns.svc", "10"),
            ("a-1-2", "2"),
        ] {
            assert_eq!(ordinal_of(hostname).as_deref(), Ok(slot), "{hostname}");
        }
        for bad in [
            "",
            "larder",
            "larder-",
            "-2",
            "2",
            "larder-x",
            "larder-02",
            "larder2",
            "larder.a-2",
            "a-1234567890",
        ] {
            let sentence = ordinal_of(bad).unwrap_err().to_string();
            assert!(sentence.contains(&format!("{bad:?}")) && sentence.contains("--slot"), "{sentence}");
        }
    }

    #[test]
    fn seeds_are_one_or_three_different_slots() {
        assert_eq!(parse_seeds("0").unwrap(), ["0"]);
        assert_eq!(parse_seeds("node-c, node-a,node-b").unwrap(), ["node-c", "node-a", "node-b"]);
        for (list, want) in [
            ("", "\"\" is no slot"),
            ("0,1", "there are 2 seeds; name 1 or 3"),
            ("0,1,2,3", "there are 4 seeds; name 1 or 3"),
            ("0,1,1", "seed 1 is named twice"),
            ("0,1,", "\"\" is no slot"),
            ("0,1,02", "without leading zeros"),
        ] {
            let error = parse_seeds(list).unwrap_err().to_string();
            assert!(error.contains(want), "{list:?} gave {error:?}, wanted {want:?}");
        }
    }

    #[test]
    fn the_first_three_found_or_the_first_alone() {
        assert_eq!(default_seeds(["0"]), ["0"]);
        assert_eq!(default_seeds(["1", "0"]), ["0"]);
        assert_eq!(default_seeds(["0", "1", "2"]), ["0", "1", "2"]);
        assert_eq!(default_seeds(["10", "9", "a", "2"]), ["2", "9", "10"], "by number, and names last");
        assert_eq!(default_seeds(["c", "a", "b", "d"]), ["a", "b", "c"]);
    }
}
