//! Accepts connections and speaks HTTP/2 on them, until it is told to stop.
//!
//! The caller owns the socket and the stop signal. On stop: no new connection is accepted, every open one is told to go
//! away, what is under way is finished, at most for [`Limits::drain`](super::Limits::drain).

use std::{io, pin::pin, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{Deps, Limits, dispatch::Dispatch};
use crate::error::Result;

/// A silent connection is asked after this long whether it is still there,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// and closed if it does not answer for this long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How much a client may send ahead of what was read, for a stream and for a connection: a value at its limit fits.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024 + 64 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The most bytes of a request's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// The pause after a failed accept (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the client API on a bound socket until `shutdown` is ready, then drains. Plain text, HTTP/2 only.
///
/// # Errors
/// `Invalid` if the compiled-in descriptors cannot be read; nothing that a client does ends it.
pub async fn serve(
    listener: TcpListener,
    deps: Deps,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let limits = deps.limits.clone();
    let stopping = CancellationToken::new();
    let server = Server {
        dispatch: Dispatch::new(deps, stopping.clone())?,
        http: http(&limits),
        stopping,
        drain: limits.drain,
    };
    let connections = Arc::new(Semaphore::new(limits.connections));
    // Every connection holds a sender: the channel closes when the last one is gone.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (server, open) = (server.clone(), open.clone());
                tokio::spawn(async move {
                    server.connection(stream).await;
                    drop((open, permit));
                });
            }
            Err(error) => accept_failed(&error).await,
        }
    }
    drop((listener, open));
    server.stopping.cancel();
    all_closed.recv().await;
    Ok(())
}

/// What a connection needs.
#[derive(Clone)]
struct Server {
    dispatch: Dispatch,
    http: http2::Builder<TokioExecutor>,
    stopping: CancellationToken,
    drain: Duration,
}

impl Server {
    async fn connection(self, stream: TcpStream) {
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), self.dispatch));
        let mut ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = self.stopping.cancelled() => None,
        };
        if ended.is_none() {
            connection.as_mut().graceful_shutdown();
            ended = time::timeout(self.drain, connection).await.ok();
        }
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "a client's connection failed"),
            None => tracing::warn!("a client's connection did not finish in time; it is closed"),
        }
    }
}

fn http(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams_per_connection)
        .max_header_list_size(MAX_HEADER_BYTES)
        .auto_date_header(false);
    http
}

async fn accept_failed(error: &io::Error) {
    match error.kind() {
        // That client went away again: the next one waits.
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused => {}
        _ => {
            tracing::warn!(%error, "a connection cannot be accepted; see the limit of open files");
            time::sleep(ACCEPT_PAUSE).await;
        }
    }
}
