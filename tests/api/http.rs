//! Probes and metrics, as an HTTP client sees them.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::Server;

/// The status, the headers and the body of a GET.
async fn fetch(server: &Server, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(&server.http_address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn readiness_prints_each_check_and_liveness_does_not_care() {
    let server = Server::start().await;
    let (status, _, body) = fetch(&server, "/readyz").await;
    assert_eq!(status, 200);
    assert_eq!(body, "[+]member ok\n[+]caught-up ok\n[+]leader ok\n[+]disk ok\n[+]running ok\nready\n");

    server.cluster.set_check("leader", Some("no leader is known;\nsee that a majority runs"));
    let (status, _, body) = fetch(&server, "/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("[+]member ok\n"), "{body}");
    assert!(body.contains("[-]leader: no leader is known; see that a majority runs\n"), "{body}");
    assert!(body.ends_with("not ready\n"), "{body}");
    assert_eq!(fetch(&server, "/livez").await.0, 200);
    assert_eq!(fetch(&server, "/startupz").await.0, 200);

    server.cluster.set_check("running", Some("the snapshot is being loaded"));
    let (status, _, body) = fetch(&server, "/startupz").await;
    assert_eq!((status, body.as_str()), (503, "[-]running: the snapshot is being loaded\nnot ready\n"));
    assert_eq!(fetch(&server, "/livez").await.2, "ok\n");
    server.stop().await;
}

#[tokio::test]
async fn metrics_show_the_node_as_it_is_when_asked() {
    let server = Server::start().await;
    let (status, head, text) = fetch(&server, "/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    for line in [
        "larder_raft_term 7",
        r#"larder_raft_role{role="follower"} 1"#,
        r#"larder_raft_role{role="leader"} 0"#,
        "larder_raft_applied_index 9",
        "larder_raft_committed_index 11",
        "larder_raft_last_log_index 12",
        "larder_raft_lag 2",
        "larder_state_keys 4",
        "larder_state_bytes 400",
        "larder_state_revision 5",
        "larder_disk_bytes 4096",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    server.cluster.status.lock().unwrap().term = 8;
    assert!(fetch(&server, "/metrics").await.2.contains("larder_raft_term 8\n"));
    server.stop().await;
}

#[tokio::test]
async fn the_index_names_the_paths_and_other_paths_are_not_found() {
    let server = Server::start().await;
    let (status, _, body) = fetch(&server, "/").await;
    assert_eq!(status, 200);
    for path in ["/livez", "/readyz", "/startupz", "/metrics", "slot 0"] {
        assert!(body.contains(path), "{body}");
    }
    assert_eq!(fetch(&server, "/nothing").await.0, 404);
    server.stop().await;
}
