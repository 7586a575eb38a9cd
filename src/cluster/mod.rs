//! Who am I, and who are they.
//!
//! # Purpose
//! Before Raft can run, a node must know which cluster it belongs to. While it runs, members come, lose their volumes, and go. This module
//! decides both: who founds, and who is a member.
//!
//! # Reading order
//! - [`slot`]: the names of places, and which of them are seeds; [`discovery`]: where they are; [`scale_file`]: a file that says how many.
//! - [`genesis`]: the decision of a node without a cluster, pure. The heart; start there.
//! - [`run`]: the loop around it that asks, saves and publishes; `founding` puts the real file, network and claim behind it.
//! - [`recovery`]: a survivor of a lost majority goes on alone, when it is told to.
//! - [`gate`]: the leader opens the cluster once every founder has acknowledged an entry.
//! - [`plan`]: which change of the membership comes next, pure; [`keeper`]: the leader's loop around it.
//! - [`standing`]: what the others say of a node that is bound: retired, a copy, or fine.
//! - `scale`: how many nodes there are to be.
//!
//! # Not here
//! The record on disk (`store::identity`), what peers check on each call (`raft::handshake`), how a change is carried out (`raft::wish`).

pub mod discovery;
mod founding;
pub mod gate;
pub mod genesis;
pub mod keeper;
pub mod plan;
pub mod recovery;
pub mod run;
mod scale;
pub mod scale_file;
pub mod slot;
pub mod standing;

pub use founding::{prepare, until_given_up};
pub use scale::{Configured, Scale};

/// What a node without a disk does when it is the only one left of the members, and every other voter is known to be gone for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnMajorityLost {
    /// Waits for an operator.
    #[default]
    Wait,
    /// Goes on as a new cluster with what it holds.
    Recover,
}

impl std::str::FromStr for OnMajorityLost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "wait" => Ok(Self::Wait),
            "recover" => Ok(Self::Recover),
            _ => Err(format!("{text:?} is no such rule; give wait or recover")),
        }
    }
}
