//! What an operator gets wrong ends with the right exit code and a sentence that says what to do.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::harness::{Cluster, Exit, Node, Options, alone, eventually, larder, shared};

/// How long a process that cannot start may take to say so.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn other_than_one_or_three_seeds_is_a_usage_error() {
    let _machine = shared().await;
    for seeds in ["0,1", "0,1,2,3"] {
        let mut cluster = Cluster::prepare(&Options { nodes: 5, ..Options::with("--seeds", seeds) });
        cluster.nodes[0].start();
        let exit = cluster.nodes[0].exit(SOON).await;
        assert_exit(&exit, 2, &["seeds", "1 or 3"]);
        assert!(!cluster.nodes[0].data.join("identity").exists(), "nothing was formatted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_flags_and_settings_are_usage_errors() {
    let _machine = shared().await;
    let bad: [&[&str]; 8] = [
        &["serve", "--no-such-flag"],
        &[
            "serve",
            "--max-voters",
            "4",
            "--slot",
            "0",
            "--peers",
            "0=127.0.0.1:1",
            "--data-dir",
            "/nonexistent",
        ],
        &["serve", "--slot", "0", "--peer-template", "{slot}:1", "--data-dir", "/nonexistent"],
        &["serve", "--ephemeral=perhaps", "--slot", "0"],
        &["serve", "--slot", "7", "--peers", "0=127.0.0.1:1", "--data-dir", "/nonexistent"],
        &["serve", "--slot", "0", "--peers", "nonsense", "--data-dir", "/nonexistent"],
        &["serve", "--slot", "0", "--peers", "0=127.0.0.1:1", "--client-addr", "nowhere"],
        &["no-such-command"],
    ];
    for args in bad {
        let output = larder().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.len() > 20 && !said.contains("panicked"), "{args:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_of_the_config_file_is_an_error() {
    let _machine = shared().await;
    let mut cluster = Cluster::prepare(&Options { nodes: 1, ..Options::default() });
    let file = cluster.home().join("larder.toml");
    std::fs::write(&file, "no_such_setting = 1\n").unwrap();
    cluster.nodes[0].args.extend(["--config".to_owned(), file.display().to_string()]);
    cluster.nodes[0].start();
    let exit = cluster.nodes[0].exit(SOON).await;
    assert_exit(&exit, 2, &["no_such_setting"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_kubernetes_do_not_disturb() {
    let _machine = shared().await;
    let mut cluster = Cluster::prepare(&Options { nodes: 1, ..Options::default() });
    // What a Service named larder puts into every pod of its namespace.
    let settings =
        ["LARDER_PORT=tcp://10.0.0.1:7400", "LARDER_SERVICE_HOST=10.0.0.1", "LARDER_NO_SUCH_THING=1"];
    cluster.nodes[0].wrapper = ["env"].iter().chain(&settings).map(|s| (*s).to_owned()).collect();
    cluster.nodes[0].start();
    cluster.wait_ready().await;
    cluster.client(0).set("key", "value").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let _machine = shared().await;
    for kind in 0..3 {
        let mut cluster = Cluster::prepare(&Options { nodes: 1, ..Options::default() });
        let address = format!("{}:{}", cluster.nodes[0].address, Node::port(0, kind));
        let _taken = TcpListener::bind(&address).unwrap();
        cluster.nodes[0].start();
        let exit = cluster.nodes[0].exit(SOON).await;
        assert_exit(&exit, 1, &[&address, "-addr"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_of_another_node_is_refused() {
    let _machine = alone().await;
    let mut cluster = Cluster::start(&Options::default()).await;
    cluster.client(0).set("key", "value").await.unwrap();
    cluster.kill_all();

    // Another slot's, in the same cluster.
    let (own, other) = (cluster.nodes[0].data.clone(), cluster.nodes[1].data.clone());
    cluster.nodes[0].set_data_dir(&other);
    cluster.nodes[0].start();
    let exit = cluster.nodes[0].exit(SOON).await;
    assert_exit(&exit, 1, &["slot"]);
    cluster.nodes[0].set_data_dir(&own);

    // One that runs already, so that two processes would share it.
    cluster.start_all();
    cluster.wait_ready().await;
    let mut second = Cluster::prepare(&Options { nodes: 1, ..Options::default() });
    second.nodes[0].set_data_dir(&own);
    second.nodes[0].start();
    let exit = second.nodes[0].exit(SOON).await;
    assert_exit(&exit, 1, &[]);
    cluster.client(0).set("still", "served").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_of_another_cluster_never_mixes_in() {
    let _machine = alone().await;
    let mut first = Cluster::start(&Options::default()).await;
    let mut second = Cluster::start(&Options::default()).await;
    first.client(0).set("key", "first").await.unwrap();
    second.client(0).set("key", "second").await.unwrap();
    first.nodes[2].kill();
    second.nodes[2].kill();

    // The slot is right, the cluster is not: it must neither be led here nor lead here.
    first.nodes[2].set_data_dir(&second.nodes[2].data);
    first.nodes[2].start();
    let why =
        eventually("the foreign node to end, or to say why it is not ready", SOON * 2, async || match first
            .nodes[2]
            .http("/readyz")
            .await
        {
            Ok((503, body)) if body.contains("cluster") => Ok(body),
            Ok((200, body)) => panic!("a node of another cluster became ready: {body}"),
            Ok((code, body)) => Err(format!("{code} {body}")),
            Err(e) if first.nodes[2].output().contains("another cluster") => Ok(first.nodes[2].output() + &e),
            Err(e) => Err(e),
        })
        .await;
    println!("the node of another cluster says: {why}");
    for slot in [0, 1] {
        assert_eq!(first.client(slot).get("key").await.unwrap().as_deref(), Some(b"first".as_slice()));
    }
    first.client(0).set("key", "still first").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_of_a_newer_release_and_a_damaged_one_are_refused() {
    let _machine = shared().await;
    let mut cluster = Cluster::start(&Options { nodes: 1, ..Options::default() }).await;
    cluster.nodes[0].kill();
    let file = cluster.nodes[0].data.join("identity");
    let good = std::fs::read(&file).unwrap();
    let mut bad = Vec::new();
    // Format 2, whole: the magic, the format, ..., and the checksum of all before it.
    let mut newer = good[..good.len() - 4].to_vec();
    newer[8..12].copy_from_slice(&2_u32.to_be_bytes());
    newer.extend(crc32c::crc32c(&newer).to_be_bytes());
    bad.push((newer, "format 2"));
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        bad.push((flipped, "damaged"));
    }
    bad.push((good[..good.len() / 2].to_vec(), "damaged"));
    bad.push((Vec::new(), "damaged"));
    for (content, why) in bad {
        std::fs::write(&file, &content).unwrap();
        cluster.nodes[0].start();
        let exit = cluster.nodes[0].exit(SOON).await;
        assert_exit(&exit, 1, &["identity", why]);
    }
    std::fs::write(&file, &good).unwrap();
    cluster.nodes[0].start();
    cluster.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_or_harmless_and_never_a_silent_loss() {
    let _machine = alone().await;
    let options = Options { nodes: 1, args: vec!["--snapshot-log-bytes".into(), (1 << 20).to_string()] };
    let mut cluster = Cluster::start(&options).await;
    let keys = 1500_u32;
    let value = |key: u32| format!("{key}-{}", "v".repeat(1000));
    let pairs: Vec<_> = (0..keys).map(|key| (key.to_string().into(), value(key).into())).collect();
    for batch in pairs.chunks(100) {
        cluster.client(0).set_all(batch.to_vec()).await.unwrap();
    }
    eventually("a snapshot", SOON * 3, async || match cluster.status(0).await?.snapshot_index {
        0 => Err("none yet".to_owned()),
        index => Ok(index),
    })
    .await;
    cluster.nodes[0].kill();
    let mut refused = 0;
    let files = files_below(&cluster.nodes[0].data);
    let good: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    for damaged in 0..files.len() {
        for damage in [cut_in_half, zero_a_block_in_the_middle] {
            // Each time from the same good state: a node that starts writes.
            for file in files_below(&cluster.nodes[0].data) {
                std::fs::remove_file(file).unwrap();
            }
            for (file, content) in files.iter().zip(&good) {
                std::fs::write(file, content).unwrap();
            }
            let bad = damage(&good[damaged]);
            if bad == good[damaged] {
                continue;
            }
            std::fs::write(&files[damaged], bad).unwrap();
            let node = &mut cluster.nodes[0];
            node.start();
            let what = format!("node 0 to be ready or to end, with {} damaged", files[damaged].display());
            let ready = eventually(&what, SOON * 2, async || match node.ended() {
                true => Ok(false),
                false => node.ready().await.map(|()| true),
            })
            .await;
            if !ready {
                let exit = node.exit(SOON).await;
                println!("{}: {}", files[damaged].display(), exit.log.lines().last().unwrap_or_default());
                assert_exit(&exit, 1, &[]);
                refused += 1;
                continue;
            }
            println!("{}: harmless", files[damaged].display());
            let client = cluster.client(0);
            for key in 0..keys {
                let found = client.get(key.to_string()).await.unwrap();
                assert_eq!(found, Some(value(key).into()), "{key} with {} damaged", files[damaged].display());
            }
            cluster.nodes[0].kill();
        }
    }
    assert!(refused >= 3, "a damaged identity, log and snapshot at least are refused, not only {refused}");
}

fn cut_in_half(good: &[u8]) -> Vec<u8> {
    good[..good.len() / 2].to_vec()
}

fn zero_a_block_in_the_middle(good: &[u8]) -> Vec<u8> {
    let mut bad = good.to_vec();
    let (middle, length) = (good.len() / 2, good.len().min(4096) / 2);
    bad[middle..middle + length].fill(0);
    bad
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The exit code is right, and what was said holds these words and is no panic.
fn assert_exit(exit: &Exit, code: i32, words: &[&str]) {
    assert_eq!(exit.code, Some(code), "said: {}", exit.log);
    for word in words {
        assert!(exit.log.contains(word), "{word:?} is missing in: {}", exit.log);
    }
    assert!(
        !exit.log.contains("panicked") && exit.log.trim().len() > 20,
        "a sentence is missing: {}",
        exit.log
    );
}
