//! Whether a node takes client traffic, as a list of named checks that says why not.
//!
//! Invariants: a node is ready if and only if every check holds; a check fails until it is first said to hold; a
//! latched check never fails again (a node that has once caught up is not taken out of service for a moment's lag).
//!
//! Not here: how the checks are found out, and how they are printed (`api`).

use std::sync::{Mutex, PoisonError};

/// A node's readiness checks. Shared by everybody who knows something about one of them.
#[derive(Debug)]
pub struct Readiness {
    checks: Mutex<Vec<Check>>,
}

#[derive(Debug)]
struct Check {
    name: &'static str,
    /// Why it fails; `None` if it holds.
    failing: Option<String>,
    latched: bool,
}

impl Readiness {
    /// These checks, all failing with "not checked yet".
    pub fn new(names: &[&'static str]) -> Self {
        let checks = names
            .iter()
            .map(|name| Check { name, failing: Some("not checked yet".to_owned()), latched: false })
            .collect();
        Self { checks: Mutex::new(checks) }
    }

    /// The check holds, until somebody says that it fails.
    pub fn hold(&self, name: &str) {
        self.with(name, |check| check.failing = None);
    }

    /// The check holds from now on, whatever is said of it later.
    pub fn latch(&self, name: &str) {
        self.with(name, |check| {
            check.failing = None;
            check.latched = true;
        });
    }

    /// The check fails, because of `why`, a sentence that says what would mend it. A latched check still holds.
    pub fn fail(&self, name: &str, why: impl Into<String>) {
        self.with(name, |check| {
            if !check.latched {
                check.failing = Some(why.into());
            }
        });
    }

    /// Every check with why it fails (`None`: it holds), in the order given to [`Self::new`].
    pub fn checks(&self) -> Vec<(&'static str, Option<String>)> {
        self.lock().iter().map(|check| (check.name, check.failing.clone())).collect()
    }

    /// Whether every check holds.
    pub fn is_ready(&self) -> bool {
        self.lock().iter().all(|check| check.failing.is_none())
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut Check)) {
        let mut checks = self.lock();
        let check = checks.iter_mut().find(|check| check.name == name);
        change(check.expect("only checks that were named at the start are reported on"));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Check>> {
        // A check is set in one assignment, so a panic elsewhere leaves nothing half done.
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_check_holds() {
        let readiness = Readiness::new(&["member", "leader"]);
        assert!(!readiness.is_ready());
        readiness.hold("member");
        assert!(!readiness.is_ready());
        readiness.hold("leader");
        assert!(readiness.is_ready());
        readiness.fail("leader", "no leader was heard from; see that a majority runs");
        assert_eq!(
            readiness.checks(),
            [
                ("member", None),
                ("leader", Some("no leader was heard from; see that a majority runs".to_owned()))
            ]
        );
    }

    #[test]
    fn a_latched_check_never_fails_again() {
        let readiness = Readiness::new(&["caught-up"]);
        readiness.latch("caught-up");
        readiness.fail("caught-up", "behind");
        assert!(readiness.is_ready());
    }
}
