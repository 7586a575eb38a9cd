//! Clusters of three real processes on loopback: started, waited for, watched, and ended by their ids.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use larder::proto::v1::{Role, StatusRequest, StatusResponse, cluster_client::ClusterClient};
use tokio::time::{Instant, sleep};

use super::{etcd, http};

/// Nodes of a cluster.
const NODES: usize = 3;

/// Both systems' heartbeat.
const HEARTBEAT_MS: u32 = 100;

/// Both systems' election timeout: etcd draws from one to two of it, and Larder is told to.
const ELECTION_MS: u32 = 1000;

/// How long a cluster may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long one question to a node may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Which system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// This one.
    Larder,
    /// The other.
    Etcd,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Larder => "larder",
            Self::Etcd => "etcd",
        })
    }
}

/// One process.
struct Node {
    child: Child,
    log: PathBuf,
    /// Where clients connect.
    client: SocketAddr,
    /// Where `/readyz` or `/health`, and `/metrics` are.
    http: SocketAddr,
}

/// A running cluster. Dropping it ends its processes and removes their data.
pub(crate) struct Cluster {
    system: System,
    nodes: Vec<Node>,
    data: PathBuf,
    pids: PathBuf,
}

/// The ports of a node.
struct Ports {
    client: SocketAddr,
    peer: SocketAddr,
    http: SocketAddr,
}

impl Cluster {
    /// Starts three nodes with empty data directories under `state` and waits until they serve.
    pub(crate) async fn start(system: System, binary: &Path, state: &Path) -> Result<Self> {
        let data = state.join(system.to_string());
        fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        let ports = ports()?;
        let mut cluster = Self { system, nodes: Vec::new(), data, pids: state.join("pids") };
        for number in 0..NODES {
            let log = state.join(format!("{system}-{number}.log"));
            let output = fs::File::options().create(true).append(true).open(&log)?;
            let directory = cluster.data.join(number.to_string());
            let mut command = match system {
                System::Larder => larder_command(binary, number, &ports, &directory),
                System::Etcd => etcd_command(binary, number, &ports, &directory),
            };
            // Equal settings: whatever the caller's environment says about either.
            for (name, _) in std::env::vars_os() {
                let name_text = name.to_string_lossy();
                if name_text.starts_with("LARDER_") || name_text.starts_with("ETCD_") {
                    command.env_remove(&name);
                }
            }
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
            let child = command.spawn().with_context(|| format!("{} cannot be started", binary.display()))?;
            let http = match system {
                System::Larder => ports[number].http,
                System::Etcd => ports[number].client,
            };
            cluster.nodes.push(Node { child, log, client: ports[number].client, http });
            cluster.write_pids()?;
        }
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// The ids of the running processes, for the script that started this one, should this one be killed.
    fn write_pids(&self) -> std::io::Result<()> {
        let pids: String = self.nodes.iter().map(|node| format!("{}\n", node.child.id())).collect();
        fs::write(&self.pids, pids)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let until = Instant::now() + READY_WITHIN;
        let mut missing = 0;
        while missing < self.nodes.len() {
            let node = &mut self.nodes[missing];
            if let Some(status) = node.child.try_wait()? {
                bail!("a node of {} ended ({status}); see {}", self.system, node.log.display());
            }
            let ready = match (self.system, http::get(node.http, self.system.ready_path()).await) {
                (System::Larder, Ok((200, _))) => true,
                (System::Etcd, Ok((200, body))) => body.contains("true"),
                _ => false,
            };
            if ready {
                missing += 1;
            } else if Instant::now() > until {
                bail!(
                    "a node of {} is not ready after {READY_WITHIN:?}; see {}",
                    self.system,
                    node.log.display()
                );
            } else {
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Which node leads.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let until = Instant::now() + READY_WITHIN;
        while Instant::now() < until {
            for (number, node) in self.nodes.iter().enumerate() {
                if self.leads(node).await? {
                    return Ok(number);
                }
            }
            sleep(LOOK_AGAIN).await;
        }
        bail!("{} has no leader after {READY_WITHIN:?}; see {}", self.system, self.nodes[0].log.display())
    }

    async fn leads(&self, node: &Node) -> Result<bool> {
        Ok(match self.system {
            System::Larder => larder_status(node.client).await?.role() == Role::Leader,
            System::Etcd => etcd::status(&node.client.to_string(), TIMEOUT).await?.leads(),
        })
    }

    /// The system's release, as a node tells it.
    pub(crate) async fn release(&self) -> Result<String> {
        let client = self.nodes[0].client;
        Ok(match self.system {
            System::Larder => larder_status(client).await?.release,
            System::Etcd => etcd::status(&client.to_string(), TIMEOUT).await?.version,
        })
    }

    /// `host:port` of a node's client port.
    pub(crate) fn client(&self, node: usize) -> String {
        self.nodes[node].client.to_string()
    }

    /// A node's metrics.
    pub(crate) async fn metrics(&self, node: usize) -> Result<String> {
        let (code, text) = http::get(self.nodes[node].http, "/metrics").await?;
        if code != 200 {
            bail!("/metrics of node {node} of {} answered {code}", self.system);
        }
        Ok(text)
    }

    /// CPU time that each node took so far.
    pub(crate) fn cpu(&self) -> Vec<Duration> {
        self.nodes.iter().map(|node| cpu_of(&node.child.id().to_string())).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // An error means that it has ended already.
            let _ = node.child.kill();
        }
        for node in &mut self.nodes {
            let _ = node.child.wait();
        }
        let _ = fs::remove_file(&self.pids);
        let _ = fs::remove_dir_all(&self.data);
    }
}

async fn larder_status(client: SocketAddr) -> Result<StatusResponse> {
    let mut cluster = ClusterClient::connect(format!("http://{client}")).await?;
    Ok(cluster.status(StatusRequest {}).await?.into_inner())
}

impl System {
    fn ready_path(self) -> &'static str {
        match self {
            Self::Larder => "/readyz",
            Self::Etcd => "/health",
        }
    }
}

/// CPU time of a process, `self` for this one; zero if it is gone.
pub(crate) fn cpu_of(process: &str) -> Duration {
    /// Linux counts in hundredths of a second whatever its own tick is.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before the last parenthesis may contain anything. After it, user and system time are the 12th and 13th.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().skip(11).take(2);
    let ticks: u32 = fields.filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// Free ports: bound all at once so that they differ, and let go.
fn ports() -> std::io::Result<Vec<Ports>> {
    let listeners = (0..3 * NODES)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
    Ok(addresses
        .chunks_exact(3)
        .map(|three| Ports { client: three[0], peer: three[1], http: three[2] })
        .collect())
}

fn larder_command(binary: &Path, number: usize, ports: &[Ports], directory: &Path) -> Command {
    let peers: Vec<_> =
        ports.iter().enumerate().map(|(slot, ports)| format!("{slot}={}", ports.peer)).collect();
    let mut command = Command::new(binary);
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(directory)
        .args(["--slot", &number.to_string()])
        .args(["--peers", &peers.join(",")])
        .args(["--client-addr", &ports[number].client.to_string()])
        .args(["--peer-addr", &ports[number].peer.to_string()])
        .args(["--http-addr", &ports[number].http.to_string()])
        .args(["--advertise-client", &ports[number].client.to_string()])
        .args(["--heartbeat-ms", &HEARTBEAT_MS.to_string()])
        .args(["--election-timeout-min-ms", &ELECTION_MS.to_string()])
        .args(["--election-timeout-max-ms", &(2 * ELECTION_MS).to_string()])
        .args(["--log-level", "warn"]);
    command
}

/// etcd as it comes: only the addresses, and the two times at what they are by default.
fn etcd_command(binary: &Path, number: usize, ports: &[Ports], directory: &Path) -> Command {
    let peers: Vec<_> =
        ports.iter().enumerate().map(|(slot, ports)| format!("node{slot}=http://{}", ports.peer)).collect();
    let client = format!("http://{}", ports[number].client);
    let peer = format!("http://{}", ports[number].peer);
    let mut command = Command::new(binary);
    command
        .arg("--data-dir")
        .arg(directory)
        .args(["--name", &format!("node{number}")])
        .args(["--initial-cluster", &peers.join(",")])
        .args(["--initial-cluster-state", "new"])
        .args(["--initial-cluster-token", "compare"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--heartbeat-interval", &HEARTBEAT_MS.to_string()])
        .args(["--election-timeout", &ELECTION_MS.to_string()])
        .args(["--log-level", "warn"]);
    command
}
