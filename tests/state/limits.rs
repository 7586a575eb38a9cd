//! Each limit one below, at, and one above; and what this release does not have yet.

use bytes::Bytes;
use larder::{
    error::Error,
    state::{
        Command, Condition, MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_BATCH_PREVIOUS, MAX_KEY_BYTES,
        MAX_QUERY_KEYS, MAX_VALUE_BYTES, Operation, Query, SessionId, validate_key,
    },
};

use crate::support::{boot, set, set_if};

fn zeros(length: usize) -> Bytes {
    Bytes::from(vec![0; length])
}

fn set_of(key: usize, value: usize) -> Operation {
    Operation::Set {
        key: zeros(key),
        value: zeros(value),
        condition: Condition::None,
        ttl_ms: None,
        return_previous: false,
    }
}

fn check(operation: Operation) -> Result<(), Error> {
    Command::new(operation).validate()
}

/// Refused as invalid, with a message that names each of these numbers.
#[track_caller]
fn assert_invalid(result: Result<(), Error>, numbers: &[usize]) {
    match result {
        Err(Error::Invalid(message)) => {
            for number in numbers {
                assert!(message.contains(&number.to_string()), "{number} is not in: {message}");
            }
        }
        other => panic!("expected Invalid, got {other:?}"),
    }
}

#[track_caller]
fn assert_unimplemented(result: Result<(), Error>) {
    assert!(matches!(result, Err(Error::Unimplemented(_))), "expected Unimplemented, got {result:?}");
}

#[test]
fn keys_have_1_to_4096_bytes_in_every_operation() {
    let operations: [fn(usize) -> Operation; 3] = [
        |key| set_of(key, 0),
        |key| Operation::Delete { key: zeros(key), if_version: None, return_previous: false },
        |key| Operation::Increment { key: zeros(key), delta: 1, initial: 0, ttl_ms: None },
    ];
    for operation in operations {
        assert_invalid(check(operation(0)), &[MAX_KEY_BYTES]);
        assert_eq!(check(operation(1)), Ok(()));
        assert_eq!(check(operation(MAX_KEY_BYTES - 1)), Ok(()));
        assert_eq!(check(operation(MAX_KEY_BYTES)), Ok(()));
        assert_invalid(check(operation(MAX_KEY_BYTES + 1)), &[MAX_KEY_BYTES, MAX_KEY_BYTES + 1]);
        assert_invalid(check(Operation::Batch(vec![set("a", "1"), operation(0)])), &[MAX_KEY_BYTES]);
    }
    assert_eq!(validate_key(&zeros(MAX_KEY_BYTES)), Ok(()));
    assert_invalid(validate_key(&zeros(MAX_KEY_BYTES + 1)), &[MAX_KEY_BYTES + 1]);
}

#[test]
fn values_have_up_to_1_mib() {
    for length in [0, MAX_VALUE_BYTES - 1, MAX_VALUE_BYTES] {
        assert_eq!(check(set_of(1, length)), Ok(()));
    }
    assert_invalid(check(set_of(1, MAX_VALUE_BYTES + 1)), &[MAX_VALUE_BYTES, MAX_VALUE_BYTES + 1]);
    assert_invalid(check(Operation::Batch(vec![set_of(1, MAX_VALUE_BYTES + 1)])), &[MAX_VALUE_BYTES]);
}

#[test]
fn batches_have_1_to_1024_operations() {
    let batch = |count| check(Operation::Batch(vec![set_of(1, 0); count]));
    assert_invalid(batch(0), &[MAX_BATCH_OPERATIONS]);
    for count in [1, MAX_BATCH_OPERATIONS - 1, MAX_BATCH_OPERATIONS] {
        assert_eq!(batch(count), Ok(()));
    }
    assert_invalid(batch(MAX_BATCH_OPERATIONS + 1), &[MAX_BATCH_OPERATIONS, MAX_BATCH_OPERATIONS + 1]);
}

#[test]
fn batches_have_up_to_4_mib_of_keys_and_values() {
    let full = set_of(1, MAX_VALUE_BYTES - 1);
    let batch =
        |last| check(Operation::Batch(vec![full.clone(), full.clone(), full.clone(), set_of(1, last)]));
    assert_eq!(batch(MAX_VALUE_BYTES - 2), Ok(()));
    assert_eq!(batch(MAX_VALUE_BYTES - 1), Ok(()));
    assert_invalid(batch(MAX_VALUE_BYTES), &[MAX_BATCH_BYTES, MAX_BATCH_BYTES + 1]);
}

#[test]
fn batches_return_few_previous_values() {
    let delete = Operation::Delete { key: zeros(1), if_version: None, return_previous: true };
    let batch = |count: usize| {
        let mut operations = vec![set("a", "1"); 10];
        operations.extend(vec![delete.clone(); count]);
        check(Operation::Batch(operations))
    };
    assert_eq!(batch(MAX_BATCH_PREVIOUS - 1), Ok(()));
    assert_eq!(batch(MAX_BATCH_PREVIOUS), Ok(()));
    assert_invalid(batch(MAX_BATCH_PREVIOUS + 1), &[MAX_BATCH_PREVIOUS, MAX_BATCH_PREVIOUS + 1]);
}

#[test]
fn batches_hold_no_batches() {
    assert_invalid(check(Operation::Batch(vec![Operation::Batch(vec![set("a", "1")])])), &[]);
    assert_invalid(check(Operation::Batch(vec![Operation::Open])), &[]);
    assert_invalid(check(Operation::Batch(vec![boot("0", 5, 1, 1)])), &[]);
    assert_eq!(check(Operation::Open), Ok(()));
    assert_eq!(check(boot("0", 5, 1, 1)), Ok(()));
}

#[test]
fn no_key_has_version_0() {
    assert_invalid(check(set_if("a", "1", Condition::IfVersion(0))), &[]);
    assert_eq!(check(set_if("a", "1", Condition::IfVersion(1))), Ok(()));
    let delete = |version| Operation::Delete { key: zeros(1), if_version: version, return_previous: false };
    assert_invalid(check(delete(Some(0))), &[]);
    assert_eq!(check(delete(Some(1))), Ok(()));
}

#[test]
fn what_this_release_does_not_have_is_unimplemented() {
    let session = SessionId { session: 1, sequence: 1, first_unacknowledged: 1 };
    assert_unimplemented(Command { session: Some(session), ..Command::new(set("a", "1")) }.validate());
    assert_unimplemented(Command { keyspace: 1, ..Command::new(set("a", "1")) }.validate());
    let with_ttl = Operation::Set {
        key: zeros(1),
        value: zeros(1),
        condition: Condition::None,
        ttl_ms: Some(1),
        return_previous: false,
    };
    assert_unimplemented(check(with_ttl.clone()));
    assert_unimplemented(check(Operation::Batch(vec![set("a", "1"), with_ttl])));
    assert_unimplemented(check(Operation::Increment {
        key: zeros(1),
        delta: 1,
        initial: 0,
        ttl_ms: Some(1),
    }));
    assert_unimplemented(Query::Scan { keyspace: 1 }.validate());
    assert_unimplemented(Query::Get { keyspace: 1, keys: vec![zeros(1)] }.validate());
}

#[test]
fn queries_have_1_to_1024_keys() {
    let get = |count| Query::Get { keyspace: 0, keys: vec![zeros(1); count] }.validate();
    assert_invalid(get(0), &[MAX_QUERY_KEYS]);
    assert_eq!(get(1), Ok(()));
    assert_eq!(get(MAX_QUERY_KEYS), Ok(()));
    assert_invalid(get(MAX_QUERY_KEYS + 1), &[MAX_QUERY_KEYS, MAX_QUERY_KEYS + 1]);
    assert_invalid(Query::Get { keyspace: 0, keys: vec![zeros(0)] }.validate(), &[MAX_KEY_BYTES]);
    assert_eq!(Query::Scan { keyspace: 0 }.validate(), Ok(()));
}
