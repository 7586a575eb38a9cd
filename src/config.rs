//! The settings of a node: raw values from everywhere, then one validated [`ServeConfig`].
//!
//! Precedence: defaults in code < the TOML file < `LARDER_*` < flags. A [`RawConfig`] holds what one source says, every
//! field optional; sources are laid over one another with [`RawConfig::merge`], and only the whole is validated. The
//! keys of the file are the flags' names with `_` for `-`.
//!
//! Invariants: a `ServeConfig` is consistent (this slot is a peer; the election timeouts suit the heartbeat); every error
//! names the key, the value, and what is allowed; an unknown key in a file is an error, not a typing error that goes
//! unnoticed.
//!
//! Not here: reading the environment and flags (`cmd`, by clap), and applying settings (`server`).

use std::{collections::BTreeMap, fmt, fs, net::SocketAddr, path::Path, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use crate::{
    cluster::slot::{PeerAddress, PeerMap},
    error::{Error, Result},
    observe::tracing::{LogFormat, parse_level},
};

mod suggest;

/// How large the log grows before a snapshot is taken, unless said otherwise: 64 MiB.
const DEFAULT_SNAPSHOT_LOG_BYTES: u64 = 64 * 1024 * 1024;
/// Below this, a node would do little else than write snapshots.
const MIN_SNAPSHOT_LOG_BYTES: u64 = 1024 * 1024;
/// A node with less cannot hold a batch, its log entry and a snapshot section at once.
const MIN_MEMORY_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
/// An election timeout must outlast this many heartbeats, or one lost packet costs a leader.
const HEARTBEATS_PER_ELECTION: u64 = 3;
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
    /// Where the node keeps its data.
    pub data_dir: Option<PathBuf>,
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
}

impl RawConfig {
    /// The keys of a file, in the order of the fields.
    pub const KEYS: [&'static str; 14] = [
        "slot",
        "peers",
        "data_dir",
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
            data_dir: over.data_dir.or(self.data_dir),
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
        }
    }
}

/// The validated settings of `larder serve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// This node's slot; one of `peers`.
    pub slot: String,
    /// Where every peer is dialled. One or three, oneself included.
    pub peers: PeerMap,
    /// Where the node keeps its data.
    pub data_dir: PathBuf,
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
}

impl ServeConfig {
    /// The `host:port` that clients are told: as configured, else this node's own peer host with the client port.
    pub fn advertised_client(&self) -> String {
        self.advertise_client.clone().unwrap_or_else(|| {
            let host = self.peers.own_address().host.clone();
            PeerAddress { host, port: self.client_addr.port() }.to_string()
        })
    }
}

impl TryFrom<RawConfig> for ServeConfig {
    type Error = Error;

    fn try_from(raw: RawConfig) -> Result<Self> {
        let slot = required("slot", raw.slot, "this node's slot, such as 0")?;
        let peers = required("peers", raw.peers, "slot=host:port of every peer, oneself included")?;
        let peers =
            PeerMap::parse(&slot, &peers).map_err(|error| Error::Invalid(format!("peers: {error}")))?;
        let advertise_client = raw.advertise_client;
        if let Some(address) = &advertise_client {
            address.parse::<PeerAddress>().map_err(|why| {
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
            memory_limit_bytes: raw.memory_limit.map(|size| size.0),
            snapshot_log_bytes: raw.snapshot_log_bytes.map_or(DEFAULT_SNAPSHOT_LOG_BYTES, |size| size.0),
            heartbeat_ms: raw.heartbeat_ms.unwrap_or(100),
            election_timeout_min_ms: raw.election_timeout_min_ms.unwrap_or(500),
            election_timeout_max_ms: raw.election_timeout_max_ms.unwrap_or(1000),
            slot,
            peers,
            advertise_client,
            log_level,
            log_format,
        };
        config.check()?;
        Ok(config)
    }
}

impl ServeConfig {
    /// The settings against one another.
    fn check(&self) -> Result<()> {
        let Self { heartbeat_ms, election_timeout_min_ms: min, election_timeout_max_ms: max, .. } = self;
        let needed = heartbeat_ms.saturating_mul(HEARTBEATS_PER_ELECTION);
        let invalid = |sentence: String| Err(Error::Invalid(sentence));
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
