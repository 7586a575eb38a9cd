//! A unary gRPC call with as little client as possible, straight on HTTP/2.
//!
//! On a small machine the harness takes its CPU from the server that it measures, so that a dear client hides the
//! difference between two servers. A general gRPC client (queue, reconnecting, balancing, layers, streaming bodies)
//! takes about twice the CPU for each call; what is here is the protocol alone: one request message, one response
//! message, the status. The same code drives every system that is compared.
//!
//! Not here: TLS, compression, streaming, metadata.

use std::{fmt, future::poll_fn, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream,
    client::{Builder, SendRequest},
};
use prost::Message;
use tokio::{sync::Mutex, time::timeout};
use tonic::{
    Code,
    codegen::http::{
        HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header,
        uri::{Authority, PathAndQuery, Scheme},
    },
};

use super::ErrorKind;
use crate::{
    error::{Error, Result},
    net::Connector,
};

/// HTTP/2 windows that never stall the largest value.
const WINDOW_BYTES: u32 = 4 << 20;

/// The longest response message: the largest batch of the largest values, and some.
const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// The flag and the length before each message.
const PREFIX_BYTES: usize = 5;

/// A method on a server: its path, made once.
#[derive(Debug, Clone)]
pub struct GrpcMethod(Uri);

/// One sender on one connection. A clone is another sender on the same connection.
///
/// A connection that breaks fails what is in flight, and is made anew by the next call.
#[derive(Clone)]
pub struct GrpcConnection {
    shared: Arc<Shared>,
    /// This sender's handle on the connection, and which connection it was.
    sender: SendRequest<Bytes>,
    generation: u64,
    headers: HeaderMap,
}

struct Shared {
    authority: Authority,
    timeout: Duration,
    current: Mutex<Current>,
}

struct Current {
    sender: SendRequest<Bytes>,
    generation: u64,
}

impl fmt::Debug for GrpcConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcConnection").field("authority", &self.shared.authority).finish_non_exhaustive()
    }
}

impl GrpcConnection {
    /// Connects to `host:port`. A call, and connecting, takes at most `timeout`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not `host:port`; [`Error::Unavailable`] if nobody speaks HTTP/2 there.
    pub async fn open(address: &str, timeout: Duration) -> Result<Self> {
        let authority: Authority = address.parse().map_err(|error| {
            Error::Invalid(format!("{address} is not host:port ({error}); write host:port"))
        })?;
        let sender = dial(&authority, timeout).await.map_err(|error| {
            Error::Unavailable(format!("no connection to {address}: {error}; see whether a node runs there"))
        })?;
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let current = Mutex::new(Current { sender: sender.clone(), generation: 0 });
        Ok(Self { shared: Arc::new(Shared { authority, timeout, current }), sender, generation: 0, headers })
    }

    /// The method of this path, for example `/larder.v1.Cache/Get`.
    ///
    /// # Panics
    /// If it cannot be a path.
    pub fn method(&self, path: &'static str) -> GrpcMethod {
        let mut parts = tonic::codegen::http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.shared.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static(path));
        GrpcMethod(Uri::from_parts(parts).expect("all three parts are there"))
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// The gRPC status; `unavailable` if the connection is broken; [`ErrorKind::TIMEOUT`];
    /// [`ErrorKind::BAD_ANSWER`] for what is no gRPC.
    pub async fn unary<Q, A>(&mut self, method: &GrpcMethod, request: &Q) -> Result<A, ErrorKind>
    where
        Q: Message,
        A: Message + Default,
    {
        let length = request.encoded_len();
        let mut message = BytesMut::with_capacity(PREFIX_BYTES + length);
        message.put_u8(0);
        message.put_u32(u32::try_from(length).map_err(|_| ErrorKind::BAD_ANSWER)?);
        request.encode(&mut message).map_err(|_| ErrorKind::BAD_ANSWER)?;
        let limit = self.shared.timeout;
        let answer = timeout(limit, self.exchange(method, message.freeze()))
            .await
            .unwrap_or(Err(ErrorKind::TIMEOUT))?;
        A::decode(answer).map_err(|_| ErrorKind::BAD_ANSWER)
    }

    /// Sends one message and answers the other's.
    async fn exchange(&mut self, method: &GrpcMethod, message: Bytes) -> Result<Bytes, ErrorKind> {
        if poll_fn(|context| self.sender.poll_ready(context)).await.is_err() {
            self.reconnect().await?;
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = method.0.clone();
        *request.headers_mut() = self.headers.clone();
        let (response, mut body) = self.sender.send_request(request, false).map_err(broken)?;
        body.send_data(message, true).map_err(broken)?;
        let (head, body) = response.await.map_err(broken)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(ErrorKind::BAD_ANSWER);
        }
        // An error without a message has its status in the head.
        if let Some(code) = grpc_status(&head.headers)
            && code != Code::Ok
        {
            return Err(code.into());
        }
        receive(body).await
    }

    /// Takes over the connection that another sender has made since, or makes one.
    async fn reconnect(&mut self) -> Result<(), ErrorKind> {
        // Held while dialling on purpose: all senders of the connection wait for the same one.
        let mut current = self.shared.current.lock().await;
        if current.generation == self.generation {
            let dialled = dial(&self.shared.authority, self.shared.timeout).await;
            current.sender = dialled.map_err(|_| Code::Unavailable)?;
            current.generation += 1;
        }
        self.sender = current.sender.clone();
        self.generation = current.generation;
        drop(current);
        poll_fn(|context| self.sender.poll_ready(context)).await.map_err(broken)
    }
}

/// Reads the one message and the status after it.
async fn receive(mut body: RecvStream) -> Result<Bytes, ErrorKind> {
    // The usual case is all of it in one frame, which is then decoded where it is; only longer ones are copied.
    let mut message = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
        if message.is_empty() {
            message = chunk;
            continue;
        }
        if joined.is_empty() {
            joined.extend_from_slice(&message);
        }
        if joined.len() + chunk.len() > MAX_MESSAGE_BYTES {
            return Err(ErrorKind::BAD_ANSWER);
        }
        joined.extend_from_slice(&chunk);
    }
    if !joined.is_empty() {
        message = joined.freeze();
    }
    let trailers = body.trailers().await.map_err(broken)?.ok_or(ErrorKind::BAD_ANSWER)?;
    match grpc_status(&trailers) {
        Some(Code::Ok) => {}
        Some(code) => return Err(code.into()),
        None => return Err(ErrorKind::BAD_ANSWER),
    }
    if message.len() < PREFIX_BYTES || message.get_u8() != 0 {
        return Err(ErrorKind::BAD_ANSWER);
    }
    let length = message.get_u32() as usize;
    if message.len() == length { Ok(message) } else { Err(ErrorKind::BAD_ANSWER) }
}

fn grpc_status(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// A reset or a broken connection.
fn broken(_: h2::Error) -> ErrorKind {
    Code::Unavailable.into()
}

async fn dial(authority: &Authority, limit: Duration) -> std::io::Result<SendRequest<Bytes>> {
    let connect = async {
        let stream = Connector::system(authority.as_str()).dial().await.map_err(std::io::Error::other)?;
        let (sender, connection) = Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(std::io::Error::other)?;
        // Ends when all senders are gone or the connection breaks; the senders learn of it themselves.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    };
    timeout(limit, connect).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
