//! As the first process of a container Larder has no default signal handlers and no shell around it: SIGTERM must still
//! end it in order.

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

/// The process that unshare made.
fn only_child(parent: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.trim().parse().unwrap_or_else(|_| panic!("one child of {parent}, not {children:?}"))
}
