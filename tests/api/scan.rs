//! Scan: chunks of one revision, the end said, views bounded.

use bytes::Bytes;
use larder::api::grpc::Limits;
use larder::proto::v1 as pb;
use tonic::Code;

use crate::support::{CLUSTER_ID, MachineCache, Server, verdict};

const KEYS: usize = 300;

async fn filled(limits: Limits) -> Server {
    let server = Server::start_with(MachineCache::open(), limits).await;
    let mut client = server.cache_client();
    for i in 0..KEYS {
        let value = Bytes::from(vec![i as u8; 30_000]);
        let set = pb::SetRequest { key: format!("k/{i:04}").into(), value, ..Default::default() };
        client.set(set).await.unwrap();
    }
    client.set(pb::SetRequest { key: "other".into(), ..Default::default() }).await.unwrap();
    server
}

async fn scan(server: &Server, request: pb::ScanRequest) -> Vec<pb::ScanResponse> {
    let mut stream = server.cache_client().scan(request).await.unwrap().into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        let header = chunk.header.as_ref().unwrap();
        assert_eq!((header.cluster_id.as_str(), header.revision), (CLUSTER_ID, KEYS as u64 + 1));
        chunks.push(chunk);
    }
    let (last, others) = chunks.split_last().unwrap();
    assert!(last.done && others.iter().all(|chunk| !chunk.done));
    chunks
}

fn keys(chunks: &[pb::ScanResponse]) -> Vec<String> {
    let entries = chunks.iter().flat_map(|chunk| &chunk.entries);
    entries.map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()).collect()
}

fn all_keys() -> impl DoubleEndedIterator<Item = String> {
    (0..KEYS).map(|i| format!("k/{i:04}"))
}

#[tokio::test]
async fn a_scan_is_chunked_ordered_and_complete() {
    let server = filled(Limits::default()).await;
    let prefix = || pb::ScanRequest { prefix: "k/".into(), ..Default::default() };
    let chunks = scan(&server, prefix()).await;
    assert!(chunks.len() >= 9, "9 MB in {} chunks", chunks.len());
    for chunk in &chunks {
        let bytes: usize = chunk.entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
        assert!(bytes <= 1024 * 1024, "{bytes}");
    }
    assert!(keys(&chunks).into_iter().eq(all_keys()));
    let entry = &chunks[0].entries[7];
    assert_eq!((entry.version, &entry.value[..]), (8, &[7; 30_000][..]));

    let rest = scan(&server, pb::ScanRequest { start_after: "k/0289".into(), ..prefix() }).await;
    assert!(keys(&rest).into_iter().eq(all_keys().skip(290)));
    let first = scan(&server, pb::ScanRequest { limit: 5, keys_only: true, ..prefix() }).await;
    assert!(keys(&first).into_iter().eq(all_keys().take(5)));
    assert!(first[0].entries.iter().all(|entry| entry.value.is_empty() && entry.version > 0));
    let none = scan(&server, pb::ScanRequest { prefix: "nothing".into(), ..Default::default() }).await;
    assert_eq!((none.len(), none[0].entries.len()), (1, 0));
    let everything = scan(&server, pb::ScanRequest::default()).await;
    assert_eq!(keys(&everything).len(), KEYS + 1);
    server.stop().await;
}

#[tokio::test]
async fn scans_at_once_are_bounded_and_a_dropped_one_makes_room() {
    let server = filled(Limits { scans: 1, ..Limits::default() }).await;
    let request = || pb::ScanRequest::default();
    let held = server.cache_client().scan(request()).await.unwrap();
    let status = server.cache_client().scan(request()).await.unwrap_err();
    assert_eq!(verdict(&status), (Code::ResourceExhausted, "RESOURCE_EXHAUSTED".into(), "NO".into()));
    assert!(status.message().contains("limit of 1 scans"), "{status:?}");
    drop(held);
    // The server hears of it in its own time.
    while server.cache_client().scan(request()).await.is_err() {
        tokio::task::yield_now().await;
    }
    server.stop().await;
}
