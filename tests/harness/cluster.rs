//! A cluster of [`Node`]s on one loopback address.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use larder::proto::v1::{self as pb, Role};
use tempfile::TempDir;

use super::{Node, Rpc, eventually};

/// How long anything that should happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes.
    pub nodes: usize,
    /// More arguments of `larder serve`.
    pub args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 3, args: Vec::new() }
    }
}

impl Options {
    /// The default with one more flag.
    pub fn with(flag: &str, value: impl ToString) -> Self {
        Self { args: vec![flag.to_owned(), value.to_string()], ..Self::default() }
    }
}

/// The nodes, and where they keep things. Dropping it kills them; a failing test keeps the files.
#[derive(Debug)]
pub struct Cluster {
    /// By slot.
    pub nodes: Vec<Node>,
    home: Option<TempDir>,
}

impl Cluster {
    /// A cluster of which nothing runs yet.
    pub fn prepare(options: &Options) -> Self {
        let home =
            tempfile::Builder::new().prefix("cluster-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let address = own_address();
        let peers: Vec<_> =
            (0..options.nodes).map(|s| format!("{s}={address}:{}", Node::port(s, 1))).collect();
        let peers = peers.join(",");
        let nodes =
            (0..options.nodes).map(|s| Node::new(s, &address, home.path(), &peers, &options.args)).collect();
        Self { nodes, home: Some(home) }
    }

    /// A cluster whose nodes are all ready.
    pub async fn start(options: &Options) -> Self {
        let mut cluster = Self::prepare(options);
        cluster.start_all();
        cluster.wait_ready().await;
        cluster
    }

    /// The folder of logs and data.
    pub fn home(&self) -> &Path {
        self.home.as_ref().expect("only dropping takes it").path()
    }

    /// A folder beside the nodes' own.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.home().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Starts every node that does not run.
    pub fn start_all(&mut self) {
        for node in self.nodes.iter_mut().filter(|n| !n.runs()) {
            node.start();
        }
    }

    /// Waits until every node is ready.
    pub async fn wait_ready(&self) {
        for node in &self.nodes {
            node.wait_ready(PATIENCE).await;
        }
    }

    /// kill -9 of all of them, as close to one moment as can be.
    pub fn kill_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::strike);
        self.nodes.iter_mut().for_each(|node| {
            node.reap();
        });
    }

    /// The slots of nodes that run.
    pub fn running(&self) -> Vec<usize> {
        self.nodes.iter().filter(|n| n.runs()).map(|n| n.slot).collect()
    }

    /// A client that knows all nodes and starts with the one of `slot`.
    pub fn client(&self, slot: usize) -> Rpc {
        Rpc::new(self.nodes.iter().map(Node::endpoint).collect(), slot)
    }

    /// What a node says of itself.
    pub async fn status(&self, slot: usize) -> Result<pb::StatusResponse, String> {
        self.client(slot).status().await.map_err(|e| format!("status of node {slot}: {e}"))
    }

    /// The slot that leads, once the running nodes agree on one that runs.
    pub async fn leader(&self) -> usize {
        let running = self.running();
        eventually("a leader all running nodes agree on", PATIENCE, async || {
            let mut leaders = Vec::new();
            for &slot in &running {
                let status = self.status(slot).await?;
                let known = status.leader.as_ref().map(|l| l.slot.clone());
                leaders.push((slot, known, status.role()));
            }
            let leading: Vec<_> = leaders.iter().filter(|l| l.2 == Role::Leader).map(|l| l.0).collect();
            match leading[..] {
                [one] if leaders.iter().all(|l| l.1.as_deref() == Some(&*one.to_string())) => Ok(one),
                _ => Err(format!("{leaders:?}")),
            }
        })
        .await
    }

    /// Waits until the running nodes applied the same entries, and compares their states (A3).
    pub async fn converged(&self) -> u64 {
        let running = self.running();
        eventually("one leader, one applied index, one state", Duration::from_secs(10), async || {
            let mut seen = Vec::new();
            for &slot in &running {
                let s = self.status(slot).await?;
                seen.push((s.applied_index, s.state_hash, s.keys));
            }
            if seen.iter().any(|s| s.0 != seen[0].0) {
                return Err(format!("applied indexes, hashes and keys {seen:?}"));
            }
            assert!(seen.iter().all(|s| *s == seen[0]), "states differ at one applied index: {seen:?}");
            Ok(seen[0].0)
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Node::strike);
        if let (true, Some(home)) = (thread::panicking(), self.home.take()) {
            eprintln!("the nodes' logs and data are kept in {}", home.keep().display());
        }
    }
}

/// A loopback address that no other cluster has.
fn own_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let process = std::process::id();
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < 1000, "no loopback address is free");
        // 127.0.x.y is left to people; 22 bits of process id and number make up the rest.
        let address = format!("127.{}.{}.{}", 1 + (process >> 8) % 250, process % 256, 1 + number % 250);
        if TcpListener::bind((address.as_str(), Node::port(0, 0))).is_ok() {
            return address;
        }
    }
}
