//! The replicated state (placeholder chapter, replaced with the machine).
mod command;
pub use command::*;

/// A frozen view of all keys.
#[derive(Debug, Clone)]
pub struct View;
