//! The attempts of one call.
//!
//! A round tries every endpoint once, the preferred one first; between rounds there is a random wait that doubles. What is
//! tried again is decided by [`judge`] alone:
//!
//! | what came of an attempt | a write | a read |
//! |---|---|---|
//! | no connection, or not sent | next endpoint | next endpoint |
//! | refused as unavailable, surely not applied | next endpoint, the leader first | the same |
//! | refused for want of room, surely not applied | wait, next endpoint | the same |
//! | refused otherwise | the caller's | the caller's, unless the node itself is broken |
//! | broke off, timed out, or "unknown" | **unknown outcome, the caller's** | next endpoint |

use std::{sync::Arc, time::Duration};

use rand::Rng;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Response, Status, transport::Channel};

use super::{
    Applied, Client, ClientError, Refusal,
    error::{Failure, classify},
    pool::Prefer,
    remote::{ConnectFailure, Lease, Remote},
};

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// May change something.
    Write,
    /// Changes nothing.
    Read,
}

/// What to do after an attempt that failed.
#[derive(Debug)]
enum Next {
    /// Try the next endpoint; this is the error if there is no time left for it.
    Elsewhere(ClientError),
    /// The same, but not at once.
    Wait(ClientError, Option<Duration>),
    /// The call has failed.
    Fail(ClientError),
}

/// The attempts so far.
struct Attempts {
    deadline: Instant,
    tried: Vec<Arc<Remote>>,
    rounds: u32,
    count: u32,
    last: Option<ClientError>,
    /// Whether every attempt of this round failed to connect.
    none_reached: bool,
    hint: Option<Duration>,
}

impl Client {
    /// Sends a request until it is answered, refused, of unknown outcome, or its time is over.
    pub(super) async fn call<Q, A, F, Fut>(
        &self,
        kind: Kind,
        prefer: Prefer,
        message: Q,
        send: F,
    ) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        self.pool.refresh_if_due();
        let mut attempts = Attempts::new(Instant::now() + self.timeout);
        loop {
            let lease = self.next_lease(&mut attempts, prefer).await?;
            attempts.count += 1;
            let limit = attempts.attempt_limit(kind, self.pool.len());
            let mut request = Request::new(message.clone());
            request.set_timeout(limit.saturating_duration_since(Instant::now()));
            let failure = match timeout_at(limit, send(lease.channel.clone(), request)).await {
                Ok(Ok(answer)) => {
                    lease.remote.mark_up();
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => classify(&status),
                Err(_) => Failure::TimedOut,
            };
            self.note(&lease, &failure);
            match judge(kind, &lease.remote, failure, self.timeout) {
                Next::Elsewhere(error) => attempts.failed(&lease.remote, error),
                Next::Wait(error, hint) => {
                    attempts.failed(&lease.remote, error);
                    attempts.hint = attempts.hint.max(hint);
                    attempts.back_off(&self.pool.options).await?;
                }
                Next::Fail(error) => return Err(error),
            }
        }
    }

    /// A connection to the next endpoint to try.
    async fn next_lease(&self, attempts: &mut Attempts, prefer: Prefer) -> Result<Lease, ClientError> {
        loop {
            let order = self.pool.order(prefer);
            let next = order.iter().find(|remote| !attempts.has_tried(remote));
            let Some(remote) = next else {
                if attempts.none_reached && !self.pool.options.wait_for_ready {
                    return Err(attempts.give_up("no endpoint could be reached"));
                }
                attempts.back_off(&self.pool.options).await?;
                attempts.next_round();
                continue;
            };
            let leased = match timeout_at(attempts.deadline, self.pool.lease(remote)).await {
                Ok(leased) => leased,
                Err(_) => {
                    let error = format!("{}: no connection in time", remote.endpoint);
                    attempts.last = Some(ClientError::DeadlineExceeded(error));
                    return Err(attempts.give_up("the deadline passed and nothing was applied"));
                }
            };
            match leased {
                Ok((lease, fresh)) => {
                    attempts.none_reached = false;
                    // Being connected, we may have learned of a better place.
                    let leader = self.pool.leader().filter(|_| fresh && prefer == Prefer::Leader);
                    if leader
                        .is_some_and(|leader| !Arc::ptr_eq(&leader, remote) && !attempts.has_tried(&leader))
                    {
                        continue;
                    }
                    return Ok(lease);
                }
                Err(ConnectFailure::Unreachable(why)) => {
                    self.pool.forget_leader(remote);
                    attempts.unreached(remote, ClientError::Unreachable(why));
                }
                Err(ConnectFailure::Wrong(error)) if remote.configured => return Err(error),
                // The members' word for it was wrong; the caller did not name it.
                Err(ConnectFailure::Wrong(error)) => attempts.unreached(remote, error),
            }
        }
    }

    /// Remembers what an attempt says about the endpoint and the leader.
    fn note(&self, lease: &Lease, failure: &Failure) {
        match failure {
            Failure::NotSent(_) | Failure::Broken(_) => {
                lease.discard();
                self.pool.forget_leader(&lease.remote);
            }
            Failure::TimedOut => {
                lease.remote.mark_down();
                self.pool.forget_leader(&lease.remote);
            }
            Failure::Answered(refusal) => {
                if refusal.code == Code::Unavailable {
                    self.pool.forget_leader(&lease.remote);
                }
                if refusal.reason == "SHUTDOWN" {
                    lease.remote.mark_down();
                }
                if let Some(hint) = &refusal.leader {
                    self.pool.learn_leader(hint);
                }
            }
        }
    }
}

impl Attempts {
    fn new(deadline: Instant) -> Self {
        Self { deadline, tried: Vec::new(), rounds: 0, count: 0, last: None, none_reached: true, hint: None }
    }

    fn has_tried(&self, remote: &Arc<Remote>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, remote))
    }

    fn failed(&mut self, remote: &Arc<Remote>, error: ClientError) {
        self.tried.push(Arc::clone(remote));
        self.last = Some(error);
    }

    fn unreached(&mut self, remote: &Arc<Remote>, error: ClientError) {
        self.tried.push(Arc::clone(remote));
        self.last = Some(match (self.last.take(), error) {
            // Each endpoint has its own reason; the caller needs all of them, once.
            (Some(ClientError::Unreachable(before)), ClientError::Unreachable(why)) => {
                let told = before.contains(&why);
                ClientError::Unreachable(if told { before } else { format!("{before}; {why}") })
            }
            // An answer says more than a refused connection.
            (Some(before @ ClientError::Refused(_)), _) => before,
            (_, error) => error,
        });
    }

    fn next_round(&mut self) {
        self.tried.clear();
        self.none_reached = true;
        self.hint = None;
    }

    /// Until when an attempt may take. A read keeps half of the time for another endpoint, where there is one.
    fn attempt_limit(&self, kind: Kind, endpoints: usize) -> Instant {
        if kind == Kind::Write || endpoints < 2 {
            return self.deadline;
        }
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / 2
    }

    /// Waits before trying again.
    ///
    /// # Errors
    /// If there is no time left for it.
    async fn back_off(&mut self, options: &super::Options) -> Result<(), ClientError> {
        let most = options.backoff.saturating_mul(1 << self.rounds.min(16)).min(options.max_backoff);
        self.rounds = self.rounds.saturating_add(1);
        // Never less than a part of it: a wait of nothing, again and again, would be a busy loop.
        let random = most.mul_f64(rand::rng().random_range(0.2..=1.0));
        let wait = random.max(self.hint.take().unwrap_or_default().min(options.max_backoff));
        if Instant::now() + wait >= self.deadline {
            return Err(self.give_up("there is no time left to try again"));
        }
        sleep(wait).await;
        Ok(())
    }

    /// The call's error when it ends without an answer: the last attempt's, and that it was not the only one.
    fn give_up(&mut self, why: &str) -> ClientError {
        let attempts = if self.count > 1 { format!(" after {} attempts", self.count) } else { String::new() };
        match self.last.take() {
            Some(ClientError::Unreachable(last)) => ClientError::Unreachable(format!(
                "{why}{attempts}: {last}; check the endpoints and that the nodes run"
            )),
            Some(ClientError::DeadlineExceeded(last)) => {
                ClientError::DeadlineExceeded(format!("{why}{attempts}: {last}"))
            }
            Some(ClientError::Broken(last)) => ClientError::Broken(format!("{why}{attempts}: {last}")),
            Some(ClientError::Refused(mut refusal)) => {
                if self.count > 1 {
                    refusal.message = format!("{} (tried {} times)", refusal.message, self.count);
                }
                ClientError::Refused(refusal)
            }
            Some(other) => other,
            None => ClientError::DeadlineExceeded(why.to_owned()),
        }
    }
}

/// What an attempt's failure means for the call. See the table above.
fn judge(kind: Kind, remote: &Remote, failure: Failure, timeout: Duration) -> Next {
    let endpoint = &remote.endpoint;
    match (failure, kind) {
        (Failure::NotSent(why), _) => Next::Elsewhere(ClientError::Unreachable(format!("{endpoint}: {why}"))),
        (Failure::TimedOut, Kind::Write) => Next::Fail(ClientError::OutcomeUnknown(format!(
            "{endpoint} did not answer within the deadline ({timeout:?} for the whole call)"
        ))),
        (Failure::TimedOut, Kind::Read) => {
            Next::Elsewhere(ClientError::DeadlineExceeded(format!("{endpoint} did not answer in time")))
        }
        (Failure::Broken(why), Kind::Write) => Next::Fail(ClientError::OutcomeUnknown(format!(
            "the connection to {endpoint} broke after the request was sent ({why})"
        ))),
        (Failure::Broken(why), Kind::Read) => {
            Next::Elsewhere(ClientError::Broken(format!("{endpoint}: {why}")))
        }
        (Failure::Answered(refusal), kind) => judge_refusal(kind, refusal),
    }
}

fn judge_refusal(kind: Kind, refusal: Refusal) -> Next {
    let again = match (kind, refusal.applied) {
        (Kind::Write, Applied::No) => matches!(refusal.code, Code::Unavailable | Code::ResourceExhausted),
        (Kind::Write, Applied::Unknown) => {
            // The node's own sentence, without saying twice that the outcome is unknown.
            let message = refusal.message;
            let known = message.strip_prefix("the outcome of the write is unknown: ").unwrap_or(&message);
            let known = known.strip_suffix("; read the key before writing again").unwrap_or(known);
            return Next::Fail(ClientError::OutcomeUnknown(known.to_owned()));
        }
        (Kind::Write, Applied::Yes) => false,
        (Kind::Read, _) => matches!(
            refusal.code,
            Code::Unavailable | Code::ResourceExhausted | Code::Unknown | Code::Internal | Code::Cancelled
        ),
    };
    let busy = refusal.code == Code::ResourceExhausted;
    let hint = refusal.retry_after;
    let error = ClientError::Refused(Box::new(refusal));
    match (again, busy) {
        (false, _) => Next::Fail(error),
        (true, true) => Next::Wait(error, hint),
        (true, false) => Next::Elsewhere(error),
    }
}
