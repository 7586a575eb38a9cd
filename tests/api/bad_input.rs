//! Whatever can never work gets its code, its reason and a sentence, and changes nothing.

use bytes::Bytes;
use larder::proto::v1::{self as pb, condition::Condition as Wire};
use larder::state::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::support::{Server, verdict};

/// One bad request: its name, how it is sent, and words of the sentence.
struct Case {
    name: &'static str,
    request: Bad,
    code: Code,
    words: &'static [&'static str],
}

enum Bad {
    Get(pb::GetRequest),
    Set(pb::SetRequest),
    Delete(pb::DeleteRequest),
    Increment(pb::IncrementRequest),
    Batch(pb::BatchRequest),
    Scan(pb::ScanRequest),
}

fn set() -> pb::SetRequest {
    pb::SetRequest { key: "k".into(), value: "v".into(), ..Default::default() }
}

fn get() -> pb::GetRequest {
    pb::GetRequest { key: "k".into(), ..Default::default() }
}

fn delete() -> pb::DeleteRequest {
    pb::DeleteRequest { key: "k".into(), ..Default::default() }
}

fn increment() -> pb::IncrementRequest {
    pb::IncrementRequest { key: "k".into(), delta: 1, ..Default::default() }
}

fn session() -> Option<pb::Session> {
    Some(pb::Session { session: 1, sequence: 1, first_unacknowledged: 1 })
}

fn condition(condition: Wire) -> Option<pb::Condition> {
    Some(pb::Condition { condition: Some(condition) })
}

fn read(change: impl FnOnce(&mut pb::ReadOptions)) -> Option<pb::ReadOptions> {
    let mut read = pb::ReadOptions::default();
    change(&mut read);
    Some(read)
}

fn batch(operations: Vec<pb::batch_operation::Operation>) -> pb::BatchRequest {
    let operations =
        operations.into_iter().map(|operation| pb::BatchOperation { operation: Some(operation) }).collect();
    pb::BatchRequest { operations, read: None }
}

fn invalid(name: &'static str, words: &'static [&'static str], request: Bad) -> Case {
    Case { name, request, code: Code::InvalidArgument, words }
}

fn later(name: &'static str, words: &'static [&'static str], request: Bad) -> Case {
    Case { name, request, code: Code::Unimplemented, words }
}

fn sizes() -> Vec<Case> {
    let long = Bytes::from(vec![b'k'; MAX_KEY_BYTES + 1]);
    let large = Bytes::from(vec![0; MAX_VALUE_BYTES + 1]);
    let too_long: &[&str] = &["4097", "4096"];
    vec![
        invalid("empty key, Get", &["empty"], Bad::Get(pb::GetRequest { key: Bytes::new(), ..get() })),
        invalid("empty key, Set", &["empty"], Bad::Set(pb::SetRequest { key: Bytes::new(), ..set() })),
        invalid(
            "empty key, Delete",
            &["empty"],
            Bad::Delete(pb::DeleteRequest { key: Bytes::new(), ..delete() }),
        ),
        invalid(
            "empty key, Increment",
            &["empty"],
            Bad::Increment(pb::IncrementRequest { key: Bytes::new(), ..increment() }),
        ),
        invalid("long key, Get", too_long, Bad::Get(pb::GetRequest { key: long.clone(), ..get() })),
        invalid("long key, Set", too_long, Bad::Set(pb::SetRequest { key: long.clone(), ..set() })),
        invalid(
            "long key, Delete",
            too_long,
            Bad::Delete(pb::DeleteRequest { key: long.clone(), ..delete() }),
        ),
        invalid(
            "long prefix",
            &["prefix", "4097", "4096"],
            Bad::Scan(pb::ScanRequest { prefix: long.clone(), ..Default::default() }),
        ),
        invalid(
            "long start_after",
            &["start_after", "4097"],
            Bad::Scan(pb::ScanRequest { start_after: long, ..Default::default() }),
        ),
        invalid(
            "large value",
            &["1048577", "1048576"],
            Bad::Set(pb::SetRequest { value: large.clone(), ..set() }),
        ),
        invalid(
            "far too large a value",
            &["limit", "bytes"],
            Bad::Set(pb::SetRequest { value: vec![0; 6 << 20].into(), ..set() }),
        ),
        invalid("empty batch", &["0 operations", "1024"], Bad::Batch(batch(vec![]))),
        invalid(
            "too many operations",
            &["1025 operations", "1024"],
            Bad::Batch(batch(vec![pb::batch_operation::Operation::Get(get()); 1025])),
        ),
        invalid(
            "too many bytes",
            &["4194304"],
            Bad::Batch(batch(vec![
                pb::batch_operation::Operation::Set(pb::SetRequest {
                    value: large.slice(1..),
                    ..set()
                });
                4
            ])),
        ),
        invalid(
            "too many previous values",
            &["previous", "at most 4"],
            Bad::Batch(batch(vec![
                pb::batch_operation::Operation::Set(pb::SetRequest {
                    return_previous: true,
                    ..set()
                });
                5
            ])),
        ),
    ]
}

fn values() -> Vec<Case> {
    use pb::batch_operation::Operation as Op;
    vec![
        invalid(
            "if_absent false",
            &["if_absent", "true"],
            Bad::Set(pb::SetRequest { condition: condition(Wire::IfAbsent(false)), ..set() }),
        ),
        invalid(
            "if_present false",
            &["if_present", "true"],
            Bad::Set(pb::SetRequest { condition: condition(Wire::IfPresent(false)), ..set() }),
        ),
        invalid(
            "if_version 0",
            &["if_version", "1 or more"],
            Bad::Set(pb::SetRequest { condition: condition(Wire::IfVersion(0)), ..set() }),
        ),
        invalid("ttl 0", &["ttl_ms"], Bad::Set(pb::SetRequest { ttl_ms: Some(0), ..set() })),
        invalid(
            "negative ttl",
            &["ttl_ms"],
            Bad::Increment(pb::IncrementRequest { ttl_ms: Some(-5), ..increment() }),
        ),
        invalid(
            "no such consistency",
            &["77", "LINEARIZABLE"],
            Bad::Get(pb::GetRequest { read: read(|r| r.consistency = 77), ..get() }),
        ),
        invalid(
            "negative staleness",
            &["max_staleness_ms", "negative"],
            Bad::Get(pb::GetRequest { read: read(|r| r.max_staleness_ms = -1), ..get() }),
        ),
        invalid(
            "an empty operation, after a good one",
            &["operation 1", "get, set, delete, increment"],
            Bad::Batch(pb::BatchRequest {
                operations: vec![
                    pb::BatchOperation { operation: Some(Op::Set(set())) },
                    pb::BatchOperation { operation: None },
                ],
                read: None,
            }),
        ),
        invalid(
            "a bad operation, after a good one",
            &["operation 1", "empty"],
            Bad::Batch(batch(vec![Op::Set(set()), Op::Delete(pb::DeleteRequest::default())])),
        ),
        invalid(
            "read inside of a batch",
            &["operation 0", "`read`"],
            Bad::Batch(batch(vec![Op::Get(pb::GetRequest { read: read(|_| {}), ..get() })])),
        ),
    ]
}

fn later_fields() -> Vec<Case> {
    use pb::batch_operation::Operation as Op;
    let keyspace = || "other".to_owned();
    vec![
        later(
            "keyspace, Get",
            &["other", "default"],
            Bad::Get(pb::GetRequest { keyspace: keyspace(), ..get() }),
        ),
        later("keyspace, Set", &["other"], Bad::Set(pb::SetRequest { keyspace: keyspace(), ..set() })),
        later(
            "keyspace, Delete",
            &["other"],
            Bad::Delete(pb::DeleteRequest { keyspace: keyspace(), ..delete() }),
        ),
        later(
            "keyspace, Increment",
            &["other"],
            Bad::Increment(pb::IncrementRequest { keyspace: keyspace(), ..increment() }),
        ),
        later(
            "keyspace, Scan",
            &["other"],
            Bad::Scan(pb::ScanRequest { keyspace: keyspace(), ..Default::default() }),
        ),
        later(
            "keyspace, Batch",
            &["operation 1", "other"],
            Bad::Batch(batch(vec![
                Op::Set(set()),
                Op::Set(pb::SetRequest { keyspace: keyspace(), ..set() }),
            ])),
        ),
        later("ttl, Set", &["ttl_ms"], Bad::Set(pb::SetRequest { ttl_ms: Some(1000), ..set() })),
        later(
            "ttl, Increment",
            &["ttl_ms"],
            Bad::Increment(pb::IncrementRequest { ttl_ms: Some(1), ..increment() }),
        ),
        later("keep_ttl", &["keep_ttl"], Bad::Set(pb::SetRequest { keep_ttl: true, ..set() })),
        later("session, Set", &["session"], Bad::Set(pb::SetRequest { session: session(), ..set() })),
        later(
            "session, Delete",
            &["session"],
            Bad::Delete(pb::DeleteRequest { session: session(), ..delete() }),
        ),
        later(
            "session, Increment",
            &["session"],
            Bad::Increment(pb::IncrementRequest { session: session(), ..increment() }),
        ),
        later(
            "lease",
            &["LEASE"],
            Bad::Get(pb::GetRequest { read: read(|r| r.set_consistency(pb::Consistency::Lease)), ..get() }),
        ),
        later(
            "min_revision",
            &["min_revision"],
            Bad::Scan(pb::ScanRequest { read: read(|r| r.min_revision = 3), ..Default::default() }),
        ),
        later(
            "max_staleness_ms",
            &["max_staleness_ms"],
            Bad::Batch(pb::BatchRequest {
                read: read(|r| r.max_staleness_ms = 3),
                ..batch(vec![Op::Get(get())])
            }),
        ),
    ]
}

async fn send(server: &Server, bad: Bad) -> Result<String, Status> {
    fn show<T: std::fmt::Debug>(answer: tonic::Response<T>) -> String {
        format!("{:?}", answer.into_inner())
    }
    let mut client = server.cache_client();
    match bad {
        Bad::Get(request) => client.get(request).await.map(show),
        Bad::Set(request) => client.set(request).await.map(show),
        Bad::Delete(request) => client.delete(request).await.map(show),
        Bad::Increment(request) => client.increment(request).await.map(show),
        Bad::Batch(request) => client.batch(request).await.map(show),
        Bad::Scan(request) => client.scan(request).await.map(|_| "a stream".to_owned()),
    }
}

#[tokio::test]
async fn what_can_never_work_is_refused_and_changes_nothing() {
    let server = Server::start().await;
    let before = server.cache.state_hash();
    for Case { name, request, code, words } in sizes().into_iter().chain(values()).chain(later_fields()) {
        let status = send(&server, request).await.expect_err(name);
        let reason = if code == Code::InvalidArgument { "INVALID" } else { "UNIMPLEMENTED" };
        assert_eq!(verdict(&status), (code, reason.to_owned(), "NO".to_owned()), "{name}: {status:?}");
        for word in words {
            assert!(status.message().contains(word), "{name}: {word:?} is not in: {}", status.message());
        }
    }
    assert_eq!(server.cache.state_hash(), before);
    assert!(server.cache.calls.lock().unwrap().is_empty(), "nothing of it came to the cache");
    server.stop().await;
}

#[tokio::test]
async fn what_the_state_refuses_is_a_failed_precondition_and_changes_nothing() {
    let server = Server::start().await;
    let mut client = server.cache_client();
    client.set(set()).await.unwrap();
    client
        .set(pb::SetRequest { key: "max".into(), value: "9223372036854775807".into(), ..set() })
        .await
        .unwrap();
    let revision = server.cache.revision();
    let absent = pb::SetRequest { condition: condition(Wire::IfAbsent(true)), ..set() };
    let at_nine = pb::DeleteRequest { if_version: 9, ..delete() };
    let past = pb::IncrementRequest { key: "max".into(), ..increment() };
    for (status, reason, word) in [
        (client.set(absent).await.unwrap_err(), "CONDITION_FAILED", "version 1"),
        (client.delete(at_nine).await.unwrap_err(), "CONDITION_FAILED", "version 1"),
        (client.increment(increment()).await.unwrap_err(), "NOT_A_NUMBER", "decimal"),
        (client.increment(past).await.unwrap_err(), "OUT_OF_RANGE", "unchanged"),
    ] {
        assert_eq!(verdict(&status), (Code::FailedPrecondition, reason.to_owned(), "NO".to_owned()));
        assert!(status.message().contains(word), "{status:?}");
    }
    assert_eq!(server.cache.revision(), revision);
    server.stop().await;
}

/// Calls a path with a message of one's own making.
async fn raw(channel: Channel, path: &'static str, message: pb::BatchOperation) -> Status {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<pb::BatchOperation, pb::SetResponse>::default();
    grpc.unary(Request::new(message), path.parse().unwrap(), codec).await.expect_err(path)
}

#[tokio::test]
async fn a_message_of_another_kind_and_a_path_that_is_no_method_get_a_sentence() {
    let server = Server::start().await;
    // Field 1 is bytes there and a message here; field 4 is a message there and bytes of nonsense here.
    let nonsense = pb::BatchOperation {
        operation: Some(pb::batch_operation::Operation::Increment(pb::IncrementRequest {
            key: vec![0xff; 40].into(),
            ..Default::default()
        })),
    };
    let status = raw(server.channel(), "/larder.v1.Cache/Set", nonsense.clone()).await;
    assert_eq!(verdict(&status), (Code::InvalidArgument, "INVALID".into(), "NO".into()));
    assert!(status.message().contains("cannot be read"), "{status:?}");
    for path in ["/larder.v1.Cache/Steal", "/larder.v1.Cluster/Break", "/larder.raft.v1.Peer/Append", "/x"] {
        let status = raw(server.channel(), path, nonsense.clone()).await;
        assert_eq!(verdict(&status), (Code::Unimplemented, "UNIMPLEMENTED".into(), "NO".into()), "{path}");
        assert!(status.message().contains(path), "{status:?}");
    }
    assert!(server.cache.calls.lock().unwrap().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_deadline_that_cannot_be_read_is_refused() {
    let server = Server::start().await;
    let mut request = Request::new(set());
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let status = server.cache_client().set(request).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::InvalidArgument, "INVALID".into(), "NO".into()));
    server.stop().await;
}

/// Whatever comes in on a socket ends that connection at most.
#[tokio::test]
async fn other_protocols_and_noise_end_their_connection_and_nothing_else() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Server::start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let noise: Vec<u8> = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [
        b"GET /readyz HTTP/1.1\r\nHost: node\r\n\r\n".to_vec(),
        b"*1\r\n$4\r\nPING\r\n".repeat(8),
        noise.clone(),
        [&preface[..], &noise].concat(),
        // A headers frame that says it is 16 MiB long.
        [&preface[..], &[0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1], &noise].concat(),
    ] {
        for address in [&server.grpc_address, &server.http_address] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            // The other side may hang up while this one still writes.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        }
    }
    server.cache_client().set(set()).await.expect("the port still serves");
    server.stop().await;
}
