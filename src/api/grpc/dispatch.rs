//! From a path to a service, and around every request: admitted or shed, counted and timed.
//!
//! Errors that the gRPC library makes by itself (a message that does not decode, one that is too long, a path that is
//! no method) are given here the code, sentence and details that every error of Larder has.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::{Request, Response, body::Incoming};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, codegen::Service};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::{v1, v1alpha};

use super::{
    Deps, MAX_REQUEST_BYTES,
    admission::{Admission, Pass},
    cache::{Api, CacheService},
    cluster::ClusterService,
    errors,
    health::Health,
};
use crate::{
    error::{Error, Result},
    observe::RequestMethod,
    proto::v1::{DESCRIPTORS, cache_server::CacheServer, cluster_server::ClusterServer},
};

type Answer = Result<Response<Body>, Infallible>;
type Pending = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Reflection = Arc<dyn Fn(Request<Incoming>) -> Pending + Send + Sync>;

/// All services of the port. Cloned for each connection.
#[derive(Clone)]
pub(super) struct Dispatch {
    api: Arc<Api>,
    cache: CacheServer<CacheService>,
    cluster: ClusterServer<ClusterService>,
    health: HealthServer<Health>,
    reflection: Reflection,
    reflection_alpha: Reflection,
}

impl Dispatch {
    /// # Errors
    /// `Invalid` if the compiled-in descriptors cannot be read.
    pub(super) fn new(deps: Deps, stopping: CancellationToken) -> Result<Self> {
        let admission = Admission::new(&deps.limits);
        let health = Health { cluster: Arc::clone(&deps.cluster), stopping };
        let api = Arc::new(Api::new(deps, admission));
        let broken = |error| Error::Invalid(format!("the descriptors for reflection: {error}"));
        Ok(Self {
            cache: CacheServer::new(CacheService(Arc::clone(&api)))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
            cluster: ClusterServer::new(ClusterService(Arc::clone(&api))),
            health: HealthServer::new(health),
            reflection: reflection(descriptors().build_v1().map_err(broken)?),
            reflection_alpha: reflection_alpha(descriptors().build_v1alpha().map_err(broken)?),
            api,
        })
    }

    /// The path's service, and how its requests are counted and admitted.
    fn route(&self, request: Request<Incoming>) -> Call {
        let path = request.uri().path();
        if let Some(name) = path.strip_prefix("/larder.v1.Cache/") {
            let Some(method) = cache_method(name) else { return self.no_such_method(path) };
            let counted = Counted { method, begun: Instant::now() };
            let pass = match self.api.admission.request() {
                Ok(pass) => pass,
                Err(error) => return self.refuse(counted, &error),
            };
            return self.wait(self.cache.clone().call(request), Some(counted), Some(pass));
        }
        if let Some(name) = path.strip_prefix("/larder.v1.Cluster/") {
            let Some(method) = cluster_method(name) else { return self.no_such_method(path) };
            let counted = Counted { method, begun: Instant::now() };
            return self.wait(self.cluster.clone().call(request), Some(counted), None);
        }
        if path.starts_with("/grpc.health.v1.Health/") {
            self.wait(self.health.clone().call(request), None, None)
        } else if path.starts_with("/grpc.reflection.v1.ServerReflection/") {
            self.wait((self.reflection)(request), None, None)
        } else if path.starts_with("/grpc.reflection.v1alpha.ServerReflection/") {
            self.wait((self.reflection_alpha)(request), None, None)
        } else {
            self.no_such_method(path)
        }
    }

    fn wait(&self, pending: Pending, counted: Option<Counted>, pass: Option<Pass>) -> Call {
        Call { api: Arc::clone(&self.api), state: State::Pending(pending), counted, pass }
    }

    fn refuse(&self, counted: Counted, error: &Error) -> Call {
        let response = self.api.status(error).into_http();
        Call {
            api: Arc::clone(&self.api),
            state: State::Refused(Some(response)),
            counted: Some(counted),
            pass: None,
        }
    }

    fn no_such_method(&self, path: &str) -> Call {
        let path: String = path.chars().take(128).collect();
        let error = Error::Unimplemented(format!(
            "there is no method {path}; this release serves larder.v1.Cache and larder.v1.Cluster, see gRPC reflection"
        ));
        self.refuse(Counted { method: RequestMethod::Unknown, begun: Instant::now() }, &error)
    }
}

impl hyper::service::Service<Request<Incoming>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        self.route(request)
    }
}

fn cache_method(name: &str) -> Option<RequestMethod> {
    Some(match name {
        "Get" => RequestMethod::Get,
        "Set" => RequestMethod::Set,
        "Delete" => RequestMethod::Delete,
        "Increment" => RequestMethod::Increment,
        "Batch" => RequestMethod::Batch,
        "Scan" => RequestMethod::Scan,
        _ => return None,
    })
}

fn cluster_method(name: &str) -> Option<RequestMethod> {
    Some(match name {
        "Status" => RequestMethod::Status,
        "Members" => RequestMethod::Members,
        "TransferLeader" => RequestMethod::TransferLeader,
        "RetireMember" => RequestMethod::RetireMember,
        "PromoteMember" => RequestMethod::PromoteMember,
        "Leave" => RequestMethod::Leave,
        "Recover" => RequestMethod::Recover,
        _ => return None,
    })
}

/// What reflection shows: the client API and health, nothing of the peer protocol.
fn descriptors() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn reflection<T: v1::ServerReflection>(server: v1::ServerReflectionServer<T>) -> Reflection {
    Arc::new(move |request| server.clone().call(request))
}

fn reflection_alpha<T: v1alpha::ServerReflection>(server: v1alpha::ServerReflectionServer<T>) -> Reflection {
    Arc::new(move |request| server.clone().call(request))
}

/// As what a request is counted, from when on.
#[derive(Clone, Copy)]
struct Counted {
    method: RequestMethod,
    begun: Instant,
}

enum State {
    Pending(Pending),
    Refused(Option<Response<Body>>),
}

/// A request under way, until its answer's head. A unary answer is complete then.
pub(super) struct Call {
    api: Arc<Api>,
    state: State,
    counted: Option<Counted>,
    pass: Option<Pass>,
}

impl Future for Call {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let this = self.get_mut();
        let mut response = match &mut this.state {
            State::Pending(pending) => match ready!(pending.as_mut().poll(cx)) {
                Ok(response) => response,
                Err(never) => match never {},
            },
            State::Refused(response) => response.take().expect("a future is not polled after it is done"),
        };
        this.pass = None;
        let mut code = Code::Ok;
        if let Some(failed) = failed(&response) {
            code = failed;
            if let Some(error) = foreign_error(&response) {
                code = errors::code(&error);
                response = this.api.status(&error).into_http();
            }
        }
        if let Some(counted) = this.counted.take() {
            let streaming = counted.method == RequestMethod::Scan && code == Code::Ok;
            // A scan that streams is counted when it ends.
            if !streaming {
                this.api.deps.metrics.request(counted.method, code as u8, counted.begun.elapsed());
            }
        }
        Poll::Ready(Ok(response))
    }
}

impl Drop for Call {
    /// A client that goes away before its answer.
    fn drop(&mut self) {
        if let Some(counted) = self.counted.take() {
            self.api.deps.metrics.request(counted.method, Code::Cancelled as u8, counted.begun.elapsed());
        }
    }
}

/// The code of an answer that is an error from its head on.
fn failed(response: &Response<Body>) -> Option<Code> {
    let status = response.headers().get(Status::GRPC_STATUS)?;
    match Code::from_bytes(status.as_bytes()) {
        Code::Ok => None,
        code => Some(code),
    }
}

/// What an error without details, so one that the gRPC library made, means to the caller.
fn foreign_error(response: &Response<Body>) -> Option<Error> {
    if response.headers().contains_key("grpc-status-details-bin") {
        return None;
    }
    let status = Status::from_header_map(response.headers())?;
    match status.code() {
        Code::OutOfRange => Some(Error::Invalid(format!(
            "the request is longer than the limit of {MAX_REQUEST_BYTES} bytes; split it"
        ))),
        // Nothing of Larder's answers INTERNAL without details: the message does not decode.
        Code::Internal => Some(Error::Invalid(format!(
            "the request cannot be read ({}); send what larder/v1's protos describe",
            status.message()
        ))),
        Code::Unimplemented => Some(Error::Unimplemented(status.message().to_owned())),
        _ => None,
    }
}
