//! Batch: runs in order, errors in place, nothing acknowledged hidden.

use larder::error::Error;
use larder::proto::v1::{
    self as pb, batch_operation::Operation as Op, batch_result::Result as Res, condition::Condition as Wire,
};
use larder::state::MAX_VALUE_BYTES;
use tonic::Code;

use crate::support::{CLUSTER_ID, Server, verdict};

fn set(key: &'static str, value: &'static str) -> Op {
    Op::Set(pb::SetRequest { key: key.into(), value: value.into(), ..Default::default() })
}

fn get(key: &'static str) -> Op {
    Op::Get(pb::GetRequest { key: key.into(), ..Default::default() })
}

fn batch(operations: impl IntoIterator<Item = Op>) -> pb::BatchRequest {
    let operations =
        operations.into_iter().map(|operation| pb::BatchOperation { operation: Some(operation) }).collect();
    pb::BatchRequest { operations, read: None }
}

async fn send(server: &Server, operations: impl IntoIterator<Item = Op>) -> Vec<Res> {
    let answer = server.cache_client().batch(batch(operations)).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().cluster_id, CLUSTER_ID);
    answer.results.into_iter().map(|result| result.result.unwrap()).collect()
}

fn error(result: &Res) -> &pb::BatchError {
    match result {
        Res::Error(error) => error,
        other => panic!("no error: {other:?}"),
    }
}

#[tokio::test]
async fn writes_next_to_one_another_are_one_command_and_reads_one_query() {
    let server = Server::start().await;
    let absent = Op::Set(pb::SetRequest {
        key: "a".into(),
        value: "x".into(),
        condition: Some(pb::Condition { condition: Some(Wire::IfAbsent(true)) }),
        ..Default::default()
    });
    let delete =
        Op::Delete(pb::DeleteRequest { key: "a".into(), return_previous: true, ..Default::default() });
    let results =
        send(&server, [get("a"), set("a", "1"), absent, set("b", "2"), get("a"), get("b"), delete, get("a")])
            .await;
    assert!(matches!(&results[0], Res::Get(get) if !get.found && get.header.is_none()));
    assert!(matches!(&results[1], Res::Set(set) if set.version == 1 && set.header.is_none()));
    let refused = error(&results[2]);
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::FailedPrecondition as i32, "CONDITION_FAILED")
    );
    assert!(refused.message.contains("version 1"), "{refused:?}");
    assert!(matches!(&results[3], Res::Set(set) if set.version == 2));
    assert!(matches!(&results[4], Res::Get(get) if get.found && get.value == "1"));
    assert!(matches!(&results[5], Res::Get(get) if get.value == "2" && get.version == 2));
    assert!(matches!(&results[6], Res::Delete(d) if d.deleted && d.previous.as_ref().unwrap().value == "1"));
    assert!(matches!(&results[7], Res::Get(get) if !get.found));
    let calls: Vec<_> =
        server.cache.calls.lock().unwrap().iter().map(|(call, _)| call[..5].to_owned()).collect();
    assert_eq!(calls, ["read ", "write", "read ", "write", "read "]);
    server.stop().await;
}

#[tokio::test]
async fn a_batch_whose_first_run_fails_is_an_error_as_a_whole() {
    let server = Server::start().await;
    server.cache.script([Some(Error::Unavailable("no leader".into()))]);
    let status = server.cache_client().batch(batch([set("a", "1"), get("a")])).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::Unavailable, "UNAVAILABLE".into(), "NO".into()));
    assert_eq!(server.cache.revision(), 0);
    server.stop().await;
}

#[tokio::test]
async fn what_was_done_before_a_failure_is_answered_and_what_was_not_says_so() {
    let server = Server::start().await;
    server.cache.script([None, Some(Error::Unavailable("no leader".into()))]);
    let results = send(&server, [set("a", "1"), set("b", "2"), get("a"), set("c", "3")]).await;
    assert!(matches!(&results[0], Res::Set(set) if set.version == 1));
    assert!(matches!(&results[1], Res::Set(set) if set.version == 2));
    for result in &results[2..] {
        let error = error(result);
        assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable as i32, "UNAVAILABLE"));
        assert!(
            error.message.contains("no leader") && error.message.contains("was not applied"),
            "{error:?}"
        );
    }
    assert_eq!((results.len(), server.cache.revision()), (4, 2), "nothing after the failure was begun");
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_outcome_is_told_of_its_run_and_not_of_those_after_it() {
    let server = Server::start().await;
    server.cache.script([None, Some(Error::OutcomeUnknown("the leader was lost".into()))]);
    let results = send(&server, [get("a"), set("b", "2"), get("a"), set("c", "3")]).await;
    assert!(matches!(&results[0], Res::Get(get) if !get.found));
    let unknown = error(&results[1]);
    assert_eq!((unknown.code, unknown.reason.as_str()), (Code::Unknown as i32, "OUTCOME_UNKNOWN"));
    assert!(unknown.message.contains("may have been applied"), "{unknown:?}");
    for result in &results[2..] {
        let error = error(result);
        assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable as i32, "UNAVAILABLE"));
        assert!(error.message.contains("was not applied"), "{error:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn reads_past_the_bytes_of_an_answer_are_refused_in_place() {
    let server = Server::start().await;
    let large =
        pb::SetRequest { key: "large".into(), value: vec![1; MAX_VALUE_BYTES].into(), ..Default::default() };
    server.cache_client().set(large).await.unwrap();
    let mut operations = vec![get("large"); 6];
    operations.push(get("missing"));
    let results = send(&server, operations).await;
    assert!(results[..3].iter().all(|r| matches!(r, Res::Get(get) if get.value.len() == MAX_VALUE_BYTES)));
    for result in &results[3..6] {
        let error = error(result);
        assert_eq!(error.code, Code::ResourceExhausted as i32);
        assert!(error.message.contains("another request"), "{error:?}");
    }
    assert!(matches!(&results[6], Res::Get(get) if !get.found), "a small one still fits");
    server.stop().await;
}
