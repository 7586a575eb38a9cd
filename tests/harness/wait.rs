//! Waiting on conditions, and sharing the machine between tests.

use std::{sync::LazyLock, time::Duration};

use tokio::{
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Asks `condition` again and again until it answers `Ok`, and panics with its last `Err` after `deadline`.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + deadline;
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = "it was never answered".to_owned();
    let found = timeout_at(end, async {
        loop {
            ticks.tick().await;
            match condition().await {
                Ok(value) => return value,
                Err(why) => last = why,
            }
        }
    })
    .await;
    found.unwrap_or_else(|_| panic!("waited {deadline:?} for: {what}; last seen: {last}"))
}

static MACHINE: LazyLock<RwLock<()>> = LazyLock::new(|| RwLock::new(()));

/// For a test that runs next to others.
pub async fn shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// For a test that needs the machine for itself, because it is heavy or because it judges times.
pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}
