//! What every request has in common: the header, the deadline, the limits, the errors; and the services beside `Cache`.

use std::time::Duration;

use larder::{
    api::grpc::{Limits, MAX_TIMEOUT},
    error::{Error, Rejection},
    proto::v1 as pb,
    service::Ctx,
};
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt;

use crate::support::{CLUSTER_ID, MachineCache, Server, node, verdict};

fn set(key: &'static str) -> pb::SetRequest {
    pb::SetRequest { key: key.into(), value: "1".into(), ..Default::default() }
}

fn get(key: &'static str) -> pb::GetRequest {
    pb::GetRequest { key: key.into(), ..Default::default() }
}

#[tokio::test]
async fn every_answer_has_a_header() {
    let server = Server::start().await;
    let (mut cache, mut cluster) = (server.cache_client(), server.cluster_client());
    let key = || "n".into();
    let headers = [
        (1, cache.set(set("n")).await.unwrap().into_inner().header),
        (1, cache.get(get("n")).await.unwrap().into_inner().header),
        (
            2,
            cache
                .increment(pb::IncrementRequest { key: key(), delta: 1, ..Default::default() })
                .await
                .unwrap()
                .into_inner()
                .header,
        ),
        (
            3,
            cache
                .delete(pb::DeleteRequest { key: key(), ..Default::default() })
                .await
                .unwrap()
                .into_inner()
                .header,
        ),
        // The point of the node, as its view tells.
        (5, cluster.status(pb::StatusRequest {}).await.unwrap().into_inner().header),
        (5, cluster.members(pb::MembersRequest {}).await.unwrap().into_inner().header),
        (5, cluster.transfer_leader(pb::TransferLeaderRequest::default()).await.unwrap().into_inner().header),
        (
            5,
            cluster
                .retire_member(pb::RetireMemberRequest { slot: "2".into() })
                .await
                .unwrap()
                .into_inner()
                .header,
        ),
        (
            5,
            cluster
                .promote_member(pb::PromoteMemberRequest { slot: "0".into() })
                .await
                .unwrap()
                .into_inner()
                .header,
        ),
    ];
    for (revision, header) in headers {
        let header = header.unwrap();
        assert_eq!((header.revision, header.cluster_id.as_str()), (revision, CLUSTER_ID));
        assert_eq!(header.node, Some(pb::Node { id: 1, slot: "0".into() }));
        assert!(header.clock_ms >= 1000);
    }
    server.stop().await;
}

#[tokio::test]
async fn the_cluster_id_shows_as_soon_as_there_is_one() {
    let server = Server::start().await;
    let mut client = server.cache_client();
    let founded = std::mem::take(&mut *server.cluster.cluster_id.lock().unwrap());
    let header = client.get(get("k")).await.unwrap().into_inner().header.unwrap();
    assert_eq!(header.cluster_id, "");
    *server.cluster.cluster_id.lock().unwrap() = founded;
    let header = client.get(get("k")).await.unwrap().into_inner().header.unwrap();
    assert_eq!(header.cluster_id, CLUSTER_ID);
    server.stop().await;
}

#[tokio::test]
async fn the_deadline_goes_down_with_the_request() {
    let server = Server::start().await;
    let mut client = server.cache_client();
    client.set(set("k")).await.unwrap();
    for seconds in [3, 3600] {
        let mut request = Request::new(get("k"));
        request.set_timeout(Duration::from_secs(seconds));
        client.get(request).await.unwrap();
    }
    let timeouts: Vec<_> = server.cache.calls.lock().unwrap().iter().map(|(_, ctx)| ctx.timeout).collect();
    assert_eq!(
        timeouts,
        [Ctx::DEFAULT_TIMEOUT, Duration::from_millis(2900), MAX_TIMEOUT - Duration::from_millis(100)]
    );
    server.stop().await;
}

/// The server leaves it to whoever knows how far the request got to answer a passed deadline.
#[tokio::test]
async fn a_passed_deadline_does_not_cut_a_write_off() {
    let server = Server::start_with(MachineCache::gated(), Limits::default()).await;
    let mut entered = server.cache.entered.subscribe();
    let mut client = server.patient_client().await;
    let write = tokio::spawn(async move {
        let mut request = Request::new(set("k"));
        request.set_timeout(Duration::from_millis(1));
        client.set(request).await
    });
    entered.wait_for(|entered| *entered == 1).await.unwrap();
    let ctx = server.cache.calls.lock().unwrap()[0].1;
    assert_eq!(ctx.timeout, Duration::from_micros(900));
    // Long past it.
    tokio::time::timeout(ctx.timeout * 50, std::future::pending::<()>()).await.unwrap_err();
    assert!(!write.is_finished());
    server.cache.script([Some(Error::OutcomeUnknown("it was proposed".into()))]);
    server.cache.gate.add_permits(1);
    let status = write.await.unwrap().unwrap_err();
    assert_eq!(verdict(&status), (Code::Unknown, "OUTCOME_UNKNOWN".into(), "UNKNOWN".into()));
    server.stop().await;
}

#[tokio::test]
async fn every_error_has_its_code_reason_and_whether_it_was_applied() {
    let server = Server::start().await;
    let leader = || Some(node(3));
    // Error, code, applied, leader told, retry told.
    let cases = [
        (Error::NotLeader { leader: leader() }, Code::Unavailable, "NO", Some("3"), true),
        (Error::NotLeader { leader: None }, Code::Unavailable, "NO", Some("2"), true),
        (Error::Unavailable("x".into()), Code::Unavailable, "NO", Some("2"), true),
        (Error::DeadlineExceeded("x".into()), Code::DeadlineExceeded, "NO", Some("2"), false),
        (Error::OutcomeUnknown("x".into()), Code::Unknown, "UNKNOWN", Some("2"), false),
        (Error::Invalid("x".into()), Code::InvalidArgument, "NO", None, false),
        (Error::Unimplemented("x".into()), Code::Unimplemented, "NO", None, false),
        (Error::ResourceExhausted("x".into()), Code::ResourceExhausted, "NO", None, true),
        (Error::Rejected(Rejection::NotOpen), Code::Unavailable, "NO", Some("2"), true),
        (Error::Rejected(Rejection::NotANumber), Code::FailedPrecondition, "NO", None, false),
        (Error::Storage("x".into()), Code::Internal, "UNKNOWN", None, false),
        (Error::Shutdown, Code::Unavailable, "NO", Some("2"), true),
    ];
    for (error, code, applied, leader, retry) in cases {
        server.cache.script([Some(error.clone())]);
        let status = server.cache_client().set(set("k")).await.unwrap_err();
        assert_eq!(verdict(&status), (code, error.reason().into(), applied.into()));
        assert_eq!(status.message(), error.to_string());
        let details = status.get_error_details();
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata.get("leader").map(String::as_str), leader, "{error:?}");
        if let Some(id) = leader {
            assert_eq!(metadata["leader_slot"], (id.parse::<u64>().unwrap() - 1).to_string());
            assert_eq!(metadata["leader_address"], format!("n{id}:7400"));
        }
        assert_eq!(details.retry_info().is_some(), retry, "{error:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn past_the_limit_requests_are_shed_and_not_queued() {
    let limits = Limits { in_flight_requests: 2, ..Limits::default() };
    let server = Server::start_with(MachineCache::gated(), limits).await;
    let mut entered = server.cache.entered.subscribe();
    let waiting: Vec<_> = ["a", "b"]
        .map(|key| {
            let mut client = server.cache_client();
            tokio::spawn(async move { client.set(set(key)).await })
        })
        .into();
    entered.wait_for(|entered| *entered == 2).await.unwrap();
    let status = server.cache_client().set(set("c")).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::ResourceExhausted, "RESOURCE_EXHAUSTED".into(), "NO".into()));
    assert!(status.message().contains("limit of 2 requests"), "{status:?}");
    server.cluster_client().status(pb::StatusRequest {}).await.expect("an operator still gets an answer");
    server.cache.gate.add_permits(2);
    for write in waiting {
        write.await.unwrap().unwrap();
    }
    server.cache.gate.close();
    server.cache_client().set(set("c")).await.expect("there is room again");
    let text = server.metrics.encode();
    assert!(text.contains(r#"larder_requests_total{method="Set",code="RESOURCE_EXHAUSTED"} 1"#), "{text}");
    assert!(text.contains(r#"larder_requests_total{method="Set",code="OK"} 3"#), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn bytes_in_flight_are_bounded_too() {
    let limits = Limits { in_flight_bytes: 100_000, ..Limits::default() };
    let server = Server::start_with(MachineCache::open(), limits).await;
    let mut client = server.cache_client();
    let large = |bytes: usize| pb::SetRequest { value: vec![0; bytes].into(), ..set("k") };
    client.set(large(90_000)).await.unwrap();
    client.set(large(90_000)).await.expect("what is done makes room");
    let status = client.set(large(100_000)).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::ResourceExhausted, "RESOURCE_EXHAUSTED".into(), "NO".into()));
    server.stop().await;
}

#[tokio::test]
async fn a_request_under_way_is_finished_at_a_shutdown() {
    let mut server = Server::start_with(MachineCache::gated(), Limits::default()).await;
    let mut entered = server.cache.entered.subscribe();
    let mut client = server.cache_client();
    let write = tokio::spawn(async move { client.set(set("k")).await });
    entered.wait_for(|entered| *entered == 1).await.unwrap();
    server.begin_stop();
    // The port closes while the write is still under way.
    while tokio::net::TcpStream::connect(&server.grpc_address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.cache.gate.add_permits(1);
    write.await.unwrap().expect("it was under way before the stop");
    server.stop().await;
}

#[tokio::test]
async fn the_cluster_service_shows_what_the_node_knows() {
    let server = Server::start().await;
    server.cluster.set_check("leader", Some("no leader is known; see that a majority runs"));
    let mut client = server.cluster_client();
    let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.role(), pb::Role::Follower);
    assert_eq!((status.term, status.applied_index, status.state_hash, status.keys), (7, 9, 99, 4));
    assert_eq!(status.leader, Some(pb::Node { id: 2, slot: "1".into() }));
    assert!(!status.ready);
    assert_eq!(status.not_ready_because, ["leader: no leader is known; see that a majority runs"]);
    assert_eq!(status.release, env!("CARGO_PKG_VERSION"));
    let members = client.members(pb::MembersRequest {}).await.unwrap().into_inner().members;
    assert_eq!(members.len(), 3);
    assert_eq!(
        (members[1].leader, members[1].matched_index, members[0].matched_index),
        (true, Some(11), None)
    );
    assert_eq!(members[2].client_address, "n3:7400");
    let slot = |slot: &str| pb::TransferLeaderRequest { slot: slot.into() };
    let moved = client.transfer_leader(slot("2")).await.unwrap().into_inner();
    assert_eq!(moved.leader, Some(pb::Node { id: 3, slot: "2".into() }));
    let status = client.transfer_leader(slot("9")).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::InvalidArgument, "INVALID".into(), "NO".into()));
    let confirm = |id: &str| pb::RecoverRequest { cluster_id: id.into() };
    let recovered = client.recover(confirm(CLUSTER_ID)).await.unwrap().into_inner();
    assert_eq!(
        (recovered.cluster_id, recovered.header.unwrap().cluster_id),
        ("ab".repeat(16), CLUSTER_ID.into())
    );
    assert_eq!((recovered.revision, recovered.keys, recovered.last_log_index), (3, 2, 12));
    let status = client.recover(confirm("")).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::InvalidArgument, "INVALID".into(), "NO".into()));
    server.stop().await;
}

#[tokio::test]
async fn members_are_changed_through_the_view_and_within_the_deadline() {
    let server = Server::start().await;
    let mut client = server.cluster_client();
    let retire = |slot: &str| pb::RetireMemberRequest { slot: slot.into() };
    let promote = |slot: &str| pb::PromoteMemberRequest { slot: slot.into() };
    for (slot, part) in [("0", "stop it first"), ("9", "one of 0, 1, 2")] {
        let status = client.retire_member(retire(slot)).await.unwrap_err();
        assert_eq!(verdict(&status), (Code::InvalidArgument, "INVALID".into(), "NO".into()));
        assert!(status.message().contains(part), "{status:?}");
    }
    client.retire_member(retire("2")).await.unwrap();
    assert_eq!(server.cluster.members.lock().unwrap().len(), 2);
    server.cluster.members.lock().unwrap()[1].voter = false;
    client.promote_member(promote("1")).await.unwrap();
    assert!(server.cluster.members.lock().unwrap()[1].voter);
    let status = client.promote_member(promote("2")).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::Unavailable, "UNAVAILABLE".into(), "NO".into()));
    // The deadline goes down with the request, short of it by the time for the answer.
    let mut request = Request::new(pb::LeaveRequest {});
    request.set_timeout(Duration::from_secs(5));
    let status = client.leave(request).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::Unavailable, "UNAVAILABLE".into(), "NO".into()));
    assert!(status.message().contains("not done within 4.9s"), "{status:?}");
    server.stop().await;
}

#[tokio::test]
async fn health_follows_readiness_and_a_watch_ends_with_the_node() {
    let mut server = Server::start().await;
    let mut client = HealthClient::new(server.channel());
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    for service in ["", "larder.v1.Cache", "larder.v1.Cluster"] {
        let answer = client.check(ask(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    assert_eq!(client.check(ask("nobody")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = client.watch(ask("larder.v1.Cache")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.cluster.set_check("leader", Some("no leader is known"));
    assert_eq!(client.check(ask("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    server.cluster.set_check("leader", None);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.begin_stop();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn reflection_lists_the_client_services_only() {
    let server = Server::start().await;
    let expected =
        |own: &str| ["grpc.health.v1.Health", own, "larder.v1.Cache", "larder.v1.Cluster"].map(str::to_owned);

    let request = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel());
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("{answer:?}")
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, expected("grpc.reflection.v1.ServerReflection"));

    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
        ..Default::default()
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel());
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("{answer:?}")
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, expected("grpc.reflection.v1alpha.ServerReflection"));
    server.stop().await;
}

#[tokio::test]
async fn requests_are_counted_by_method_and_code() {
    let server = Server::start().await;
    let mut client = server.cache_client();
    client.set(set("k")).await.unwrap();
    client.get(get("k")).await.unwrap();
    client.get(get("")).await.unwrap_err();
    let mut stream = client.scan(pb::ScanRequest::default()).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    drop(stream);
    client.scan(pb::ScanRequest { keyspace: "x".into(), ..Default::default() }).await.unwrap_err();
    server.cluster_client().status(pb::StatusRequest {}).await.unwrap();
    let metrics = std::sync::Arc::clone(&server.metrics);
    drop(client);
    server.stop().await;
    let text = metrics.encode();
    for line in [
        r#"larder_requests_total{method="Set",code="OK"} 1"#,
        r#"larder_requests_total{method="Get",code="OK"} 1"#,
        r#"larder_requests_total{method="Get",code="INVALID_ARGUMENT"} 1"#,
        r#"larder_requests_total{method="Scan",code="OK"} 1"#,
        r#"larder_requests_total{method="Scan",code="UNIMPLEMENTED"} 1"#,
        r#"larder_requests_total{method="Status",code="OK"} 1"#,
        r#"larder_request_seconds_count{method="Get"} 2"#,
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}
