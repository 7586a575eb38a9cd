//! Slots, and the list of peers.
//!
//! A slot is the name of a place: an ordinal (`0`), or a DNS name. It says where to dial and nothing about who is there.
//! Addresses are kept as they were written: names are resolved at every dial, because behind them addresses change.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::raft::handshake::{MAX_SLOT_BYTES, is_slot};

/// The longest host, in bytes: the longest DNS name.
const MAX_HOST_BYTES: usize = 253;

/// How many peers, oneself included, a cluster of this release may have.
const COUNTS: [usize; 2] = [1, 3];

/// Why a slot, or a list of peers, cannot be used. Each sentence says what to write instead.
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
    /// Neither 1 nor 3.
    #[error(
        "the list of peers has {0} nodes; this release takes 1 or 3 (this one included); other sizes come with a later release"
    )]
    Count(usize),
}

/// Reads a slot.
///
/// # Errors
/// If it is not 1 to 63 of `a-z`, `0-9`, `.` and `-`, or is a number with leading zeros.
pub fn parse_slot(text: &str) -> Result<String, SlotError> {
    if !is_slot(text) {
        return Err(SlotError::Malformed(text.chars().take(MAX_SLOT_BYTES + 1).collect()));
    }
    if text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SlotError::LeadingZero(text.into()));
    }
    Ok(text.into())
}

/// Where a peer is dialled: a DNS name or an IP address, as written, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// A DNS name, or an IP address without brackets.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for PeerAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) =
                    rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err("there is no IPv6 address in the brackets");
                }
                (host, rest.strip_prefix(':').ok_or("the port is missing")?)
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
                if host.contains(':') {
                    return Err("write an IPv6 address in brackets, as [::1]:7401");
                }
                let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                if host.is_empty() || host.len() > MAX_HOST_BYTES || !host.bytes().all(named) {
                    return Err("the host is neither a DNS name nor an IP address");
                }
                (host, port)
            }
        };
        if port.is_empty() {
            return Err("the port is missing");
        }
        match port.parse::<u16>() {
            // Rust reads "+1" as a number; a port list is no place for signs.
            Ok(port) if port != 0 && !text.contains('+') => Ok(Self { host: host.into(), port }),
            _ => Err("the port is not a number from 1 to 65535"),
        }
    }
}

/// The static list of peers, this node among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMap {
    own: String,
    peers: BTreeMap<String, PeerAddress>,
}

impl PeerMap {
    /// Reads `slot=host:port,slot=host:port,...` for the node in slot `own`. Spaces around items are fine.
    ///
    /// # Errors
    /// If an item is malformed, a slot or an address is there twice, `own` is missing, or there are neither 1 nor 3.
    pub fn parse(own: &str, list: &str) -> Result<Self, SlotError> {
        let own = parse_slot(own)?;
        let mut peers = BTreeMap::new();
        for item in list.split(',').map(str::trim) {
            let Some((slot, address)) = item.split_once('=') else {
                return Err(SlotError::NoPair(item.chars().take(MAX_HOST_BYTES).collect()));
            };
            let (slot, address) = (parse_slot(slot.trim())?, address.trim());
            let address: PeerAddress = address.parse().map_err(|why| SlotError::Address {
                slot: slot.clone(),
                address: address.chars().take(MAX_HOST_BYTES).collect(),
                why,
            })?;
            if let Some((other, _)) = peers.iter().find(|(name, at)| **at == address && **name != slot) {
                return Err(SlotError::SharedAddress {
                    slot,
                    other: String::clone(other),
                    address: address.to_string(),
                });
            }
            if peers.insert(slot.clone(), address).is_some() {
                return Err(SlotError::Duplicate(slot));
            }
        }
        if !COUNTS.contains(&peers.len()) {
            return Err(SlotError::Count(peers.len()));
        }
        if !peers.contains_key(&own) {
            let listed = peers.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(SlotError::OwnMissing { own, listed });
        }
        Ok(Self { own, peers })
    }

    /// This node's slot.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// This node's own address, as its peers dial it.
    pub fn own_address(&self) -> &PeerAddress {
        &self.peers[&self.own]
    }

    /// Where a slot is dialled.
    pub fn address(&self, slot: &str) -> Option<&PeerAddress> {
        self.peers.get(slot)
    }

    /// Every slot with its address, this node's too, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &PeerAddress)> {
        self.peers.iter().map(|(slot, address)| (slot.as_str(), address))
    }

    /// The slots of all seeds, this node's too. In this release every peer is a seed.
    pub fn seeds(&self) -> Vec<String> {
        self.peers.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots() {
        for good in ["0", "7", "10", "larder-0.larder-headless", "node-a.example", &"a".repeat(63)] {
            assert_eq!(parse_slot(good).as_deref(), Ok(good));
        }
        for bad in ["", "A", "a_b", "a b", "ü", "1=2", &"a".repeat(64)] {
            assert!(matches!(parse_slot(bad), Err(SlotError::Malformed(_))), "{bad}");
        }
        for bad in ["00", "01", "007"] {
            assert_eq!(parse_slot(bad), Err(SlotError::LeadingZero(bad.into())));
        }
    }

    #[test]
    fn a_list_of_three_with_names_and_both_kinds_of_addresses() {
        let map = PeerMap::parse("1", "0=larder-0.larder:7401, 1=[::1]:7411,2=10.0.0.3:7401").unwrap();
        assert_eq!(map.own(), "1");
        assert_eq!(map.own_address(), &PeerAddress { host: "::1".into(), port: 7411 });
        assert_eq!(map.seeds(), ["0", "1", "2"]);
        let shown: Vec<_> = map.iter().map(|(slot, at)| format!("{slot}={at}")).collect();
        assert_eq!(shown.join(","), "0=larder-0.larder:7401,1=[::1]:7411,2=10.0.0.3:7401");
        assert_eq!(map.address("3"), None);
    }

    #[test]
    fn a_list_of_one() {
        assert_eq!(PeerMap::parse("0", "0=localhost:7401").unwrap().seeds(), ["0"]);
    }

    #[test]
    fn every_mistake_has_a_sentence_that_names_it() {
        let rows = [
            ("0", "0=a:1,0=b:1,2=c:1", "slot 0 is in the list of peers twice"),
            ("0", "0=a:1,1=a:1,2=c:1", "slots 1 and 0 have the same address a:1"),
            ("0", "0=a,1=b:1,2=c:1", "\"a\" of slot 0 is not host:port: the port is missing"),
            ("0", "0=a:,1=b:1,2=c:1", "the port is missing"),
            ("0", "0=a:0,1=b:1,2=c:1", "the port is not a number from 1 to 65535"),
            ("0", "0=a:65536,1=b:1,2=c:1", "the port is not a number from 1 to 65535"),
            ("0", "0=a:+1,1=b:1,2=c:1", "the port is not a number"),
            ("0", "0=:7401,1=b:1,2=c:1", "the host is neither"),
            ("0", "0=http://a:1,1=b:1,2=c:1", "write an IPv6 address in brackets"),
            ("0", "0=::1:7401,1=b:1,2=c:1", "write an IPv6 address in brackets"),
            ("0", "0=[::1]7401,1=b:1,2=c:1", "the port is missing"),
            ("0", "0=[::1:7401,1=b:1,2=c:1", "the bracket of the IPv6 address is not closed"),
            ("0", "0=[a]:7401,1=b:1,2=c:1", "there is no IPv6 address in the brackets"),
            ("0", "", "\"\" in the list of peers is not slot=host:port"),
            ("0", "0=a:1,", "\"\" in the list of peers is not slot=host:port"),
            ("0", "a:1", "\"a:1\" in the list of peers is not slot=host:port"),
            ("0", "=a:1", "\"\" is no slot"),
            ("0", "00=a:1", "without leading zeros"),
            ("X", "0=a:1", "\"X\" is no slot"),
            ("3", "0=a:1,1=b:1,2=c:1", "slot 3 is not in the list of peers (it has 0, 1, 2)"),
            ("0", "0=a:1,1=b:1", "has 2 nodes; this release takes 1 or 3"),
            ("0", "0=a:1,1=b:1,2=c:1,3=d:1,4=e:1", "has 5 nodes; this release takes 1 or 3"),
        ];
        for (own, list, want) in rows {
            let error = PeerMap::parse(own, list).unwrap_err().to_string();
            assert!(error.contains(want), "{list:?} gave {error:?}, wanted {want:?}");
        }
    }
}
