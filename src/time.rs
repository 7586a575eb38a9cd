//! Time, injected.
//!
//! Nothing in Larder reads the machine's clocks except [`SystemClock`]: a clock is an argument, so that tests can
//! step and bend it, and so that the replicated state cannot name one at all.

use std::{
    fmt::Debug,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Milliseconds since 1970-01-01 UTC. Signed, so that a clock set before 1970 is a number like any other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub i64);

/// Where a node takes time from.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The wall clock. May be wrong, and may step.
    fn wall(&self) -> UnixMillis;

    /// A clock that never goes back, counted from an arbitrary start.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts at zero now.
    #[allow(clippy::disallowed_methods)] // the one place that reads the clock
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that reads the clock
    fn wall(&self) -> UnixMillis {
        let millis = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |m| -m),
        };
        UnixMillis(millis)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
