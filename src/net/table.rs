//! A resolver that is a table.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::Resolver;

/// Names and their addresses in a table that can be changed at any time; what is not in it, and is no IP address, does not
/// resolve. Ports are the table's, so that several nodes on one machine can be behind several names with one port.
#[derive(Debug, Default)]
pub struct TableResolver {
    hosts: Mutex<BTreeMap<String, Result<Vec<SocketAddr>, String>>>,
}

impl TableResolver {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `host` is at `addresses`, whatever port is asked for.
    pub fn set(&self, host: &str, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.hosts().insert(host.into(), Ok(addresses.into_iter().collect()));
    }

    /// From now on `host` does not resolve, for the reason `why`.
    pub fn refuse(&self, host: &str, why: &str) {
        self.hosts().insert(host.into(), Err(why.into()));
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<String, Result<Vec<SocketAddr>, String>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Resolver for TableResolver {
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        match (self.hosts().get(host), host.parse::<IpAddr>()) {
            (Some(entry), _) => entry.clone(),
            (None, Ok(ip)) => Ok(vec![(ip, port).into()]),
            (None, Err(_)) => Err("there is no such name".into()),
        }
    }
}
