//! What every replicated cache must do, written against the seam `service::Cache`.
//!
//! It runs over whatever stands behind that trait: the state alone, a node, a whole cluster, the gRPC API through
//! [`grpc::GrpcCache`]. Every check works on keys of its own, so it may run on a cache that is in use.

#![allow(dead_code, unreachable_pub)] // included by several test binaries, each takes what it needs

pub mod grpc;

use async_trait::async_trait;
use bytes::Bytes;
use larder::{
    error::{Error, Rejection},
    service::{Cache, Consistency, Ctx},
    state::{
        Applied, Command, Condition, Found, MAX_KEY_BYTES, MAX_VALUE_BYTES, Operation, Outcome, Query,
        Versioned,
    },
};

/// A cache whose scans can be read to the end, by whatever way they go.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The cache.
    fn cache(&self) -> &dyn Cache;

    /// The revision, and every key of a range with its value and version.
    async fn scan(&self, prefix: &[u8], start_after: &[u8]) -> Result<(u64, Vec<(Bytes, Versioned)>), Error> {
        let answer =
            self.cache().read(Query::Scan { keyspace: 0 }, Consistency::Linearizable, Ctx::default()).await?;
        let Found::View(view) = answer.found else { panic!("a scan was not answered by a view") };
        let entries = view.range(prefix, start_after);
        Ok((answer.revision, entries.map(|(k, v)| (Bytes::copy_from_slice(k), v.clone())).collect()))
    }
}

/// A cache whose scans go through its views.
pub struct Local<'a>(pub &'a dyn Cache);

impl Subject for Local<'_> {
    fn cache(&self) -> &dyn Cache {
        self.0
    }
}

/// Everything, one after the other. `name` keeps the keys of two runs on one cache apart.
pub async fn all(subject: &dyn Subject, name: &str) {
    let cache = subject.cache();
    a_write_is_read(cache, name).await;
    conditions_decide(cache, name).await;
    deletes_answer_what_was_there(cache, name).await;
    increments_count_and_refuse(cache, name).await;
    a_batch_is_independent_operations_in_order(cache, name).await;
    many_keys_are_read_in_order_at_one_point(cache, name).await;
    revisions_only_count_changes(cache, name).await;
    limits_hold_and_refuse(cache, name).await;
    scans_are_ordered_and_at_one_revision(subject, name).await;
}

fn key(name: &str, key: &str) -> Bytes {
    format!("{name}/{key}").into()
}

pub fn set(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Operation {
    set_if(key, value, Condition::None)
}

pub fn set_if(key: impl Into<Bytes>, value: impl Into<Bytes>, condition: Condition) -> Operation {
    Operation::Set { key: key.into(), value: value.into(), condition, ttl_ms: None, return_previous: true }
}

pub fn delete(key: impl Into<Bytes>, if_version: Option<u64>) -> Operation {
    Operation::Delete { key: key.into(), if_version, return_previous: true }
}

pub fn increment(key: impl Into<Bytes>, delta: i64, initial: i64) -> Operation {
    Operation::Increment { key: key.into(), delta, initial, ttl_ms: None }
}

pub async fn write(cache: &dyn Cache, operation: Operation) -> Applied {
    cache.write(Command::new(operation), Ctx::default()).await.expect("a write that nothing is wrong with")
}

/// Why a write was refused by the state, by the reason's name: not every way carries the version along.
async fn refused(cache: &dyn Cache, operation: Operation) -> &'static str {
    match write(cache, operation).await.outcome {
        Outcome::Rejected(rejection) => Error::from(rejection).reason(),
        other => panic!("not refused: {other:?}"),
    }
}

pub async fn get(cache: &dyn Cache, key: &Bytes, consistency: Consistency) -> Option<Versioned> {
    get_many(cache, vec![key.clone()], consistency).await.1.remove(0)
}

async fn get_many(
    cache: &dyn Cache,
    keys: Vec<Bytes>,
    consistency: Consistency,
) -> (u64, Vec<Option<Versioned>>) {
    let query = Query::Get { keyspace: 0, keys };
    let answer =
        cache.read(query, consistency, Ctx::default()).await.expect("a read that nothing is wrong with");
    match answer.found {
        Found::Values(values) => (answer.revision, values),
        Found::View(_) => panic!("a get was answered by a view"),
    }
}

fn versioned(value: &str, version: u64) -> Versioned {
    Versioned { value: value.to_owned().into(), version, deadline: None }
}

fn version(applied: &Applied) -> u64 {
    match &applied.outcome {
        Outcome::Set { version, .. } | Outcome::Incremented { version, .. } => *version,
        other => panic!("no version in {other:?}"),
    }
}

async fn a_write_is_read(cache: &dyn Cache, name: &str) {
    let key = key(name, "written");
    assert_eq!(get(cache, &key, Consistency::Linearizable).await, None, "a miss is an answer");
    let first = write(cache, set(key.clone(), "one")).await;
    assert_eq!(version(&first), first.revision, "a version is the revision of the change");
    let second = write(cache, set(key.clone(), "two")).await;
    assert!(version(&second) > version(&first));
    let Outcome::Set { previous, .. } = &second.outcome else { panic!("{second:?}") };
    assert_eq!(*previous, Some(versioned("one", version(&first))));
    let found = get(cache, &key, Consistency::Linearizable).await;
    assert_eq!(found, Some(versioned("two", version(&second))));
    write(cache, set(key.clone(), "")).await;
    let found = get(cache, &key, Consistency::Linearizable).await.expect("an empty value is a value");
    assert!(found.value.is_empty());
    // A local read may be old, but is of this cache.
    let _ = get(cache, &key, Consistency::Local).await;
}

async fn conditions_decide(cache: &dyn Cache, name: &str) {
    let key = key(name, "conditional");
    let failed = "CONDITION_FAILED";
    assert_eq!(refused(cache, set_if(key.clone(), "x", Condition::IfPresent)).await, failed);
    assert_eq!(refused(cache, set_if(key.clone(), "x", Condition::IfVersion(1))).await, failed);
    let first = write(cache, set_if(key.clone(), "one", Condition::IfAbsent)).await;
    assert_eq!(refused(cache, set_if(key.clone(), "x", Condition::IfAbsent)).await, failed);
    assert_eq!(
        refused(cache, set_if(key.clone(), "x", Condition::IfVersion(version(&first) + 1))).await,
        failed
    );
    assert_eq!(get(cache, &key, Consistency::Linearizable).await, Some(versioned("one", version(&first))));
    let second = write(cache, set_if(key.clone(), "two", Condition::IfVersion(version(&first)))).await;
    let third = write(cache, set_if(key.clone(), "three", Condition::IfPresent)).await;
    assert!(version(&third) > version(&second));
}

async fn deletes_answer_what_was_there(cache: &dyn Cache, name: &str) {
    let key = key(name, "deleted");
    let nothing = write(cache, delete(key.clone(), None)).await;
    assert_eq!(nothing.outcome, Outcome::Deleted { existed: false, previous: None });
    assert_eq!(refused(cache, delete(key.clone(), Some(1))).await, "CONDITION_FAILED");
    let written = version(&write(cache, set(key.clone(), "v")).await);
    assert_eq!(refused(cache, delete(key.clone(), Some(written + 1))).await, "CONDITION_FAILED");
    let deleted = write(cache, delete(key.clone(), Some(written))).await;
    assert_eq!(deleted.outcome, Outcome::Deleted { existed: true, previous: Some(versioned("v", written)) });
    assert_eq!(get(cache, &key, Consistency::Linearizable).await, None);
}

async fn increments_count_and_refuse(cache: &dyn Cache, name: &str) {
    let key = key(name, "counter");
    for (delta, initial, sum) in [(5, 10, 15), (-20, 99, -5), (0, 0, -5)] {
        let counted = write(cache, increment(key.clone(), delta, initial)).await;
        assert!(matches!(counted.outcome, Outcome::Incremented { value, .. } if value == sum), "{counted:?}");
    }
    let found = get(cache, &key, Consistency::Linearizable).await.expect("it was written");
    assert_eq!(found.value, "-5", "a number is decimal text");
    write(cache, set(key.clone(), i64::MAX.to_string())).await;
    let before = get(cache, &key, Consistency::Linearizable).await;
    assert_eq!(refused(cache, increment(key.clone(), 1, 0)).await, "OUT_OF_RANGE");
    assert_eq!(
        get(cache, &key, Consistency::Linearizable).await,
        before,
        "a refused increment changes nothing"
    );
    for text in ["", "abc", "1.5", " 1", "9223372036854775808"] {
        write(cache, set(key.clone(), text)).await;
        assert_eq!(refused(cache, increment(key.clone(), 1, 0)).await, "NOT_A_NUMBER", "{text:?}");
    }
}

async fn a_batch_is_independent_operations_in_order(cache: &dyn Cache, name: &str) {
    let (a, b) = (key(name, "batch/a"), key(name, "batch/b"));
    let batch = Operation::Batch(vec![
        set(a.clone(), "1"),
        set_if(a.clone(), "x", Condition::IfAbsent),
        increment(a.clone(), 41, 0),
        delete(b.clone(), None),
        set(b.clone(), "end"),
    ]);
    let applied = write(cache, batch).await;
    let Outcome::Batch(outcomes) = applied.outcome else { panic!("{applied:?}") };
    assert!(matches!(outcomes[0], Outcome::Set { .. }), "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Rejected(Rejection::ConditionFailed { .. })), "{outcomes:?}");
    assert!(matches!(outcomes[2], Outcome::Incremented { value: 42, .. }), "a later one sees an earlier one");
    assert!(matches!(outcomes[3], Outcome::Deleted { existed: false, .. }), "{outcomes:?}");
    assert!(matches!(outcomes[4], Outcome::Set { previous: None, .. }), "{outcomes:?}");
    assert_eq!(outcomes.len(), 5);
    assert_eq!(get(cache, &a, Consistency::Linearizable).await.map(|v| v.value), Some("42".into()));
    assert_eq!(get(cache, &b, Consistency::Linearizable).await.map(|v| v.value), Some("end".into()));
}

async fn many_keys_are_read_in_order_at_one_point(cache: &dyn Cache, name: &str) {
    let keys: Vec<Bytes> = (0..20).map(|i| key(name, &format!("many/{i:02}"))).collect();
    for key in keys.iter().step_by(2) {
        write(cache, set(key.clone(), key.clone())).await;
    }
    let (_, values) = get_many(cache, keys.iter().rev().cloned().collect(), Consistency::Linearizable).await;
    assert_eq!(values.len(), keys.len());
    for (i, (key, found)) in keys.iter().rev().zip(values).enumerate() {
        assert_eq!(found.map(|v| v.value), (i % 2 == 1).then(|| key.clone()));
    }
}

async fn revisions_only_count_changes(cache: &dyn Cache, name: &str) {
    let key = key(name, "revision");
    let first = write(cache, set(key.clone(), "1")).await;
    let refused = write(cache, set_if(key.clone(), "2", Condition::IfAbsent)).await;
    let missing = write(cache, delete(self::key(name, "never"), None)).await;
    assert!(refused.revision >= first.revision && missing.revision >= refused.revision);
    assert!(missing.clock >= first.clock, "the clock never goes back");
    let (read_at, values) = get_many(cache, vec![key], Consistency::Linearizable).await;
    assert!(read_at >= missing.revision, "a linearizable read is not older than an acknowledged write");
    assert_eq!(
        values[0].as_ref().map(|v| v.version),
        Some(version(&first)),
        "what is refused changes no version"
    );
}

async fn limits_hold_and_refuse(cache: &dyn Cache, name: &str) {
    let mut longest = key(name, "").to_vec();
    longest.resize(MAX_KEY_BYTES, b'k');
    let largest = Bytes::from(vec![0xff; MAX_VALUE_BYTES]);
    let written = write(cache, set(longest.clone(), largest.clone())).await;
    let found = get(cache, &longest.clone().into(), Consistency::Linearizable).await.expect("it was written");
    assert_eq!((found.value, found.version), (largest, version(&written)));
    write(cache, delete(longest.clone(), None)).await;

    let mut too_long = longest;
    too_long.push(b'k');
    let too_large = vec![0; MAX_VALUE_BYTES + 1];
    for bad in [
        set(Bytes::new(), "v"),
        set(too_long, "v"),
        set(key(name, "large"), too_large),
        delete(Bytes::new(), None),
        increment(Bytes::new(), 1, 0),
    ] {
        let error =
            cache.write(Command::new(bad), Ctx::default()).await.expect_err("it is out of its limits");
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }
    assert_eq!(get(cache, &key(name, "large"), Consistency::Linearizable).await, None);
}

async fn scans_are_ordered_and_at_one_revision(subject: &dyn Subject, name: &str) {
    let cache = subject.cache();
    let mut versions = Vec::new();
    for i in [3, 1, 0, 2] {
        versions
            .push((i, version(&write(cache, set(key(name, &format!("scan/{i}")), format!("v{i}"))).await)));
    }
    write(cache, set(key(name, "scan"), "is no key of the prefix")).await;
    versions.sort_unstable();
    let expected: Vec<_> = versions
        .iter()
        .map(|(i, version)| (key(name, &format!("scan/{i}")), versioned(&format!("v{i}"), *version)))
        .collect();
    let prefix = key(name, "scan/");
    let (revision, all) = subject.scan(&prefix, b"").await.expect("a scan");
    assert_eq!(all, expected);
    assert!(revision >= versions.iter().map(|(_, version)| *version).max().expect("four of them"));
    let (_, rest) = subject.scan(&prefix, &key(name, "scan/1")).await.expect("a scan");
    assert_eq!(rest, expected[2..]);
    let (_, none) = subject.scan(&key(name, "nothing/"), b"").await.expect("a scan");
    assert!(none.is_empty());
}
