//! The protocols: thin adapters between the wire and [`service::Cache`](crate::service::Cache).
//!
//! An adapter parses, calls `cache.write` or `cache.read`, and renders; it decides nothing. The protocols never name
//! each other, and none of them names Raft. What is refused here is what can never work (a size, a field of a later
//! release), and what there is no room for.
//!
//! Reading order: [`grpc`] (the client API, health, reflection), [`http`] (probes and metrics).

pub mod grpc;
pub mod http;
