//! The replicated state, through its public face: golden scripts, golden bytes, a model, and every kind of damage.

// The helpers of a test are a test, too.
#![allow(clippy::unwrap_used)]

mod codec;
mod golden;
mod limits;
mod model;
mod scripts;
mod snapshot;
mod support;
