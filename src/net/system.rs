//! Names as this machine knows them: its hosts file, then DNS.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use tokio::time::timeout;

use super::Resolver;

/// How long a name server may take to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a question without an answer is asked again.
const RETRIES: usize = 1;
/// How long all questions for one name may take. Below what those who dial wait (`raft::hello`), so that they hear the reason.
const RESOLVE_TIMEOUT: Duration = Duration::from_millis(1500);

/// The machine's own resolving, without the C library: `/etc/hosts`, then the name servers of `/etc/resolv.conf`, with its search list.
///
/// Both files are read at every call, so nothing is known that is not in them any more, and no answer is kept, least of all
/// that a name does not exist. A machine without name servers asks its own port 53, as resolv.conf(5) says.
#[derive(Debug, Clone)]
pub struct SystemResolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    dns_port: u16,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into(), dns_port: 53 }
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![(ip, port).into()]);
        }
        let name = Name::from_str_relaxed(host).map_err(|e| format!("it is no DNS name: {e}"))?;
        let files = self.clone();
        let Known { hosts, dns } = tokio::task::spawn_blocking(move || files.read())
            .await
            .map_err(|e| format!("the settings of this machine could not be read: {e}"))?;
        let mut addresses = in_hosts(&hosts, &name);
        if addresses.is_empty() {
            let (config, options) = dns?;
            addresses = ask(config, options, name).await?;
        }
        Ok(addresses.into_iter().map(|ip| (ip, port).into()).collect())
    }
}

/// What the two files say.
struct Known {
    hosts: Hosts,
    dns: Result<(ResolverConfig, ResolverOpts), String>,
}

impl SystemResolver {
    /// Blocks; the files are small.
    fn read(&self) -> Known {
        let mut hosts = Hosts::default();
        // Without a hosts file, or with a bad one, there is still DNS.
        if let Ok(text) = fs::read(&self.hosts) {
            let _ = hosts.read_hosts_conf(text.as_slice());
        }
        Known { hosts, dns: self.dns() }
    }

    fn dns(&self) -> Result<(ResolverConfig, ResolverOpts), String> {
        let text = match fs::read(&self.resolv_conf) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(format!("{} cannot be read: {e}", self.resolv_conf.display())),
        };
        let (mut config, mut options) = settings(&self.resolv_conf, text)?;
        let servers: Vec<NameServerConfig> = config.name_servers().to_vec();
        let servers = servers.into_iter().map(|mut server| {
            for connection in &mut server.connections {
                connection.port = self.dns_port;
            }
            server
        });
        config =
            ResolverConfig::from_parts(config.domain().cloned(), config.search().to_vec(), servers.collect());
        options.timeout = ANSWER_TIMEOUT;
        options.attempts = RETRIES;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = 0;
        // Looked into before, for the name as it is written: the search list is for DNS.
        options.use_hosts_file = ResolveHosts::Never;
        Ok((config, options))
    }
}

/// Reads resolv.conf. Without a name server in it, the machine's own is asked.
fn settings(file: &Path, mut text: Vec<u8>) -> Result<(ResolverConfig, ResolverOpts), String> {
    let names_a_server =
        text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_start().starts_with(b"nameserver"));
    if !names_a_server {
        text.extend_from_slice(format!("\nnameserver {}\n", Ipv4Addr::LOCALHOST).as_bytes());
    }
    parse_resolv_conf(text).map_err(|e| format!("{} is not understood: {e}", file.display()))
}

fn in_hosts(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.to_lowercase(), kind)))
        .flat_map(|found| {
            found.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
        })
        .collect()
}

async fn ask(config: ResolverConfig, options: ResolverOpts, name: Name) -> Result<Vec<IpAddr>, String> {
    let asked: Vec<String> = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
    let asked = asked.join(", ");
    let why = |error: &NetError| match error {
        error if error.is_nx_domain() => format!("there is no such name (asked {asked})"),
        error if error.is_no_records_found() => format!("the name has no address (asked {asked})"),
        NetError::Timeout => format!("no name server answered in time (asked {asked})"),
        error => format!("{error} (asked {asked})"),
    };
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let resolver = builder.build().map_err(|error| why(&error))?;
    let found = timeout(RESOLVE_TIMEOUT, resolver.lookup_ip(name)).await.unwrap_or(Err(NetError::Timeout));
    let found = found.map_err(|error| why(&error))?;
    let addresses: Vec<IpAddr> = found.iter().collect();
    if addresses.is_empty() { Err(format!("the name has no address (asked {asked})")) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests;
