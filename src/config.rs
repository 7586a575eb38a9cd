//! The settings of a node: raw values from everywhere, then one validated [`ServeConfig`].
//!
//! Precedence: defaults in code < the TOML file < `LARDER_*` < flags. A [`RawConfig`] holds what one source says, every
//! field optional; sources are laid over one another with [`RawConfig::merge`], and only the whole is validated. The
//! keys of the file are the flags' names with `_` for `-`.
//!
//! Where a setting is left open, the machine may say it: the slot, from a pod's hostname, and the memory limit ([`Machine`]).
//!
//! Invariants: a `ServeConfig` is consistent (this slot is a peer; the election timeouts suit the heartbeat); every error
//! names the key, the value, and what is allowed; an unknown key in a file is an error, not a typing error that goes
//! unnoticed.
//!
//! Not here: reading the environment and flags (`cmd`, by clap), and applying settings (`server`). The scale file is not read
//! here either, but whenever it is needed ([`ServeConfig::seeds`]).

use std::{collections::BTreeMap, fmt, fs, net::SocketAddr, path::Path, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use crate::{
    cluster::{
        OnMajorityLost,
        discovery::{Discovery, PeerMap, PeerTemplate},
        scale_file::ScaleFile,
        slot::{ordinal_of, parse_seeds, parse_slot},
    },
    error::{Error, Result},
    kubernetes::StatefulSetName,
    net::HostPort,
    observe::tracing::{LogFormat, parse_level},
};

mod machine;
mod suggest;

pub use machine::{Machine, hostname};

/// How large the log grows before a snapshot is taken, unless said otherwise: 64 MiB.
const DEFAULT_SNAPSHOT_LOG_BYTES: u64 = 64 * 1024 * 1024;
/// Below this, a node would do little else than write snapshots.
const MIN_SNAPSHOT_LOG_BYTES: u64 = 1024 * 1024;
/// A node with less cannot hold a batch, its log entry and a snapshot section at once.
const MIN_MEMORY_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
/// An election timeout must outlast this many heartbeats, or one lost packet costs a leader.
const HEARTBEATS_PER_ELECTION: u64 = 3;
/// How many members vote, unless said otherwise: two may fail.
const DEFAULT_MAX_VOTERS: u8 = 5;
/// Every write waits for a majority of them: more would only be slower.
const MOST_VOTERS: u8 = 9;
/// A member that was scaled away is retired after a minute of silence: a restart is over by then.
const DEFAULT_RETIRE_AFTER_MS: u64 = 60_000;
/// Longer than anybody waits for an election.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// What one source of settings says. The names are those of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// This node's slot.
    #[serde(default, deserialize_with = "text_or_number")]
    pub slot: Option<String>,
    /// `slot=host:port,...` of every peer, oneself included; in a file also a table.
    #[serde(default, deserialize_with = "text_or_table")]
    pub peers: Option<String>,
    /// `host:port` of any peer, with `{slot}` in it.
    pub peer_template: Option<String>,
    /// The slots that found the cluster, separated by commas.
    #[serde(default, deserialize_with = "text_or_number")]
    pub seeds: Option<String>,
    /// A file with `seeds` and `replicas`.
    pub scale_file: Option<PathBuf>,
    /// `namespace/name` of the StatefulSet that this node is a pod of.
    pub statefulset: Option<String>,
    /// How many members vote.
    pub max_voters: Option<u8>,
    /// Where the node keeps its data.
    pub data_dir: Option<PathBuf>,
    /// Whether the data directory is emptied at every start.
    pub ephemeral: Option<bool>,
    /// `wait` or `recover`.
    pub on_majority_lost: Option<String>,
    /// `address:port` for clients.
    pub client_addr: Option<String>,
    /// `address:port` for peers.
    pub peer_addr: Option<String>,
    /// `address:port` for probes and metrics.
    pub http_addr: Option<String>,
    /// `host:port` that clients are told to connect to.
    pub advertise_client: Option<String>,
    /// A level, or `target=level` pairs.
    pub log_level: Option<String>,
    /// `text` or `json`.
    pub log_format: Option<String>,
    /// Bytes, or with a unit: `512Mi`.
    pub memory_limit: Option<ByteSize>,
    /// Take a snapshot after so many bytes of log.
    pub snapshot_log_bytes: Option<ByteSize>,
    /// Milliseconds between the leader's heartbeats.
    pub heartbeat_ms: Option<u64>,
    /// The shortest time without a leader before a node asks for votes.
    pub election_timeout_min_ms: Option<u64>,
    /// The longest one.
    pub election_timeout_max_ms: Option<u64>,
    /// How long a member that was scaled away may be silent before it is retired.
    pub retire_after_ms: Option<u64>,
}

impl RawConfig {
    /// The keys of a file, in the order of the fields.
    pub const KEYS: [&'static str; 22] = [
        "slot",
        "peers",
        "peer_template",
        "seeds",
        "scale_file",
        "statefulset",
        "max_voters",
        "data_dir",
        "ephemeral",
        "on_majority_lost",
        "client_addr",
        "peer_addr",
        "http_addr",
        "advertise_client",
        "log_level",
        "log_format",
        "memory_limit",
        "snapshot_log_bytes",
        "heartbeat_ms",
        "election_timeout_min_ms",
        "election_timeout_max_ms",
        "retire_after_ms",
    ];

    /// Reads a TOML file.
    ///
    /// # Errors
    /// `Invalid` if it cannot be read, is not TOML, has an unknown key, or a value of the wrong kind.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| {
            Error::Invalid(format!("the configuration file {} cannot be read: {error}", path.display()))
        })?;
        Self::from_toml(&text, &path.display().to_string())
    }

    /// Reads TOML; `file` is how errors name it.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_toml(text: &str, file: &str) -> Result<Self> {
        let invalid =
            |error: &dyn fmt::Display| Error::Invalid(format!("{file}: {}", error.to_string().trim_end()));
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| invalid(&error))?;
        if let Some(key) = table.keys().find(|key| !Self::KEYS.contains(&key.as_str())) {
            let nearest = suggest::nearest(key, &Self::KEYS);
            return Err(Error::Invalid(format!(
                "{file}: there is no key `{key}`; did you mean `{nearest}`?"
            )));
        }
        // From the text and not from the table, so that an error names the line.
        toml::from_str(text).map_err(|error| invalid(&error))
    }

    /// Lays `over` on top: what it says wins, what it leaves open stays.
    #[must_use]
    pub fn merge(self, over: Self) -> Self {
        Self {
            slot: over.slot.or(self.slot),
            peers: over.peers.or(self.peers),
            peer_template: over.peer_template.or(self.peer_template),
            seeds: over.seeds.or(self.seeds),
            scale_file: over.scale_file.or(self.scale_file),
            statefulset: over.statefulset.or(self.statefulset),
            max_voters: over.max_voters.or(self.max_voters),
            data_dir: over.data_dir.or(self.data_dir),
            ephemeral: over.ephemeral.or(self.ephemeral),
            on_majority_lost: over.on_majority_lost.or(self.on_majority_lost),
            client_addr: over.client_addr.or(self.client_addr),
            peer_addr: over.peer_addr.or(self.peer_addr),
            http_addr: over.http_addr.or(self.http_addr),
            advertise_client: over.advertise_client.or(self.advertise_client),
            log_level: over.log_level.or(self.log_level),
            log_format: over.log_format.or(self.log_format),
            memory_limit: over.memory_limit.or(self.memory_limit),
            snapshot_log_bytes: over.snapshot_log_bytes.or(self.snapshot_log_bytes),
            heartbeat_ms: over.heartbeat_ms.or(self.heartbeat_ms),
            election_timeout_min_ms: over.election_timeout_min_ms.or(self.election_timeout_min_ms),
            election_timeout_max_ms: over.election_timeout_max_ms.or(self.election_timeout_max_ms),
            retire_after_ms: over.retire_after_ms.or(self.retire_after_ms),
        }
    }
}

/// The validated settings of `larder serve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// This node's slot; a place that `discovery` knows.
    pub slot: String,
    /// Where every peer is dialled, oneself included.
    pub discovery: Discovery,
    /// Who says which slots found the cluster; see [`Self::seeds`].
    pub seeds: Seeds,
    /// A file that says how many nodes are wanted, where there is no Kubernetes API to ask.
    pub scale_file: Option<PathBuf>,
    /// The StatefulSet that this node is a pod of; `None`: no Kubernetes API is asked for anything.
    pub statefulset: Option<StatefulSetName>,
    /// How many members vote at most: odd, 1 to 9.
    pub max_voters: u8,
    /// Where the node keeps its data.
    pub data_dir: PathBuf,
    /// Whether the data directory is emptied at every start, so that each start is a new member.
    pub ephemeral: bool,
    /// What the last member left does. [`OnMajorityLost::Recover`] only with `ephemeral`.
    pub on_majority_lost: OnMajorityLost,
    /// Where clients connect.
    pub client_addr: SocketAddr,
    /// Where peers connect.
    pub peer_addr: SocketAddr,
    /// Where probes and metrics are served.
    pub http_addr: SocketAddr,
    /// `host:port` that clients are told; `None`: see [`Self::advertised_client`].
    pub advertise_client: Option<String>,
    /// A level, or `target=level` pairs.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The memory that the node may use, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes of log after which a snapshot is taken.
    pub snapshot_log_bytes: u64,
    /// Milliseconds between the leader's heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds without a leader before a node asks for votes, at least;
    pub election_timeout_min_ms: u64,
    /// and at most.
    pub election_timeout_max_ms: u64,
    /// Milliseconds of silence after which a member that was scaled away is retired.
    pub retire_after_ms: u64,
}

/// Who says which slots found the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seeds {
    /// These are they.
    Listed(Vec<String>),
    /// The scale file does.
    ScaleFile(PathBuf),
}

impl ServeConfig {
    /// The `host:port` that clients are told: as configured, else this node's own peer host with the client port.
    pub fn advertised_client(&self) -> String {
        // The dot that ends a full name is for resolvers; clients in other languages stumble over it.
        let own = || {
            let host = self.discovery.place(&self.slot).map(|own| own.host).unwrap_or_default();
            host.strip_suffix('.').map(str::to_owned).unwrap_or(host)
        };
        self.advertise_client
            .clone()
            .unwrap_or_else(|| HostPort { host: own(), port: self.client_addr.port() }.to_string())
    }

    /// The slots that found the cluster. Reads the scale file if it says them, and then blocks. Only a node whose data directory is bound
    /// to no cluster needs them: any other must start without.
    ///
    /// # Errors
    /// `Invalid` if the scale file cannot be read or does not say them, or if one of them is not in the list of peers.
    pub fn seeds(&self) -> Result<Vec<String>> {
        let seeds = match &self.seeds {
            Seeds::Listed(seeds) => seeds.clone(),
            Seeds::ScaleFile(path) => ScaleFile::read(path)?.seeds()?,
        };
        self.check_seeds(&seeds)?;
        Ok(seeds)
    }

    /// How many nodes the scale file wants; `None` without one, and where it does not say. Reads the file, and then blocks.
    pub fn wanted_replicas(&self) -> Option<u32> {
        let path = self.scale_file.as_ref()?;
        // Looked at again and again, and not every file says it: a node per machine has no number of replicas.
        let replicas = ScaleFile::read(path).and_then(|file| file.replicas());
        replicas.inspect_err(|error| tracing::debug!(%error, "the wanted number of nodes is not known")).ok()
    }

    fn check_seeds(&self, seeds: &[String]) -> Result<()> {
        match &self.discovery {
            Discovery::Static(map) => map.check_seeds(seeds).map_err(invalid("seeds")),
            Discovery::Template(_) => Ok(()),
        }
    }

    /// Checks the settings, and takes from the machine what they leave open.
    ///
    /// # Errors
    /// `Invalid` with the key, the value, and what is allowed.
    pub fn new(raw: RawConfig, machine: &Machine) -> Result<Self> {
        let (slot, discovery) = place(raw.slot, raw.peers, raw.peer_template, machine)?;
        let seeds = match (raw.seeds, &raw.scale_file, &discovery) {
            (Some(list), _, _) => Seeds::Listed(parse_seeds(&list).map_err(invalid("seeds"))?),
            (None, Some(file), _) => Seeds::ScaleFile(file.clone()),
            (None, None, Discovery::Static(map)) => Seeds::Listed(map.default_seeds()),
            (None, None, Discovery::Template(_)) => {
                return Err(Error::Invalid(
                    "seeds is missing: with a template, give the slots that found the cluster, such as 0,1,2, by --seeds, \
                     LARDER_SEEDS or the file, or a --scale-file that says them"
                        .into(),
                ));
            }
        };
        let advertise_client = raw.advertise_client;
        if let Some(address) = &advertise_client {
            address.parse::<HostPort>().map_err(|why| {
                Error::Invalid(format!("advertise_client = \"{address}\" is not host:port: {why}"))
            })?;
        }
        let log_level = raw.log_level.unwrap_or_else(|| "info".to_owned());
        parse_level(&log_level).map_err(|error| Error::Invalid(format!("log_level: {error}")))?;
        let log_format = raw.log_format.map_or(Ok(LogFormat::default()), |format| {
            format.parse().map_err(|error| Error::Invalid(format!("log_format: {error}")))
        })?;
        let config = Self {
            data_dir: required("data_dir", raw.data_dir, "a directory of this node's own")?,
            client_addr: socket("client_addr", raw.client_addr, 7400)?,
            peer_addr: socket("peer_addr", raw.peer_addr, 7401)?,
            http_addr: socket("http_addr", raw.http_addr, 7402)?,
            memory_limit_bytes: raw.memory_limit.map(|size| size.0).or(machine.memory_limit_bytes),
            scale_file: raw.scale_file,
            statefulset: raw
                .statefulset
                .map(|name| name.parse().map_err(invalid("statefulset")))
                .transpose()?,
            max_voters: raw.max_voters.unwrap_or(DEFAULT_MAX_VOTERS),
            ephemeral: raw.ephemeral.unwrap_or_default(),
            on_majority_lost: raw.on_majority_lost.map_or(Ok(OnMajorityLost::default()), |rule| {
                rule.parse().map_err(invalid("on_majority_lost"))
            })?,
            snapshot_log_bytes: raw.snapshot_log_bytes.map_or(DEFAULT_SNAPSHOT_LOG_BYTES, |size| size.0),
            heartbeat_ms: raw.heartbeat_ms.unwrap_or(100),
            election_timeout_min_ms: raw.election_timeout_min_ms.unwrap_or(500),
            election_timeout_max_ms: raw.election_timeout_max_ms.unwrap_or(1000),
            retire_after_ms: raw.retire_after_ms.unwrap_or(DEFAULT_RETIRE_AFTER_MS),
            slot,
            discovery,
            seeds,
            advertise_client,
            log_level,
            log_format,
        };
        config.check()?;
        Ok(config)
    }

    /// The settings against one another.
    fn check(&self) -> Result<()> {
        let Self { heartbeat_ms, election_timeout_min_ms: min, election_timeout_max_ms: max, .. } = self;
        let needed = heartbeat_ms.saturating_mul(HEARTBEATS_PER_ELECTION);
        let invalid = |sentence: String| Err(Error::Invalid(sentence));
        if self.max_voters.is_multiple_of(2) || self.max_voters > MOST_VOTERS {
            return invalid(format!(
                "max_voters = {}: give an odd number from 1 to {MOST_VOTERS}; an even one tolerates no more failures than the \
                 odd one below it",
                self.max_voters
            ));
        }
        if self.on_majority_lost == OnMajorityLost::Recover && !self.ephemeral {
            return invalid(
                "on_majority_lost = recover: only with ephemeral; a node that keeps its data waits for `larder recover`".into(),
            );
        }
        if let Seeds::Listed(seeds) = &self.seeds {
            self.check_seeds(seeds)?;
        }
        if !(1..=MAX_TIMEOUT_MS).contains(heartbeat_ms) {
            return invalid(format!("heartbeat_ms = {heartbeat_ms}: give 1 to {MAX_TIMEOUT_MS}"));
        }
        if *min < needed {
            return invalid(format!(
                "election_timeout_min_ms = {min}: it must be at least {HEARTBEATS_PER_ELECTION} times heartbeat_ms \
                 ({heartbeat_ms}), so {needed} or more"
            ));
        }
        if max <= min || *max > MAX_TIMEOUT_MS {
            return invalid(format!(
                "election_timeout_max_ms = {max}: it must be above election_timeout_min_ms ({min}) and at most \
                 {MAX_TIMEOUT_MS}"
            ));
        }
        if self.snapshot_log_bytes < MIN_SNAPSHOT_LOG_BYTES {
            return invalid(format!(
                "snapshot_log_bytes = {}: give {MIN_SNAPSHOT_LOG_BYTES} (1Mi) or more",
                self.snapshot_log_bytes
            ));
        }
        match self.memory_limit_bytes {
            Some(limit) if limit < MIN_MEMORY_LIMIT_BYTES => {
                invalid(format!("memory_limit = {limit}: give {MIN_MEMORY_LIMIT_BYTES} (64Mi) or more"))
            }
            _ => self.check_ports(),
        }
    }

    fn check_ports(&self) -> Result<()> {
        let ports =
            [("client_addr", self.client_addr), ("peer_addr", self.peer_addr), ("http_addr", self.http_addr)];
        for (i, (name, address)) in ports.iter().enumerate() {
            // Port 0 asks for any free one.
            if let Some((other, _)) = ports[..i].iter().find(|(_, a)| a == address && a.port() != 0) {
                return Err(Error::Invalid(format!(
                    "{name} = {address}: {other} is the same; give each its own port"
                )));
            }
        }
        Ok(())
    }
}

/// This node's slot, and where the others are.
fn place(
    slot: Option<String>,
    peers: Option<String>,
    template: Option<String>,
    machine: &Machine,
) -> Result<(String, Discovery)> {
    match (peers, template) {
        (Some(_), Some(_)) => Err(Error::Invalid(
            "peers and peer_template are both given: give the one or the other; look also in LARDER_PEERS, LARDER_PEER_TEMPLATE \
             and the file"
                .into(),
        )),
        (peers, None) => {
            let slot = required("slot", slot, "this node's slot, such as 0")?;
            let peers = required("peers", peers, "slot=host:port of every peer, oneself included, or a peer_template")?;
            let map = PeerMap::parse(&slot, &peers).map_err(invalid("peers"))?;
            Ok((slot, Discovery::Static(map)))
        }
        (None, Some(template)) => {
            let slot = slot.map_or_else(|| ordinal_of(&machine.hostname), |slot| parse_slot(&slot));
            let slot = slot.map_err(invalid("slot"))?;
            let found = Discovery::Template(PeerTemplate::parse(&template).map_err(invalid("peer_template"))?);
            if found.place(&slot).is_none() {
                return Err(Error::Invalid(format!(
                    "peer_template = \"{template}\" with slot {slot} is longer than any DNS name"
                )));
            }
            Ok((slot, found))
        }
    }
}

/// Names the key in front of what is wrong with its value.
fn invalid<E: fmt::Display>(key: &str) -> impl FnOnce(E) -> Error {
    move |error| Error::Invalid(format!("{key}: {error}"))
}

fn required<T>(key: &str, value: Option<T>, what: &str) -> Result<T> {
    let (flag, variable) = (key.replace('_', "-"), key.to_uppercase());
    value.ok_or_else(|| {
        Error::Invalid(format!("{key} is missing: give {what}, by --{flag}, LARDER_{variable} or the file"))
    })
}

fn socket(key: &str, value: Option<String>, default_port: u16) -> Result<SocketAddr> {
    let Some(value) = value else { return Ok(([0, 0, 0, 0], default_port).into()) };
    value.parse().map_err(|_| {
        Error::Invalid(format!(
            "{key} = \"{value}\": give an IP address and a port, such as 0.0.0.0:{default_port} or [::]:{default_port}"
        ))
    })
}

/// A number of bytes. As text: plain, or with Ki, Mi, Gi, Ti (powers of 1024) or k, M, G, T (powers of 1000).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const UNITS: [(&str, u64); 9] = [
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("Ti", 1 << 40),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
            ("", 1),
        ];
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let size = UNITS
            .iter()
            .find(|(unit, _)| *unit == text[digits.len()..].trim())
            .and_then(|(_, factor)| digits.trim_end().parse::<u64>().ok()?.checked_mul(*factor));
        size.map(Self).ok_or_else(|| {
            Error::Invalid(format!(
                "\"{text}\" is no number of bytes; give one such as 536870912, 512Mi or 2Gi"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes, such as 536870912 or \"512Mi\"")]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// A slot is a name, but most are numbers, and TOML tells the two apart.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a slot, such as 0 or \"0\"")]
    enum Form {
        Number(u64),
        Text(String),
    }
    Ok(Some(match Form::deserialize(deserializer)? {
        Form::Number(number) => number.to_string(),
        Form::Text(text) => text,
    }))
}

/// A list of peers, as the text that the flag takes.
fn text_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "peers: give \"slot=host:port,...\" or a table of slot = \"host:port\"")]
    enum Form {
        Text(String),
        Table(BTreeMap<String, String>),
    }
    Ok(Some(match Form::deserialize(deserializer)? {
        Form::Text(text) => text,
        Form::Table(table) => {
            let peers: Vec<String> =
                table.iter().map(|(slot, address)| format!("{slot}={address}")).collect();
            peers.join(",")
        }
    }))
}

#[cfg(test)]
mod tests;
