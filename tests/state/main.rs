//! The replicated state, through its public face: golden scripts, golden bytes, a model, and every kind of damage.

mod codec;
mod golden;
mod limits;
mod model;
mod scripts;
mod snapshot;
mod support;
