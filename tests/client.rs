//! The client against a pretended cluster that fails to order: what is sent again, what is not, and who is asked.

#![allow(clippy::unwrap_used)] // all of it is test

mod fake;

use std::{sync::atomic::Ordering, time::Duration};

use fake::{Cluster, Fault};
use futures::TryStreamExt;
use larder::client::{
    Applied, BatchOutcome, Client, ClientError, Condition, Consistency, DeleteOptions, Endpoint, Operation,
    Options, Role, ScanOptions, SetOptions,
};
use tokio::io::AsyncWriteExt;
use tonic::Code;

fn client(endpoints: &str) -> Client {
    with(endpoints, Options::default())
}

fn with(endpoints: &str, options: Options) -> Client {
    Client::new(Endpoint::list(endpoints).unwrap(), options).unwrap()
}

/// A client for calls that are to run out of time.
fn hasty(endpoints: &str) -> Client {
    with(endpoints, Options { timeout: Duration::from_millis(400), ..Options::default() })
}

/// An address where nobody listens, as long as the socket lives.
fn nobody() -> (String, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap().to_string(), socket)
}

const REFUSED: Fault = Fault::Refuse(Code::Unavailable, "UNAVAILABLE", "NO");

#[tokio::test]
async fn every_operation_answers_versions_and_revisions() {
    let cluster = Cluster::start(1, 0).await;
    let client = client(&cluster.endpoints());
    let first = client.set("a", "1").await.unwrap();
    assert_eq!((first.version, first.header.revision), (1, 1));
    assert_eq!(first.header.cluster_id, cluster.id);
    assert_eq!(first.header.node.slot, "0");
    let got = client.get("a").await.unwrap().found.unwrap();
    assert_eq!((got.value.as_ref(), got.version), (&b"1"[..], 1));
    assert_eq!(client.get_with("b", Consistency::Local).await.unwrap().found, None);

    let options = SetOptions { condition: Condition::IfVersion(1), return_previous: true };
    let second = client.set_with("a", "2", options).await.unwrap();
    assert_eq!(second.previous.unwrap().value, "1");
    let error = client.set_with("a", "3", options).await.unwrap_err();
    assert!(error.is_condition_failed() && !error.is_outcome_unknown(), "{error:?}");
    assert_eq!((error.code(), error.applied()), (Code::FailedPrecondition, Applied::No));
    let absent = SetOptions { condition: Condition::IfAbsent, ..SetOptions::default() };
    assert!(client.set_with("a", "3", absent).await.unwrap_err().is_condition_failed());

    assert_eq!(client.increment("n", -5).await.unwrap().value, -5);
    assert_eq!(client.increment_with("m", 1, Some(41)).await.unwrap().value, 42);
    client.set("text", "x").await.unwrap();
    assert!(client.increment("text", 1).await.unwrap_err().is_not_a_number());
    client.set("max", i64::MAX.to_string()).await.unwrap();
    assert!(client.increment("max", 1).await.unwrap_err().is_out_of_range());

    let deleted =
        client.delete_with("a", DeleteOptions { if_version: None, return_previous: true }).await.unwrap();
    assert!(deleted.deleted);
    assert_eq!(deleted.previous.unwrap().value, "2");
    assert!(!client.delete("a").await.unwrap().deleted);
    let zero = DeleteOptions { if_version: Some(0), return_previous: false };
    assert!(client.delete_with("a", zero).await.unwrap_err().is_invalid());
}

#[tokio::test]
async fn a_batch_answers_each_operation() {
    let cluster = Cluster::start(1, 0).await;
    let client = client(&cluster.endpoints());
    let answer = client
        .batch(vec![
            Operation::Set { key: "a".into(), value: "x".into(), options: SetOptions::default() },
            Operation::Increment { key: "a".into(), delta: 1, initial: None },
            Operation::Get { key: "a".into() },
            Operation::Delete { key: "a".into(), options: DeleteOptions::default() },
        ])
        .await
        .unwrap();
    let [
        Ok(BatchOutcome::Set(set)),
        Err(refused),
        Ok(BatchOutcome::Get(got)),
        Ok(BatchOutcome::Delete(deleted)),
    ] = &answer.results[..]
    else {
        panic!("{answer:?}")
    };
    assert_eq!(set.version, 1);
    assert!(refused.is_not_a_number() && refused.applied() == Applied::No);
    assert_eq!(got.found.as_ref().unwrap().value, "x");
    assert!(deleted.deleted);
    assert_eq!(deleted.header.cluster_id, cluster.id);
}

#[tokio::test]
async fn writes_go_to_the_leader_that_any_member_names() {
    let cluster = Cluster::start(3, 2).await;
    let client = client(&cluster.nodes[0].address.to_string());
    client.set("a", "1").await.unwrap();
    client.get("a").await.unwrap();
    assert_eq!(cluster.requests(), [0, 0, 2]);
    // Local reads ask the endpoint that the caller named.
    client.get_with("a", Consistency::Local).await.unwrap();
    assert_eq!(cluster.requests(), [1, 0, 2]);
}

#[tokio::test]
async fn without_discovery_only_the_named_endpoints_are_asked() {
    let cluster = Cluster::start(3, 2).await;
    let options = Options { discover: false, ..Options::default() };
    let client = with(&cluster.nodes[0].address.to_string(), options);
    client.set("a", "1").await.unwrap();
    assert_eq!(cluster.requests(), [1, 0, 0]);
}

#[tokio::test]
async fn spread_reads_take_the_nodes_in_turn() {
    let cluster = Cluster::start(3, 0).await;
    let client = with(&cluster.endpoints(), Options { spread_reads: true, ..Options::default() });
    for _ in 0..9 {
        client.get("a").await.unwrap();
    }
    assert_eq!(cluster.requests(), [3, 3, 3]);
}

#[tokio::test]
async fn a_refusal_that_names_the_leader_is_followed() {
    let cluster = Cluster::start(3, 0).await;
    let client = client(&cluster.endpoints());
    client.set("a", "1").await.unwrap();
    cluster.leader.store(3, Ordering::SeqCst);
    cluster.nodes[0].fail([Fault::NotLeader { leader: 2 }]);
    client.set("a", "2").await.unwrap();
    assert_eq!(cluster.requests(), [2, 0, 1]);
    assert_eq!(cluster.revision(), 2);
    // And remembered.
    client.set("a", "3").await.unwrap();
    assert_eq!(cluster.requests(), [2, 0, 2]);
}

#[tokio::test]
async fn a_leader_that_hands_over_is_followed_without_a_failure() {
    let cluster = Cluster::start(3, 0).await;
    let client =
        with(&cluster.endpoints(), Options { refresh: Duration::from_millis(1), ..Options::default() });
    client.set("a", "1").await.unwrap();
    cluster.leader.store(3, Ordering::SeqCst);
    // The old leader would forward for ever.
    while cluster.requests()[2] == 0 {
        client.get("a").await.unwrap();
    }
    assert_eq!(cluster.requests()[1], 0);
}

#[tokio::test]
async fn what_surely_was_not_applied_is_sent_again_until_it_is() {
    let cluster = Cluster::start(1, 0).await;
    let client = client(&cluster.endpoints());
    cluster.nodes[0].fail([
        REFUSED,
        Fault::Refuse(Code::ResourceExhausted, "RESOURCE_EXHAUSTED", "NO"),
        REFUSED,
    ]);
    client.increment("n", 1).await.unwrap();
    assert_eq!(cluster.requests(), [4]);
    assert_eq!(cluster.value("n").unwrap(), "1");
}

#[tokio::test]
async fn trying_again_ends_at_the_deadline_with_the_nodes_own_words() {
    let cluster = Cluster::start(1, 0).await;
    cluster.nodes[0].fail(std::iter::repeat_n(REFUSED, 1000));
    let error = hasty(&cluster.endpoints()).set("a", "1").await.unwrap_err();
    assert!(error.is_unavailable() && error.applied() == Applied::No, "{error:?}");
    assert!(error.to_string().contains("UNAVAILABLE as ordered"), "{error}");
    assert!((2..100).contains(&cluster.requests()[0]), "{:?}", cluster.requests());
}

#[tokio::test]
async fn a_write_of_unknown_outcome_is_the_callers_and_is_sent_once() {
    for fault in [
        Fault::Refuse(Code::Unknown, "OUTCOME_UNKNOWN", "UNKNOWN"),
        Fault::Refuse(Code::Internal, "STORAGE", "UNKNOWN"),
        Fault::Refuse(Code::Unavailable, "UNAVAILABLE", "?"),
        Fault::Bare,
        Fault::ApplyThenHang,
        Fault::Hang,
        Fault::ApplyThenCut,
        Fault::Cut,
    ] {
        let cluster = Cluster::start(3, 1).await;
        let client = hasty(&cluster.endpoints());
        cluster.nodes[1].fail([fault.clone()]);
        let error = client.increment("n", 1).await.unwrap_err();
        assert!(matches!(error, ClientError::OutcomeUnknown(_)), "{fault:?}: {error:?}");
        assert!(error.is_outcome_unknown() && error.to_string().contains("read the key"), "{error}");
        assert_eq!((error.code(), error.reason()), (Code::Unknown, "OUTCOME_UNKNOWN"));
        assert_eq!(cluster.requests(), [0, 1, 0], "{fault:?}");
        let applied = matches!(fault, Fault::ApplyThenHang | Fault::ApplyThenCut);
        assert_eq!(cluster.revision(), u64::from(applied), "{fault:?}");
        // The next call is not hurt.
        client.increment("n", 1).await.unwrap();
        assert_eq!(cluster.revision(), u64::from(applied) + 1);
    }
}

#[tokio::test]
async fn a_batch_with_a_write_counts_as_a_write_and_one_of_reads_as_a_read() {
    let cluster = Cluster::start(2, 0).await;
    let client = client(&cluster.endpoints());
    let get = Operation::Get { key: "a".into() };
    let set = Operation::Set { key: "a".into(), value: "1".into(), options: SetOptions::default() };
    cluster.nodes[0].fail([Fault::Cut]);
    client.batch(vec![get.clone()]).await.unwrap();
    assert_eq!(cluster.requests(), [1, 1]);
    cluster.nodes[1].fail([Fault::Cut]);
    cluster.nodes[0].fail([Fault::Cut]);
    let error = client.batch(vec![get, set]).await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown(_)), "{error:?}");
}

#[tokio::test]
async fn refusals_that_time_does_not_mend_are_the_callers_at_once() {
    let cluster = Cluster::start(2, 0).await;
    let client = client(&cluster.endpoints());
    for (code, reason) in [
        (Code::InvalidArgument, "INVALID"),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (Code::Unimplemented, "UNIMPLEMENTED"),
    ] {
        cluster.nodes[0].fail([Fault::Refuse(code, reason, "NO")]);
        let error = client.set("a", "1").await.unwrap_err();
        assert_eq!((error.code(), error.reason(), error.applied()), (code, reason, Applied::No));
    }
    assert_eq!(cluster.requests(), [3, 0]);
}

#[tokio::test]
async fn reads_are_tried_elsewhere_whatever_happened() {
    for fault in [
        Fault::Cut,
        Fault::Hang,
        Fault::Bare,
        REFUSED,
        Fault::Refuse(Code::Internal, "STORAGE", "UNKNOWN"),
        Fault::Refuse(Code::Unknown, "OUTCOME_UNKNOWN", "UNKNOWN"),
    ] {
        let cluster = Cluster::start(2, 0).await;
        let client =
            with(&cluster.endpoints(), Options { timeout: Duration::from_secs(1), ..Options::default() });
        client.set("a", "1").await.unwrap();
        cluster.nodes[0].fail([fault.clone()]);
        let got = client.get("a").await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(got.found.unwrap().value, "1");
        assert_eq!(cluster.requests(), [2, 1], "{fault:?}");
    }
}

#[tokio::test]
async fn one_endpoint_that_is_left_is_enough() {
    let cluster = Cluster::start(1, 0).await;
    let ((one, _held), (two, _too)) = (nobody(), nobody());
    let list = format!("{one},{two},{}", cluster.endpoints());
    client(&list).set("a", "1").await.unwrap();
    assert_eq!(cluster.value("a").unwrap(), "1");
}

#[tokio::test]
async fn a_node_that_dies_between_calls_is_replaced_by_another() {
    let cluster = Cluster::start(3, 0).await;
    let client = client(&cluster.endpoints());
    client.set("a", "1").await.unwrap();
    cluster.nodes[0].kill().await;
    cluster.leader.store(2, Ordering::SeqCst);
    // Whether the transport already knows that the connection is gone is a race that a write may lose; a read may not.
    client.get("a").await.unwrap();
    client.set("a", "2").await.unwrap();
    assert_eq!(cluster.value("a").unwrap(), "2");
    assert_eq!(cluster.requests()[0], 1);
}

#[tokio::test]
async fn nobody_there_is_told_with_every_reason_and_nothing_was_applied() {
    let ((one, _held), (two, _too)) = (nobody(), nobody());
    let options = Options { wait_for_ready: false, ..Options::default() };
    let error = with(&format!("{one},{two}"), options).set("a", "1").await.unwrap_err();
    let ClientError::Unreachable(text) = &error else { panic!("{error:?}") };
    assert!(text.contains(&one) && text.contains(&two) && text.contains("refused"), "{text}");
    assert!(error.is_unavailable() && error.applied() == Applied::No);
    // Waiting for it ends at the deadline, with the same.
    let error = hasty(&one).set("a", "1").await.unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable(text) if text.contains(&one)), "{error:?}");
}

#[tokio::test]
async fn a_call_waits_for_an_endpoint_to_come_back() {
    let cluster = Cluster::start(1, 0).await;
    cluster.nodes[0].kill().await;
    let client = client(&cluster.endpoints());
    let (set, ()) = tokio::join!(client.set("a", "1"), async { cluster.nodes[0].revive() });
    set.unwrap();
}

#[tokio::test]
async fn the_node_is_told_the_deadline() {
    let cluster = Cluster::start(1, 0).await;
    client(&cluster.endpoints()).set("a", "1").await.unwrap();
    assert!(cluster.nodes[0].deadline.lock().unwrap().is_some());
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_refused() {
    let one = Cluster::start(1, 0).await;
    let two = Cluster::named("ffffffffffffffffffffffffffffffff", 1, 0).await;
    let client = client(&format!("{},{}", one.endpoints(), two.endpoints()));
    client.set("a", "1").await.unwrap();
    one.nodes[0].kill().await;
    let error = loop {
        // The first call may still find the old connection broken.
        match client.get("a").await {
            Err(error) => break error,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    assert!(error.is_invalid() && error.to_string().contains("one cluster only"), "{error:?}");
    assert_eq!(two.revision(), 0);
}

#[tokio::test]
async fn what_is_no_larder_is_named_and_no_write_is_sent_to_it() {
    // Something that speaks HTTP/1 only, as the port for probes does.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
        }
    });
    let options = Options { wait_for_ready: false, ..Options::default() };
    let error = with(&address, options.clone()).set("a", "1").await.unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable(text) if text.contains("client port")), "{error:?}");

    // A gRPC server of something else.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming));
    let error = with(&address, options).set("a", "1").await.unwrap_err();
    assert!(matches!(&error, ClientError::Invalid(text) if text.contains("client port")), "{error:?}");
}

#[tokio::test]
async fn a_scan_ends_only_when_it_is_whole() {
    let cluster = Cluster::start(2, 0).await;
    let client = client(&cluster.endpoints());
    for key in 0..10 {
        client.set(format!("k{key}"), "v").await.unwrap();
    }
    client.set("other", "v").await.unwrap();
    let keys = |options: ScanOptions| {
        let client = client.clone();
        async move {
            let entries: Vec<_> = client.scan(options).try_collect().await?;
            let keys = entries.into_iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap());
            Ok::<_, ClientError>(keys.collect::<Vec<_>>())
        }
    };
    let of_k = ScanOptions { prefix: "k".into(), ..ScanOptions::default() };
    let all: Vec<_> = (0..10).map(|key| format!("k{key}")).collect();
    assert_eq!(keys(of_k.clone()).await.unwrap(), all);
    assert_eq!(keys(ScanOptions { limit: 4, ..of_k.clone() }).await.unwrap(), all[..4]);
    assert_eq!(keys(ScanOptions { start_after: "k7".into(), ..of_k.clone() }).await.unwrap(), all[8..]);

    cluster.nodes[0].fail([Fault::CutScan(2)]);
    let error = keys(of_k.clone()).await.unwrap_err();
    assert!(matches!(&error, ClientError::Broken(text) if text.contains("after 6 keys")), "{error:?}");

    cluster.nodes[0].fail([Fault::CutScan(2), Fault::CutScan(0), Fault::CutScan(1)]);
    let resuming = ScanOptions { resume: true, ..of_k };
    assert_eq!(keys(resuming.clone()).await.unwrap(), all);
    cluster.nodes[0].fail([Fault::CutScan(2)]);
    assert_eq!(keys(ScanOptions { limit: 7, ..resuming.clone() }).await.unwrap(), all[..7]);
    // A cut that never ends is told in the end.
    cluster.nodes[0].fail(std::iter::repeat_n(Fault::CutScan(0), 100));
    assert!(matches!(keys(resuming).await, Err(ClientError::Broken(_))));
}

#[tokio::test]
async fn the_status_of_all_shows_members_that_were_not_named_and_those_that_are_gone() {
    let cluster = Cluster::start(3, 1).await;
    cluster.nodes[2].kill().await;
    let client = client(&cluster.nodes[0].address.to_string());
    let all = client.status_all().await;
    let seen: Vec<_> = all
        .iter()
        .map(|one| {
            (
                one.node.clone().unwrap().slot,
                one.configured,
                one.result.as_ref().map(|status| status.role).ok(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("0".to_owned(), true, Some(Role::Follower)),
            ("1".to_owned(), false, Some(Role::Leader)),
            ("2".to_owned(), false, None)
        ]
    );
    assert!(matches!(all[2].result, Err(ClientError::Unreachable(_))), "{:?}", all[2]);
}

#[tokio::test]
async fn members_and_the_transfer_of_leadership() {
    let cluster = Cluster::start(3, 0).await;
    let client = client(&cluster.endpoints());
    let members = client.members().await.unwrap();
    assert_eq!(members.members.iter().filter(|member| member.leader).count(), 1);
    assert_eq!(members.members[1].client_address, cluster.nodes[1].address.to_string());
    assert_eq!(client.transfer_leader("2").await.unwrap().slot, "2");
    assert_eq!(client.transfer_leader("").await.unwrap().slot, "0");
    assert_eq!(client.transfer_leader("9").await.unwrap_err().code(), Code::FailedPrecondition);
    cluster.members.lock().unwrap().insert(2, false);
    client.promote_member("1").await.unwrap();
    assert_eq!(cluster.slots(), ["0", "1", "2"]);
    client.retire_member("2").await.unwrap();
    assert_eq!(cluster.slots(), ["0", "1"]);
    for refused in [client.retire_member("2").await, client.retire_member("0").await] {
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
    // Which node leaves must not depend on which one answers.
    assert!(matches!(client.leave().await, Err(ClientError::Invalid(_))));
    let own = vec![cluster.nodes[1].address.to_string().parse().unwrap()];
    let own = Client::new(own, Options { discover: false, ..Options::default() }).unwrap();
    own.leave().await.unwrap();
    assert_eq!(cluster.slots(), ["0"]);
}

#[tokio::test]
async fn a_recovery_goes_to_one_node_and_no_other() {
    let cluster = Cluster::start(3, 0).await;
    let client = client(&cluster.endpoints());
    let at = |index: usize| cluster.nodes[index].address.to_string().parse::<Endpoint>().unwrap();
    let present = client.status(&at(1)).await.unwrap().header.cluster_id;
    let recovered = client.recover(&at(1), &present).await.unwrap();
    assert_eq!((recovered.cluster_id, recovered.keys), ("ab".repeat(16), 2));
    assert_eq!(client.recover(&at(1), "other").await.unwrap_err().code(), Code::InvalidArgument);
    // A node that is gone is not replaced by another one.
    cluster.nodes[1].kill().await;
    // The connection of before broke: nobody knows how far the request got.
    assert!(matches!(client.recover(&at(1), &present).await, Err(ClientError::OutcomeUnknown(_))));
    assert!(matches!(client.recover(&at(1), &present).await, Err(ClientError::Unreachable(_))));
}

#[tokio::test]
async fn many_calls_at_once_share_the_connections() {
    let cluster = Cluster::start(3, 1).await;
    let client = with(&cluster.endpoints(), Options { connections: 3, ..Options::default() });
    let calls = (0..200).map(|_| {
        let client = client.clone();
        async move { client.increment("n", 1).await }
    });
    let sums = futures::future::try_join_all(calls).await.unwrap();
    assert_eq!(sums.iter().map(|sum| sum.value).max(), Some(200));
    assert_eq!(cluster.requests(), [0, 200, 0]);
}
