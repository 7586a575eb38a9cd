//! As the first process of a container Larder has no default signal handlers and no shell around it: SIGTERM must still
//! end it in order. And in a pod its slot is the ordinal at the end of the hostname.

use std::{fs, process::Command, time::Duration};

use super::harness::{Cluster, Options, eventually, signal};

/// What makes a process number one of its own world.
const UNSHARE: &[&str] = &["unshare", "--pid", "--fork", "--kill-child"];

/// What this machine lacks; `None` if it can.
pub fn missing() -> Option<String> {
    let tried = Command::new(UNSHARE[0]).args(&UNSHARE[1..]).arg("true").output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            Some(format!("it needs a PID namespace: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(e) => Some(format!("it needs unshare: {e}")),
    }
}

pub async fn sigterm_ends_it_in_order() {
    let mut cluster = Cluster::prepare(&Options::default());
    for node in &mut cluster.nodes {
        node.wrapper = UNSHARE.iter().map(|s| (*s).to_owned()).collect();
    }
    cluster.start_all();
    cluster.wait_ready().await;
    cluster.client(0).set("key", "value").await.unwrap();
    for slot in 0..3 {
        signal("TERM", only_child(cluster.nodes[slot].pid()));
        let exit = cluster.nodes[slot].exit(Duration::from_secs(20)).await;
        assert_eq!(exit.code, Some(0), "said: {}", exit.log);
        cluster.nodes[slot].start();
        cluster.nodes[slot].wait_ready(Duration::from_secs(30)).await;
    }
    let read = async || cluster.client(0).get("key").await.map_err(|e| e.to_string());
    let value = eventually("the value", Duration::from_secs(10), read).await;
    assert_eq!(value.as_deref(), Some(b"value".as_slice()));
}

/// Runs what follows in a world of its own, with this hostname.
fn with_hostname(name: &str) -> Vec<String> {
    let script = format!("echo {name} > /proc/sys/kernel/hostname && exec \"$@\"");
    ["unshare", "--uts", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

/// What this machine lacks for that; `None` if it can.
pub fn hostname_missing() -> Option<String> {
    let command = with_hostname("larder-0");
    let tried = Command::new(&command[0]).args(&command[1..]).arg("true").output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            Some(format!("it needs a UTS namespace: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(e) => Some(format!("it needs unshare: {e}")),
    }
}

pub async fn the_hostname_says_the_slot_or_what_to_do() {
    let mut cluster = Cluster::prepare(&Options { nodes: 1, ..Options::with("--seeds", "0") });
    let node = &mut cluster.nodes[0];
    let at = node.args.iter().position(|arg| arg == "--slot").unwrap();
    node.args.drain(at..at + 4);
    node.args.extend(["--peer-template".to_owned(), "larder-{slot}.invalid:7401".to_owned()]);

    node.wrapper = with_hostname("worker");
    node.start();
    let exit = node.exit(Duration::from_secs(10)).await;
    assert_eq!(exit.code, Some(2), "said: {}", exit.log);
    for word in ["hostname \"worker\"", "ordinal", "--slot"] {
        assert!(exit.log.contains(word), "{word} is missing in: {}", exit.log);
    }
    assert!(!node.data.join("identity").exists(), "nothing was formatted");

    node.wrapper = with_hostname("larder-0");
    node.start();
    cluster.wait_ready().await;
    let status = cluster.status(0).await.unwrap();
    assert_eq!(status.header.unwrap().node.unwrap().slot, "0");
}

/// The process that unshare made.
fn only_child(parent: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.trim().parse().unwrap_or_else(|_| panic!("one child of {parent}, not {children:?}"))
}
