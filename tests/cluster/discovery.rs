//! Nodes that find one another by a template and the scale file, and nodes that keep nothing.

use std::{fs, path::Path, time::Duration};

use crate::harness::{Cluster, Node, Options, shared};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node on a loopback address of its own, whose slot is that address.
fn place(scale_file: &Path) -> Cluster {
    let mut place = Cluster::prepare(&Options { nodes: 1, ..Options::default() });
    let node = &mut place.nodes[0];
    let address = node.address.clone();
    let scale_file = scale_file.display().to_string();
    replace(node, "--slot", &["--slot", &address]);
    replace(node, "--peers", &["--peer-template", "{slot}:7401", "--scale-file", &scale_file]);
    place
}

/// Puts other arguments in the place of a flag and its value.
fn replace(node: &mut Node, flag: &str, with: &[&str]) {
    let at = node.args.iter().position(|arg| arg == flag).expect("every node has it");
    node.args.splice(at..at + 2, with.iter().map(|arg| (*arg).to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_and_the_scale_file_found_a_cluster_and_only_that_needs_the_file() {
    let _machine = shared().await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("scale.toml");
    let mut places: Vec<_> = (0..3).map(|_| place(&file)).collect();

    places[0].nodes[0].start();
    let exit = places[0].nodes[0].exit(PATIENCE).await;
    assert_eq!(exit.code, Some(2), "{}", exit.log);
    assert!(exit.log.contains("scale.toml cannot be read"), "{}", exit.log);

    let seeds: Vec<_> = places.iter().map(|place| place.nodes[0].address.clone()).collect();
    fs::write(&file, format!("seeds = \"{}\"\nreplicas = 3\n", seeds.join(","))).unwrap();
    for place in &mut places {
        place.start_all();
    }
    for place in &places {
        place.wait_ready().await;
    }
    places[0].client(0).set("key", "value").await.unwrap();

    fs::remove_file(&file).unwrap();
    places[1].kill_all();
    places[1].start_all();
    places[1].wait_ready().await;
    let output = places[1].nodes[0].output();
    assert!(output.contains("scale.toml cannot be read") && output.contains("starts without"), "{output}");
    assert_eq!(places[1].client(0).get("key").await.unwrap().as_deref(), Some(&b"value"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_node_is_a_new_member_at_each_start() {
    let _machine = shared().await;
    let mut options = Options { nodes: 1, ..Options::default() };
    options.args.push("--ephemeral".into());
    let mut cluster = Cluster::prepare(&options);
    let mut ids = Vec::new();
    for _ in 0..3 {
        cluster.start_all();
        cluster.wait_ready().await;
        let status = cluster.status(0).await.unwrap();
        let id = status.header.and_then(|header| header.node).expect("a node that is ready has a name").id;
        assert!(!ids.contains(&id), "{id} came back: {ids:?}");
        ids.push(id);
        assert_eq!(cluster.client(0).get("key").await.unwrap(), None);
        cluster.client(0).set("key", "value").await.unwrap();
        cluster.kill_all();
    }
    // The same directory, kept from here on: the last member is still there.
    cluster.nodes[0].args.retain(|arg| arg != "--ephemeral");
    cluster.start_all();
    cluster.wait_ready().await;
    assert_eq!(cluster.client(0).get("key").await.unwrap().as_deref(), Some(&b"value"[..]));
}
