//! Where the slots are: a list, or a template.
//!
//! Addresses are kept as they are written: names are resolved at every dial, because behind them addresses change.

use std::collections::BTreeMap;

use super::slot::{SlotError, default_seeds, parse_slot};
use crate::{net::HostPort, raft::Directory};

/// More peers than anybody lists by hand; a template has no such bound.
const MAX_PEERS: usize = 256;
/// The most of a wrong text that an error repeats.
const SHOWN: usize = 300;
/// What stands for the slot in a template.
const PLACEHOLDER: &str = "{slot}";

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Every peer with its address, this node among them. For machines with names of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMap {
    peers: BTreeMap<String, HostPort>,
}

impl PeerMap {
    /// Reads `slot=host:port,slot=host:port,...` for the node in slot `own`. Spaces around items are fine.
    ///
    /// # Errors
    /// If an item is malformed, a slot or an address is there twice, there are more than 256, or `own` is missing.
    pub fn parse(own: &str, list: &str) -> Result<Self, SlotError> {
        let own = parse_slot(own)?;
        let mut peers = BTreeMap::new();
        for item in list.split(',').map(str::trim) {
            let Some((slot, address)) = item.split_once('=') else {
                return Err(SlotError::NoPair(shown(item)));
            };
            let (slot, address) = (parse_slot(slot.trim())?, address.trim());
            let address: HostPort = address.parse().map_err(|why| SlotError::Address {
                slot: slot.clone(),
                address: shown(address),
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
        if peers.len() > MAX_PEERS {
            return Err(SlotError::TooMany { count: peers.len(), most: MAX_PEERS });
        }
        let map = Self { peers };
        match map.peers.contains_key(&own) {
            true => Ok(map),
            false => Err(SlotError::OwnMissing { own, listed: map.listed() }),
        }
    }

    /// The seeds that are meant if nobody names any: [`default_seeds`].
    pub fn default_seeds(&self) -> Vec<String> {
        default_seeds(self.peers.keys().map(String::as_str))
    }

    /// Checks that every seed is a peer.
    ///
    /// # Errors
    /// For one that is not.
    pub fn check_seeds(&self, seeds: &[String]) -> Result<(), SlotError> {
        match seeds.iter().find(|seed| !self.peers.contains_key(*seed)) {
            None => Ok(()),
            Some(seed) => Err(SlotError::SeedUnknown { seed: seed.clone(), listed: self.listed() }),
        }
    }

    fn listed(&self) -> String {
        self.peers.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// `host:port` of any peer, with `{slot}` for its slot. For pods, whose names differ in nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTemplate(String);

impl PeerTemplate {
    /// Reads a template, such as `larder-{slot}.larder-headless:7401`.
    ///
    /// # Errors
    /// If there is no `{slot}` in the host, or it is no `host:port` with a slot in it.
    pub fn parse(text: &str) -> Result<Self, SlotError> {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        if !host.contains(PLACEHOLDER) || port.contains(PLACEHOLDER) {
            return Err(SlotError::NoPlaceholder(shown(text)));
        }
        let template = Self(text.into());
        template.fill("0").map_err(|why| SlotError::Template { template: shown(text), why })?;
        Ok(template)
    }

    fn fill(&self, slot: &str) -> Result<HostPort, &'static str> {
        self.0.replace(PLACEHOLDER, slot).parse()
    }
}

/// How peers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// By a list.
    Static(PeerMap),
    /// By a template.
    Template(PeerTemplate),
}

impl Discovery {
    /// Where a slot is dialled; `None` if it is not in the list, or is no name that can be dialled.
    pub fn place(&self, slot: &str) -> Option<HostPort> {
        match self {
            Self::Static(map) => map.peers.get(slot).cloned(),
            Self::Template(template) => template.fill(&parse_slot(slot).ok()?).ok(),
        }
    }

    /// Every slot of a list; none of a template, which knows no end.
    pub fn listed(&self) -> Vec<String> {
        match self {
            Self::Static(map) => map.peers.keys().cloned().collect(),
            Self::Template(_) => Vec::new(),
        }
    }
}

impl Directory for Discovery {
    fn address(&self, slot: &str) -> Option<String> {
        self.place(slot).map(|place| place.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_with_names_and_both_kinds_of_addresses() {
        let list = "0=larder-0.larder:7401, 1=[::1]:7411,2=10.0.0.3:7401,3=d.:1";
        let map = PeerMap::parse("1", list).unwrap();
        assert_eq!(map.default_seeds(), ["0", "1", "2"]);
        let found = Discovery::Static(map);
        assert_eq!(found.place("1"), Some(HostPort { host: "::1".into(), port: 7411 }));
        for (slot, address) in [("0", "larder-0.larder:7401"), ("1", "[::1]:7411"), ("3", "d.:1")] {
            assert_eq!(found.address(slot).as_deref(), Some(address));
        }
        assert_eq!(found.address("4"), None);
        assert_eq!(found.listed(), ["0", "1", "2", "3"]);
    }

    #[test]
    fn a_list_has_any_number_of_nodes() {
        for count in [1, 2, 4, 256] {
            let list: Vec<_> = (0..count).map(|slot| format!("{slot}=h{slot}:1")).collect();
            assert!(PeerMap::parse("0", &list.join(",")).is_ok());
        }
    }

    #[test]
    fn seeds_are_peers() {
        let map = PeerMap::parse("0", "0=a:1,1=b:1").unwrap();
        assert_eq!(map.default_seeds(), ["0"]);
        map.check_seeds(&["1".into()]).unwrap();
        let error = map.check_seeds(&["2".into()]).unwrap_err().to_string();
        assert_eq!(error, "seed 2 is not in the list of peers (it has 0, 1); seeds are peers");
    }

    #[test]
    fn every_mistake_in_a_list_has_a_sentence_that_names_it() {
        let too_many: Vec<_> = (0..257).map(|slot| format!("{slot}=h{slot}:1")).collect();
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
            ("0", &format!("0={}:1", "a".repeat(254)), "the host is longer than any DNS name"),
            ("0", "", "\"\" in the list of peers is not slot=host:port"),
            ("0", "0=a:1,", "\"\" in the list of peers is not slot=host:port"),
            ("0", "a:1", "\"a:1\" in the list of peers is not slot=host:port"),
            ("0", "=a:1", "\"\" is no slot"),
            ("0", "00=a:1", "without leading zeros"),
            ("X", "0=a:1", "\"X\" is no slot"),
            ("3", "0=a:1,1=b:1,2=c:1", "slot 3 is not in the list of peers (it has 0, 1, 2)"),
            ("0", &too_many.join(","), "has 257 nodes; name at most 256"),
        ];
        for (own, list, want) in rows {
            let error = PeerMap::parse(own, list).unwrap_err().to_string();
            assert!(error.contains(want), "{list:?} gave {error:?}, wanted {want:?}");
        }
    }

    #[test]
    fn a_template_is_filled_with_any_slot() {
        let pods = PeerTemplate::parse("larder-{slot}.larder-headless.ns.svc.cluster.local.:7401").unwrap();
        let pods = Discovery::Template(pods);
        assert_eq!(
            pods.address("17").as_deref(),
            Some("larder-17.larder-headless.ns.svc.cluster.local.:7401")
        );
        for none in ["", "01", "A", "a:1", "{slot}", &"a".repeat(250)] {
            assert_eq!(pods.address(none), None, "{none}");
        }
        let machines = Discovery::Template(PeerTemplate::parse("{slot}:7401").unwrap());
        assert_eq!(machines.address("node-a.example").as_deref(), Some("node-a.example:7401"));
    }

    #[test]
    fn every_mistake_in_a_template_has_a_sentence_that_names_it() {
        for (text, want) in [
            ("", "\"\" has no {slot} in its host"),
            ("larder-0:7401", "\"larder-0:7401\" has no {slot} in its host"),
            ("larder:740{slot}", "has no {slot} in its host"),
            ("larder-{slot}:74{slot}", "has no {slot} in its host"),
            ("larder-{slot}", "is not host:port: the port is missing"),
            ("larder-{slot}:", "the port is missing"),
            ("larder-{slot}:http", "the port is not a number"),
            ("larder-{slot}.{zone}:1", "the host is neither"),
            ("http://larder-{slot}:1", "in brackets"),
        ] {
            let error = PeerTemplate::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(want) && error.contains("larder-{slot}.larder-headless:7401"),
                "{text:?}: {error}"
            );
        }
    }
}
