use std::{collections::BTreeMap, net::SocketAddr};

use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::{
    net::TableResolver,
    raft::{Host, hello, service},
    store::{Binding, Identity, Snapshots, raft_id},
    time::SystemClock,
};

/// The peers of the node in `slot`, which dials slot 1 as `node-1:7401`.
fn peers(slot: &str, incarnation: Uuid, resolver: Arc<TableResolver>) -> Arc<Peers> {
    let myself = Myself {
        slot: slot.into(),
        incarnation,
        raft_id: raft_id(incarnation),
        boot_counter: 1,
        nonce: 1,
        client_address: String::new(),
        memory_limit_bytes: 0,
        seeds: Vec::new(),
    };
    let directory = BTreeMap::from([("1".to_string(), "node-1:7401".to_string())]);
    Peers::new(myself, Arc::new(SystemClock::new()), Arc::new(directory), resolver)
}

/// A peer port behind which the incarnation answers Hello for slot 1.
struct Peer {
    address: SocketAddr,
    serving: JoinHandle<()>,
    stop: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

impl Peer {
    async fn serve(incarnation: Uuid) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), incarnation, GROUP).unwrap();
        let identity =
            Identity { incarnation, slot: "1".into(), boot_counter: 1, binding: Binding::Formatted };
        let peers = peers("1", incarnation, Arc::default());
        let host = Host::new(peers, snapshots, watch::channel(identity).1, Arc::new(|_| ()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, mut stopped) = watch::channel(false);
        let serving = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service(host))
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), async move {
                    let _ = stopped.wait_for(|stop| *stop).await;
                })
                .await
                .unwrap();
        });
        Self { address, serving, stop, _dir: dir }
    }

    /// Closes the port and every connection to it.
    async fn stop(self) {
        self.stop.send_replace(true);
        self.serving.await.unwrap();
    }
}

#[tokio::test]
async fn the_name_is_resolved_anew_at_every_dial() {
    let table = Arc::new(TableResolver::new());
    table.refuse("node-1", "the server is away");
    let me = peers("0", Uuid::from_u128(10), table.clone());
    // No failure is remembered, and what was connected once is not preferred: the same lane goes on with whom the name means.
    assert_eq!(hello(&me, "1").await.unwrap_err(), "node-1:7401 does not resolve: the server is away");
    for incarnation in [11, 12].map(Uuid::from_u128) {
        let peer = Peer::serve(incarnation).await;
        table.set("node-1", [peer.address]);
        // The dial that the closing of the last connection began may still fail.
        let answer = loop {
            match hello(&me, "1").await {
                Ok(answer) => break answer,
                Err(why) => assert!(!why.contains("resolve"), "{why}"),
            }
        };
        assert_eq!(answer.from.incarnation, incarnation);
        peer.stop().await;
        let gone = hello(&me, "1").await.unwrap_err();
        assert!(gone.starts_with("node-1:7401 does not answer: "), "{gone}");
    }
}

#[tokio::test]
async fn a_slot_that_nobody_knows_is_said() {
    let me = peers("0", Uuid::from_u128(10), Arc::default());
    assert_eq!(hello(&me, "7").await.unwrap_err(), "nobody says where slot 7 is");
}

#[tokio::test]
async fn who_called_is_dialled_back_while_its_name_leads_nowhere() {
    let table = Arc::new(TableResolver::new());
    table.refuse("node-1", "there is no such name");
    let incarnation = Uuid::from_u128(11);
    let peer = Peer::serve(incarnation).await;
    // The port stands in the list of peers, as the address that was seen has none.
    let directory = BTreeMap::from([("1".to_string(), format!("node-1:{}", peer.address.port()))]);
    let me = peers("0", Uuid::from_u128(10), table.clone());
    let myself =
        Myself { slot: "0".into(), seeds: Vec::new(), client_address: String::new(), ..*me.myself() };
    let me = Peers::new(myself, Arc::new(SystemClock::new()), Arc::new(directory), table.clone());
    assert!(hello(&me, "1").await.unwrap_err().contains("there is no such name"));
    me.saw("1", peer.address.ip());
    assert_eq!(hello(&me, "1").await.unwrap().from.incarnation, incarnation);
    peer.stop().await;
    // What is wrong with the name is said, not what is wrong with the hint.
    loop {
        let why = hello(&me, "1").await.unwrap_err();
        if why.contains("there is no such name") {
            break;
        }
    }
}
