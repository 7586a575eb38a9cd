//! Standard gRPC health: every service of the client API serves if and only if the node is ready.
//!
//! A check asks the node at that moment. A watch looks again every half second, and ends when the node stops, so that
//! it does not hold up the shutdown.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use tokio::time::{self, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

use crate::service::ClusterView;

/// How often a watch looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// What can be asked about; "" is the node as a whole.
const SERVICES: [&str; 3] = ["", "larder.v1.Cache", "larder.v1.Cluster"];

/// The service, in the shape that the generated code takes.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) cluster: Arc<dyn ClusterView>,
    pub(super) stopping: CancellationToken,
}

impl Health {
    fn serving(&self, service: &str) -> ServingStatus {
        if !SERVICES.contains(&service) {
            return ServingStatus::ServiceUnknown;
        }
        let ready = self.cluster.status().checks.iter().all(|check| check.failing.is_none());
        if ready && !self.stopping.is_cancelled() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

/// A watch under way.
struct Watch {
    health: Health,
    service: String,
    ticks: Interval,
    last: Option<ServingStatus>,
}

impl Watch {
    /// Waits for a status other than the last one told; `None` when the node has stopped and that was told.
    async fn next(&mut self) -> Option<ServingStatus> {
        loop {
            let stopped = self.health.stopping.is_cancelled();
            if !stopped {
                tokio::select! {
                    _ = self.ticks.tick() => {}
                    () = self.health.stopping.cancelled() => {}
                }
            }
            let now = self.health.serving(&self.service);
            if self.last != Some(now) {
                self.last = Some(now);
                return Some(now);
            }
            if stopped {
                return None;
            }
        }
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.serving(&service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!(
                "there is no service of this name; ask for one of \"{}\"",
                SERVICES.join("\", \"")
            ))),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut ticks = time::interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = Watch { health: self.clone(), service: request.into_inner().service, ticks, last: None };
        let stream = stream::unfold(watch, |mut watch| async move {
            let status = watch.next().await?;
            Some((Ok(response(status)), watch))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
