//! Where to send: the endpoints known, who leads, and in what order to try.
//!
//! Invariants: the configured endpoints come first in the list and never leave it; the list is bounded; an endpoint that is
//! down is still tried, last. Knowledge of the leader is only a preference: any node takes any call, so being wrong
//! costs a hop and nothing else.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{
    ClientError, Endpoint, LeaderHint, Options,
    remote::{ConnectFailure, Lease, Remote, lock, members},
};
use crate::proto::v1::MembersResponse;

/// How many endpoints may be learned besides the configured ones. Past it the oldest is forgotten.
const MAX_LEARNED: usize = 64;

/// How often the leader is asked for again while calls are made: when one is known, and when none is.
const REFRESH: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(250));

/// Who a call prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefer {
    /// The leader.
    Leader,
    /// The nodes in turn.
    Any,
    /// The first configured endpoint that is up.
    First,
}

/// The endpoints.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) options: Options,
    routes: Mutex<Routes>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Routes {
    /// Configured ones first.
    remotes: Vec<Arc<Remote>>,
    leader: Option<Arc<Remote>>,
    /// Of the first node that answered; others must belong to the same.
    cluster: Option<(String, Endpoint)>,
    /// When the leader was last asked for, or told.
    asked: Option<Instant>,
}

impl Pool {
    pub(super) fn new(endpoints: Vec<Endpoint>, options: Options) -> Self {
        let connections = options.connections;
        let remotes = endpoints
            .into_iter()
            .map(|endpoint| Arc::new(Remote::new(endpoint, true, connections)))
            .collect();
        Self {
            options,
            routes: Mutex::new(Routes { remotes, leader: None, cluster: None, asked: None }),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) fn configured(&self) -> Vec<Endpoint> {
        let routes = lock(&self.routes);
        routes
            .remotes
            .iter()
            .filter(|remote| remote.configured)
            .map(|remote| remote.endpoint.clone())
            .collect()
    }

    /// How many endpoints are known.
    pub(super) fn len(&self) -> usize {
        lock(&self.routes).remotes.len()
    }

    /// All endpoints, the one to try first in front.
    pub(super) fn order(&self, prefer: Prefer) -> Vec<Arc<Remote>> {
        let routes = lock(&self.routes);
        let mut order = routes.remotes.clone();
        if prefer == Prefer::Any {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % order.len();
            order.rotate_left(turn);
        }
        let leader = routes.leader.as_ref().filter(|_| prefer == Prefer::Leader);
        // Stable: among equals, configured order or turn.
        order.sort_by_key(|remote| {
            let leads = leader.is_some_and(|leader| Arc::ptr_eq(leader, remote));
            let learned = !remote.configured && prefer != Prefer::Any;
            (remote.is_down(), !leads, learned)
        });
        order
    }

    /// The leader's endpoint, if one is known and it is up.
    pub(super) fn leader(&self) -> Option<Arc<Remote>> {
        lock(&self.routes).leader.clone().filter(|leader| !leader.is_down())
    }

    /// A connection to an endpoint, and whether it was made just now.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn lease(&self, remote: &Arc<Remote>) -> Result<(Lease, bool), ConnectFailure> {
        let check = |members: &MembersResponse| self.check_cluster(&remote.endpoint, members);
        let (lease, hello) = remote.lease(&self.options, check).await?;
        let fresh = hello.is_some();
        if let Some(members) = hello {
            self.learn(remote, members);
        }
        Ok((lease, fresh))
    }

    /// Endpoints of two clusters in one list would scatter the data over both.
    fn check_cluster(&self, endpoint: &Endpoint, members: &MembersResponse) -> Result<(), ClientError> {
        let Some(id) = members.header.as_ref().map(|header| &header.cluster_id).filter(|id| !id.is_empty())
        else {
            return Ok(());
        };
        let mut routes = lock(&self.routes);
        match &routes.cluster {
            None => {
                routes.cluster = Some((id.clone(), endpoint.clone()));
                Ok(())
            }
            Some((known, _)) if known == id => Ok(()),
            Some((known, from)) => Err(ClientError::Invalid(format!(
                "{endpoint} belongs to the cluster {id}, {from} to {known}; list the endpoints of one cluster only"
            ))),
        }
    }

    /// Takes over what a node says of the cluster.
    pub(super) fn learn(&self, from: &Arc<Remote>, answer: MembersResponse) {
        if let Some(node) = answer.header.and_then(|header| header.node) {
            from.set_node_id(node.id);
        }
        let mut routes = lock(&self.routes);
        routes.asked = Some(Instant::now());
        let mut leader = None;
        for member in answer.members {
            let Some(node) = member.node else { continue };
            let remote = self.remote_of(&mut routes, node.id, &member.client_address);
            if member.leader {
                leader = remote;
            }
        }
        routes.leader = leader;
    }

    /// Takes over where an error says that the leader is.
    pub(super) fn learn_leader(&self, hint: &LeaderHint) {
        let mut routes = lock(&self.routes);
        let remote = self.remote_of(&mut routes, hint.id, hint.address.as_deref().unwrap_or_default());
        if remote.is_some() {
            routes.leader = remote;
            routes.asked = Some(Instant::now());
        }
    }

    /// This endpoint does not lead, or does not answer.
    pub(super) fn forget_leader(&self, remote: &Arc<Remote>) {
        let mut routes = lock(&self.routes);
        if routes.leader.as_ref().is_some_and(|leader| Arc::ptr_eq(leader, remote)) {
            routes.leader = None;
        }
    }

    /// The endpoint of a node: one that answered as it, else the address told, which is added if it is new.
    fn remote_of(&self, routes: &mut Routes, id: u64, address: &str) -> Option<Arc<Remote>> {
        let known = |remote: &&Arc<Remote>| remote.node_id() == Some(id);
        if let Some(remote) = routes.remotes.iter().find(known) {
            return Some(Arc::clone(remote));
        }
        let endpoint: Endpoint =
            address.parse().ok().filter(|endpoint: &Endpoint| !endpoint.is_unspecified())?;
        if let Some(remote) = routes.remotes.iter().find(|remote| remote.endpoint == endpoint) {
            return Some(Arc::clone(remote));
        }
        if !self.options.discover {
            return None;
        }
        let learned = routes.remotes.iter().filter(|remote| !remote.configured).count();
        if learned >= MAX_LEARNED
            && let Some(oldest) = routes.remotes.iter().position(|remote| !remote.configured)
        {
            routes.remotes.remove(oldest);
        }
        let remote = Arc::new(Remote::new(endpoint, false, self.options.connections));
        routes.remotes.push(Arc::clone(&remote));
        Some(remote)
    }

    /// Asks again who leads, beside the calls, if it is time.
    pub(super) fn refresh_if_due(self: &Arc<Self>) {
        let now = Instant::now();
        {
            let mut routes = lock(&self.routes);
            let period = if routes.leader.is_some() { REFRESH.0 } else { REFRESH.1 };
            match routes.asked {
                Some(asked) if now.duration_since(asked) >= period => routes.asked = Some(now),
                // Not connected yet: connecting will ask.
                _ => return,
            }
        }
        tokio::spawn(refresh(Arc::downgrade(self)));
    }
}

/// Asks one endpoint after the other, over connections that stand, until one answers.
async fn refresh(pool: Weak<Pool>) {
    let Some(order) = pool.upgrade().map(|pool| pool.order(Prefer::Any)) else { return };
    for remote in order {
        let Some(lease) = remote.standing() else { continue };
        let Some(limit) = pool.upgrade().map(|pool| pool.options.connect_timeout) else { return };
        let Ok(Ok(answer)) = timeout(limit, members(lease.channel)).await else { continue };
        if let Some(pool) = pool.upgrade() {
            pool.learn(&remote, answer);
        }
        return;
    }
}
