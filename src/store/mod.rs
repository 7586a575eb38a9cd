//! What is on disk (placeholder chapter, replaced with the log).
pub mod identity;
