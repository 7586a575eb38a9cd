//! Pretended DNS: pods' names, with a view of its own for each pod that asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use larder::net::Resolver;

/// The template of the peers' addresses. The port is not used: a name leads to an address with its port.
pub const PEER_TEMPLATE: &str = "larder-{slot}.larder-headless:7401";

/// Which slot is where, and who cannot find out.
#[derive(Debug, Default)]
pub struct Dns(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    addresses: BTreeMap<u32, SocketAddr>,
    /// Who does not get an answer for whom.
    cut: BTreeSet<(u32, u32)>,
    /// How many more lookups of each slot are refused, whoever asks.
    refusals: BTreeMap<u32, usize>,
}

impl Dns {
    pub fn set(&self, slot: u32, address: SocketAddr) {
        self.names().addresses.insert(slot, address);
    }

    /// The pod is gone, and its name with it.
    pub fn remove(&self, slot: u32) {
        self.names().addresses.remove(&slot);
    }

    pub fn address(&self, slot: u32) -> SocketAddr {
        self.names().addresses[&slot]
    }

    /// From now on the name of each slot is answered with the address of the other.
    pub fn swap(&self, one: u32, other: u32) {
        let (a, b) = (self.address(one), self.address(other));
        self.set(one, b);
        self.set(other, a);
    }

    /// From now on `by` does not find `slot`. Connections that are there stay.
    pub fn cut(&self, by: u32, slot: u32) {
        self.names().cut.insert((by, slot));
    }

    /// From now on everybody finds everybody.
    pub fn heal(&self) {
        self.names().cut.clear();
    }

    /// The next so many lookups of each of these slots are refused.
    pub fn refuse_first(&self, slots: &[u32], lookups: usize) {
        self.names().refusals = slots.iter().map(|slot| (*slot, lookups)).collect();
    }

    /// How many lookups will still be refused.
    pub fn refusals_left(&self) -> usize {
        self.names().refusals.values().sum()
    }

    /// What the pod in slot `by` asks.
    pub fn seen_by(self: &Arc<Self>, by: u32) -> Arc<dyn Resolver> {
        Arc::new(Seen { dns: self.clone(), by })
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap()
    }
}

#[derive(Debug)]
struct Seen {
    dns: Arc<Dns>,
    by: u32,
}

#[async_trait]
impl Resolver for Seen {
    async fn resolve(&self, host: &str, _: u16) -> Result<Vec<SocketAddr>, String> {
        let slot = host.strip_prefix("larder-").and_then(|rest| rest.strip_suffix(".larder-headless"));
        let slot: u32 = slot.and_then(|slot| slot.parse().ok()).ok_or(format!("nobody asks for {host}"))?;
        let mut names = self.dns.names();
        if let Some(left) = names.refusals.get_mut(&slot).filter(|left| **left > 0) {
            *left -= 1;
            return Err("the name server is not ready".into());
        }
        if names.cut.contains(&(self.by, slot)) {
            return Err("the name server does not answer".into());
        }
        names.addresses.get(&slot).map(|address| vec![*address]).ok_or("there is no such name".into())
    }
}
