//! Probes and metrics over HTTP/1.1, for Kubernetes, Prometheus and people.
//!
//! | path | answers |
//! |---|---|
//! | `/livez` | 200 as long as requests are answered at all; never asks for quorum, disk or load |
//! | `/startupz` | 200 once the local state is loaded |
//! | `/readyz` | 200 if every check holds, else 503; each check on a line |
//! | `/metrics` | Prometheus' text |
//!
//! Not here: anything that changes the node, and client traffic.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
    serve::ListenerExt,
};
use tokio::net::TcpListener;

use crate::{
    error::{Error, Result},
    observe::{METRICS_CONTENT_TYPE, Metrics},
    service::{Check, ClusterView, Role, Status},
};

/// The check whose holding means that the local state is loaded.
const STARTED: &str = "running";

/// What the endpoints are answered from.
#[derive(Clone)]
pub struct Deps {
    /// The node.
    pub cluster: Arc<dyn ClusterView>,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
}

/// Serves the endpoints on a bound socket until `shutdown` is ready.
///
/// # Errors
/// `Unavailable` if the socket fails.
pub async fn serve(
    listener: TcpListener,
    deps: Deps,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
    });
    axum::serve(listener, router(deps))
        .with_graceful_shutdown(shutdown)
        .await
        .map_err(|error| Error::Unavailable(format!("the http port: {error}")))
}

fn router(deps: Deps) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/startupz", get(startupz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(deps)
}

async fn index(State(deps): State<Deps>) -> String {
    let node = deps.cluster.node();
    format!(
        "larder {}, {node}\n\n/livez     the process answers\n/startupz  the local state is loaded\n\
         /readyz    client traffic is taken, check by check\n/metrics   Prometheus\n",
        env!("CARGO_PKG_VERSION")
    )
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn startupz(State(deps): State<Deps>) -> impl IntoResponse {
    let checks = deps.cluster.status().checks;
    probe(checks.into_iter().filter(|check| check.name == STARTED).collect())
}

async fn readyz(State(deps): State<Deps>) -> impl IntoResponse {
    probe(deps.cluster.status().checks)
}

fn probe(checks: Vec<Check>) -> (StatusCode, String) {
    let ready = checks.iter().all(|check| check.failing.is_none());
    let mut text = String::new();
    for Check { name, failing } in checks {
        match failing {
            None => text.push_str(&format!("[+]{name} ok\n")),
            // One check, one line, whatever an error's text has in it.
            Some(why) => text.push_str(&format!("[-]{name}: {}\n", why.replace(['\n', '\r'], " "))),
        }
    }
    text.push_str(if ready { "ready\n" } else { "not ready\n" });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn metrics(State(deps): State<Deps>) -> impl IntoResponse {
    refresh(&deps.metrics, &deps.cluster.status());
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], deps.metrics.encode())
}

/// Sets the gauges that nobody keeps current between scrapes.
fn refresh(metrics: &Metrics, status: &Status) {
    let raft = &metrics.raft;
    raft.set_role(match status.role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::None => "none",
    });
    raft.term.set(status.term);
    raft.applied_index.set(status.applied_index);
    raft.committed_index.set(status.committed_index);
    raft.last_log_index.set(status.last_log_index);
    raft.lag.set(status.committed_index.saturating_sub(status.applied_index));
    metrics.state.keys.set(status.keys);
    metrics.state.bytes.set(status.bytes);
    metrics.state.revision.set(status.revision);
    metrics.disk_bytes.set(status.disk_bytes);
}
