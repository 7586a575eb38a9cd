//! How much is under way, and what is too much.
//!
//! Requests are counted one by one; bytes only for large requests, since small ones are bounded by their count.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::Limits;
use crate::error::{Error, Result};

/// Requests below this many bytes are bounded by their count alone.
const SMALL_BYTES: usize = 16 * 1024;

/// The counts of everything under way.
#[derive(Debug)]
pub(super) struct Admission {
    requests: Gate,
    bytes: Gate,
    scans: Gate,
}

#[derive(Debug)]
struct Gate {
    used: AtomicUsize,
    limit: usize,
}

impl Gate {
    fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    fn enter(&self, amount: usize) -> bool {
        let before = self.used.fetch_add(amount, Ordering::Relaxed);
        // Written so that no sum can overflow: `before` may be past the limit while others are being turned away.
        let fits = before < self.limit && amount <= self.limit - before;
        if !fits {
            self.used.fetch_sub(amount, Ordering::Relaxed);
        }
        fits
    }

    fn leave(&self, amount: usize) {
        self.used.fetch_sub(amount, Ordering::Relaxed);
    }
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            requests: Gate::new(limits.in_flight_requests),
            bytes: Gate::new(limits.in_flight_bytes),
            scans: Gate::new(limits.scans),
        })
    }

    /// Room for one request, until the pass is dropped.
    pub(super) fn request(self: &Arc<Self>) -> Result<Pass> {
        self.pass(|a| &a.requests, 1, "requests in flight")
    }

    /// Room for the content of a request, until the pass is dropped; `None` for a small one.
    pub(super) fn bytes(self: &Arc<Self>, bytes: usize) -> Result<Option<Pass>> {
        if bytes < SMALL_BYTES {
            return Ok(None);
        }
        self.pass(|a| &a.bytes, bytes, "bytes in flight").map(Some)
    }

    /// Room for one scan, until the pass is dropped.
    pub(super) fn scan(self: &Arc<Self>) -> Result<Pass> {
        self.pass(|a| &a.scans, 1, "scans at once")
    }

    fn pass(self: &Arc<Self>, gate: fn(&Self) -> &Gate, amount: usize, what: &str) -> Result<Pass> {
        if gate(self).enter(amount) {
            return Ok(Pass { admission: Arc::clone(self), gate, amount });
        }
        Err(Error::ResourceExhausted(format!(
            "this node is at its limit of {} {what}; nothing was applied; try again a little later, or another node",
            gate(self).limit
        )))
    }
}

/// Room that was given; dropping it gives it back.
pub(super) struct Pass {
    admission: Arc<Admission>,
    gate: fn(&Admission) -> &Gate,
    amount: usize,
}

impl Drop for Pass {
    fn drop(&mut self) {
        (self.gate)(&self.admission).leave(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_and_a_refused_one_takes_none() {
        let admission = Admission::new(&Limits {
            in_flight_requests: 2,
            in_flight_bytes: 100 * 1024,
            ..Limits::default()
        });
        let first = admission.request().unwrap();
        let _second = admission.request().unwrap();
        assert!(
            matches!(admission.request(), Err(Error::ResourceExhausted(s)) if s.contains("limit of 2 requests"))
        );
        drop(first);
        let _third = admission.request().unwrap();

        assert!(admission.bytes(100).unwrap().is_none());
        let big = admission.bytes(90 * 1024).unwrap();
        assert!(admission.bytes(20 * 1024).is_err());
        drop(big);
        assert!(admission.bytes(100 * 1024).unwrap().is_some());
        assert!(admission.bytes(usize::MAX).is_err());
    }
}
