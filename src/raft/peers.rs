//! Where the other nodes are, and what this one says of itself to them.
//!
//! A connection is kept for each slot and [`Lane`]: a snapshot under way must not hold up appends, nor appends a vote.
//! Connections are lazy and made anew by tonic behind our back, each time asking the directory and resolving the name again
//! ([`Connector`]), with no cache of failures. But a connection that lives is never made anew by tonic, even if the address is somebody else's by
//! now: `hello`, said again and again, finds that out and hangs up ([`Peers::hang_up`]). All of which is why every call and the first frame of every stream carries the [`header`](Peers::header).

use std::{
    collections::HashMap,
    fmt::Debug,
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use super::handshake::{Heard, IdentityRef};
use crate::{
    net::{Connector, Resolver},
    proto::raft::{self as pb, peer_client::PeerClient},
    store::ClusterId,
    time::Clock,
};

/// The only Raft group of this release.
pub const GROUP: u32 = 0;
/// The highest feature level that this release knows.
pub const FEATURE_LEVEL: u32 = crate::state::FEATURE_LEVEL;
/// The most bytes of one peer message: an append of [`super::log_storage::MAX_APPEND_BYTES`], or one larger entry with a whole batch.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Where a slot is dialled. Asked at every new connection.
pub trait Directory: Debug + Send + Sync + 'static {
    /// `host:port` of the slot's peer port.
    fn address(&self, slot: &str) -> Option<String>;
}

impl Directory for std::collections::BTreeMap<String, String> {
    fn address(&self, slot: &str) -> Option<String> {
        self.get(slot).cloned()
    }
}

/// Who this node is, for the whole of this run.
#[derive(Debug)]
pub struct Myself {
    /// The slot.
    pub slot: String,
    /// The incarnation.
    pub incarnation: Uuid,
    /// The Raft id.
    pub raft_id: u64,
    /// Which start of the data directory this is.
    pub boot_counter: u64,
    /// Random: tells two copies of one volume apart.
    pub nonce: u64,
    /// `host:port` where clients connect.
    pub client_address: String,
    /// The memory limit in bytes; 0 if none.
    pub memory_limit_bytes: u64,
    /// The slots of the seeds, as this node was told.
    pub seeds: Vec<String>,
}

/// Kinds of traffic that must not wait for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Entries.
    Append,
    /// Heartbeats, votes, hello, read indexes, hand-over: small and urgent.
    Control,
    /// Whole snapshots.
    Snapshot,
    /// Clients' commands on their way to the leader.
    Forward,
}

/// The other nodes, as this one reaches them.
#[derive(Debug)]
pub struct Peers {
    myself: Myself,
    cluster: OnceLock<ClusterId>,
    clock: Arc<dyn Clock>,
    directory: Arc<dyn Directory>,
    resolver: Arc<dyn Resolver>,
    channels: Mutex<HashMap<(String, Lane), Channel>>,
    heard: Heard,
    seen_at: Arc<Mutex<HashMap<String, IpAddr>>>,
}

/// Slots whose callers' addresses are remembered, at most: far more than a cluster has.
const MAX_SEEN: usize = 256;

/// A peer that does not answer a ping so long is gone, however alive its connection looks.
const KEEPALIVE: Duration = Duration::from_secs(1);
const WINDOW: u32 = 8 * 1024 * 1024;

impl Peers {
    /// Nobody is dialled yet. `directory` says where a slot is, `resolver` what is behind a name.
    pub fn new(
        myself: Myself,
        clock: Arc<dyn Clock>,
        directory: Arc<dyn Directory>,
        resolver: Arc<dyn Resolver>,
    ) -> Arc<Self> {
        Arc::new(Self {
            myself,
            cluster: OnceLock::new(),
            clock,
            directory,
            resolver,
            channels: Mutex::new(HashMap::new()),
            heard: Heard::new(),
            seen_at: Arc::default(),
        })
    }

    /// Who this node is.
    pub fn myself(&self) -> &Myself {
        &self.myself
    }

    /// The cluster this node is bound to, if it is.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster.get().copied()
    }

    /// Somebody who says it is in `slot` called from this address. A hint for dialling it while its name leads nowhere, kept in memory alone:
    /// who is really there, the handshake of every call finds out.
    pub(crate) fn saw(&self, slot: &str, from: IpAddr) {
        let mut seen = self.seen_at.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MAX_SEEN || seen.contains_key(slot) {
            seen.insert(slot.to_owned(), from.to_canonical());
        }
    }

    /// The latest start of each member, as this node knows it.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Where a slot is dialled at the moment; empty if unknown.
    pub fn address_of(&self, slot: &str) -> String {
        self.directory.address(slot).unwrap_or_default()
    }

    /// From now on this node speaks for this cluster. Only the first call counts.
    pub fn bind(&self, cluster: ClusterId) {
        let _ = self.cluster.set(cluster);
    }

    /// This node's names and start, as the handshake compares them.
    pub(crate) fn identity(&self) -> IdentityRef {
        let me = &self.myself;
        IdentityRef {
            slot: me.slot.clone(),
            incarnation: me.incarnation,
            raft_id: me.raft_id,
            boot_counter: me.boot_counter,
            nonce: me.nonce,
        }
    }

    /// What every call begins with. `to` is 0 where the addressee is not known yet.
    pub(crate) fn header(&self, to: u64) -> pb::PeerHeader {
        let me = &self.myself;
        pb::PeerHeader {
            cluster_id: self.cluster().map(|id| id.0.to_vec().into()).unwrap_or_default(),
            group: GROUP,
            from: Some(pb::Identity {
                slot: me.slot.clone(),
                incarnation: me.incarnation.as_bytes().to_vec().into(),
                raft_id: me.raft_id,
                boot_counter: me.boot_counter,
                nonce: me.nonce,
            }),
            to,
            feature_level: FEATURE_LEVEL,
            wall_clock_ms: self.clock.wall().0,
            memory_limit_bytes: me.memory_limit_bytes,
            client_address: me.client_address.clone(),
        }
    }

    /// A client for a slot; `Err` is a sentence for the log.
    pub(crate) fn client(&self, slot: &str, lane: Lane) -> Result<PeerClient<Channel>, String> {
        let key = (slot.to_string(), lane);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.dial(slot)?;
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Forgets the connections to a slot, because somebody else answers there: the next call dials anew. Calls under way go on.
    pub(crate) fn hang_up(&self, slot: &str) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|(known, _), _| known != slot);
    }

    fn dial(&self, slot: &str) -> Result<Channel, String> {
        let directory = self.directory.clone();
        let named = slot.to_string();
        let whereto =
            move || directory.address(&named).ok_or_else(|| format!("nobody says where slot {named} is"));
        let address = whereto()?;
        let (seen_at, named) = (self.seen_at.clone(), slot.to_owned());
        let seen = move || seen_at.lock().unwrap_or_else(PoisonError::into_inner).get(&named).copied();
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| format!("the address {address} of slot {slot} is not host:port: {e}"))?;
        Ok(endpoint
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .connect_with_connector_lazy(Connector::new(self.resolver.clone(), whereto).or_where_seen(seen)))
    }
}

#[cfg(test)]
mod tests;
