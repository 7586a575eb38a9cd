//! What tonic calls for each new connection.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tonic::transport::Uri;
use tower_service::Service;

use super::{HostPort, Resolver, SystemResolver};

/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How many addresses of one name are tried. A node has one or two; a service that has more is reached by the first.
const MAX_ADDRESSES: usize = 8;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialError {
    /// Nobody says where to dial; a sentence.
    Nowhere(String),
    /// The name has no address at the moment, and why.
    Unresolved(String),
    /// None of the addresses answers: the last one, if it was found by its name, and why.
    Refused(Option<IpAddr>, String),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere(why) | Self::Refused(None, why) => f.write_str(why),
            Self::Unresolved(why) => write!(f, "the name does not resolve: {why}"),
            Self::Refused(Some(ip), why) => write!(f, "{ip}: {why}"),
        }
    }
}

impl std::error::Error for DialError {}

/// Where to dial, as a text `host:port`; an error is a sentence.
type Whereto = dyn Fn() -> Result<String, String> + Send + Sync;

/// Where the place was seen at last, if anywhere.
type Seen = dyn Fn() -> Option<IpAddr> + Send + Sync;

/// Dials one place anew whenever it is called, and asks each time where that is. The URI of the endpoint only names it in requests.
#[derive(Clone)]
pub struct Connector {
    whereto: Arc<Whereto>,
    resolver: Arc<dyn Resolver>,
    seen: Option<Arc<Seen>>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector to the place that `whereto` says, `host:port`; its error is a sentence that says why there is none.
    pub fn new(
        resolver: Arc<dyn Resolver>,
        whereto: impl Fn() -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        Self { whereto: Arc::new(whereto), resolver, seen: None }
    }

    /// The same, which also tries the address that `seen` gives, with the same port, when the name leads nowhere: DNS may remember for half a
    /// minute that a pod was not there, or where it was.
    #[must_use]
    pub fn or_where_seen(self, seen: impl Fn() -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        Self { seen: Some(Arc::new(seen)), ..self }
    }

    /// A connector to `address`, `host:port`.
    pub fn to(resolver: Arc<dyn Resolver>, address: &str) -> Self {
        let address = address.to_owned();
        Self::new(resolver, move || Ok(address.clone()))
    }

    /// A connector to `address`, `host:port`, as this machine resolves it.
    pub fn system(address: &str) -> Self {
        Self::to(Arc::new(SystemResolver::default()), address)
    }

    /// A new connection.
    ///
    /// # Errors
    /// If nobody says where, the name does not resolve, or no address answers within a second.
    pub async fn dial(&self) -> Result<TcpStream, DialError> {
        let address = (self.whereto)().map_err(DialError::Nowhere)?;
        let HostPort { host, port } = address
            .parse()
            .map_err(|why| DialError::Nowhere(format!("{address:?} is not host:port: {why}")))?;
        let failure = match self.dial_by_name(&host, port).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => failure,
        };
        let seen = self.seen.as_ref().and_then(|seen| seen()).map(|ip| SocketAddr::new(ip, port));
        match seen {
            // What went wrong with the name is what is to be mended.
            Some(address) => connect(address).await.map_err(|_| failure),
            None => Err(failure),
        }
    }

    async fn dial_by_name(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let resolved = self.resolver.resolve(host, port).await.map_err(DialError::Unresolved)?;
        let named = host.parse::<IpAddr>().is_err();
        let mut failure = DialError::Unresolved("it has no address".into());
        for address in resolved.into_iter().take(MAX_ADDRESSES) {
            match connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failure = DialError::Refused(named.then(|| address.ip()), error.to_string());
                }
            }
        }
        Err(failure)
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}"));
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(late)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialled = self.clone();
        Box::pin(async move { dialled.dial().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::TableResolver;

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Nobody listens there any more.
    async fn closed() -> SocketAddr {
        listen().await.1
    }

    #[tokio::test]
    async fn the_addresses_are_tried_in_turn_and_delays_are_off() {
        let (_listener, open) = listen().await;
        let table = Arc::new(TableResolver::new());
        table.set("node", [closed().await, open]);
        let stream = Connector::to(table, "node:7401").dial().await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn each_dial_asks_where_to_and_resolves_anew() {
        let ((_a, first), (_b, second)) = (listen().await, listen().await);
        let table = Arc::new(TableResolver::new());
        let connector = Connector::to(table.clone(), "node:7401");
        assert_eq!(
            connector.dial().await.unwrap_err().to_string(),
            "the name does not resolve: there is no such name"
        );
        for address in [first, second] {
            table.set("node", [address]);
            assert_eq!(connector.dial().await.unwrap().peer_addr().unwrap(), address);
        }
        table.set("node", []);
        assert_eq!(connector.dial().await.unwrap_err(), DialError::Unresolved("it has no address".into()));
    }

    #[tokio::test]
    async fn who_refuses_is_named_if_only_the_name_was_known() {
        let table = Arc::new(TableResolver::new());
        let address = closed().await;
        table.set("node", [address]);
        let by_name = Connector::to(table.clone(), "node:7401").dial().await.unwrap_err().to_string();
        assert!(by_name.starts_with("127.0.0.1: Connection refused"), "{by_name}");
        let by_address = Connector::to(table, &address.to_string()).dial().await.unwrap_err().to_string();
        assert!(by_address.starts_with("Connection refused"), "{by_address}");
    }

    #[tokio::test]
    async fn a_place_that_is_none_is_said() {
        let table = Arc::new(TableResolver::new());
        let nowhere = Connector::new(table.clone(), || Err("slot 7 is not among the peers".into()));
        assert_eq!(nowhere.dial().await.unwrap_err().to_string(), "slot 7 is not among the peers");
        let error = Connector::to(table, "node").dial().await.unwrap_err().to_string();
        assert_eq!(error, "\"node\" is not host:port: the port is missing");
    }
}
