//! Larder as a target: the generated messages over [`GrpcConnection`], without the client library, so that what is
//! measured is the server and as little client as possible. Only the leader is asked for with the generated stubs.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

use super::{ErrorKind, GrpcConnection, GrpcMethod, Operation, Target};
use crate::{
    error::{Error, Result},
    net::Connector,
    proto::v1::{
        BatchOperation, BatchRequest, BatchResponse, Consistency, GetRequest, GetResponse, MembersRequest,
        ReadOptions, Role, SetRequest, SetResponse, StatusRequest, batch_operation, batch_result,
        cluster_client::ClusterClient,
    },
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to look again while no endpoint knows a leader: a few elections.
const LEADER_WAIT: Duration = Duration::from_secs(10);

/// How long between two looks.
const LEADER_PAUSE: Duration = Duration::from_millis(200);

/// How fresh the reads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadConsistency {
    /// Sees every write that was acknowledged before it.
    Linearizable,
    /// What the node has applied.
    Local,
}

impl ReadConsistency {
    fn options(self) -> ReadOptions {
        let consistency = match self {
            Self::Linearizable => Consistency::Linearizable,
            Self::Local => Consistency::Local,
        };
        ReadOptions { consistency: consistency.into(), ..ReadOptions::default() }
    }
}

/// Where and how to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LarderOptions {
    /// `host:port` or `http://host:port` of one or more nodes.
    pub endpoints: Vec<String>,
    /// How many connections to open, at least 1.
    pub connections: usize,
    /// Deal the connections to all endpoints instead of opening them to the leader only.
    pub spread: bool,
    /// How fresh the reads are.
    pub consistency: ReadConsistency,
    /// How long one request may take.
    pub timeout: Duration,
}

/// Open connections.
#[derive(Debug)]
pub struct Connected {
    /// One sender for each connection.
    pub connections: Vec<LarderTarget>,
    /// Where they go, for the report.
    pub target: String,
}

/// One sender on one connection.
#[derive(Debug, Clone)]
pub struct LarderTarget {
    connection: GrpcConnection,
    read: ReadOptions,
    set: GrpcMethod,
    get: GrpcMethod,
    batch: GrpcMethod,
}

/// Opens the connections: by default all to the leader, which is asked for.
///
/// # Errors
/// [`Error::Invalid`] for an endpoint that cannot be one; [`Error::Unavailable`] if nobody answers or nobody leads within
/// ten seconds.
pub async fn connect(options: &LarderOptions) -> Result<Connected> {
    if options.endpoints.is_empty() || options.connections == 0 {
        return Err(Error::Invalid("at least one endpoint and one connection are needed".into()));
    }
    let endpoints = options
        .endpoints
        .iter()
        .map(|address| endpoint(address, options.timeout))
        .collect::<Result<Vec<_>>>()?;
    let chosen = if options.spread { endpoints } else { vec![leader(&endpoints, options.timeout).await?] };
    let mut connections = Vec::with_capacity(options.connections);
    for endpoint in chosen.iter().cycle().take(options.connections) {
        let authority = endpoint.uri().authority().expect("an endpoint has a host and a port").as_str();
        let connection = GrpcConnection::open(authority, options.timeout).await?;
        connections.push(LarderTarget {
            read: options.consistency.options(),
            set: connection.method("/larder.v1.Cache/Set"),
            get: connection.method("/larder.v1.Cache/Get"),
            batch: connection.method("/larder.v1.Cache/Batch"),
            connection,
        });
    }
    let places: Vec<_> = chosen.iter().map(|endpoint| endpoint.uri().to_string()).collect();
    let which = if options.spread { "all endpoints" } else { "the leader" };
    let reads = match options.consistency {
        ReadConsistency::Linearizable => "linearizable",
        ReadConsistency::Local => "local",
    };
    let target = format!("larder, {which} at {}, {reads} reads", places.join(" "));
    Ok(Connected { connections, target })
}

fn endpoint(address: &str, timeout: Duration) -> Result<Endpoint> {
    let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let wrong =
        |what: &str| Error::Invalid(format!("{address} is not an endpoint ({what}); write host:port"));
    let endpoint = Endpoint::from_shared(url).map_err(|error| wrong(&error.to_string()))?;
    if endpoint.uri().scheme_str() != Some("http") {
        return Err(wrong("only http is spoken"));
    }
    if endpoint.uri().port().is_none() {
        return Err(wrong("the port is missing"));
    }
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(timeout))
}

async fn open(endpoint: &Endpoint) -> Result<Channel> {
    let uri = endpoint.uri();
    let connector = Connector::system(uri.authority().map_or("", |authority| authority.as_str()));
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Error::Unavailable(format!("no connection to {uri}{cause}; see whether a node runs there"))
    })
}

/// Finds the endpoint of the leader; looks again while there is none.
async fn leader(endpoints: &[Endpoint], timeout: Duration) -> Result<Endpoint> {
    let until = Instant::now() + LEADER_WAIT;
    loop {
        match look_for_leader(endpoints, timeout).await {
            Ok(Some(endpoint)) => return Ok(endpoint),
            Ok(None) if Instant::now() < until => {}
            Ok(None) => {
                return Err(Error::Unavailable(
                    "no endpoint knows a leader; see `larder status`, or use --spread to measure without one"
                        .into(),
                ));
            }
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => {}
        }
        sleep(LEADER_PAUSE).await;
    }
}

/// Asks each endpoint once: itself, or whom it names.
async fn look_for_leader(endpoints: &[Endpoint], timeout: Duration) -> Result<Option<Endpoint>> {
    let mut failure = None;
    for endpoint in endpoints {
        match ask(endpoint, timeout).await {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        // All that answered know none, or none answered.
        Some(error) => Err(error),
        None => Ok(None),
    }
}

async fn ask(endpoint: &Endpoint, timeout: Duration) -> Result<Option<Endpoint>> {
    let refused =
        |status: tonic::Status| Error::Unavailable(format!("{} does not answer: {status}", endpoint.uri()));
    let mut cluster = ClusterClient::new(open(endpoint).await?);
    let status = cluster.status(StatusRequest {}).await.map_err(refused)?.into_inner();
    if status.role() == Role::Leader {
        return Ok(Some(endpoint.clone()));
    }
    let Some(leader) = status.leader else { return Ok(None) };
    let members = cluster.members(MembersRequest {}).await.map_err(refused)?.into_inner().members;
    let address = members
        .into_iter()
        .find(|member| member.node.as_ref().is_some_and(|node| node.id == leader.id))
        .map(|member| member.client_address)
        .unwrap_or_default();
    // A member that was not heard from yet has no address: another endpoint, or a later look, tells.
    if address.is_empty() { Ok(None) } else { self::endpoint(&address, timeout).map(Some) }
}

impl Target for LarderTarget {
    async fn set(&mut self, key: Bytes, value: Bytes) -> Result<(), ErrorKind> {
        let request = SetRequest { key, value, ..SetRequest::default() };
        let _: SetResponse = self.connection.unary(&self.set, &request).await?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes) -> Result<(), ErrorKind> {
        let request = GetRequest { key, keyspace: String::new(), read: Some(self.read) };
        let response: GetResponse = self.connection.unary(&self.get, &request).await?;
        if response.found { Ok(()) } else { Err(ErrorKind::MISS) }
    }

    async fn batch(&mut self, operations: Vec<Operation>) -> Result<(), ErrorKind> {
        let asked = operations.len();
        let operations = operations
            .into_iter()
            .map(|operation| BatchOperation {
                operation: Some(match operation {
                    Operation::Set { key, value } => {
                        batch_operation::Operation::Set(SetRequest { key, value, ..SetRequest::default() })
                    }
                    Operation::Get { key } => {
                        batch_operation::Operation::Get(GetRequest { key, ..GetRequest::default() })
                    }
                }),
            })
            .collect();
        let request = BatchRequest { operations, read: Some(self.read) };
        let BatchResponse { results, .. } = self.connection.unary(&self.batch, &request).await?;
        if results.len() != asked {
            return Err(ErrorKind::BAD_ANSWER);
        }
        for result in results {
            match result.result {
                Some(batch_result::Result::Get(get)) if !get.found => return Err(ErrorKind::MISS),
                Some(batch_result::Result::Error(error)) => return Err(tonic::Code::from(error.code).into()),
                Some(_) => {}
                None => return Err(ErrorKind::BAD_ANSWER),
            }
        }
        Ok(())
    }
}
